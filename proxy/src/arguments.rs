//! The command line of a sidecar: flags in, [`Settings`] out.
//!
//! Used by `outrigger-proxy` and by `outrigger proxy`, so that the two take the same flags and mean the same.
//! Nothing is opened here but the files that the flags name; the text of `--config` is read by a function that the
//! caller gives, because the lean binary carries no YAML parser.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use thiserror::Error;

use crate::settings::{
    AccessLog, ControlPlane, DrainSettings, EjectionSettings, InboundListener, Limits, Listeners, LocalListener,
    NodeSettings, OverloadSettings, RuntimeKind, Settings, TelemetrySettings, Timeouts, overlay,
};

/// Flags of a sidecar.
#[allow(rustdoc::broken_intra_doc_links, reason = "the comments are the help text, with its brackets")]
#[derive(Args, Clone, Debug, Default)]
pub struct SidecarArguments {
    /// Control plane to join; port 15012 unless given
    #[arg(long, value_name = "HOST:PORT", env = "OUTRIGGER_CONTROL_PLANE", value_parser = control_plane_address, help_heading = "Joining a mesh")]
    pub control_plane: Option<String>,
    /// Join token (made by `outrigger token create`)
    #[arg(
        long,
        env = "OUTRIGGER_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file",
        help_heading = "Joining a mesh"
    )]
    pub token: Option<String>,
    /// File that holds the join token
    #[arg(long, value_name = "FILE", help_heading = "Joining a mesh")]
    pub token_file: Option<PathBuf>,
    /// PEM file of the root to trust, instead of the one that the token pins
    #[arg(long, value_name = "FILE", help_heading = "Joining a mesh")]
    pub root_file: Option<PathBuf>,

    /// Namespace of the workload [default: default]
    #[arg(long, short = 'n', env = "POD_NAMESPACE", value_parser = name, help_heading = "The workload")]
    pub namespace: Option<String>,
    /// Name of this instance, unique in its namespace
    #[arg(long, value_name = "NAME", env = "POD_NAME", value_parser = name, help_heading = "The workload")]
    pub workload: Option<String>,
    /// Service account, the last part of the identity [default: default]
    #[arg(long, value_name = "NAME", env = "SERVICE_ACCOUNT", value_parser = name, help_heading = "The workload")]
    pub service_account: Option<String>,
    /// Trust domain, the first part of the identity [default: cluster.local]
    #[arg(long, value_name = "DOMAIN", env = "TRUST_DOMAIN", value_parser = trust_domain, help_heading = "The workload")]
    pub trust_domain: Option<String>,
    /// Label that selectors of services see; repeatable
    #[arg(long = "label", short = 'l', value_name = "KEY=VALUE", value_parser = label, help_heading = "The workload")]
    pub labels: Vec<(String, String)>,
    /// Where the instance runs: region, or region/zone, or region/zone/subzone
    #[arg(long, value_name = "REGION/ZONE", help_heading = "The workload")]
    pub locality: Option<String>,

    /// Listen for the mesh and hand to the application: LISTEN=APP[,port=N][,name=NAME]; repeatable
    #[arg(long, value_name = "LISTEN=APP", value_parser = inbound, help_heading = "Listening")]
    pub inbound: Vec<InboundListener>,
    /// Listen as an HTTP forward proxy for the application; repeatable
    #[arg(long, value_name = "LISTEN", value_parser = listen, help_heading = "Listening")]
    pub outbound: Vec<SocketAddr>,
    /// Listen for one service: LISTEN=SERVICE.NAMESPACE:PORT; repeatable
    #[arg(long, value_name = "LISTEN=SERVICE", value_parser = local, help_heading = "Listening")]
    pub local: Vec<LocalListener>,
    /// Take connections that redirect rules send here (see `outrigger intercept`)
    #[arg(long, help_heading = "Listening")]
    pub transparent: bool,
    /// Address that peers reach this workload under (with --transparent)
    #[arg(long, value_name = "IP", env = "INSTANCE_IP", help_heading = "Listening")]
    pub address: Option<IpAddr>,
    /// Port of the application to register (with --transparent): N or N=NAME; repeatable
    #[arg(long = "port", value_name = "N[=NAME]", value_parser = port, requires = "transparent", help_heading = "Listening")]
    pub ports: Vec<(u16, String)>,
    /// SO_MARK on our own connections, for redirect rules that skip by mark (with --transparent)
    #[arg(long, value_name = "N", requires = "transparent", help_heading = "Listening")]
    pub mark: Option<u32>,
    /// Operator's port: configuration dump, metrics, drain [default with --transparent: 127.0.0.1:15000]
    #[arg(long, value_name = "LISTEN", value_parser = listen, help_heading = "Listening")]
    pub admin: Option<SocketAddr>,
    /// Readiness and metrics for others [default with --transparent: 0.0.0.0:15021]
    #[arg(long, value_name = "LISTEN", value_parser = listen, help_heading = "Listening")]
    pub ready: Option<SocketAddr>,
    /// Answer DNS for names of the mesh; repeatable (redirected questions come to 127.0.0.1 and to ::1)
    #[arg(long, value_name = "LISTEN", value_parser = listen, help_heading = "Listening")]
    pub dns: Vec<SocketAddr>,

    /// Worker threads [default: the CPU limit]
    #[arg(long, value_name = "N", value_parser = workers, help_heading = "Running")]
    pub workers: Option<usize>,
    /// How workers share the work [default: thread-per-core]
    #[arg(long, value_name = "KIND", help_heading = "Running")]
    pub runtime: Option<RuntimeArgument>,
    /// One line per request on standard output [default: off]
    #[arg(long, value_name = "FORMAT", help_heading = "Running")]
    pub access_log: Option<AccessLogArgument>,
    /// Directory that keeps the last good configuration over restarts
    #[arg(long, value_name = "DIR", help_heading = "Running")]
    pub state_dir: Option<PathBuf>,
    /// Folder in a memory filesystem that keeps the identity over a restart, for example below /dev/shm
    #[arg(long, value_name = "DIR", help_heading = "Running")]
    pub identity_dir: Option<PathBuf>,
    /// Process log: error, warn, info, debug, trace, or a filter such as info,outrigger_proxy::tls=debug
    #[arg(long, value_name = "LEVEL", env = "OUTRIGGER_LOG", default_value = "info", value_parser = log_filter, help_heading = "Running")]
    pub log_level: String,
    /// File of settings, in the shape that --print-settings prints
    #[arg(long, value_name = "FILE", help_heading = "Running")]
    pub config: Option<PathBuf>,
    /// One setting by path, for example limits.connections=20000; repeatable
    #[arg(long = "set", value_name = "PATH=VALUE", help_heading = "Running")]
    pub set: Vec<String>,
    /// Print the settings that would be used, and exit
    #[arg(long, help_heading = "Running")]
    pub print_settings: bool,
}

/// `--runtime`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RuntimeArgument {
    ThreadPerCore,
    MultiThread,
}

/// `--access-log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccessLogArgument {
    Off,
    Text,
    Json,
}

/// Why the flags do not make settings.
#[derive(Debug, Error)]
pub enum ArgumentProblem {
    /// The flags themselves: exit code 64.
    #[error("{0}")]
    Usage(String),
    /// What a flag points to: exit code 65.
    #[error("{0}")]
    Input(String),
}

impl SidecarArguments {
    /// The settings these flags mean: defaults, then `--config`, then flags, then `--set`.
    ///
    /// `read_config` turns the text of the `--config` file into a tree; its error is shown after the file's name.
    /// Errors: the first thing that does not fit.
    pub fn settings(
        &self,
        read_config: impl FnOnce(&str) -> Result<serde_json::Value, String>,
    ) -> Result<Settings, ArgumentProblem> {
        let mut settings = defaults();
        if let Some(path) = &self.config {
            let text = read_text(path, "settings file")?;
            let shown = path.display();
            let tree = read_config(&text).map_err(|error| ArgumentProblem::Input(format!("{shown}: {error}")))?;
            settings = overlay::merge(&settings, &tree)
                .map_err(|problem| ArgumentProblem::Input(format!("{shown}: {problem}")))?;
        }
        self.put_node(&mut settings.node);
        self.put_listeners(&mut settings);
        self.put_control_plane(&mut settings)?;
        if self.workers.is_some() {
            settings.workers = self.workers;
        }
        if let Some(runtime) = self.runtime {
            settings.runtime = match runtime {
                RuntimeArgument::ThreadPerCore => RuntimeKind::ThreadPerCore,
                RuntimeArgument::MultiThread => RuntimeKind::MultiThread,
            };
        }
        if let Some(access_log) = self.access_log {
            settings.telemetry.access_log = match access_log {
                AccessLogArgument::Off => AccessLog::Off,
                AccessLogArgument::Text => AccessLog::Text,
                AccessLogArgument::Json => AccessLog::Json,
            };
        }
        if self.identity_dir.is_some() {
            settings.identity_dir.clone_from(&self.identity_dir);
        }
        if self.state_dir.is_some() {
            settings.state_dir.clone_from(&self.state_dir);
        }
        for text in &self.set {
            settings = overlay::set(&settings, text)
                .map_err(|problem| ArgumentProblem::Usage(format!("--set {text}: {problem}")))?;
        }
        self.check_listeners(&settings.listeners)?;
        Ok(settings)
    }

    /// What joining needs beyond listening: an address, a token and a name.
    ///
    /// Errors: the flag that is missing.
    pub fn check_joined(&self, settings: &Settings) -> Result<(), ArgumentProblem> {
        let Some(control_plane) = &settings.control_plane else {
            return Err(ArgumentProblem::Usage(
                "the sidecar has no source of configuration (hint: add --control-plane HOST:PORT, or --static FILE \
                 --as NAMESPACE/WORKLOAD to run without one)"
                    .to_owned(),
            ));
        };
        if control_plane.token.is_none() {
            return Err(ArgumentProblem::Usage(
                "joining needs a token (hint: make one with `outrigger token create`, then give --token-file FILE)"
                    .to_owned(),
            ));
        }
        if settings.node.workload.is_empty() {
            return Err(ArgumentProblem::Usage(
                "--workload is required: the name of this instance, unique in its namespace (for example --workload \
                 reviews-1)"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    fn put_node(&self, node: &mut NodeSettings) {
        let put = |from: &Option<String>, to: &mut String| {
            if let Some(value) = from {
                to.clone_from(value);
            }
        };
        put(&self.namespace, &mut node.namespace);
        put(&self.workload, &mut node.workload);
        put(&self.service_account, &mut node.service_account);
        put(&self.trust_domain, &mut node.trust_domain);
        put(&self.locality, &mut node.locality);
        node.labels.extend(self.labels.iter().cloned());
    }

    fn put_listeners(&self, settings: &mut Settings) {
        let listeners = &mut settings.listeners;
        listeners.inbound.extend(self.inbound.iter().cloned());
        listeners.outbound.extend(&self.outbound);
        listeners.local.extend(self.local.iter().cloned());
        if self.transparent {
            let mut transparent = listeners.transparent.take().unwrap_or_default();
            transparent.address = self.address.or(transparent.address);
            transparent.ports.extend(self.ports.iter().cloned());
            transparent.mark = self.mark.or(transparent.mark);
            listeners.transparent = Some(transparent);
            listeners.admin.get_or_insert(SocketAddr::from((Ipv4Addr::LOCALHOST, 15000)));
            listeners.ready.get_or_insert(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 15021)));
        }
        listeners.admin = self.admin.or(listeners.admin);
        listeners.ready = self.ready.or(listeners.ready);
        listeners.dns.extend(&self.dns);
        // A service named without its namespace is one of our own.
        let namespace = &settings.node.namespace;
        for local in &mut listeners.local {
            if !local.host.contains('.') {
                local.host = format!("{}.{namespace}", local.host);
            }
        }
    }

    fn put_control_plane(&self, settings: &mut Settings) -> Result<(), ArgumentProblem> {
        if let Some(address) = &self.control_plane {
            let known = settings.control_plane.take();
            settings.control_plane = Some(ControlPlane {
                address: address.clone(),
                token: None,
                root_file: known.and_then(|known| known.root_file),
            });
        }
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => Some(check_token(token, "--token")?),
            (None, Some(path)) => {
                let text = read_text(path, "token file")?;
                Some(check_token(&text, &format!("token file {}", path.display()))?)
            }
            (None, None) => None,
        };
        let Some(control_plane) = settings.control_plane.as_mut() else {
            return match (&token, &self.root_file) {
                // A token in the environment of a static run is no mistake; one on the command line is.
                (Some(_), _) if self.token_file.is_some() => Err(needs_control_plane("--token-file")),
                (_, Some(_)) => Err(needs_control_plane("--root-file")),
                _ => Ok(()),
            };
        };
        control_plane.token = token;
        if let Some(path) = &self.root_file {
            let text = read_text(path, "root certificate")?;
            if !text.contains("-----BEGIN CERTIFICATE-----") {
                return Err(ArgumentProblem::Input(format!(
                    "root certificate {} holds no PEM certificate (hint: it must contain -----BEGIN CERTIFICATE-----)",
                    path.display()
                )));
            }
            control_plane.root_file = Some(path.clone());
        }
        Ok(())
    }

    fn check_listeners(&self, listeners: &Listeners) -> Result<(), ArgumentProblem> {
        let usage = |text: String| Err(ArgumentProblem::Usage(text));
        let nothing = listeners.inbound.is_empty()
            && listeners.outbound.is_empty()
            && listeners.local.is_empty()
            && listeners.transparent.is_none();
        if nothing {
            return usage(
                "the sidecar has nothing to listen on (hint: add --inbound LISTEN=APP, --outbound LISTEN, --local \
                 LISTEN=SERVICE.NAMESPACE:PORT or --transparent)"
                    .to_owned(),
            );
        }
        let mut taken: BTreeMap<SocketAddr, &'static str> = BTreeMap::new();
        let transparent = listeners.transparent.iter().flat_map(|transparent| {
            let outbound = transparent.outbound.iter().map(|address| (*address, "--transparent (outbound)"));
            outbound.chain(transparent.inbound.iter().map(|address| (*address, "--transparent (inbound)")))
        });
        let all = listeners
            .inbound
            .iter()
            .map(|inbound| (inbound.listen, "--inbound"))
            .chain(listeners.outbound.iter().map(|address| (*address, "--outbound")))
            .chain(listeners.local.iter().map(|local| (local.listen, "--local")))
            .chain(listeners.admin.map(|address| (address, "--admin")))
            .chain(listeners.ready.map(|address| (address, "--ready")))
            .chain(transparent);
        for (address, flag) in all.filter(|(address, _)| address.port() != 0) {
            if let Some(other) = taken.insert(address, flag) {
                return usage(format!("{flag} {address}: the address is already used by {other}"));
            }
        }
        for inbound in &listeners.inbound {
            if taken.contains_key(&inbound.application) {
                return usage(format!(
                    "--inbound {}={}: the application's address is one this sidecar listens on itself, which would loop",
                    inbound.listen, inbound.application
                ));
            }
        }
        Ok(())
    }
}

/// Settings before anything was said: no listener, no control plane, every limit at its default.
pub fn defaults() -> Settings {
    Settings {
        node: NodeSettings {
            namespace: "default".to_owned(),
            workload: String::new(),
            service_account: "default".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            labels: BTreeMap::new(),
            locality: String::new(),
        },
        listeners: Listeners::default(),
        control_plane: None,
        limits: Limits::default(),
        timeouts: Timeouts::default(),
        ejection: EjectionSettings::default(),
        overload: OverloadSettings::default(),
        telemetry: TelemetrySettings::default(),
        drain: DrainSettings::default(),
        workers: None,
        runtime: RuntimeKind::default(),
        identity_dir: None,
        state_dir: None,
    }
}

fn needs_control_plane(flag: &str) -> ArgumentProblem {
    ArgumentProblem::Usage(format!("{flag} needs --control-plane HOST:PORT"))
}

/// Longest file of settings, token or certificate that is read.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Reads a small text file that a flag names; `what` stands in the message.
///
/// Errors: missing, unreadable, too large, not UTF-8, a directory.
pub fn read_text(path: &Path, what: &str) -> Result<String, ArgumentProblem> {
    let shown = path.display();
    let failed =
        |reason: &dyn std::fmt::Display| ArgumentProblem::Input(format!("cannot read {what} {shown}: {reason}"));
    let about = fs::metadata(path).map_err(|error| failed(&plain_io(&error)))?;
    if about.is_dir() {
        return Err(failed(&"it is a directory"));
    }
    if about.len() > FILE_BYTES_MAX {
        return Err(failed(&format_args!("{} bytes is more than the {FILE_BYTES_MAX} allowed", about.len())));
    }
    let bytes = fs::read(path).map_err(|error| failed(&plain_io(&error)))?;
    String::from_utf8(bytes).map_err(|_| failed(&"it is not UTF-8 text"))
}

/// The reason of an I/O error in the words of a message, without the error number.
pub fn plain_io(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or(&text).to_lowercase()
        }
    }
}

fn check_token(text: &str, from: &str) -> Result<String, ArgumentProblem> {
    let token = text.trim();
    if token.is_empty() {
        return Err(ArgumentProblem::Input(format!(
            "{from} is empty (hint: make a token with `outrigger token create`)"
        )));
    }
    if token.chars().any(|c| c.is_whitespace() || c.is_control() || !c.is_ascii()) {
        return Err(ArgumentProblem::Input(format!(
            "{from} does not hold a token: a token is one word (hint: make one with `outrigger token create`)"
        )));
    }
    Ok(token.to_owned())
}

/// `HOST:PORT`, `[V6]:PORT` or a port alone, which means 127.0.0.1.
///
/// Errors: what is wrong, with an example.
pub fn listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    let text = text.replacen("localhost:", "127.0.0.1:", 1);
    text.parse().map_err(|_| {
        if text.parse::<IpAddr>().is_ok() {
            format!("address \"{text}\" has no port (hint: write it as {text}:8080)")
        } else {
            format!("\"{text}\" is not IP:PORT (for example 127.0.0.1:8080 or [::1]:8080)")
        }
    })
}

fn inbound(text: &str) -> Result<InboundListener, String> {
    let mut parts = text.split(',');
    let sockets = parts.next().unwrap_or_default();
    let (from, to) = sockets.split_once('=').ok_or_else(|| {
        format!("\"{text}\" names no application (hint: write LISTEN=APP, for example 127.0.0.1:8443=127.0.0.1:9000)")
    })?;
    let application = listen(to)?;
    if application.port() == 0 {
        return Err(format!("application \"{to}\" has port 0, which nobody can listen on"));
    }
    let mut inbound = InboundListener {
        listen: listen(from)?,
        application,
        target_port: application.port(),
        port_name: String::new(),
    };
    for part in parts {
        match part.split_once('=') {
            Some(("port", number)) => {
                inbound.target_port = number
                    .parse()
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or_else(|| format!("port \"{number}\" is not a number from 1 to 65535"))?;
            }
            Some(("name", name)) if !name.is_empty() => inbound.port_name = name.to_owned(),
            _ => {
                return Err(format!(
                    "\"{part}\" is not understood (hint: after the addresses come port=N and name=NAME)"
                ));
            }
        }
    }
    Ok(inbound)
}

fn local(text: &str) -> Result<LocalListener, String> {
    let example = "for example 127.0.0.1:7001=reviews.shop:9080";
    let (from, to) = text
        .split_once('=')
        .ok_or_else(|| format!("\"{text}\" names no service (hint: write LISTEN=SERVICE.NAMESPACE:PORT, {example})"))?;
    let (host, port) = to
        .rsplit_once(':')
        .ok_or_else(|| format!("service \"{to}\" has no port (hint: write SERVICE.NAMESPACE:PORT, {example})"))?;
    let port = port
        .parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("port \"{port}\" of service \"{host}\" is not a number from 1 to 65535"))?;
    host_name(host)?;
    Ok(LocalListener { listen: listen(from)?, host: host.to_ascii_lowercase(), port })
}

fn host_name(text: &str) -> Result<(), String> {
    let label = |part: &str| {
        !part.is_empty()
            && part.len() <= 63
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if text.len() <= 253 && text.split('.').all(label) { Ok(()) } else { Err(format!("\"{text}\" is not a host name")) }
}

fn port(text: &str) -> Result<(u16, String), String> {
    let (number, name) = text.split_once('=').unwrap_or((text, ""));
    match number.parse() {
        Ok(0) | Err(_) => Err(format!("port \"{number}\" is not a number from 1 to 65535")),
        Ok(number) => Ok((number, name.to_owned())),
    }
}

fn workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1024) => Ok(count),
        _ => Err("give a number from 1 to 1024".to_owned()),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("\"{text}\" is not KEY=VALUE (for example version=v1)")),
    }
}

/// A level, or a list of levels for parts of the program.
///
/// Errors: a word that is neither; a filter would take it for a part's name and silence everything else.
pub fn log_filter(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let level = |word: &str| LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
    for part in text.split(',') {
        let word = part.rsplit_once('=').map_or(part, |(_, level)| level).trim();
        if !level(word) {
            let near = LEVELS.into_iter().find(|level| overlay::distance(level, &word.to_lowercase()) <= 2);
            let near = near.map(|near| format!(" (did you mean \"{near}\"?)"));
            return Err(near.map_or_else(
                || format!("\"{word}\" is not a level ({}; or info,outrigger_proxy::tls=debug)", LEVELS.join(", ")),
                |near| format!("\"{word}\" is not a level{near}"),
            ));
        }
    }
    Ok(text.to_owned())
}

/// A name as Kubernetes allows it: lower case letters, digits, `-` and `.`, at most 253 characters.
///
/// Errors: what is wrong, with the name as it could be.
pub fn name(text: &str) -> Result<String, String> {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let good = bytes.len() <= 253
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.'));
    if good {
        return Ok(text.to_owned());
    }
    let better: String = text
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .collect();
    let better = better.trim_matches(|c| c == '-' || c == '.');
    let hint =
        if better.is_empty() || better == text { String::new() } else { format!(" (hint: \"{better}\" would do)") };
    Err(format!("\"{text}\" is not a name: lower case letters, digits, '-' and '.', at most 253{hint}"))
}

fn trust_domain(text: &str) -> Result<String, String> {
    // SPIFFE-ID §2.1: lower case letters, digits, dots, dashes and underscores.
    let good = !text.is_empty()
        && text.len() <= 255
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'));
    if good {
        Ok(text.to_owned())
    } else {
        Err(format!("\"{text}\" is not a trust domain (for example cluster.local)"))
    }
}

/// A host with an optional port.
///
/// Errors: what is wrong, with an example.
fn control_plane_address(text: &str) -> Result<String, String> {
    host_and_port(text, 15012)
}

/// `HOST:PORT` out of `HOST`, `HOST:PORT`, `V6` or `[V6]:PORT`.
///
/// Errors: what is wrong, with the smallest fix.
pub fn host_and_port(text: &str, default_port: u16) -> Result<String, String> {
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(format!(
            "\"{text}\" has a scheme (hint: write {} without {scheme}://)",
            rest.trim_end_matches('/')
        ));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address.to_string());
    }
    if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, default_port).to_string());
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => {
            let port = port.parse::<u16>().ok().filter(|port| *port != 0);
            (host, port.ok_or_else(|| format!("\"{text}\" has no valid port (hint: write HOST:{default_port})"))?)
        }
        None => (text, default_port),
    };
    host_name(host).map_err(|_| format!("\"{text}\" is not HOST:PORT (for example 127.0.0.1:{default_port})"))?;
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn nothing(_: &str) -> Result<serde_json::Value, String> {
        Ok(serde_json::Value::Null)
    }

    #[test]
    fn inbound_flags_take_port_and_name_in_any_order() {
        // A port registered under the wrong number is a workload that no service finds.
        let full = inbound("127.0.0.1:8443=127.0.0.1:9000,name=http,port=80").unwrap();
        assert_eq!((full.target_port, full.port_name.as_str()), (80, "http"));
        let short = inbound("8443=9000").unwrap();
        assert_eq!(short.listen, "127.0.0.1:8443".parse().unwrap());
        assert_eq!((short.application.to_string().as_str(), short.target_port), ("127.0.0.1:9000", 9000));
        let v6 = inbound("[::1]:8443=[::1]:9000").unwrap();
        assert!(v6.listen.is_ipv6() && v6.application.is_ipv6());
    }

    #[test]
    fn local_names_without_a_namespace_are_our_own() {
        // `--local 7001=reviews:9080` in namespace shop must not look for reviews elsewhere.
        let arguments = SidecarArguments {
            namespace: Some("shop".to_owned()),
            local: vec![local("7001=reviews:9080").unwrap(), local("7002=ratings.other:9080").unwrap()],
            ..SidecarArguments::default()
        };
        let settings = arguments.settings(nothing).unwrap();
        let hosts: Vec<_> = settings.listeners.local.iter().map(|local| local.host.as_str()).collect();
        assert_eq!(hosts, ["reviews.shop", "ratings.other"]);
    }

    #[test]
    fn two_listeners_never_share_an_address() {
        // The second bind would fail later and say less.
        let arguments = SidecarArguments {
            outbound: vec![listen("15001").unwrap()],
            admin: Some(listen("15001").unwrap()),
            ..SidecarArguments::default()
        };
        let message = arguments.settings(nothing).unwrap_err().to_string();
        assert_eq!(message, "--admin 127.0.0.1:15001: the address is already used by --outbound");
    }

    #[test]
    fn wrong_values_say_how_to_write_them() {
        // "invalid value" alone makes people search the manual.
        assert!(listen("127.0.0.1").unwrap_err().contains("127.0.0.1:8080"));
        assert!(listen("nonsense").unwrap_err().contains("127.0.0.1:8080"));
        assert!(inbound("127.0.0.1:80").unwrap_err().contains("LISTEN=APP"));
        assert!(inbound("80=81,prt=3").unwrap_err().contains("port=N"));
        assert!(local("80=reviews").unwrap_err().contains("has no port"));
        assert!(name("Shop").unwrap_err().contains("\"shop\" would do"));
        assert!(host_and_port("https://cp:15012", 15012).unwrap_err().contains("cp:15012 without https://"));
        assert_eq!(host_and_port("cp", 15012).unwrap(), "cp:15012");
        assert_eq!(host_and_port("::1", 15012).unwrap(), "[::1]:15012");
    }
}
