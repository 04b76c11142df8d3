//! A client that does mutual TLS itself, as the outbound side of a sidecar would: full handshakes, and connections that stay idle.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::LocalSet,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Aim, Load, constant_rate::response_length, histogram, record};
use crate::{certificates, chain::HOST, process::on_core};

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections that were used once and are kept.
pub struct Idle {
    _streams: Vec<TlsStream<TcpStream>>,
    _runtime: tokio::runtime::Runtime,
}

/// A full handshake and one request for each connection; so many at once.
///
/// # Errors
/// When a handshake or a request fails.
pub fn handshakes(aim: &Aim<'_>, connections: u32, alpn: &str) -> Result<Load> {
    let config = certificates::client(aim.folder, &[alpn])?;
    on_core(aim.core, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let latencies = Rc::new(RefCell::new(histogram()?));
        let started = Instant::now();
        let (entry, end) = (aim.entry, started + aim.time);
        LocalSet::new().block_on(&runtime, async {
            let tasks: Vec<_> = (0..connections)
                .map(|_| {
                    let (config, latencies) = (Arc::clone(&config), Rc::clone(&latencies));
                    tokio::task::spawn_local(async move {
                        while Instant::now() < end {
                            let start = Instant::now();
                            open(entry, Arc::clone(&config)).await?;
                            record(&mut latencies.borrow_mut(), start);
                        }
                        anyhow::Ok(())
                    })
                })
                .collect();
            for task in tasks {
                task.await??;
            }
            anyhow::Ok(())
        })?;
        Ok(Load::of(&latencies.borrow(), started.elapsed()))
    })
}

/// Opens so many connections, one after the other.
///
/// # Errors
/// When a handshake or a request fails.
pub fn idle(aim: &Aim<'_>, connections: u32, alpn: &str) -> Result<Idle> {
    let config = certificates::client(aim.folder, &[alpn])?;
    on_core(aim.core, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let streams = runtime.block_on(async {
            let mut streams = Vec::new();
            for _ in 0..connections {
                streams.push(open(aim.entry, Arc::clone(&config)).await?);
            }
            anyhow::Ok(streams)
        })?;
        Ok(Idle { _streams: streams, _runtime: runtime })
    })
}

/// A connection after its handshake and one answered request.
///
/// # Errors
/// When there is no 200 in time.
pub async fn open(entry: SocketAddr, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
    let open = async {
        let stream = TcpStream::connect(entry).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(certificates::SERVER_NAME)?;
        let mut stream = TlsConnector::from(config).connect(name, stream).await.context("the handshake failed")?;
        stream.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await?;
        let mut buffer = [0; 4096];
        let mut filled = 0;
        loop {
            let bytes = stream.read(&mut buffer[filled..]).await?;
            if bytes == 0 {
                bail!("a connection was closed before its answer was complete");
            }
            filled += bytes;
            if response_length(&buffer[..filled])?.is_some_and(|length| filled >= length) {
                return Ok(stream);
            }
        }
    };
    tokio::time::timeout(PATIENCE, open).await.context("no answer")?
}
