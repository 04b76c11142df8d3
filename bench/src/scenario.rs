//! What is measured: one scenario per data file in `bench/scenarios/`.
//!
//! The files are built in, so that the binary runs from anywhere; `--scenario-dir` reads others. Says nothing about how
//! a chain is started (`chain`) or how the load is made (`load`, `mesh`).

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::figures::{Figure, Work};

/// One scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Name on the command line: the file's name without its ending.
    #[serde(skip)]
    pub name: String,
    /// What the table says.
    pub title: String,
    /// Proxies between client and origin: 1 or 2; between two there is mutual TLS. Default 1.
    #[serde(default = "one_hop")]
    pub hops: u8,
    /// What the client speaks. Default `http1`.
    #[serde(default)]
    pub client: Client,
    /// Whether the client itself does mutual TLS, as a sidecar would: then the one hop is the inbound side.
    #[serde(default)]
    pub client_tls: bool,
    /// Size of a request body, or of a gRPC message. Default 0: a GET.
    #[serde(default)]
    pub request_bytes: usize,
    /// Size of a response body, or of a gRPC message. Default 0.
    #[serde(default)]
    pub response_bytes: usize,
    /// Services configured in the first hop; the one that is asked for is the last of them. Default 1.
    #[serde(default = "one")]
    pub services: u32,
    /// Rules in the routing table of the first hop; the request matches the last of them. Default 1: everything.
    #[serde(default = "one")]
    pub rules: u32,
    /// Scenario that differs in one thing only; with it in the same run, the table has the ratio to it.
    #[serde(default)]
    pub baseline: Option<String>,
    pub load: Load,
}

/// What the client speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Client {
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// A unary call for each request.
    Grpc,
    /// Streams that stay open; each message is answered by one before the next is sent.
    GrpcStream,
    /// Bytes that no proxy understands.
    Tcp,
}

impl Client {
    /// Whether the client's connection is HTTP/2.
    pub const fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc | Self::GrpcStream)
    }

    pub const fn is_grpc(self) -> bool {
        matches!(self, Self::Grpc | Self::GrpcStream)
    }
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    Download,
    Upload,
}

/// What is done to a chain, or to a whole mesh.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Load {
    /// Each connection, or each of its streams, asks again as soon as it was answered.
    Closed {
        connections: u32,
        /// Requests under way at once on one HTTP/2 connection.
        #[serde(default = "one")]
        streams: u32,
    },
    /// A constant rate, whatever the answers do; latency counts from the intended start.
    Open { connections: u32, requests_per_second: u32 },
    /// As many bytes as pass.
    Bulk { connections: u32, direction: Direction },
    /// A new connection for each exchange of 64 bytes.
    Connect { connections: u32 },
    /// A full handshake, without resumption, and one request for each connection.
    Handshake { connections: u32 },
    /// Connections that were used once and then stay open, idle.
    Idle { connections: u32 },
    /// From starting the first hop to the first answer through it.
    Start,
    /// A control plane, sidecars that joined it, and changes one after the other.
    Effect { proxies: u32, changes: u32 },
    /// A control plane that sends changes at a rate while a constant rate of requests goes through two sidecars.
    Swaps { swaps_per_second: u32, connections: u32, requests_per_second: u32 },
    /// Discovery streams, many, and a control plane that is killed and started again.
    Reconnect { proxies: u32 },
    /// A sidecar that uses some of the services that its control plane knows.
    Known { services: u32, used: u32 },
    /// From starting a sidecar to its first answer, with its control plane up.
    Join,
}

impl Load {
    /// Whether it needs a control plane, and so can be measured with Outrigger only.
    pub const fn is_of_a_mesh(&self) -> bool {
        matches!(
            self,
            Self::Effect { .. } | Self::Swaps { .. } | Self::Reconnect { .. } | Self::Known { .. } | Self::Join
        )
    }
}

const fn one() -> u32 {
    1
}

const fn one_hop() -> u8 {
    1
}

/// All files of `bench/scenarios/`, in the order of the report. A test compares the list with the folder.
macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../scenarios/", $name, ".toml")))),*]
    };
}

const BUILT_IN: &[(&str, &str)] = &built_in![
    "one-hop",
    "two-hops",
    "two-hops-1",
    "two-hops-512",
    "two-hops-http2",
    "two-hops-grpc",
    "two-hops-grpc-stream",
    "latency-1k",
    "latency-5k",
    "latency-1k-http2",
    "latency-1k-grpc",
    "body-empty",
    "body-1k-down",
    "body-1k-up",
    "body-64k-down",
    "body-64k-up",
    "body-1m-down",
    "body-1m-up",
    "tcp-mtls-down",
    "tcp-mtls-up",
    "tcp-plain-down",
    "tcp-plain-up",
    "tcp-connections",
    "tcp-connections-plain",
    "handshakes",
    "services-1",
    "services-100",
    "services-10k",
    "rules-1",
    "rules-100",
    "rules-10k",
    "idle",
    "start",
    "join",
    "effect-1",
    "effect-20",
    "effect-200",
    "swaps",
    "reconnect-1k",
    "known-10k",
];

/// The scenarios of these names, in this order; all of them when no name is given. A name may end in `*`.
///
/// # Errors
/// A name that no file has, or a file that is no scenario.
pub fn load(names: &[String], folder: Option<&Path>) -> Result<Vec<Scenario>> {
    let known = match folder {
        None => BUILT_IN.iter().map(|(name, text)| parse(name, text)).collect::<Result<Vec<_>>>()?,
        Some(folder) => read(folder)?,
    };
    if names.is_empty() {
        return Ok(known);
    }
    let mut chosen = Vec::new();
    for name in names {
        let matches = |scenario: &&Scenario| match name.strip_suffix('*') {
            Some(start) => scenario.name.starts_with(start),
            None => scenario.name == *name,
        };
        let before = chosen.len();
        chosen.extend(known.iter().filter(matches).cloned());
        if chosen.len() == before {
            let all: Vec<_> = known.iter().map(|scenario| scenario.name.as_str()).collect();
            bail!("no scenario \"{name}\" (hint: there are {})", all.join(", "));
        }
    }
    Ok(chosen)
}

fn read(folder: &Path) -> Result<Vec<Scenario>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            parse(&path.file_stem().unwrap_or_default().to_string_lossy(), &text)
        })
        .collect()
}

fn parse(name: &str, text: &str) -> Result<Scenario> {
    let mut scenario: Scenario = toml::from_str(text).with_context(|| format!("scenario \"{name}\" cannot be read"))?;
    name.clone_into(&mut scenario.name);
    scenario.check().map_err(|problem| anyhow::anyhow!("scenario \"{name}\": {problem}"))?;
    Ok(scenario)
}

impl Scenario {
    /// What makes no sense together.
    fn check(&self) -> Result<(), String> {
        let is_raw = matches!(self.load, Load::Bulk { .. } | Load::Connect { .. });
        let numbers: &[u32] = match &self.load {
            Load::Closed { connections, streams } => &[*connections, *streams],
            Load::Open { connections, requests_per_second } => &[*connections, *requests_per_second],
            Load::Bulk { connections, .. } | Load::Connect { connections } => &[*connections],
            Load::Handshake { connections } | Load::Idle { connections } => &[*connections],
            Load::Effect { proxies, changes } => &[*proxies, *changes],
            Load::Swaps { swaps_per_second, connections, requests_per_second } => {
                &[*swaps_per_second, *connections, *requests_per_second]
            }
            Load::Reconnect { proxies } => &[*proxies],
            Load::Known { services, used } => &[*services, *used],
            Load::Start | Load::Join => &[],
        };
        if !(1..=2).contains(&self.hops) {
            return Err(format!("hops is {}, but chains have 1 or 2", self.hops));
        }
        if numbers.iter().chain([&self.services, &self.rules]).any(|number| *number == 0) {
            return Err("a count or rate is 0; at least 1 is needed".to_owned());
        }
        if (self.client == Client::Tcp) != is_raw {
            return Err("client \"tcp\" goes with the loads bulk and connect, and they with nothing else".to_owned());
        }
        if self.client_tls && (self.hops != 1 || self.client != Client::Http1) {
            return Err("client_tls goes with one hop and HTTP/1.1".to_owned());
        }
        if matches!(self.load, Load::Handshake { .. } | Load::Idle { .. }) && !self.client_tls {
            return Err("the loads handshake and idle need client_tls".to_owned());
        }
        if matches!(self.load, Load::Known { services, used } if used > services) {
            return Err("more services are used than are known".to_owned());
        }
        if matches!(self.load, Load::Open { .. }) && self.client == Client::GrpcStream {
            return Err("streams have no constant rate".to_owned());
        }
        if matches!(self.load, Load::Closed { streams, .. } if streams > 1) && !self.client.is_http2() {
            return Err("streams need HTTP/2 from the client".to_owned());
        }
        if matches!(self.load, Load::Open { .. }) && self.request_bytes > 0 && !self.client.is_grpc() {
            return Err("the open-loop generator sends bodies with gRPC only".to_owned());
        }
        Ok(())
    }

    /// What its figures are per.
    pub const fn work(&self) -> Work {
        match (&self.load, self.client) {
            (Load::Bulk { .. }, _) => Work::Gigabyte,
            (Load::Connect { .. }, _) => Work::Connection,
            (Load::Handshake { .. }, _) => Work::Handshake,
            (_, Client::GrpcStream) => Work::Message,
            _ => Work::Request,
        }
    }

    /// The figures to quote.
    pub fn headlines(&self) -> Vec<Figure> {
        match self.load {
            Load::Open { .. } => vec![Figure::AddedP50, Figure::P99, Figure::Cpu],
            Load::Idle { .. } => vec![Figure::IdleMemory, Figure::ConnectionMemory],
            Load::Start | Load::Join => vec![Figure::StartToReady],
            Load::Effect { .. } => vec![Figure::EffectP99],
            Load::Swaps { .. } => vec![Figure::P99],
            Load::Reconnect { .. } => vec![Figure::BackAfter],
            Load::Known { .. } => vec![Figure::MoreMemory],
            _ => vec![Figure::Cpu],
        }
    }

    /// What the client asks for: what the last rule matches.
    pub fn path(&self) -> String {
        match (self.client, self.rules) {
            (Client::Grpc, _) => crate::origin::UNARY.to_owned(),
            (Client::GrpcStream, _) => crate::origin::STREAM.to_owned(),
            (_, 1) => "/".to_owned(),
            (_, rules) => format!("{}x", rule_prefix(rules - 1)),
        }
    }
}

/// What a rule matches, when there are several. All are of one length, so that none is the beginning of another.
pub fn rule_prefix(rule: u32) -> String {
    format!("/rule/{rule:06}/")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_built_in_and_can_be_chosen() {
        // A scenario in the folder would never run, and nobody would notice.
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut files: Vec<_> = read(&folder).unwrap().into_iter().map(|scenario| scenario.name).collect();
        let mut built_in: Vec<_> = load(&[], None).unwrap().into_iter().map(|scenario| scenario.name).collect();
        files.sort();
        built_in.sort();
        assert_eq!(files, built_in);
        let chosen = load(&["two-hops".to_owned()], None).unwrap();
        assert_eq!((chosen.len(), chosen[0].hops), (1, 2));
        assert_eq!(load(&["rules-*".to_owned()], None).unwrap().len(), 3);
        let unknown = load(&["three-hops".to_owned()], None).unwrap_err().to_string();
        assert!(unknown.contains("three-hops") && unknown.contains("one-hop"), "{unknown}");
    }

    #[test]
    fn senseless_scenarios_are_refused() {
        // A typing mistake in a file would measure something else than it says.
        for text in [
            "title = 'x'\nhops = 3\n[load]\nkind = 'closed'\nconnections = 1",
            "title = 'x'\n[load]\nkind = 'closed'\nconnections = 0",
            "title = 'x'\n[load]\nkind = 'open'\nconnections = 1",
            "title = 'x'\nhop = 1\n[load]\nkind = 'closed'\nconnections = 1",
            "title = 'x'\nclient = 'tcp'\n[load]\nkind = 'closed'\nconnections = 1",
            "title = 'x'\n[load]\nkind = 'bulk'\nconnections = 1\ndirection = 'upload'",
            "title = 'x'\n[load]\nkind = 'handshake'\nconnections = 1",
            "title = 'x'\n[load]\nkind = 'closed'\nconnections = 1\nstreams = 2",
            "title = 'x'\nrules = 0\n[load]\nkind = 'closed'\nconnections = 1",
        ] {
            assert!(parse("x", text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_last_rule_is_asked_for_and_no_rule_hides_it() {
        // The cost of a long table would be the cost of its first entry.
        let mut scenario = load(&["rules-10k".to_owned()], None).unwrap().remove(0);
        let prefixes: Vec<_> = (0..scenario.rules).map(rule_prefix).collect();
        let path = scenario.path();
        let matching: Vec<_> = prefixes.iter().filter(|prefix| path.starts_with(prefix.as_str())).collect();
        assert_eq!(matching, [prefixes.last().unwrap()]);
        scenario.rules = 1;
        assert_eq!(scenario.path(), "/");
    }
}
