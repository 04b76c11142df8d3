//! Changes at a rate, while a constant rate of requests goes through two sidecars. No request may fail, and none may wait long.
//!
//! Each round has two halves: without changes, and with them. The sidecars have the chain's core, the load has its own; the
//! control plane runs where there is room.

use std::{
    net::SocketAddr,
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use super::{
    Site,
    control_plane::{Admin, ControlPlane},
};
use crate::{
    chain::free_address,
    figures::{Figure, Measured},
    load::{Aim, Load, constant_rate, probe},
    process::Process,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// Changes on their way at once.
const IN_FLIGHT: usize = 4;

pub(super) async fn run(
    site: &Site<'_>,
    swaps_per_second: u32,
    load: (u32, u32),
    measured: &mut Measured,
) -> Result<()> {
    let (plane, mut admin) = ControlPlane::start(site, 0).await?;
    admin.apply(&service()).await?;
    admin.apply(&route(0)).await?;
    for account in ["app", "client"] {
        admin.token(site, account).await?;
    }
    let (entry, inbound, operator) = (free_address()?, free_address()?, free_address()?);
    let mut app = site.sidecar("app", "app-0", plane.discovery);
    app.args(["--inbound", &format!("{inbound}={},port=8080,name=http", site.origin)]);
    let mut client = site.sidecar("client", "client-0", plane.discovery);
    client.args(["--local", &format!("{entry}=app.bench:80"), "--admin", &operator.to_string()]);
    let core = Some(site.plan.cores.chain);
    let _app = Process::start("app-0", &mut app, core, &site.folder)?;
    let client = Process::start("client-0", &mut client, core, &site.folder)?;
    until_answering(site, entry, &client).await?;
    site.progress.advance(1);

    for round in 1..=site.plan.rounds {
        site.tell(&format!("round {round}, without changes"));
        let (quiet, failed_before) = half(site, entry, load).await?;
        site.tell(&format!("round {round}, {swaps_per_second} changes a second"));
        let (before, began) = (generation(operator).await?, Instant::now());
        let ended = Arc::new(AtomicBool::new(false));
        let stored = Arc::new(AtomicU64::new(0));
        let changing = tokio::spawn(change(admin.clone(), swaps_per_second, Arc::clone(&ended), Arc::clone(&stored)));
        let busy = half(site, entry, load).await;
        let took = began.elapsed();
        let in_effect = generation(operator).await?.saturating_sub(before);
        let stored = stored.load(Ordering::Relaxed);
        ended.store(true, Ordering::Relaxed);
        changing.await??;
        let (busy, failed) = busy?;
        measured.add(Figure::Stored, stored as f64 / took.as_secs_f64());
        measured.add(Figure::Swaps, in_effect as f64 / took.as_secs_f64());
        measured.add(Figure::Failed, (failed_before + failed) as f64);
        measured.add(Figure::Rate, busy.rate);
        if let (Some(busy), Some(quiet)) = (busy.latency, quiet.latency) {
            measured.add(Figure::P50, busy.p50);
            measured.add(Figure::P99, busy.p99);
            measured.add(Figure::QuietP99, quiet.p99);
        }
        site.progress.advance(1);
    }
    measured.add(Figure::PlaneMemory, plane.peak_mib()?);
    Ok(())
}

/// The load of one half of a round, on threads of its own; and how many requests failed.
async fn half(
    site: &Site<'_>,
    entry: SocketAddr,
    (connections, requests_per_second): (u32, u32),
) -> Result<(Load, u64)> {
    let (scenario, folder) = (site.scenario.clone(), site.folder.clone());
    let (time, core) = (site.plan.time, site.plan.cores.load);
    tokio::task::spawn_blocking(move || {
        let aim = Aim { scenario: &scenario, entry, time, core, folder: &folder };
        let failed = AtomicU64::new(0);
        let load = constant_rate::run_counting(&aim, connections, requests_per_second, &failed)?;
        Ok((load, failed.into_inner()))
    })
    .await?
}

/// Sends changes at a rate. Some may be on their way at once: storing one takes longer than the next one waits.
async fn change(admin: Admin, swaps_per_second: u32, ended: Arc<AtomicBool>, stored: Arc<AtomicU64>) -> Result<()> {
    let mut tick = tokio::time::interval(Duration::from_secs(1) / swaps_per_second);
    // A number that no earlier round had: each must be a change.
    let mut number = u64::try_from(jiff::Timestamp::now().as_microsecond())?;
    let mut sending = JoinSet::new();
    while !ended.load(Ordering::Relaxed) {
        tick.tick().await;
        number += 1;
        let (mut admin, stored) = (admin.clone(), Arc::clone(&stored));
        sending.spawn(async move {
            admin.apply(&route(number)).await?;
            stored.fetch_add(1, Ordering::Relaxed);
            anyhow::Ok(())
        });
        while sending.len() >= IN_FLIGHT {
            sending.join_next().await.context("nothing is on its way")???;
        }
    }
    while let Some(sent) = sending.join_next().await {
        sent??;
    }
    Ok(())
}

fn service() -> String {
    "apiVersion: v1
kind: Service
metadata: {name: app, namespace: bench}
spec:
  selector: {app: app}
  ports: [{name: http, port: 80, targetPort: http}]
"
    .to_owned()
}

fn route(number: u64) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: app, namespace: bench}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: app, port: 80}}]
  rules:
  - filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {{set: [{{name: x-swap, value: \"{number}\"}}]}}
    backendRefs: [{{name: app, port: 80}}]
"
    )
}

async fn until_answering(site: &Site<'_>, entry: SocketAddr, client: &Process) -> Result<()> {
    let began = Instant::now();
    loop {
        let scenario = site.scenario.clone();
        let answer = tokio::task::spawn_blocking(move || probe::ask_once(entry, &scenario, None)).await?;
        match answer {
            Ok(()) => return Ok(()),
            Err(error) if began.elapsed() > PATIENCE => {
                return Err(error.context(format!("the mesh does not come up; it said:\n{}", client.last_words())));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// How many pictures of the mesh a sidecar has had.
async fn generation(operator: SocketAddr) -> Result<u64> {
    let mut stream = TcpStream::connect(operator).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {operator}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    let reading = stream.read_to_string(&mut answer);
    tokio::time::timeout(PATIENCE, reading).await.context("the sidecar's metrics do not end")??;
    of_metrics(&answer).context("the sidecar's metrics do not tell its generation")
}

fn of_metrics(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("outrigger_config_generation"))?;
    line.split_whitespace().next_back()?.parse::<f64>().ok().map(|value| value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_is_found_among_the_metrics() {
        // Swaps a second would be another metric.
        let text = "# HELP outrigger_config_generation x\n# TYPE outrigger_config_generation gauge\noutrigger_config_generation 42\nother 1\n";
        assert_eq!(of_metrics(text), Some(42));
        assert_eq!(of_metrics("other 1\n"), None);
    }
}
