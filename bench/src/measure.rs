//! A run: every scenario, every chain, in interleaved rounds.
//!
//! In each round each chain gets its turn before any gets its next one: what else happens on the machine then hits all of
//! them. All chains of a scenario stay up for the whole scenario; an idle one costs nothing, and each starts warm.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{
    certificates,
    chain::{self, Chain, HOST, Running},
    closed_loop, open_loop, peers,
    process::{Cores, Memory, Process},
    scenario::{self, Scenario},
};

/// Before the first measured round of each chain.
const WARM_UP: Duration = Duration::from_secs(1);

/// What the load generator saw.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub requests: u64,
    pub rate: f64,
    pub p50_micros: f64,
    pub p99_micros: f64,
}

/// One chain in one round.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Round {
    pub requests_per_second: f64,
    pub p50_micros: f64,
    pub p99_micros: f64,
    /// User and system time of all proxies; zero without a proxy.
    pub cpu_micros_per_request: f64,
}

/// One chain in one scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub chain: String,
    #[serde(skip)]
    pub is_peer: bool,
    pub rounds: Vec<Round>,
    /// Resident memory of all proxies before the first request.
    pub idle_kib: u64,
    /// The most that was resident.
    pub peak_kib: u64,
}

/// One scenario with all its chains.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub scenario: String,
    pub title: String,
    pub chains: Vec<Measured>,
    /// Chains that are not in the figures, and why.
    pub gaps: Vec<String>,
}

/// What a run is made of.
pub struct Plan<'a> {
    pub scenarios: Vec<Scenario>,
    pub chains: Vec<Chain>,
    pub rounds: u32,
    pub time: Duration,
    pub cores: Cores,
    pub folder: &'a Path,
}

/// Where it was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub kernel: String,
    pub cpu: String,
    pub versions: Vec<(String, String)>,
}

impl Machine {
    /// This one.
    pub fn here(outriggers: &[PathBuf]) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let found = peers::ALL.iter().filter_map(|peer| peers::find(*peer).map(|binary| (*peer, binary)));
        let mut versions: Vec<_> =
            found.map(|(peer, binary)| (peer.name().to_owned(), peers::version(peer, &binary))).collect();
        for binary in outriggers {
            let said = Command::new(binary).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
            versions.push(("outrigger".to_owned(), String::from_utf8_lossy(&said).trim().to_owned()));
        }
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: cpu.trim_start_matches([' ', '\t', ':']).to_owned(),
            versions,
        }
    }
}

/// Measures everything.
///
/// # Errors
/// When the origin cannot be started or our own files not written. A chain that fails is a gap, not an error.
pub fn run(plan: &Plan<'_>) -> Result<Vec<Outcome>> {
    certificates::make(plan.folder)?;
    plan.scenarios.iter().map(|scenario| plan.measure(scenario)).collect()
}

impl Plan<'_> {
    fn measure(&self, scenario: &Scenario) -> Result<Outcome> {
        let origin_at = chain::free_address()?;
        let mut command = Command::new(std::env::current_exe().context("cannot find this binary")?);
        command
            .args(["origin", "--listen", &origin_at.to_string()])
            .args(["--response-bytes", &scenario.response_bytes.to_string()]);
        let mut origin =
            Process::start(&format!("origin-{}", scenario.name), &mut command, self.cores.load, self.folder)?;
        origin.wait_until_listening(origin_at)?;

        let mut gaps = Vec::new();
        let mut running: Vec<(Running, Measured)> = Vec::new();
        for chain in &self.chains {
            tell(&format!("{}: starting {chain}", scenario.name));
            match self.begin(chain, scenario, origin_at) {
                Ok(begun) => running.push(begun),
                Err(error) => gaps.push(format!("{chain} is not measured: {error:#}")),
            }
        }
        for round in 1..=self.rounds {
            let mut failed = Vec::new();
            for (index, (chain, measured)) in running.iter_mut().enumerate() {
                tell(&format!("{}: round {round} of {}, {}", scenario.name, self.rounds, measured.chain));
                match self.once(chain, scenario) {
                    Ok(figures) => measured.rounds.push(figures),
                    Err(error) => {
                        gaps.push(format!("{} failed in round {round}: {error:#}", measured.chain));
                        failed.push(index);
                    }
                }
            }
            for index in failed.into_iter().rev() {
                running.remove(index);
            }
        }
        tell("");
        let chains = running.into_iter().map(|(chain, mut measured)| {
            measured.peak_kib = memory(&chain).map(|memory| memory.peak_kib).unwrap_or_default();
            measured
        });
        Ok(Outcome { scenario: scenario.name.clone(), title: scenario.title.clone(), chains: chains.collect(), gaps })
    }

    fn begin(&self, chain: &Chain, scenario: &Scenario, origin: std::net::SocketAddr) -> Result<(Running, Measured)> {
        let running = chain.start(scenario, origin, self.cores, self.folder)?;
        let idle_kib = memory(&running)?.now_kib;
        self.load(&running, scenario, WARM_UP)?;
        let measured =
            Measured { chain: chain.to_string(), is_peer: chain.is_peer(), rounds: Vec::new(), idle_kib, peak_kib: 0 };
        Ok((running, measured))
    }

    fn once(&self, running: &Running, scenario: &Scenario) -> Result<Round> {
        let before = cpu(running)?;
        let load = self.load(running, scenario, self.time)?;
        let used = cpu(running)?.saturating_sub(before);
        Ok(Round {
            requests_per_second: load.rate,
            p50_micros: load.p50_micros,
            p99_micros: load.p99_micros,
            cpu_micros_per_request: used.as_secs_f64() * 1e6 / load.requests.max(1) as f64,
        })
    }

    fn load(&self, running: &Running, scenario: &Scenario, time: Duration) -> Result<Load> {
        match scenario.load {
            scenario::Load::Closed { connections } => {
                closed_loop::run(running.entry, HOST, connections, time, self.cores.load)
            }
            scenario::Load::Open { connections, requests_per_second } => {
                open_loop::run(running.entry, HOST, connections, requests_per_second, time, self.cores.load)
            }
        }
    }
}

fn cpu(running: &Running) -> Result<Duration> {
    running.proxies.iter().map(Process::cpu).sum()
}

fn memory(running: &Running) -> Result<Memory> {
    let mut sum = Memory::default();
    for process in &running.proxies {
        let one = process.memory()?;
        sum.now_kib += one.now_kib;
        sum.peak_kib += one.peak_kib;
    }
    Ok(sum)
}

/// What is being done, on a line that the next one replaces; nothing when nobody watches.
fn tell(what: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{what}");
    }
}
