//! The tests as a user of the control plane: tokens, apply, waiting until a change is in effect.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use outrigger_control_plane::cli::connection::{Client, ConnectionArgs, call};
use outrigger_proto::admin::{self, ApplyRequest, CreateTokenRequest, ListProxiesRequest, WatchRolloutRequest};

use super::{LOOK_AGAIN, PATIENCE};

/// A connection to the admin API; lives on the control plane's host.
#[derive(Clone)]
pub struct Control {
    client: Client,
}

impl Control {
    /// Connects as soon as the control plane listens.
    pub async fn connect(data: PathBuf, address: SocketAddr) -> Self {
        let connection =
            ConnectionArgs { server: Some(address.to_string()), data_dir: Some(data), ..ConnectionArgs::default() };
        let end = Instant::now() + PATIENCE;
        loop {
            match connection.connect().await {
                Ok(client) => return Self { client },
                Err(error) => assert!(Instant::now() < end, "the control plane does not start: {error:?}"),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// A join token.
    pub async fn token(&mut self, namespace: &str, service_account: &str) -> String {
        let request = CreateTokenRequest {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            ..CreateTokenRequest::default()
        };
        call(self.client.create_token(request)).await.unwrap().token
    }

    /// Applies YAML documents; gives the revision.
    pub async fn apply(&mut self, yaml: &str) -> u64 {
        let request = ApplyRequest {
            documents: vec![admin::Document { file: "test.yaml".to_owned(), text: yaml.to_owned() }],
            message: "test".to_owned(),
            namespace: "shop".to_owned(),
            ..ApplyRequest::default()
        };
        let answer = call(self.client.apply(request)).await.unwrap();
        assert!(!answer.refused, "refused: {:#?}", answer.problems);
        answer.revision
    }

    /// Waits until every connected sidecar has a revision in effect; gives the time that took since it was stored.
    pub async fn in_effect(&mut self, revision: u64) -> Duration {
        let timeout_ms = u32::try_from(PATIENCE.as_millis()).unwrap();
        let mut progress = call(self.client.watch_rollout(WatchRolloutRequest { revision, timeout_ms })).await.unwrap();
        loop {
            let rollout = progress.message().await.unwrap().expect("the rollout comes to its end");
            assert!(rollout.refused.is_empty(), "refused: {:#?}", rollout.refused);
            if rollout.done {
                return Duration::from_micros(rollout.elapsed_us);
            }
        }
    }

    /// Waits until the sidecars of these workloads are connected and ready; gives those that are not in the end.
    pub async fn wait_ready(&mut self, mut missing: Vec<String>) -> Vec<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let proxies = call(self.client.list_proxies(ListProxiesRequest {})).await.unwrap().proxies;
            let ready: BTreeSet<String> = proxies
                .iter()
                .filter(|proxy| proxy.connected && proxy.ready)
                .filter_map(|proxy| proxy.id.rsplit(['/', '~']).next().map(str::to_owned))
                .collect();
            missing.retain(|name| !ready.contains(name));
            if missing.is_empty() || Instant::now() > end {
                return missing;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}
