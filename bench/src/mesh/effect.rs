//! From sending a change to the last sidecar that answers by it, as its clients see it.
//!
//! The change is a redirect that the sidecars answer themselves: nothing behind them takes part. Each sidecar has one client,
//! which asks again and again once the change is sent; with many sidecars it pauses longer between two questions, so that the
//! asking does not become the load. What is measured is therefore late by one pause at most.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
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
    chain::{free_address, outrigger},
    figures::{Figure, Measured},
    load::{self, record},
    process::Process,
};

/// Longest wait for one change.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest wait for one answer.
const ONE_ANSWER: Duration = Duration::from_secs(5);
/// Pause between two questions of one client, for each sidecar there is.
const PAUSE_EACH: Duration = Duration::from_micros(100);
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
/// Sidecars that start at the same time.
const STARTING: usize = 8;

pub(super) async fn run(site: &Site<'_>, proxies: u32, changes: u32, measured: &mut Measured) -> Result<()> {
    let (plane, mut admin) = ControlPlane::start(site, 0).await?;
    admin
        .apply(&outrigger::documents(site.scenario, &outrigger::workload(site.origin, "plain"), [].into_iter()))
        .await?;
    admin.apply(&redirect(0)).await?;
    admin.token(site, "client").await?;
    let mut sidecars = Vec::new();
    let mut clients = Vec::new();
    while sidecars.len() < proxies as usize {
        site.tell(&format!("{} of {proxies} sidecars are up", sidecars.len()));
        let mut batch = Vec::new();
        for number in sidecars.len()..(sidecars.len() + STARTING).min(proxies as usize) {
            let local = free_address()?;
            let name = format!("client-{number}");
            let mut command = site.sidecar("client", &name, plane.discovery);
            command.args(["--local", &format!("{local}=app.bench:80")]);
            batch.push((Process::start(&name, &mut command, None, &site.folder)?, local));
        }
        for (sidecar, local) in batch {
            let mut client = Client { address: local, stream: None };
            let up = client.until(0, SHORTEST_PAUSE).await;
            up.with_context(|| format!("a sidecar does not come up; it said:\n{}", sidecar.last_words()))?;
            sidecars.push(sidecar);
            clients.push(client);
        }
    }
    site.progress.advance(1);
    let pause = PAUSE_EACH.saturating_mul(proxies).max(SHORTEST_PAUSE);
    let mut number = 0;
    for round in 1..=site.plan.rounds {
        site.tell(&format!("round {round}, {changes} changes on {proxies} sidecars"));
        let (mut effect, mut acked) = (load::histogram()?, load::histogram()?);
        for _ in 0..changes {
            number += 1;
            let began = Instant::now();
            let (seen, took);
            (clients, seen, took) = change(&mut admin, clients, number, pause).await?;
            record_all(&mut effect, seen.saturating_duration_since(began));
            record_all(&mut acked, took);
        }
        let millis =
            |histogram: &hdrhistogram::Histogram<u64>, quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        measured.add(Figure::EffectP50, millis(&effect, 0.5));
        measured.add(Figure::EffectP99, millis(&effect, 0.99));
        measured.add(Figure::AckP50, millis(&acked, 0.5));
        measured.add(Figure::AckP99, millis(&acked, 0.99));
        site.progress.advance(1);
    }
    let mut memory = 0;
    for sidecar in &sidecars {
        memory += sidecar.memory()?.now_kib;
    }
    measured.add(Figure::IdleMemory, memory as f64 / 1024.0 / sidecars.len().max(1) as f64);
    measured.add(Figure::PlaneMemory, plane.peak_mib()?);
    Ok(())
}

fn record_all(histogram: &mut hdrhistogram::Histogram<u64>, took: Duration) {
    record(histogram, Instant::now().checked_sub(took).unwrap_or_else(Instant::now));
}

/// Sends one change; gives when the last client saw it, and how long the last acknowledgement took.
async fn change(
    admin: &mut Admin,
    clients: Vec<Client>,
    number: u32,
    pause: Duration,
) -> Result<(Vec<Client>, Instant, Duration)> {
    let mut watching = JoinSet::new();
    for mut client in clients {
        watching.spawn(async move {
            let seen = client.until(number, pause).await?;
            anyhow::Ok((client, seen))
        });
    }
    let revision = admin.apply(&redirect(number)).await?;
    let acked = admin.acked(revision).await?;
    let (mut back, mut last) = (Vec::new(), None);
    while let Some(done) = watching.join_next().await {
        let (client, seen) = done??;
        last = last.max(Some(seen));
        back.push(client);
    }
    Ok((back, last.context("nobody watched")?, acked))
}

/// A route whose answer names the change.
fn redirect(number: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: effect, namespace: bench}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: app, port: 80}}]
  rules:
  - matches: [{{path: {{type: Exact, value: /effect}}}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {{hostname: change-{number}.test, statusCode: 302}}
"
    )
}

/// Asks one sidecar, on one connection.
struct Client {
    address: SocketAddr,
    stream: Option<TcpStream>,
}

impl Client {
    /// Asks until the answer is that of change `number`; gives when it was.
    async fn until(&mut self, number: u32, pause: Duration) -> Result<Instant> {
        let wanted = format!("change-{number}.test");
        let began = Instant::now();
        loop {
            let answer = tokio::time::timeout(ONE_ANSWER, self.ask()).await.context("no answer").flatten();
            if answer.as_ref().is_ok_and(|answer| answer.contains(&wanted)) {
                return Ok(Instant::now());
            }
            if answer.is_err() {
                self.stream = None;
            }
            if began.elapsed() > PATIENCE {
                bail!("{} never answers by change {number} (the last answer: {answer:?})", self.address);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// The head of one answer; a redirect has no body.
    async fn ask(&mut self) -> Result<String> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => self.stream.insert(TcpStream::connect(self.address).await?),
        };
        stream.write_all(b"GET /effect HTTP/1.1\r\nhost: app.bench\r\n\r\n").await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut answer).await? == 0 {
                bail!("the sidecar closed the connection");
            }
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}
