//! Whether the application beside us takes connections: what the control plane is told as "ready".

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tracing::info;

use super::Sidecar;
use crate::{host, settings::Settings, upstream::dial::Dialer};

/// How often a healthy application is looked at; a refused connection makes it look at once.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked at while it is not ready, so that a fresh start is noticed quickly.
const WHILE_DOWN: Duration = Duration::from_millis(100);
/// Wait for a connection.
const LIMIT: Duration = Duration::from_secs(1);

/// Keeps `ready` in the registration true to what the application does.
pub(super) async fn run(sidecar: Arc<Sidecar>) {
    let settings = &sidecar.residents.settings;
    let ports = ports(settings);
    if ports.is_empty() {
        sidecar.registration.send_if_modified(|registration| !std::mem::replace(&mut registration.ready, true));
        return;
    }
    loop {
        let ready = all_open(&sidecar.residents.dialer, &ports).await;
        let changed = sidecar
            .registration
            .send_if_modified(|registration| std::mem::replace(&mut registration.ready, ready) != ready);
        if changed {
            info!(ready, "application");
        }
        let pause = if ready { INTERVAL } else { WHILE_DOWN };
        tokio::select! {
            () = sidecar.stops.all.cancelled() => return,
            () = sidecar.residents.application_refused.notified() => {}
            () = host::sleep(pause) => {}
        }
    }
}

/// Whether no port of the application takes connections any more. Without known ports nobody can tell: false.
pub(super) async fn is_gone(dialer: &Dialer, settings: &Settings) -> bool {
    let ports = ports(settings);
    if ports.is_empty() {
        return false;
    }
    for port in ports {
        if dialer.connect(port, LIMIT).await.is_ok() {
            return false;
        }
    }
    true
}

async fn all_open(dialer: &Dialer, ports: &[SocketAddr]) -> bool {
    for port in ports {
        if dialer.connect(*port, LIMIT).await.is_err() {
            return false;
        }
    }
    true
}

fn ports(settings: &Settings) -> Vec<SocketAddr> {
    let explicit = settings.listeners.inbound.iter().map(|inbound| inbound.application);
    let transparent = settings.listeners.transparent.iter().flat_map(|transparent| {
        transparent
            .ports
            .iter()
            .filter_map(|(port, _)| transparent.address.map(|address| SocketAddr::new(address, *port)))
    });
    explicit.chain(transparent).collect()
}
