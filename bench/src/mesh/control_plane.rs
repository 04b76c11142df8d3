//! A control plane as a process of its own, and what its user asks of it.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use outrigger_proto::admin::{
    ApplyRequest, CreateTokenRequest, Document, ListProxiesRequest, Proxy, WatchRolloutRequest,
    admin_client::AdminClient,
};
use rustls::{ClientConfig, RootCertStore, version::TLS13};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use super::{Site, client::Channel};
use crate::{chain::free_address, process::Process};

/// Longest wait for the control plane to be up.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest wait for a change to be in effect everywhere.
const ROLLOUT_MS: u32 = 20_000;
/// A list of a thousand proxies is longer than tonic allows unless asked to.
const ANSWER_BYTES: usize = 64 << 20;

/// A control plane that runs.
pub struct ControlPlane {
    process: Process,
    state: PathBuf,
    pub discovery: SocketAddr,
    admin: SocketAddr,
}

/// A connection of the command line's kind.
#[derive(Clone)]
pub struct Admin(AdminClient<Channel>);

impl ControlPlane {
    /// Starts one with a folder of its own and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(site: &Site<'_>, round: u32) -> Result<(Self, Admin)> {
        let state = site.folder.join(format!("state-{round}"));
        let (discovery, admin) = (free_address()?, free_address()?);
        let process = Self::spawn(site, &state, discovery, admin)?;
        let mut plane = Self { process, state, discovery, admin };
        let connected = plane.admin().await?;
        Ok((plane, connected))
    }

    /// Kills it without warning and starts it again, with the same folder and addresses.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn kill_and_start(&mut self, site: &Site<'_>) -> Result<()> {
        self.process.kill();
        self.process = Self::spawn(site, &self.state, self.discovery, self.admin)?;
        Ok(())
    }

    fn spawn(site: &Site<'_>, state: &PathBuf, discovery: SocketAddr, admin: SocketAddr) -> Result<Process> {
        let mut command = Command::new(site.binary);
        command
            .arg("serve")
            .arg("--data-dir")
            .arg(state)
            .args(["--discovery", &discovery.to_string(), "--admin", &admin.to_string()])
            .args(["--monitoring", "off", "--log-level", "warn"]);
        Process::start("control-plane", &mut command, None, &site.folder)
    }

    /// Connects as soon as it listens.
    ///
    /// # Errors
    /// When it does not, for long.
    pub async fn admin(&mut self) -> Result<Admin> {
        let began = Instant::now();
        loop {
            match self.try_admin().await {
                Ok(admin) => return Ok(admin),
                Err(error) if began.elapsed() > PATIENCE => {
                    bail!("the control plane does not come up: {error:#}; it said:\n{}", self.process.last_words())
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    async fn try_admin(&self) -> Result<Admin> {
        let config = ClientConfig::builder_with_protocol_versions(&[&TLS13])
            .with_root_certificates(self.roots()?)
            .with_no_client_auth();
        let token = fs::read_to_string(self.state.join("admin.token"))?;
        let channel = Channel::connect(self.admin, over_http2(config), Some(token.trim())).await?;
        let client = AdminClient::with_origin(channel, Channel::origin(self.admin)?);
        Ok(Admin(client.max_decoding_message_size(ANSWER_BYTES)))
    }

    /// Whom its clients trust.
    ///
    /// # Errors
    /// When it has not written its root yet.
    pub fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        let path = self.state.join("ca.crt");
        let root = CertificateDer::from_pem_file(&path);
        roots.add(root.map_err(|error| anyhow::anyhow!("cannot read {}: {error}", path.display()))?)?;
        Ok(roots)
    }

    /// Its resident memory, now and at most, in MiB.
    ///
    /// # Errors
    /// When it has ended.
    pub fn peak_mib(&self) -> Result<f64> {
        Ok(self.process.memory()?.peak_kib as f64 / 1024.0)
    }
}

/// gRPC is HTTP/2.
pub fn over_http2(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

impl Admin {
    /// Stores documents; gives the revision.
    ///
    /// # Errors
    /// When they are refused.
    pub async fn apply(&mut self, text: &str) -> Result<u64> {
        let documents = vec![Document { file: "bench.yaml".to_owned(), text: text.to_owned() }];
        let request = ApplyRequest { documents, namespace: "bench".to_owned(), ..ApplyRequest::default() };
        let answer = self.0.apply(request).await?.into_inner();
        if answer.refused {
            let problems: Vec<_> = answer.problems.iter().map(|problem| problem.message.as_str()).collect();
            bail!("the documents are refused: {}", problems.join("; "));
        }
        Ok(answer.revision)
    }

    /// Waits until every sidecar has acknowledged the revision; gives how long it took from being stored.
    ///
    /// # Errors
    /// When one refuses it, or is silent.
    pub async fn acked(&mut self, revision: u64) -> Result<Duration> {
        let request = WatchRolloutRequest { revision, timeout_ms: ROLLOUT_MS };
        let mut progress = self.0.watch_rollout(request).await?.into_inner();
        while let Some(rollout) = progress.message().await? {
            if let Some(refused) = rollout.refused.first() {
                bail!("{} refuses {}: {}", refused.proxy, refused.resource, refused.reason);
            }
            if rollout.done {
                return Ok(Duration::from_micros(rollout.elapsed_us));
            }
        }
        bail!("revision {revision} is not acknowledged by everybody")
    }

    /// Makes a token and writes it where sidecars of this service account look.
    ///
    /// # Errors
    /// When there is none.
    pub async fn token(&mut self, site: &Site<'_>, account: &str) -> Result<String> {
        let request = CreateTokenRequest {
            namespace: "bench".to_owned(),
            service_account: account.to_owned(),
            ..CreateTokenRequest::default()
        };
        let token = self.0.create_token(request).await?.into_inner().token;
        let path = site.token_file(account);
        fs::write(&path, &token).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(token)
    }

    /// Whom it knows.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn proxies(&mut self) -> Result<(u64, Vec<Proxy>)> {
        let answer = self.0.list_proxies(ListProxiesRequest {}).await?.into_inner();
        Ok((answer.revision, answer.proxies))
    }
}
