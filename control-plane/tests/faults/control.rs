//! The control plane as its user sees it: the admin API, and what a sidecar's admin port says.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use outrigger_control_plane::cli::connection::{Client, ConnectionArgs};
use outrigger_proto::admin::{
    ApplyRequest, ApplyResponse, CreateTokenRequest, Document, ListProxiesRequest, Proxy, WatchRolloutRequest,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub const NAMESPACE: &str = "shop";

/// A connection to the admin API.
pub struct Control {
    folder: PathBuf,
    client: Client,
}

impl Control {
    /// Connects as soon as the control plane of this folder listens.
    pub async fn connect(folder: &Path, admin: SocketAddr) -> Self {
        let arguments = ConnectionArgs {
            server: Some(admin.to_string()),
            data_dir: Some(folder.to_owned()),
            ..ConnectionArgs::default()
        };
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            match arguments.connect().await {
                Ok(client) => return Self { folder: folder.to_owned(), client },
                Err(error) => assert!(Instant::now() < end, "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub async fn token(&mut self, service_account: &str) -> String {
        let request = CreateTokenRequest {
            namespace: NAMESPACE.to_owned(),
            service_account: service_account.to_owned(),
            ..CreateTokenRequest::default()
        };
        self.client.create_token(request).await.unwrap().into_inner().token
    }

    /// Sends documents, whatever comes of it.
    pub async fn send(&mut self, text: &str) -> Result<ApplyResponse, tonic::Status> {
        let request = ApplyRequest {
            documents: vec![Document { file: "test.yaml".to_owned(), text: text.to_owned() }],
            namespace: NAMESPACE.to_owned(),
            ..ApplyRequest::default()
        };
        Ok(self.client.apply(request).await?.into_inner())
    }

    /// Stores documents; gives the revision.
    pub async fn apply(&mut self, text: &str) -> u64 {
        let answer = self.send(text).await.unwrap();
        assert!(!answer.refused, "{:?}", answer.problems);
        answer.revision
    }

    /// Waits until every connected sidecar has the revision in effect.
    pub async fn in_effect(&mut self, revision: u64) {
        let request = WatchRolloutRequest { revision, timeout_ms: 10_000 };
        let mut progress = self.client.watch_rollout(request).await.unwrap().into_inner();
        let mut last = None;
        while let Some(rollout) = progress.message().await.unwrap() {
            assert!(rollout.refused.is_empty(), "{:?}", rollout.refused);
            if rollout.done {
                return;
            }
            last = Some(rollout);
        }
        panic!("revision {revision} is not in effect everywhere: {last:?}");
    }

    pub async fn proxies(&mut self) -> Vec<Proxy> {
        self.client.list_proxies(ListProxiesRequest {}).await.unwrap().into_inner().proxies
    }

    /// Waits until these sidecars, by workload, are connected and their applications take connections.
    pub async fn ready(&mut self, workloads: &[&str]) {
        let end = Instant::now() + Duration::from_secs(15);
        loop {
            let proxies = self.proxies().await;
            let is_ready = |name: &&&str| {
                let id = format!("{NAMESPACE}/{name}");
                proxies.iter().any(|proxy| proxy.id == id && proxy.connected && proxy.ready && !proxy.draining)
            };
            let missing: Vec<_> = workloads.iter().filter(|name| !is_ready(name)).collect();
            if missing.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "not ready: {missing:?} of {proxies:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What a sidecar's admin port says; `None` when nobody listens.
pub async fn admin_get(admin: SocketAddr, path: &str) -> Option<String> {
    let mut socket = tokio::net::TcpStream::connect(admin).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
}

/// Number of the picture that a sidecar serves by.
pub async fn generation(admin: SocketAddr) -> u64 {
    let dump: serde_json::Value = serde_json::from_str(&admin_get(admin, "/config_dump").await.unwrap()).unwrap();
    dump["generation"].as_u64().unwrap()
}
