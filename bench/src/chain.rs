//! The chains: what stands between client and origin, how it is configured, started and found listening.
//!
//! Every proxy runs one worker on the chain's core; configurations are written to the run's folder. Says nothing about
//! load or figures (`measure`).

use std::{
    fmt, fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    certificates,
    figures::Role,
    load::probe,
    peers::{self, Peer},
    process::{Cores, Process},
    scenario::{Client, Scenario},
};

mod envoy;
mod haproxy;
mod nginx;
pub mod outrigger;

/// The name that the client asks for.
pub const HOST: &str = "app.bench.svc.cluster.local";

/// Longest wait for the first request to be answered; the largest configurations take seconds to read.
const ANSWER: Duration = Duration::from_secs(60);
/// Between two looks whether it is: short, because `start` measures with it.
const LOOK: Duration = Duration::from_millis(1);

/// What stands between client and origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chain {
    /// Nothing.
    Direct,
    /// Our own bare forwarder: what everybody else is compared with. HTTP/2 between its two hops, or HTTP/1.1.
    Floor {
        http2: bool,
    },
    /// Outrigger, from this binary.
    Outrigger {
        label: String,
        binary: PathBuf,
    },
    Nginx(PathBuf),
    /// HTTP/2 between its two hops, or HTTP/1.1.
    Haproxy {
        binary: PathBuf,
        http2: bool,
    },
    /// HTTP/2 between its two hops, or HTTP/1.1.
    Envoy {
        binary: PathBuf,
        http2: bool,
    },
}

/// A chain that listens.
pub struct Running {
    /// Where the client connects to.
    pub entry: SocketAddr,
    /// First hop first; empty without a proxy.
    pub proxies: Vec<Process>,
    /// What a client that does mutual TLS itself has to offer.
    pub alpn: &'static str,
}

/// What is spoken between two neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    Http1,
    Http2,
    Tcp,
}

impl Protocol {
    /// What it is called in TLS.
    pub const fn alpn(self) -> &'static [&'static str] {
        match self {
            Self::Http1 => &["http/1.1"],
            Self::Http2 => &["h2"],
            Self::Tcp => &[],
        }
    }
}

/// One side of a proxy: where, what is spoken there, and whether in mutual TLS.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub address: SocketAddr,
    pub protocol: Protocol,
    pub tls: bool,
}

/// Which proxy of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// Stands beside the client.
    First,
    /// Stands beside the origin.
    Second,
}

/// One proxy to be configured.
struct Hop<'a> {
    folder: &'a Path,
    scenario: &'a Scenario,
    side: Side,
    /// What it takes.
    taken: Link,
    /// What it sends.
    sent: Link,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("no proxy"),
            Self::Floor { http2: true } => f.write_str("floor"),
            Self::Floor { http2: false } => f.write_str("floor h1"),
            Self::Outrigger { label, .. } => f.write_str(label),
            Self::Nginx(_) => f.write_str("nginx"),
            Self::Haproxy { http2: true, .. } => f.write_str("haproxy h2"),
            Self::Haproxy { http2: false, .. } => f.write_str("haproxy"),
            Self::Envoy { http2: true, .. } => f.write_str("envoy h2"),
            Self::Envoy { http2: false, .. } => f.write_str("envoy"),
        }
    }
}

impl Chain {
    pub const fn role(&self) -> Role {
        match self {
            Self::Direct => Role::None,
            Self::Floor { .. } => Role::Floor,
            Self::Outrigger { .. } => Role::Outrigger,
            Self::Nginx(_) | Self::Haproxy { .. } | Self::Envoy { .. } => Role::Peer,
        }
    }

    /// The name with which `--chain` chooses it.
    pub fn name(&self) -> String {
        self.to_string().replace(' ', "-")
    }

    /// Whether it differs, in this scenario, from every other chain, and whether it can carry it at all.
    pub fn takes_part(&self, scenario: &Scenario) -> bool {
        let has_choice = scenario.hops == 2 && scenario.client != Client::Tcp;
        match self {
            Self::Direct => !scenario.client_tls && !matches!(scenario.load, crate::scenario::Load::Start),
            // gRPC needs HTTP/2 all the way.
            Self::Floor { http2: false } => has_choice && !scenario.client.is_grpc(),
            Self::Haproxy { http2, .. } | Self::Envoy { http2, .. } if has_choice => {
                *http2 || !scenario.client.is_grpc()
            }
            Self::Haproxy { http2, .. } | Self::Envoy { http2, .. } => !*http2,
            Self::Floor { http2: true } | Self::Outrigger { .. } | Self::Nginx(_) => true,
        }
    }

    /// What it speaks between its hops, where others can tell it.
    fn between(&self, scenario: &Scenario) -> Protocol {
        match self {
            _ if scenario.client == Client::Tcp => Protocol::Tcp,
            _ if scenario.client.is_grpc() => Protocol::Http2,
            Self::Floor { http2: true } | Self::Haproxy { http2: true, .. } | Self::Envoy { http2: true, .. } => {
                Protocol::Http2
            }
            _ => Protocol::Http1,
        }
    }

    /// What it speaks to the origin: what the client speaks, except that nginx has HTTP/2 to upstreams for gRPC only.
    fn to_origin(&self, scenario: &Scenario) -> Protocol {
        match (self, scenario.client) {
            (_, Client::Tcp) => Protocol::Tcp,
            (_, Client::Http1) | (Self::Nginx(_), Client::Http2) => Protocol::Http1,
            _ => Protocol::Http2,
        }
    }

    /// Starts it on the chain's core, in front of `origin`, and waits until the first request is answered.
    ///
    /// # Errors
    /// When a part of it cannot be started; with what it said.
    pub fn start(&self, scenario: &Scenario, origin: SocketAddr, cores: Cores, folder: &Path) -> Result<Running> {
        if *self == Self::Direct {
            return Ok(Running { entry: origin, proxies: Vec::new(), alpn: "" });
        }
        let taken = match scenario.client {
            Client::Http1 => Protocol::Http1,
            Client::Tcp => Protocol::Tcp,
            _ => Protocol::Http2,
        };
        let entry = Link { address: free_address()?, protocol: taken, tls: scenario.client_tls };
        let end = Link { address: origin, protocol: self.to_origin(scenario), tls: false };
        // The far side first: nobody should find its upstream missing.
        let hops = if scenario.hops == 2 {
            let middle = Link { address: free_address()?, protocol: self.between(scenario), tls: true };
            vec![(Side::Second, middle, end), (Side::First, entry, middle)]
        } else if scenario.client_tls {
            vec![(Side::Second, entry, end)]
        } else {
            vec![(Side::First, entry, end)]
        };
        let mut proxies = Vec::new();
        for (side, taken, sent) in hops {
            let hop = Hop { folder, scenario, side, taken, sent };
            let mut command = self.command(&hop)?;
            let log = format!("{}-{}-{}", self.name(), scenario.name, side.word());
            let mut process = Process::start(&log, &mut command, Some(cores.chain), folder)?;
            process.wait_until_listening(taken.address)?;
            proxies.insert(0, process);
        }
        let running = Running { entry: entry.address, proxies, alpn: self.alpn() };
        running.wait_until_answering(scenario, folder)?;
        Ok(running)
    }

    const fn alpn(&self) -> &'static str {
        if matches!(self, Self::Outrigger { .. }) { outrigger::ALPN } else { "http/1.1" }
    }

    fn command(&self, hop: &Hop<'_>) -> Result<Command> {
        match self {
            Self::Direct | Self::Floor { .. } => floor(hop),
            Self::Outrigger { binary, .. } => outrigger::command(binary, hop),
            Self::Nginx(binary) => nginx::command(binary, hop),
            Self::Haproxy { binary, .. } => haproxy::command(binary, hop),
            Self::Envoy { binary, .. } => envoy::command(binary, hop),
        }
    }
}

impl Running {
    /// Waits until a request gets its answer from the origin: listening is not yet knowing where to send to.
    fn wait_until_answering(&self, scenario: &Scenario, folder: &Path) -> Result<()> {
        let started = Instant::now();
        let tls = scenario.client_tls.then(|| certificates::client(folder, &[self.alpn])).transpose()?;
        loop {
            let answer = probe::ask_once(self.entry, scenario, tls.clone());
            let Err(error) = answer else { return Ok(()) };
            if started.elapsed() > ANSWER {
                let said: Vec<_> = self.proxies.iter().map(Process::last_words).collect();
                bail!("no request is answered (the last try: {error:#}); it said:\n{}", said.join("\n"));
            }
            thread::sleep(LOOK);
        }
    }
}

impl Side {
    const fn word(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
        }
    }
}

impl Hop<'_> {
    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn certificate(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Names of the services that are configured and not asked for; only the first hop knows services.
    fn other_services(&self) -> impl Iterator<Item = String> + use<> {
        let count = if self.side == Side::First { self.scenario.services - 1 } else { 0 };
        (0..count).map(|number| format!("s{number:06}"))
    }

    /// Prefixes that rules match, when there are rules.
    fn rules(&self) -> Vec<String> {
        let count = if self.side == Side::First && self.scenario.rules > 1 { self.scenario.rules } else { 0 };
        (0..count).map(crate::scenario::rule_prefix).collect()
    }
}

/// What a service is called by clients.
fn host_of(service: &str) -> String {
    format!("{service}.bench.svc.cluster.local")
}

fn floor(hop: &Hop<'_>) -> Result<Command> {
    let word = |protocol| match protocol {
        Protocol::Http1 => "http1",
        Protocol::Http2 => "http2",
        Protocol::Tcp => "tcp",
    };
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["floor", "--listen", &hop.taken.address.to_string(), "--take", word(hop.taken.protocol)])
        .args(["--to", &hop.sent.address.to_string(), "--send", word(hop.sent.protocol)])
        .arg("--certificates")
        .arg(hop.folder);
    if hop.taken.tls {
        command.arg("--take-tls");
    }
    if hop.sent.tls {
        command.arg("--send-tls");
    }
    Ok(command)
}

/// The chains to measure: those named, or all there are; and a sentence for each that is missing.
///
/// # Errors
/// When a named chain is unknown or not there, or Outrigger itself is missing.
pub fn choose(names: &[String], outriggers: &[PathBuf]) -> Result<(Vec<Chain>, Vec<String>)> {
    let mut all = vec![Chain::Direct, Chain::Floor { http2: true }, Chain::Floor { http2: false }];
    for (index, binary) in outriggers.iter().enumerate() {
        let label = if index == 0 { "outrigger".to_owned() } else { format!("outrigger {}", index + 1) };
        let is_wanted = names.is_empty() || names.contains(&label.replace(' ', "-"));
        if is_wanted && !binary.is_file() {
            bail!(
                "there is no {} (hint: `cargo build --release --bin outrigger`, or name another with --outrigger)",
                binary.display()
            );
        }
        all.push(Chain::Outrigger { label, binary: binary.clone() });
    }
    let mut missing = Vec::new();
    for peer in [Peer::Nginx, Peer::Haproxy, Peer::Envoy] {
        match (peer, peers::find(peer)) {
            (Peer::Nginx, Some(binary)) => all.push(Chain::Nginx(binary)),
            (Peer::Haproxy, Some(binary)) => {
                all.push(Chain::Haproxy { binary: binary.clone(), http2: true });
                all.push(Chain::Haproxy { binary, http2: false });
            }
            (Peer::Envoy, Some(binary)) => {
                all.push(Chain::Envoy { binary: binary.clone(), http2: true });
                all.push(Chain::Envoy { binary, http2: false });
            }
            _ => missing.push(format!("{} is not measured: not installed ({})", peer.name(), peer.hint())),
        }
    }
    if names.is_empty() {
        return Ok((all, missing));
    }
    let known: Vec<_> = all.iter().map(Chain::name).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        bail!(
            "no chain \"{unknown}\" here (hint: there are {}; `outrigger-bench peers` shows what is missing)",
            known.join(", ")
        );
    }
    all.retain(|chain| names.contains(&chain.name()));
    Ok((all, Vec::new()))
}

/// An address on loopback that nobody listens on now.
///
/// # Errors
/// When there is none.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
