//! One request, to see whether a chain answers, and answers rightly. Nothing is measured with it.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, bail};
use rustls::ClientConfig;

use super::{http2, raw, tls};
use crate::{
    chain::HOST,
    scenario::{Client, Scenario},
};

/// Longest wait for the answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks once for what the scenario asks for.
///
/// # Errors
/// When the answer is not what it should be.
pub fn ask_once(entry: SocketAddr, scenario: &Scenario, tls: Option<Arc<ClientConfig>>) -> Result<()> {
    match (scenario.client, tls) {
        (Client::Tcp, _) => raw::exchange(entry),
        (Client::Http1, None) => plain(entry, &scenario.path()),
        (Client::Http1, Some(config)) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(tls::open(entry, config)).map(drop)
        }
        _ => http2::ask_once(entry, scenario, PATIENCE),
    }
}

fn plain(entry: SocketAddr, path: &str) -> Result<()> {
    let mut stream = TcpStream::connect(entry)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut first = [0; 64];
    let bytes = stream.read(&mut first)?;
    let text = String::from_utf8_lossy(&first[..bytes]);
    let status = text.lines().next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200") {
        bail!("the answer is \"{status}\"");
    }
    Ok(())
}
