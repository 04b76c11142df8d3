//! A run: every scenario, every chain, in interleaved rounds.
//!
//! In each round each chain gets its turn before any gets its next one: what else happens on the machine then hits all of
//! them. All chains of a scenario stay up for the whole scenario; an idle one costs nothing, and each starts warm. What is
//! measured of a mesh with a control plane is in `mesh`.

use std::{
    net::SocketAddr,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    certificates,
    chain::{self, Chain, Running},
    figures::{Figure, Hop, Measured, Outcome, Role},
    load::{self, Aim, Load},
    mesh,
    peers::Peer,
    process::{Cores, Memory, Process, Usage, Used},
    progress::Progress,
    scenario::{self, Client, Scenario},
    syscalls::{self, Counting},
};

/// Before the first measured round of each chain.
const WARM_UP: Duration = Duration::from_secs(1);
/// Where that was too short: hundreds of handshakes with the next hop come before the first answer.
const LONG_WARM_UP: Duration = Duration::from_secs(5);
/// Length of the round that counts system calls.
const COUNTING: Duration = Duration::from_secs(1);
/// After connections were opened, until their memory is looked at.
const SETTLE: Duration = Duration::from_millis(500);
const KIB_PER_MIB: f64 = 1024.0;
/// The gap of a scenario that nobody was measured in, where nobody was to be.
pub const NOBODY: &str = "none of the chosen chains takes part";

/// What a run is made of.
pub struct Plan<'a> {
    pub scenarios: Vec<Scenario>,
    pub chains: Vec<Chain>,
    pub rounds: u32,
    pub time: Duration,
    pub cores: Cores,
    pub folder: &'a Path,
    /// A sentence for each peer that is not here.
    pub missing: Vec<String>,
    /// What counts system calls; none: they are not counted.
    pub counter: Option<Peer>,
}

/// A chain that is up, with what has been measured of it.
struct Contender {
    chain: Chain,
    running: Running,
    measured: Measured,
}

/// Measures everything; `keep` gets all outcomes so far after each scenario, so that a run that is ended keeps what it has.
///
/// # Errors
/// When the origin cannot be started or our own files not written. A chain that fails is a gap, not an error.
pub fn run(plan: &Plan<'_>, mut keep: impl FnMut(&[Outcome]) -> Result<()>) -> Result<Vec<Outcome>> {
    certificates::make(plan.folder)?;
    let progress = Progress::new(plan.scenarios.iter().map(|scenario| plan.steps(scenario)).sum());
    let mut outcomes = Vec::new();
    for scenario in &plan.scenarios {
        outcomes.push(if scenario.load.is_of_a_mesh() {
            mesh::measure(plan, scenario, &progress)?
        } else {
            plan.measure(scenario, &progress)?
        });
        keep(&outcomes)?;
    }
    Ok(outcomes)
}

impl Plan<'_> {
    /// The chains that take part in a scenario.
    pub fn chains_of(&self, scenario: &Scenario) -> Vec<&Chain> {
        let of_a_mesh = scenario.load.is_of_a_mesh();
        let takes_part = |chain: &&Chain| {
            if of_a_mesh { chain.role() == Role::Outrigger } else { chain.takes_part(scenario) }
        };
        self.chains.iter().filter(takes_part).collect()
    }

    /// One for each start, one for each turn.
    fn steps(&self, scenario: &Scenario) -> usize {
        self.chains_of(scenario).len() * (1 + self.rounds as usize)
    }

    /// A server for the chains to end at.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn origin(&self, scenario: &Scenario) -> Result<(Process, SocketAddr)> {
        let address = chain::free_address()?;
        let mut command = Command::new(std::env::current_exe().context("cannot find this binary")?);
        command
            .args(["origin", "--listen", &address.to_string()])
            .args(["--response-bytes", &scenario.response_bytes.to_string()]);
        if scenario.client == Client::Tcp {
            command.arg("--tcp");
        }
        let name = format!("origin-{}", scenario.name);
        let mut origin = Process::start(&name, &mut command, Some(self.cores.load), self.folder)?;
        origin.wait_until_listening(address)?;
        Ok((origin, address))
    }

    fn measure(&self, scenario: &Scenario, progress: &Progress) -> Result<Outcome> {
        let (_origin, origin_at) = self.origin(scenario)?;
        let mut outcome = Outcome {
            scenario: scenario.name.clone(),
            title: scenario.title.clone(),
            work: scenario.work(),
            headlines: scenario.headlines(),
            baseline: scenario.baseline.clone(),
            chains: Vec::new(),
            gaps: self.missing.clone(),
        };
        let mut contenders = Vec::new();
        if self.chains_of(scenario).is_empty() {
            outcome.gaps.push(NOBODY.to_owned());
        }
        for chain in self.chains_of(scenario) {
            progress.tell(&format!("{}: starting {chain}", scenario.name));
            match self.begin(chain, scenario, origin_at) {
                Ok(begun) => contenders.push(begun),
                Err(error) => {
                    outcome.gaps.push(format!("{chain} is not measured: {error:#}"));
                    progress.advance(self.rounds as usize);
                }
            }
            progress.advance(1);
        }
        for round in 1..=self.rounds {
            let mut failed = Vec::new();
            for (index, contender) in contenders.iter_mut().enumerate() {
                let chain = &contender.chain;
                progress.tell(&format!("{}: round {round} of {}, {chain}", scenario.name, self.rounds));
                if let Err(error) = self.once(contender, scenario, origin_at) {
                    outcome.gaps.push(format!("{} failed in round {round}: {error:#}", contender.chain));
                    failed.push(index);
                }
                progress.advance(1);
            }
            for index in failed.into_iter().rev() {
                let _ = contenders.remove(index);
                progress.advance((self.rounds - round) as usize);
            }
        }
        for contender in contenders {
            progress.tell(&format!("{}: system calls and memory of {}", scenario.name, contender.chain));
            let Contender { running, mut measured, .. } = contender;
            if let Err(error) = self.end(&running, &mut measured, scenario) {
                outcome.gaps.push(format!("{}: no memory or system calls: {error:#}", measured.chain));
            }
            outcome.chains.push(measured);
        }
        added_latency(&mut outcome);
        Ok(outcome)
    }

    fn begin(&self, chain: &Chain, scenario: &Scenario, origin: SocketAddr) -> Result<Contender> {
        let running = chain.start(scenario, origin, self.cores, self.folder)?;
        let mut measured = Measured::new(chain.to_string(), chain.role());
        measured.hops = vec![Hop::default(); running.proxies.len()];
        if !running.proxies.is_empty() {
            measured.add(Figure::IdleMemory, memory(&running)?.now_kib as f64 / KIB_PER_MIB);
        }
        if makes_load(scenario) {
            let warm_up = |time| self.aim(&running, scenario, time).fire(&running);
            warm_up(WARM_UP).or_else(|_| warm_up(LONG_WARM_UP))?;
        }
        Ok(Contender { chain: chain.clone(), running, measured })
    }

    /// One turn of one chain.
    fn once(&self, contender: &mut Contender, scenario: &Scenario, origin: SocketAddr) -> Result<()> {
        let Contender { chain, running, measured } = contender;
        match &scenario.load {
            scenario::Load::Start => {
                let began = Instant::now();
                let again = chain.start(scenario, origin, self.cores, self.folder)?;
                measured.add(Figure::StartToReady, began.elapsed().as_secs_f64() * 1e3);
                drop(again);
            }
            scenario::Load::Idle { connections } => {
                // What an earlier round left behind may be used again: each round counts in a process of its own.
                *running = chain.start(scenario, origin, self.cores, self.folder)?;
                let before = memory(running)?.now_kib;
                let kept = load::tls::idle(&self.aim(running, scenario, self.time), *connections, running.alpn)?;
                thread::sleep(SETTLE);
                let more = memory(running)?.now_kib.saturating_sub(before);
                measured.add(Figure::ConnectionMemory, more as f64 / f64::from(*connections));
                drop(kept);
            }
            _ => self.turn(running, measured, scenario)?,
        }
        Ok(())
    }

    /// Load, with CPU time before and after.
    fn turn(&self, running: &Running, measured: &mut Measured, scenario: &Scenario) -> Result<()> {
        let before = usage(running)?;
        let load = self.aim(running, scenario, self.time).fire(running)?;
        let after = usage(running)?;
        let used: Vec<Used> = after.iter().zip(&before).map(|(after, before)| after.since(before)).collect();
        note(measured, scenario, &load, &used);
        Ok(())
    }

    /// What is looked at once, after all rounds.
    fn end(&self, running: &Running, measured: &mut Measured, scenario: &Scenario) -> Result<()> {
        if running.proxies.is_empty() {
            return Ok(());
        }
        if !matches!(scenario.load, scenario::Load::Start) {
            measured.add(Figure::PeakMemory, memory(running)?.peak_kib as f64 / KIB_PER_MIB);
        }
        if let Some(counter) = self.counter.filter(|_| makes_load(scenario)) {
            let pids: Vec<_> = running.proxies.iter().flat_map(Process::pids).collect();
            let counting = Counting::start(counter, &pids, self.folder)?;
            let load = self.aim(running, scenario, COUNTING).fire(running);
            let calls = counting.finish()?;
            measured.add(Figure::Syscalls, calls / load?.count);
        }
        Ok(())
    }

    fn aim<'s>(&'s self, running: &Running, scenario: &'s Scenario, time: Duration) -> Aim<'s> {
        Aim { scenario, entry: running.entry, time, core: self.cores.load, folder: self.folder }
    }
}

/// Writes one turn's figures down.
fn note(measured: &mut Measured, scenario: &Scenario, load: &Load, used: &[Used]) {
    let unit = scenario.work().cpu_unit_micros() * load.count;
    measured.add(Figure::Rate, load.rate);
    if let Some(latency) = load.latency {
        measured.add(Figure::P50, latency.p50);
        measured.add(Figure::P90, latency.p90);
        measured.add(Figure::P99, latency.p99);
        measured.add(Figure::P999, latency.p999);
    }
    if used.is_empty() {
        return;
    }
    measured.add(Figure::Cpu, used.iter().map(Used::micros).sum::<f64>() / unit);
    measured.add(Figure::UserCpu, used.iter().map(|used| used.user_micros).sum::<f64>() / unit);
    measured.add(Figure::SystemCpu, used.iter().map(|used| used.system_micros).sum::<f64>() / unit);
    for (hop, used) in measured.hops.iter_mut().zip(used) {
        hop.user.push(used.user_micros / unit);
        hop.system.push(used.system_micros / unit);
    }
}

/// Where latency is what is asked for: what each chain adds to the way without a proxy, in the same round.
fn added_latency(outcome: &mut Outcome) {
    if !outcome.headlines.contains(&Figure::AddedP50) {
        return;
    }
    let direct = outcome.chains.iter().find(|measured| measured.role == Role::None);
    let Some(direct) = direct.and_then(|measured| measured.figures.get(&Figure::P50)).cloned() else {
        outcome.gaps.push("added latency is not known: no chain without a proxy was measured".to_owned());
        return;
    };
    for measured in outcome.chains.iter_mut().filter(|measured| measured.role != Role::None) {
        let own = measured.figures.get(&Figure::P50).cloned().unwrap_or_default();
        for (own, direct) in own.iter().zip(&direct) {
            measured.add(Figure::AddedP50, own - direct);
        }
    }
}

/// Whether the scenario has a load that can be made again and again.
const fn makes_load(scenario: &Scenario) -> bool {
    !matches!(scenario.load, scenario::Load::Start | scenario::Load::Idle { .. })
}

fn usage(running: &Running) -> Result<Vec<Usage>> {
    running.proxies.iter().map(Process::usage).collect()
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

/// What the tool is called that counts system calls, for the report.
pub fn counter(is_wanted: bool) -> Option<Peer> {
    if is_wanted { syscalls::tool() } else { None }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn added_latency_is_that_of_the_same_round() {
        // A slow round of the machine would be added to one chain only.
        let mut outcome = crate::figures::tests::sample(12.0).scenarios.remove(0);
        outcome.headlines = vec![Figure::AddedP50];
        for (chain, latencies) in [(0, [50.0, 90.0]), (2, [70.0, 120.0])] {
            outcome.chains[chain].figures.insert(Figure::P50, latencies.to_vec());
        }
        added_latency(&mut outcome);
        assert_eq!(outcome.chains[2].figures[&Figure::AddedP50], [20.0, 30.0]);
        assert!(!outcome.chains[0].figures.contains_key(&Figure::AddedP50));
        assert!(outcome.gaps.iter().all(|gap| !gap.contains("added")));
    }
}
