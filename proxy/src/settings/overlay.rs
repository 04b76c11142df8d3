//! Settings given by name, in a file or as `path=value`, laid over the defaults. Pure.
//!
//! Called by the command line. The shape is the [`Settings`] tree itself: a complete example of it is serialized and
//! every given key is looked up there, so a new field is known here without being named twice. A key that is not
//! there is an error with the nearest one that is; nothing is ignored.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use serde_json::{Map, Value};
use thiserror::Error;

use super::{
    ControlPlane, DrainSettings, EjectionSettings, InboundListener, Limits, Listeners, LocalListener, NodeSettings,
    OverloadSettings, RuntimeKind, Settings, TelemetrySettings, Timeouts, TransparentListeners, parse_duration,
};

/// A setting that cannot be taken.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SettingProblem {
    #[error("unknown setting `{path}`{}", suggestion(.near))]
    Unknown { path: String, near: Option<String> },
    #[error("setting `{path}` must be {wanted}, not {found}")]
    Type { path: String, wanted: &'static str, found: String },
    #[error("setting `{path}`: {reason}")]
    Value { path: String, reason: String },
    #[error("`{text}` names no value (hint: write path=value, for example limits.connections=20000)")]
    NoValue { text: String },
    #[error("settings must be a mapping such as `limits: {{connections: 20000}}`, not {found}")]
    NotMapping { found: String },
}

fn suggestion(near: &Option<String>) -> String {
    near.as_ref().map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default()
}

/// Lays a tree of values over `base`.
///
/// Errors: the first key or value that does not fit, by path.
pub fn merge(base: &Settings, given: &Value) -> Result<Settings, SettingProblem> {
    let Value::Object(keys) = given else {
        return if given.is_null() {
            Ok(base.clone())
        } else {
            Err(SettingProblem::NotMapping { found: describe(given) })
        };
    };
    let shape = shape();
    check_object(&mut Vec::new(), keys, &shape, &shape)?;
    let mut leaves = Vec::new();
    collect(&mut Vec::new(), keys, &shape, &mut leaves);
    let mut settings = base.clone();
    for (path, value) in leaves {
        settings = put(&settings, &path, value)?;
    }
    Ok(settings)
}

/// Lays one `path=value` over `base`; the value is read as JSON where it is JSON, else as text.
///
/// Errors: as for [`merge`], and text without a `=`.
pub fn set(base: &Settings, text: &str) -> Result<Settings, SettingProblem> {
    let (path, value) = text.split_once('=').ok_or_else(|| SettingProblem::NoValue { text: text.to_owned() })?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    let tree = path.trim().rsplit('.').fold(value, |inner, key| {
        let mut object = Map::new();
        object.insert(key.to_owned(), inner);
        Value::Object(object)
    });
    merge(base, &tree)
}

fn put(base: &Settings, path: &[String], value: Value) -> Result<Settings, SettingProblem> {
    let failed = |reason: String| SettingProblem::Value { path: path.join("."), reason };
    let mut tree = serde_json::to_value(base).map_err(|error| failed(error.to_string()))?;
    let mut place = &mut tree;
    for key in path {
        if place.is_null() {
            *place = Value::Object(Map::new());
        }
        let Value::Object(object) = place else { return Err(failed("is not a mapping".to_owned())) };
        place = object.entry(key.clone()).or_insert(Value::Null);
    }
    *place = value;
    let mut settings: Settings = serde_json::from_value(tree).map_err(|error| failed(plain(&error)))?;
    // The token is never written out, so it does not come back either.
    if let (Some(new), Some(old)) = (settings.control_plane.as_mut(), base.control_plane.as_ref()) {
        new.token.clone_from(&old.token);
    }
    for inbound in &mut settings.listeners.inbound {
        if inbound.target_port == 0 {
            inbound.target_port = inbound.application.port();
        }
    }
    check_ranges(&settings).map_err(|(path, reason)| SettingProblem::Value { path: path.to_owned(), reason })?;
    Ok(settings)
}

/// serde's message without the position in a text that the user never saw.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

/// Limits that must not be zero or beyond what the protocol can say.
fn check_ranges(settings: &Settings) -> Result<(), (&'static str, String)> {
    let limits = &settings.limits;
    let at_least_one = [
        ("limits.http1_head_bytes", limits.http1_head_bytes as u64),
        ("limits.http2_header_list_bytes", u64::from(limits.http2_header_list_bytes)),
        ("limits.header_fields", limits.header_fields as u64),
        ("limits.uri_bytes", limits.uri_bytes as u64),
        ("limits.http2_streams", u64::from(limits.http2_streams)),
        ("limits.http2_control_frames", u64::from(limits.http2_control_frames)),
        ("limits.mesh_streams", u64::from(limits.mesh_streams)),
        ("limits.http2_stream_window_bytes", u64::from(limits.http2_stream_window_bytes)),
        ("limits.http2_connection_window_bytes", u64::from(limits.http2_connection_window_bytes)),
        ("limits.connection_buffer_bytes", limits.connection_buffer_bytes as u64),
        ("limits.connections", limits.connections as u64),
        ("limits.handshakes", limits.handshakes as u64),
        ("limits.requests_per_connection", limits.requests_per_connection),
        ("limits.pending_demands", limits.pending_demands as u64),
        ("telemetry.series", settings.telemetry.series as u64),
        ("workers", settings.workers.unwrap_or(1) as u64),
    ];
    for (path, value) in at_least_one {
        if value == 0 {
            return Err((path, "must be at least 1 (hint: there is no value for unlimited)".to_owned()));
        }
    }
    // RFC 9113 §6.9.1: "A sender MUST NOT allow a flow-control window to exceed 2^31-1 octets."
    const WINDOW_MAX: u32 = (1 << 31) - 1;
    for (path, value) in [
        ("limits.http2_stream_window_bytes", limits.http2_stream_window_bytes),
        ("limits.http2_connection_window_bytes", limits.http2_connection_window_bytes),
    ] {
        if value > WINDOW_MAX {
            return Err((path, format!("{value} is more than HTTP/2 allows (hint: at most {WINDOW_MAX})")));
        }
    }
    for (path, percent) in [
        ("ejection.max_percent", settings.ejection.max_percent),
        ("ejection.panic_percent", settings.ejection.panic_percent),
        ("overload.shed_percent", settings.overload.shed_percent),
        ("overload.stop_percent", settings.overload.stop_percent),
        ("overload.reserved_descriptors_percent", settings.overload.reserved_descriptors_percent),
    ] {
        if percent > 100 {
            return Err((path, format!("{percent} is no percentage (hint: 0 to 100)")));
        }
    }
    if settings.overload.reserved_descriptors_percent > 50 {
        let reason = "leaves less than half of the descriptors for connections (hint: 0 to 50)".to_owned();
        return Err(("overload.reserved_descriptors_percent", reason));
    }
    Ok(())
}

fn check_object(
    path: &mut Vec<String>,
    given: &Map<String, Value>,
    shape: &Value,
    root: &Value,
) -> Result<(), SettingProblem> {
    let Value::Object(known) = shape else { return Ok(()) };
    // An empty mapping in the example takes any keys: labels.
    let free = known.is_empty();
    for (key, value) in given {
        path.push(key.clone());
        match known.get(key) {
            Some(expected) => check_value(path, value, expected, root)?,
            None if free && value.is_string() => {}
            None if free => return Err(mismatch(path, "text", value)),
            None => return Err(SettingProblem::Unknown { path: path.join("."), near: nearest(path, root) }),
        }
        path.pop();
    }
    Ok(())
}

fn check_value(path: &mut Vec<String>, given: &Value, shape: &Value, root: &Value) -> Result<(), SettingProblem> {
    match (given, shape) {
        // Whether the field may be absent is serde's to know.
        (Value::Null, _) => Ok(()),
        (Value::Object(keys), Value::Object(_)) => check_object(path, keys, shape, root),
        (Value::Array(items), Value::Array(example)) => {
            for (index, item) in items.iter().enumerate() {
                if let Some(example) = example.first() {
                    path.push(format!("[{index}]"));
                    check_value(path, item, example, root)?;
                    path.pop();
                }
            }
            Ok(())
        }
        (Value::Number(_), Value::Number(_)) | (Value::Bool(_), Value::Bool(_)) => Ok(()),
        (Value::String(text), Value::String(example)) => {
            if parse_duration(example).is_ok() {
                parse_duration(text).map_err(|reason| SettingProblem::Value { path: path.join("."), reason })?;
            }
            Ok(())
        }
        (_, Value::Object(_)) => Err(mismatch(path, "a mapping", given)),
        (_, Value::Array(_)) => Err(mismatch(path, "a list", given)),
        (_, Value::Number(_)) => Err(mismatch(path, "a number", given)),
        (_, Value::Bool(_)) => Err(mismatch(path, "true or false", given)),
        (_, Value::String(example)) if parse_duration(example).is_ok() => {
            Err(mismatch(path, "a duration such as 10s", given))
        }
        (_, Value::String(_)) => Err(mismatch(path, "text", given)),
        (_, Value::Null) => Ok(()),
    }
}

fn mismatch(path: &[String], wanted: &'static str, given: &Value) -> SettingProblem {
    SettingProblem::Type { path: path.join("."), wanted, found: describe(given) }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::String(value) => format!("\"{}\"", value.chars().take(40).collect::<String>()),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    }
}

/// The given values by path; a list is one value.
fn collect(path: &mut Vec<String>, given: &Map<String, Value>, shape: &Value, into: &mut Vec<(Vec<String>, Value)>) {
    for (key, value) in given {
        path.push(key.clone());
        let inner = shape.get(key).unwrap_or(&Value::Null);
        match value {
            // Optional groups and labels are put whole: half of one does not read back.
            Value::Object(keys) if !OPTIONAL_GROUPS.contains(&path.join(".").as_str()) => {
                collect(path, keys, inner, into);
            }
            _ => into.push((path.clone(), value.clone())),
        }
        path.pop();
    }
}

const OPTIONAL_GROUPS: [&str; 3] = ["control_plane", "listeners.transparent", "node.labels"];

/// The known path nearest to a wrong one: the same key elsewhere, or a key that differs in a few letters.
fn nearest(path: &[String], root: &Value) -> Option<String> {
    let mut known = Vec::new();
    paths(&mut Vec::new(), root, &mut known);
    let wrong = path.join(".");
    let key = path.last()?;
    if let Some(same_key) = known.iter().find(|known| known.rsplit('.').next() == Some(key.as_str())) {
        return Some(same_key.clone());
    }
    known
        .into_iter()
        .map(|known| (distance(&known, &wrong).min(distance(known.rsplit('.').next().unwrap_or(&known), key)), known))
        .filter(|(distance, _)| *distance <= 2 + key.len() / 5)
        .min()
        .map(|(_, known)| known)
}

fn paths(path: &mut Vec<String>, shape: &Value, into: &mut Vec<String>) {
    if let Value::Object(keys) = shape {
        for (key, inner) in keys {
            path.push(key.clone());
            into.push(path.join("."));
            paths(path, inner, into);
            path.pop();
        }
    }
}

/// Letters to insert, delete, replace or swap to get from one word to the other.
pub fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    for (row, from) in one.iter().enumerate() {
        let mut current = Vec::with_capacity(last.len());
        current.push(row + 1);
        for (column, to) in other.iter().enumerate() {
            let at = |line: &[usize], index: usize| line.get(index).copied().unwrap_or(usize::MAX / 2);
            let replaced = at(&last, column) + usize::from(from != to);
            let mut best = replaced.min(at(&last, column + 1) + 1).min(at(&current, column) + 1);
            let swapped = row > 0 && column > 0 && one.get(row - 1) == Some(to) && other.get(column - 1) == Some(from);
            if swapped {
                best = best.min(at(&before_last, column - 1) + 1);
            }
            current.push(best);
        }
        before_last = std::mem::replace(&mut last, current);
    }
    last.last().copied().unwrap_or(0)
}

/// Every key there is: an example with nothing left out.
fn shape() -> Value {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let example = Settings {
        node: NodeSettings {
            namespace: "default".to_owned(),
            workload: "-".to_owned(),
            service_account: "default".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            labels: BTreeMap::new(),
            locality: String::new(),
        },
        listeners: Listeners {
            inbound: vec![InboundListener {
                listen: address,
                application: address,
                target_port: 1,
                port_name: String::new(),
            }],
            outbound: vec![address],
            local: vec![LocalListener { listen: address, host: String::new(), port: 1 }],
            transparent: Some(TransparentListeners {
                address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                mark: Some(1),
                ..TransparentListeners::default()
            }),
            admin: Some(address),
            ready: Some(address),
            dns: vec![address],
        },
        control_plane: Some(ControlPlane {
            address: String::new(),
            token: None,
            root_file: Some(PathBuf::from("root.pem")),
        }),
        limits: Limits::default(),
        timeouts: Timeouts::default(),
        ejection: EjectionSettings::default(),
        overload: OverloadSettings::default(),
        telemetry: TelemetrySettings::default(),
        drain: DrainSettings::default(),
        workers: Some(1),
        runtime: RuntimeKind::default(),
        identity_dir: Some(PathBuf::from("identity")),
        state_dir: Some(PathBuf::from("state")),
    };
    serde_json::to_value(example).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::arguments::defaults;

    #[test]
    fn every_printed_setting_reads_back_as_itself() {
        // A printed configuration that does not load again would make --print-settings useless as a start.
        let mut settings = defaults();
        settings.limits.connections = 7;
        settings.timeouts.demand = Duration::from_micros(1500);
        let tree = serde_json::to_value(&settings).unwrap();
        let again = merge(&defaults(), &tree).unwrap();
        assert_eq!(serde_json::to_value(again).unwrap(), tree);
    }

    #[test]
    fn values_land_where_their_path_says() {
        // A limit that is accepted and not applied leaves the operator believing in a bound that is not there.
        let base = defaults();
        assert_eq!(set(&base, "limits.connections=20000").unwrap().limits.connections, 20_000);
        assert_eq!(set(&base, "timeouts.idle=1h30m").unwrap().timeouts.idle, Duration::from_secs(5400));
        assert_eq!(set(&base, "runtime=multi-thread").unwrap().runtime, RuntimeKind::MultiThread);
        assert_eq!(set(&base, "node.labels.version=v1").unwrap().node.labels.get("version").unwrap(), "v1");
        assert_eq!(set(&base, "workers=3").unwrap().workers, Some(3));
        let no_ejection = set(&base, "ejection.consecutive_failures=0").unwrap().ejection;
        assert_eq!((base.ejection.policy().is_some(), no_ejection.policy()), (true, None));
        assert_eq!(set(&base, "listeners.admin=127.0.0.1:15000").unwrap().listeners.admin.unwrap().port(), 15000);
    }

    #[test]
    fn wrong_settings_name_the_path_and_the_fix() {
        // "invalid type at line 0" would send the operator through the source.
        let cases = [
            ("limits.conections=5", "unknown setting `limits.conections` (did you mean `limits.connections`?)"),
            ("connections=5", "unknown setting `connections` (did you mean `limits.connections`?)"),
            ("timeout.idle=5s", "unknown setting `timeout` (did you mean `timeouts`?)"),
            ("entirely.different=5s", "unknown setting `entirely`"),
            ("limits.connections=many", "setting `limits.connections` must be a number, not \"many\""),
            ("limits.connections=-1", "setting `limits.connections`: invalid value: integer `-1`, expected usize"),
            (
                "limits.connections=0",
                "setting `limits.connections`: must be at least 1 (hint: there is no value for unlimited)",
            ),
            ("ejection.max_percent=101", "setting `ejection.max_percent`: 101 is no percentage (hint: 0 to 100)"),
            (
                "overload.reserved_descriptors_percent=60",
                "setting `overload.reserved_descriptors_percent`: leaves less than half of the descriptors for connections (hint: 0 to 50)",
            ),
            ("limits=5", "setting `limits` must be a mapping, not 5"),
            ("timeouts.idle=5", "setting `timeouts.idle` must be a duration such as 10s, not 5"),
            (
                "timeouts.idle=soon",
                "setting `timeouts.idle`: `soon` is not a duration (hint: a number and a unit, for example 250ms, 10s or 1h)",
            ),
            (
                "telemetry.access_log=xml",
                "setting `telemetry.access_log`: unknown variant `xml`, expected one of `off`, `text`, `json`",
            ),
            ("listeners.admin=here", "setting `listeners.admin`: invalid socket address syntax"),
            (
                "limits.connections",
                "`limits.connections` names no value (hint: write path=value, for example limits.connections=20000)",
            ),
            (
                "limits.http2_stream_window_bytes=4294967295",
                "setting `limits.http2_stream_window_bytes`: 4294967295 is more than HTTP/2 allows (hint: at most 2147483647)",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(set(&defaults(), text).unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn durations_take_the_usual_units_and_nothing_else() {
        // A bare number read as seconds where milliseconds were meant is a thousandfold error.
        for (text, expected) in [
            ("250ms", Some(Duration::from_millis(250))),
            ("1.5s", Some(Duration::from_millis(1500))),
            ("1h30m", Some(Duration::from_secs(5400))),
            ("10µs", Some(Duration::from_micros(10))),
            ("0s", Some(Duration::ZERO)),
            ("10", None),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("1e400s", None),
            ("99999999999999999999999h", None),
            ("1.2.3s", None),
            ("5 s", None),
        ] {
            assert_eq!(parse_duration(text).ok(), expected, "{text}");
        }
    }
}
