//! The demo as a user of the control plane: tokens, apply, and waiting until a change is in effect.
//!
//! Goes through the admin API like every other command; knows no shortcut.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, anyhow, bail};
use outrigger_proto::admin::{self, ApplyRequest, CreateTokenRequest, ListProxiesRequest, WatchRolloutRequest};
use tokio::time::Instant;

use super::{documents::Document, topology::NAMESPACE};
use crate::cli::connection::{Client, ConnectError, ConnectionArgs, call};

/// Longest wait for the control plane to listen.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait until a change is in effect on all sidecars.
const ROLLOUT_TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A connection to the admin API.
#[derive(Clone)]
pub struct Control {
    client: Client,
}

/// A change that is in effect everywhere.
#[derive(Clone, Copy, Debug)]
pub struct InEffect {
    pub sidecars: u32,
    /// From the moment it was stored.
    pub elapsed_us: u64,
}

impl Control {
    /// Connects as soon as the control plane of folder `data` listens on `address`.
    pub async fn connect(data: &Path, address: SocketAddr) -> anyhow::Result<Self> {
        let connection = ConnectionArgs {
            server: Some(address.to_string()),
            data_dir: Some(data.to_owned()),
            ..ConnectionArgs::default()
        };
        let end = Instant::now() + START_TIMEOUT;
        loop {
            let why = match connection.connect().await {
                Ok(client) => return Ok(Self { client }),
                Err(ConnectError::Unreachable(why)) => why,
                // It may listen before its files are there.
                Err(ConnectError::Setup(failure)) => failure.message,
            };
            if Instant::now() > end {
                bail!("the control plane did not start within {} s: {why}", START_TIMEOUT.as_secs());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// A join token for a service account of the shop.
    pub async fn token(&mut self, service_account: &str) -> anyhow::Result<String> {
        let request = CreateTokenRequest {
            namespace: NAMESPACE.to_owned(),
            service_account: service_account.to_owned(),
            ..CreateTokenRequest::default()
        };
        let answer = call(self.client.create_token(request)).await;
        Ok(answer.map_err(|failure| anyhow!("no join token for {service_account}: {}", failure.message))?.token)
    }

    /// Applies documents, which are also written into `folder` for whoever wants to look; gives the revision.
    pub async fn apply(&mut self, folder: &Path, documents: &[Document], message: &str) -> anyhow::Result<u64> {
        let mut sent = Vec::with_capacity(documents.len());
        for Document { file, text } in documents {
            let path = folder.join(file);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            sent.push(admin::Document { file: path.display().to_string(), text: text.clone() });
        }
        let request = ApplyRequest {
            documents: sent,
            message: message.to_owned(),
            namespace: NAMESPACE.to_owned(),
            ..ApplyRequest::default()
        };
        let answer = call(self.client.apply(request))
            .await
            .map_err(|failure| anyhow!("apply ({message}) failed: {}", failure.message))?;
        if answer.refused {
            let problems: Vec<String> = answer.problems.iter().map(describe).collect();
            bail!("apply ({message}) was refused: {}", problems.join("; "));
        }
        Ok(answer.revision)
    }

    /// Waits until every connected sidecar has a revision in effect.
    pub async fn in_effect(&mut self, revision: u64) -> anyhow::Result<InEffect> {
        let timeout_ms = u32::try_from(ROLLOUT_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
        let request = WatchRolloutRequest { revision, timeout_ms };
        let mut progress = call(self.client.watch_rollout(request))
            .await
            .map_err(|failure| anyhow!("cannot watch revision {revision}: {}", failure.message))?;
        let mut last = admin::Rollout::default();
        loop {
            let next = tokio::time::timeout(ROLLOUT_TIMEOUT + Duration::from_secs(2), progress.message());
            match next.await.context("the control plane stopped reporting on a rollout")? {
                Ok(Some(rollout)) => {
                    if let Some(refused) = rollout.refused.first() {
                        bail!(
                            "sidecar {} refused {} at {}: {}",
                            refused.proxy,
                            refused.resource,
                            refused.path,
                            refused.reason
                        );
                    }
                    if rollout.done {
                        return Ok(InEffect { sidecars: rollout.total, elapsed_us: rollout.elapsed_us });
                    }
                    last = rollout;
                }
                Ok(None) => bail!(
                    "revision {revision} came into effect on {} of {} sidecars only, within {} s",
                    last.in_effect,
                    last.total,
                    ROLLOUT_TIMEOUT.as_secs()
                ),
                Err(status) => bail!("cannot watch revision {revision}: {}", status.message()),
            }
        }
    }

    /// Names of the sidecars that are connected and ready.
    pub async fn ready_sidecars(&mut self) -> anyhow::Result<Vec<String>> {
        let answer = call(self.client.list_proxies(ListProxiesRequest {})).await;
        let answer = answer.map_err(|failure| anyhow!("cannot list sidecars: {}", failure.message))?;
        Ok(answer.proxies.into_iter().filter(|proxy| proxy.connected && proxy.ready).map(|proxy| proxy.id).collect())
    }
}

fn describe(problem: &admin::Problem) -> String {
    let admin::Problem { code, file, line, path, message, .. } = problem;
    format!("{code} {file}:{line} {path}: {message}")
}
