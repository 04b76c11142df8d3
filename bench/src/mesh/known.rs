//! What services that are known to the control plane, and not used, cost a sidecar.
//!
//! Two control planes: one knows the services that are used, the other very many more. A sidecar of each uses the same ones,
//! as a forward proxy would be asked for them; what differs in their memory is what the others cost.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use super::{
    Site,
    control_plane::{Admin, ControlPlane},
};
use crate::{
    chain::{free_address, outrigger},
    figures::{Figure, Measured},
    process::Process,
};

const PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for one answer.
const ONE_ANSWER: Duration = Duration::from_secs(5);
/// Services in one revision: a message has a limit.
const AT_ONCE: usize = 1000;
/// After the last answer, until memory is looked at.
const SETTLE: Duration = Duration::from_millis(500);

pub(super) async fn run(site: &Site<'_>, services: u32, used: u32, measured: &mut Measured) -> Result<()> {
    let mut planes = Vec::new();
    for (number, services) in [used, services].into_iter().enumerate() {
        site.tell(&format!("a control plane learns {services} services"));
        let (plane, mut admin) = ControlPlane::start(site, u32::try_from(number)?).await?;
        teach(site, &mut admin, services).await?;
        planes.push((plane, admin));
    }
    site.progress.advance(1);
    for round in 1..=site.plan.rounds {
        let mut memory = Vec::new();
        for (number, (plane, admin)) in planes.iter_mut().enumerate() {
            site.tell(&format!("round {round}, sidecar {} of 2", number + 1));
            // Both have the file, and each its own token.
            admin.token(site, "client").await?;
            let (outbound, name) = (free_address()?, format!("client-{round}-{number}"));
            let mut command = site.sidecar("client", &name, plane.discovery);
            command.args(["--outbound", &outbound.to_string()]);
            let sidecar = Process::start(&name, &mut command, Some(site.plan.cores.chain), &site.folder)?;
            for service in 0..used {
                ask(outbound, service, &sidecar).await?;
            }
            tokio::time::sleep(SETTLE).await;
            memory.push(sidecar.memory()?.now_kib as f64 / 1024.0);
        }
        if let [few, many] = memory[..] {
            measured.add(Figure::IdleMemory, many);
            measured.add(Figure::MoreMemory, many - few);
        }
        site.progress.advance(1);
    }
    for (plane, _) in planes.iter().skip(1) {
        measured.add(Figure::PlaneMemory, plane.peak_mib()?);
    }
    Ok(())
}

/// Stores the services, a part of them in each revision, and waits until the last is in effect.
async fn teach(site: &Site<'_>, admin: &mut Admin, services: u32) -> Result<()> {
    let names: Vec<_> = (0..services).map(|number| format!("s{number}")).collect();
    for part in names.chunks(AT_ONCE) {
        let workload = outrigger::workload(site.origin, "plain");
        admin.apply(&outrigger::documents(site.scenario, &workload, part.iter().cloned())).await?;
    }
    Ok(())
}

/// Asks for a service until it answers.
async fn ask(outbound: SocketAddr, service: u32, sidecar: &Process) -> Result<()> {
    let began = Instant::now();
    loop {
        let answer = tokio::time::timeout(ONE_ANSWER, ask_once(outbound, service)).await;
        if matches!(&answer, Ok(Ok(status)) if status.starts_with("HTTP/1.1 200")) {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            bail!("service {service} is not answered ({answer:?}); the sidecar said:\n{}", sidecar.last_words());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The status line of one answer.
async fn ask_once(outbound: SocketAddr, service: u32) -> Result<String> {
    let mut stream = BufReader::new(TcpStream::connect(outbound).await?);
    let host = format!("s{service}.bench");
    let request = format!("GET http://{host}/ HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut status = String::new();
    stream.read_line(&mut status).await?;
    Ok(status)
}
