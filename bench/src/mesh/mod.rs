//! What is measured of a whole mesh: Outrigger's control plane is real, and so is what it talks to.
//!
//! Peers have no part in it: their control planes are other programs.

mod client;
mod control_plane;
mod effect;
mod join;
mod known;
mod reconnect;
mod swaps;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    chain::{Chain, outrigger::SETTINGS},
    figures::{Measured, Outcome, Role},
    measure::{NOBODY, Plan},
    progress::Progress,
    scenario::{Load, Scenario},
};

/// What every scenario of a mesh needs to know.
struct Site<'a> {
    plan: &'a Plan<'a>,
    scenario: &'a Scenario,
    binary: &'a Path,
    /// A folder of its own.
    folder: PathBuf,
    /// The server behind the mesh.
    origin: SocketAddr,
    progress: &'a Progress,
}

/// Measures one scenario with each binary of Outrigger.
///
/// # Errors
/// When the origin cannot be started. What fails in the mesh is a gap.
pub fn measure(plan: &Plan<'_>, scenario: &Scenario, progress: &Progress) -> Result<Outcome> {
    let (_origin, origin) = plan.origin(scenario)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut outcome = Outcome {
        scenario: scenario.name.clone(),
        title: scenario.title.clone(),
        work: scenario.work(),
        headlines: scenario.headlines(),
        baseline: scenario.baseline.clone(),
        chains: Vec::new(),
        gaps: Vec::new(),
    };
    if plan.chains_of(scenario).is_empty() {
        outcome.gaps.push(NOBODY.to_owned());
    }
    for chain in plan.chains_of(scenario) {
        let Chain::Outrigger { binary, .. } = chain else { continue };
        let folder = plan.folder.join(format!("{}-{}", chain.name(), scenario.name));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let site = Site { plan, scenario, binary, folder, origin, progress };
        let mut measured = Measured::new(chain.to_string(), Role::Outrigger);
        let done = runtime.block_on(async {
            match scenario.load {
                Load::Effect { proxies, changes } => effect::run(&site, proxies, changes, &mut measured).await,
                Load::Swaps { swaps_per_second, connections, requests_per_second } => {
                    swaps::run(&site, swaps_per_second, (connections, requests_per_second), &mut measured).await
                }
                Load::Reconnect { proxies } => reconnect::run(&site, proxies, &mut measured).await,
                Load::Known { services, used } => known::run(&site, services, used, &mut measured).await,
                _ => join::run(&site, &mut measured).await,
            }
        });
        match done {
            Ok(()) => outcome.chains.push(measured),
            Err(error) => outcome.gaps.push(format!("{chain} is not measured: {error:#}")),
        }
    }
    Ok(outcome)
}

impl Site<'_> {
    fn tell(&self, what: &str) {
        self.progress.tell(&format!("{}: {what}", self.scenario.name));
    }

    /// A sidecar that joins with a token of its service account.
    fn sidecar(&self, account: &str, workload: &str, discovery: SocketAddr) -> Command {
        let mut command = Command::new(self.binary);
        command
            .args(["proxy", "--control-plane", &discovery.to_string(), "--token-file"])
            .arg(self.token_file(account))
            .args(["--namespace", "bench", "--service-account", account, "--workload", workload])
            .args(["--label", &format!("app={account}")])
            .args(SETTINGS);
        command
    }

    fn token_file(&self, account: &str) -> PathBuf {
        self.folder.join(format!("{account}.token"))
    }
}
