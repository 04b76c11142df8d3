//! Our own CircuitBreaker: when calls to a Service or an HTTPRoute's rule stop for a while, and what is answered meanwhile.

use outrigger_proto::mesh::{Breaker, StaticReply};

use super::{
    Problem, Spec,
    fields::{Field, Fields, Place},
    kinds::Header,
    values::{self, DurationStyle},
};
use crate::validate::codes;

/// Largest body of a static reply, in bytes.
const BODY_LIMIT_BYTES: usize = 64 * 1024;
const TARGET_LIMIT: usize = 16;
const DEFAULT_OPEN_MS: i64 = 5000;

/// Outrigger's CircuitBreaker.
#[derive(Clone, Debug, PartialEq)]
pub struct CircuitBreaker {
    pub targets: Vec<TargetRef>,
    /// Everything but the fallback and the name.
    pub breaker: Breaker,
    pub fallback: Option<Fallback>,
}

/// What a policy is attached to, in its own namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetRef {
    pub kind: String,
    pub name: String,
    /// Port name of a Service, or rule name of an HTTPRoute.
    pub section: Option<String>,
    pub place: Place,
}

/// What is answered while the breaker is open.
#[derive(Clone, Debug, PartialEq)]
pub struct Fallback {
    pub to: FallbackTo,
    /// 0: the default.
    pub max_concurrent: u32,
}

/// A reply of our own, or another backend.
#[derive(Clone, Debug, PartialEq)]
pub enum FallbackTo {
    Reply(StaticReply),
    Backend { namespace: String, name: String, port: u16, place: Place },
}

pub(super) fn circuit_breaker(root: &mut Fields<'_>, header: &Header<'_>) -> Option<Spec> {
    let mut spec = root.require("spec")?.object()?;
    let mut targets = Vec::new();
    if let Some(field) = spec.require("targetRefs") {
        let items = field.items();
        if items.is_empty() {
            field.problem(&codes::MISSING, "targetRefs is empty");
        }
        if items.len() > TARGET_LIMIT {
            field.problem(&codes::TOO_MANY, format!("{} entries; at most {TARGET_LIMIT} are allowed", items.len()));
        }
        targets.extend(items.iter().filter_map(target));
    }
    let positive = |fields: &mut Fields<'_>, name: &'static str| {
        let field = fields.get(name)?;
        let duration = field.duration(DurationStyle::Go)?;
        if values::millis(&duration) == 0 {
            field.problem(&codes::OUT_OF_RANGE, format!("{name} must be at least 1ms"));
        }
        Some(duration)
    };
    let count = |fields: &mut Fields<'_>, name: &'static str, high: u64| {
        let number = fields.get(name).and_then(|field| field.number(1, high));
        number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0)
    };
    let share = |fields: &mut Fields<'_>, name: &'static str| {
        let Some(field) = fields.get(name) else { return 0.0 };
        let share = field.percent().unwrap_or(0.0);
        if share == 0.0 && !field.report.has_errors() {
            field.problem(&codes::OUT_OF_RANGE, format!("{name} must be more than 0"));
        }
        share
    };
    let mut breaker = Breaker {
        window: positive(&mut spec, "window"),
        minimum_requests: count(&mut spec, "minimumRequests", 1_000_000),
        failure_percent: share(&mut spec, "failurePercent"),
        open: positive(&mut spec, "openFor"),
        max_open: positive(&mut spec, "maxOpenFor"),
        ..Breaker::default()
    };
    // The sidecar's default: 5 s.
    let open_ms = breaker.open.as_ref().map_or(DEFAULT_OPEN_MS, values::millis);
    if breaker.max_open.as_ref().is_some_and(|most| values::millis(most) < open_ms) {
        let open = if breaker.open.is_some() { "openFor" } else { "openFor (5s unless given)" };
        spec.field.problem_with_fix(
            &codes::INCONSISTENT,
            format!("{open} is longer than maxOpenFor"),
            "make maxOpenFor at least as long as openFor",
        );
    }
    if let Some(mut half_open) = spec.object("halfOpen") {
        breaker.half_open_requests = count(&mut half_open, "requests", 1000);
        breaker.half_open_successes = count(&mut half_open, "successes", 1000);
        half_open.finish();
    }
    if let Some(mut slow) = spec.object("slowCall") {
        if slow.require("threshold").is_some() {
            breaker.slow_call = positive(&mut slow, "threshold");
        }
        breaker.slow_percent = share(&mut slow, "percent");
        slow.finish();
    }
    let fallback = spec.get("fallback").and_then(|field| fallback(&field, header));
    spec.finish();
    Some(Spec::CircuitBreaker(CircuitBreaker { targets, breaker, fallback }))
}

fn target(field: &Field<'_>) -> Option<TargetRef> {
    let mut fields = field.object()?;
    let group = fields.text("group");
    let kind_field = fields.require("kind");
    let name = fields.require("name").and_then(|field| field.text());
    let section = fields.text("sectionName");
    if let Some(field) = fields.get("namespace") {
        field.problem_with_fix(
            &codes::UNKNOWN_FIELD,
            "a policy attaches to targets of its own namespace only",
            "remove namespace, and put the CircuitBreaker into the target's namespace",
        );
    }
    fields.finish();
    let kind_field = kind_field?;
    let kind = kind_field.word(
        &[("Service", ""), ("HTTPRoute", "gateway.networking.k8s.io")].map(|(kind, group)| (kind, (kind, group))),
    )?;
    if let Some(group) = &group
        && group != kind.1
        && !(kind.0 == "Service" && group == "core")
    {
        field.say(
            Problem::new(&codes::REFERENCE_KIND_REFUSED, format!("there is no {} in group \"{group}\"", kind.0))
                .fix(format!("write group: \"{}\"", kind.1)),
        );
    }
    Some(TargetRef { kind: kind.0.to_owned(), name: name?, section, place: field.place() })
}

fn fallback(field: &Field<'_>, header: &Header<'_>) -> Option<Fallback> {
    let mut fields = field.object()?;
    let reply_field = fields.get("reply");
    let backend_field = fields.get("backendRef");
    let max_concurrent = fields.get("maxConcurrent").and_then(|field| field.number(1, 1_000_000));
    let max_concurrent = max_concurrent.and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
    fields.finish();
    let to = match (reply_field, backend_field) {
        (Some(_), Some(_)) => {
            field.problem_with_fix(
                &codes::EXCLUSIVE,
                "reply and backendRef exclude each other",
                "remove one of the two",
            );
            return None;
        }
        (None, None) => {
            field.problem_with_fix(
                &codes::MISSING,
                "fallback needs reply or backendRef",
                "add for example \"reply: {status: 200}\"",
            );
            return None;
        }
        (Some(reply), None) => FallbackTo::Reply(static_reply(&reply)?),
        (None, Some(backend)) => {
            let mut fields = backend.object()?;
            let name = fields.require("name").and_then(|field| field.text());
            let namespace = fields.text("namespace").unwrap_or_else(|| header.namespace.to_owned());
            let port = fields.require("port").and_then(|field| field.port());
            fields.get("kind").map(|field| field.word(&[("Service", ())]));
            fields.get("group").map(|field| field.word(&[("", ()), ("core", ())]));
            fields.finish();
            FallbackTo::Backend { namespace, name: name?, port: port?, place: backend.place() }
        }
    };
    Some(Fallback { to, max_concurrent })
}

fn static_reply(field: &Field<'_>) -> Option<StaticReply> {
    let mut fields = field.object()?;
    let status = fields.get("status").map_or(Some(200), |field| field.number(200, 599))?;
    let content_type = fields.get("contentType").and_then(|field| {
        let text = field.text()?;
        if !values::is_header_value(&text) {
            field.problem(&codes::BAD_HEADER, "this is not a valid header value");
        }
        Some(text)
    });
    let body = fields.get("body").and_then(|field| {
        let body = field.text()?;
        if body.len() > BODY_LIMIT_BYTES {
            field.problem(
                &codes::OUT_OF_RANGE,
                format!("{} bytes of body; at most {BODY_LIMIT_BYTES} are allowed", body.len()),
            );
        }
        Some(body)
    });
    fields.finish();
    Some(StaticReply {
        status: u32::try_from(status).ok()?,
        content_type: content_type.unwrap_or_default(),
        body: body.unwrap_or_default().into(),
    })
}
