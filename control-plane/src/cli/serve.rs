//! `serve`: a control plane, until it is told to stop.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use outrigger_proxy::{
    arguments::{listen, log_filter, plain_io},
    settings::parse_duration,
    telemetry::log::{self, LogFormat},
};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    connection::{ADDRESS_FILE, default_data_dir},
    outcome::{Exit, Failure, Outcome},
    output::note,
};
use crate::control_plane::{self, Running, Settings};

/// `outrigger serve`, and the part of `outrigger up` that is the same.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Folder for objects, root and admin token [default: /var/lib/outrigger for root, else ~/.local/state/outrigger]
    #[arg(long, value_name = "DIR", env = "OUTRIGGER_DATA_DIR", help_heading = "Control plane")]
    pub data_dir: Option<PathBuf>,
    /// Where sidecars connect [default: 0.0.0.0:15012]
    #[arg(long, value_name = "LISTEN", value_parser = listen, help_heading = "Control plane")]
    pub discovery: Option<SocketAddr>,
    /// Where this command line connects [default: 127.0.0.1:15010]
    #[arg(long, value_name = "LISTEN", value_parser = listen, help_heading = "Control plane")]
    pub admin: Option<SocketAddr>,
    /// Metrics and readiness over plain HTTP, or off [default: 127.0.0.1:15014]
    #[arg(long, value_name = "LISTEN|off", value_parser = listen_or_off, help_heading = "Control plane")]
    pub monitoring: Option<Monitoring>,
    /// Trust domain of every identity [default: cluster.local]
    #[arg(long, value_name = "DOMAIN", value_parser = domain, help_heading = "Control plane")]
    pub trust_domain: Option<String>,
    /// Suffix of complete service names [default: cluster.local]
    #[arg(long, value_name = "DOMAIN", value_parser = domain, help_heading = "Control plane")]
    pub domain_suffix: Option<String>,
    /// Lifetime of workload certificates [default: 24h]
    #[arg(long, value_name = "DURATION", value_parser = leaf_ttl, help_heading = "Control plane")]
    pub leaf_ttl: Option<Duration>,
    /// Further name or address under which sidecars reach this control plane; repeatable
    #[arg(long = "host-name", value_name = "NAME", value_parser = host_name, help_heading = "Control plane")]
    pub host_names: Vec<String>,
    /// Revisions to keep [default: 10000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Control plane")]
    pub history_limit: Option<u64>,
    /// Process log: error, warn, info, debug, trace, or a filter such as info,outrigger_control_plane=debug
    #[arg(long, value_name = "LEVEL", env = "OUTRIGGER_LOG", default_value = "info", value_parser = log_filter, help_heading = "Control plane")]
    pub log_level: String,
    /// How the process log is written
    #[arg(long, value_enum, default_value = "text", help_heading = "Control plane")]
    pub log_format: LogFormat,
}

/// `--monitoring`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Monitoring {
    On(SocketAddr),
    Off,
}

fn listen_or_off(text: &str) -> Result<Monitoring, String> {
    if text == "off" {
        return Ok(Monitoring::Off);
    }
    listen(text).map(Monitoring::On).map_err(|error| format!("{error}, or off"))
}

fn domain(text: &str) -> Result<String, String> {
    let label = |part: &str| {
        !part.is_empty()
            && part.len() <= 63
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
    };
    if text.len() <= 253 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err(format!("\"{text}\" is not a domain in lower case (for example cluster.local)"))
    }
}

fn host_name(text: &str) -> Result<String, String> {
    if text.parse::<std::net::IpAddr>().is_ok() { Ok(text.to_owned()) } else { domain(&text.to_ascii_lowercase()) }
}

fn leaf_ttl(text: &str) -> Result<Duration, String> {
    const SHORTEST: Duration = Duration::from_secs(60);
    let ttl = parse_duration(text)?;
    if ttl < SHORTEST { Err(format!("{text} is less than 60s, too short to renew in time")) } else { Ok(ttl) }
}

impl ServeArgs {
    /// The control plane's settings these flags mean.
    pub fn settings(&self) -> Settings {
        let mut settings = Settings::new(self.data_dir.clone().unwrap_or_else(default_data_dir));
        if let Some(address) = self.discovery {
            settings.discovery_listen = address;
        }
        if let Some(address) = self.admin {
            settings.admin_listen = address;
        }
        match self.monitoring {
            Some(Monitoring::On(address)) => settings.monitoring_listen = Some(address),
            Some(Monitoring::Off) => settings.monitoring_listen = None,
            None => {}
        }
        if let Some(domain) = &self.trust_domain {
            settings.trust_domain.clone_from(domain);
        }
        if let Some(domain) = &self.domain_suffix {
            settings.domain_suffix.clone_from(domain);
        }
        if let Some(ttl) = self.leaf_ttl {
            settings.leaf_ttl = ttl;
        }
        settings.host_names.clone_from(&self.host_names);
        if let Some(limit) = self.history_limit {
            settings.history_limit = limit;
        }
        settings
    }
}

/// Runs `outrigger serve`.
pub fn serve(args: &ServeArgs) -> Outcome {
    let settings = args.settings();
    let log = log::start(args.log_format, &args.log_level).map_err(Failure::usage)?;
    let ended = runtime()?.block_on(async {
        let mut stop = Stop::new()?;
        let address_file = settings.data_dir.join(ADDRESS_FILE);
        let running = start(settings).await?;
        note(&format!(
            "control plane is up: sidecars connect to {}, the command line to {}",
            running.discovery_address, running.admin_address
        ));
        stop.wait().await;
        note("stopping");
        let _ = std::fs::remove_file(&address_file);
        running.shutdown().await;
        Ok(Exit::Ok)
    });
    log.flush();
    ended
}

/// A runtime with a thread per core, for a control plane.
///
/// Errors: the machine gives no threads.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format_args!("cannot start: {}", plain_io(&error))))
}

/// Starts a control plane and leaves its admin address in its folder, where the other commands look for it.
///
/// Errors: an address is taken, or the folder cannot be used.
pub async fn start(settings: Settings) -> Result<Running, Failure> {
    let folder = settings.data_dir.clone();
    let running = control_plane::start(settings).await.map_err(Failure::failed)?;
    let path = folder.join(ADDRESS_FILE);
    write_whole(&path, &format!("{}\n", reachable(running.admin_address)))
        .map_err(|error| Failure::failed(format_args!("cannot write {}: {}", path.display(), plain_io(&error))))?;
    Ok(running)
}

/// Where a listener is reached from this machine: an unspecified address listens on loopback too.
pub fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// Writes a file whole or not at all: readers see the old text or the new one.
pub fn write_whole(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}", std::process::id()));
    std::fs::write(&draft, text)?;
    std::fs::rename(&draft, path)
}

/// Ctrl-C and SIGTERM.
pub struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    /// Listens from now on, so that a signal during start-up is not lost.
    ///
    /// Errors: the machine refuses signal handlers.
    pub fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::failed(format_args!("cannot handle signals: {error}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Returns once the process should stop.
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
