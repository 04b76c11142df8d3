//! The chains: what stands between client and origin, how it is configured, started and found listening.
//!
//! Every proxy runs one worker on the chain's core; configurations are written to the run's folder. Says nothing about
//! load or figures (`measure`).

use std::{
    fmt, fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    certificates,
    peers::{self, Peer},
    process::{Cores, Process},
    scenario::Scenario,
};

mod envoy;
mod haproxy;
mod nginx;
mod outrigger;

pub use outrigger::HOST;

/// Longest wait for the first request to be answered.
const ANSWER: Duration = Duration::from_secs(10);

/// What stands between client and origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chain {
    /// Nothing.
    Direct,
    /// Our own bare forwarder: what everybody else is compared with.
    Floor,
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
}

/// What a chain needs to know to be configured.
struct Place<'a> {
    folder: &'a Path,
    origin: SocketAddr,
    hops: u8,
    /// The first hop, which the client speaks to.
    first: SocketAddr,
    /// The second hop, if there are two.
    second: SocketAddr,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("no proxy"),
            Self::Floor => f.write_str("floor"),
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
    /// Whether others measure themselves with it.
    pub const fn is_peer(&self) -> bool {
        matches!(self, Self::Nginx(_) | Self::Haproxy { .. } | Self::Envoy { .. })
    }

    /// The name with which `--chain` chooses it.
    pub fn name(&self) -> String {
        self.to_string().replace(' ', "-")
    }

    /// Starts it on the chain's core, in front of `origin`.
    ///
    /// # Errors
    /// When a part of it cannot be started; with what it said.
    pub fn start(&self, scenario: &Scenario, origin: SocketAddr, cores: Cores, folder: &Path) -> Result<Running> {
        if *self == Self::Direct {
            return Ok(Running { entry: origin, proxies: Vec::new() });
        }
        let place = Place { folder, origin, hops: scenario.hops, first: free_address()?, second: free_address()? };
        let name = self.name();
        // The far side first: nobody should find its upstream missing.
        let sides: &[Side] = if place.hops == 2 { &[Side::Second, Side::First] } else { &[Side::First] };
        let mut proxies = Vec::new();
        for side in sides {
            let mut command = match self {
                Self::Direct => continue,
                Self::Floor => floor(&place, *side)?,
                Self::Outrigger { binary, .. } => outrigger::command(binary, &place, *side)?,
                Self::Nginx(binary) => nginx::command(binary, &place, *side)?,
                Self::Haproxy { binary, http2 } => haproxy::command(binary, *http2, &place, *side)?,
                Self::Envoy { binary, http2 } => envoy::command(binary, *http2, &place, *side)?,
            };
            let log = format!("{name}-{}-{}", scenario.name, side.word());
            let mut process = Process::start(&log, &mut command, cores.chain, folder)?;
            process.wait_until_listening(place.listen(*side))?;
            proxies.insert(0, process);
        }
        wait_until_answering(place.first, &proxies)?;
        Ok(Running { entry: place.first, proxies })
    }
}

/// Waits until a request gets its answer from the origin: listening is not yet knowing where to send to.
fn wait_until_answering(entry: SocketAddr, proxies: &[Process]) -> Result<()> {
    let started = Instant::now();
    loop {
        let answer = ask_once(entry);
        if matches!(&answer, Ok(status) if status.starts_with("HTTP/1.1 200")) {
            return Ok(());
        }
        if started.elapsed() > ANSWER {
            let answer = answer.unwrap_or_else(|error| error.to_string());
            let said: Vec<_> = proxies.iter().map(Process::last_words).collect();
            bail!("no request is answered with 200 (the last one: {}); it said:\n{}", answer.trim(), said.join("\n"));
        }
        thread::sleep(ANSWER / 100);
    }
}

/// The first bytes of one answer.
fn ask_once(entry: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(entry)?;
    stream.set_read_timeout(Some(ANSWER / 10))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut first = [0; 64];
    let bytes = stream.read(&mut first)?;
    Ok(String::from_utf8_lossy(&first[..bytes]).lines().next().unwrap_or_default().to_owned())
}

/// Which proxy of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    First,
    Second,
}

impl Side {
    const fn word(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
        }
    }
}

impl Place<'_> {
    fn listen(&self, side: Side) -> SocketAddr {
        match side {
            Side::First => self.first,
            Side::Second => self.second,
        }
    }

    /// Where a side sends to.
    fn next(&self, side: Side) -> SocketAddr {
        if side == Side::First && self.hops == 2 { self.second } else { self.origin }
    }

    /// Whether a side speaks TLS to the next.
    fn originates_tls(&self, side: Side) -> bool {
        side == Side::First && self.hops == 2
    }

    /// Whether a side takes TLS.
    fn terminates_tls(&self, side: Side) -> bool {
        side == Side::Second
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn certificate(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

fn floor(place: &Place<'_>, side: Side) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    let part = match (place.hops, side) {
        (2, Side::First) => "first",
        (2, Side::Second) => "second",
        _ => "only",
    };
    command
        .args(["floor", "--place", part])
        .args(["--listen", &place.listen(side).to_string()])
        .args(["--to", &place.next(side).to_string()])
        .arg("--certificates")
        .arg(place.folder);
    Ok(command)
}

/// The chains to measure: those named, or all there are; and a sentence for each that is missing.
///
/// # Errors
/// When a named chain is unknown or not there, or Outrigger itself is missing.
pub fn choose(names: &[String], outriggers: &[PathBuf]) -> Result<(Vec<Chain>, Vec<String>)> {
    let mut all = vec![Chain::Direct, Chain::Floor];
    for (index, binary) in outriggers.iter().enumerate() {
        if !binary.is_file() {
            bail!(
                "there is no {} (hint: `cargo build --release --bin outrigger`, or name another with --outrigger)",
                binary.display()
            );
        }
        let label = if index == 0 { "outrigger".to_owned() } else { format!("outrigger {}", index + 1) };
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
