//! From starting a sidecar to the first answer through it, with its control plane up: join, certificate, configuration.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{Site, control_plane::ControlPlane};
use crate::{
    chain::{free_address, outrigger},
    figures::{Figure, Measured},
    load::probe,
    process::Process,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// Starts in each round.
const STARTS: u32 = 5;

pub(super) async fn run(site: &Site<'_>, measured: &mut Measured) -> Result<()> {
    let (plane, mut admin) = ControlPlane::start(site, 0).await?;
    admin
        .apply(&outrigger::documents(site.scenario, &outrigger::workload(site.origin, "plain"), [].into_iter()))
        .await?;
    admin.token(site, "client").await?;
    site.progress.advance(1);
    for round in 1..=site.plan.rounds {
        for start in 1..=STARTS {
            site.tell(&format!("round {round}, start {start}"));
            let local = free_address()?;
            let name = format!("client-{round}-{start}");
            let mut command = site.sidecar("client", &name, plane.discovery);
            command.args(["--local", &format!("{local}=app.bench:80")]);
            let began = Instant::now();
            let sidecar = Process::start(&name, &mut command, Some(site.plan.cores.chain), &site.folder)?;
            loop {
                let scenario = site.scenario.clone();
                let answer = tokio::task::spawn_blocking(move || probe::ask_once(local, &scenario, None)).await?;
                if answer.is_ok() {
                    break;
                }
                if began.elapsed() > PATIENCE {
                    bail!("a sidecar does not come up ({answer:?}); it said:\n{}", sidecar.last_words());
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            measured.add(Figure::StartToReady, began.elapsed().as_secs_f64() * 1e3);
            measured.add(Figure::IdleMemory, sidecar.memory()?.now_kib as f64 / 1024.0);
        }
        site.progress.advance(1);
    }
    Ok(())
}
