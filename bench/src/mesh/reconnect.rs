//! Many proxies, and a control plane that is killed and started again: when is everybody back, and what memory does it take.
//!
//! The proxies are discovery streams in this process. Each has a certificate and a connection of its own, registers, follows
//! ten services as a sidecar does (node, services, routes, policies, endpoints, roots), acknowledges, and comes back with full
//! jitter and with the versions it holds. Everybody is back when the control plane says so.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use outrigger_proto::{
    ca::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient},
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    kind::{FEATURES, Kind},
    mesh::{Registration, Service},
};
use prost::Message as _;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::{ClientConfig, RootCertStore, version::TLS13};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Site,
    client::Channel,
    control_plane::{Admin, ControlPlane, over_http2},
};
use crate::{
    chain::outrigger,
    figures::{Figure, Measured},
};

/// Longest wait for everybody to be there.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at who is there.
const LOOK: Duration = Duration::from_millis(50);
/// Waits between two tries, as sidecars have them: uniform below a bound that doubles.
const FIRST_STEP: Duration = Duration::from_millis(10);
const LAST_STEP: Duration = Duration::from_secs(15);
/// Requests on their way to the control plane.
const QUEUE: usize = 16;
/// Joins under way at once.
const JOINING: usize = 16;
/// Services of the mesh, and how many of them each proxy follows.
const SERVICES: u32 = 100;
const FOLLOWED: u32 = 10;
const TRUST_DOMAIN: &str = "cluster.local";

pub(super) async fn run(site: &Site<'_>, proxies: u32, measured: &mut Measured) -> Result<()> {
    let (mut plane, mut admin) = ControlPlane::start(site, 0).await?;
    let services = (0..SERVICES).map(|number| format!("s{number}"));
    admin.apply(&outrigger::documents(site.scenario, &outrigger::workload(site.origin, "plain"), services)).await?;
    let token = admin.token(site, "app").await?;
    let mut streams = JoinSet::new();
    let mut names: Vec<u32> = (0..proxies).collect();
    while !names.is_empty() {
        site.tell(&format!("{} of {proxies} proxies joined", streams.len()));
        let mut joining = JoinSet::new();
        for number in names.drain(..names.len().min(JOINING)) {
            joining.spawn(join(plane.discovery, plane.roots()?, token.clone(), number));
        }
        while let Some(joined) = joining.join_next().await {
            let proxy = joined??;
            streams.spawn(proxy.stay());
        }
    }
    until_all_are_back(&mut admin, proxies).await?;
    site.progress.advance(1);
    for round in 1..=site.plan.rounds {
        site.tell(&format!("round {round}, the control plane is killed"));
        plane.kill_and_start(site)?;
        let began = Instant::now();
        let mut admin = plane.admin().await?;
        until_all_are_back(&mut admin, proxies).await?;
        measured.add(Figure::BackAfter, began.elapsed().as_secs_f64());
        measured.add(Figure::PlaneMemory, plane.peak_mib()?);
        site.progress.advance(1);
    }
    Ok(())
}

async fn until_all_are_back(admin: &mut Admin, proxies: u32) -> Result<()> {
    let began = Instant::now();
    loop {
        let (revision, known) = admin.proxies().await?;
        let back = known.iter().filter(|proxy| proxy.connected && proxy.revision >= revision).count();
        if back >= proxies as usize {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            bail!("{back} of {proxies} proxies are back after {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn service_name(number: u32) -> String {
    format!("bench/s{number}.bench.svc.cluster.local")
}

/// One proxy, as the control plane knows it.
struct Proxy {
    number: u32,
    discovery: SocketAddr,
    tls: Arc<ClientConfig>,
    /// Version of each resource that it holds.
    held: BTreeMap<(Kind, String), String>,
    /// What it follows.
    wanted: BTreeMap<Kind, Vec<String>>,
}

/// Gets a certificate with a token.
async fn join(discovery: SocketAddr, roots: RootCertStore, token: String, number: u32) -> Result<Proxy> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://cluster.local/ns/bench/sa/app".try_into()?)];
    let csr = params.serialize_request(&key)?.pem()?;
    let anonymous = ClientConfig::builder_with_protocol_versions(&[&TLS13])
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    let channel = Channel::connect(discovery, over_http2(anonymous), Some(&token)).await?;
    let mut authority = IstioCertificateServiceClient::with_origin(channel, Channel::origin(discovery)?);
    let answer = authority.create_certificate(IstioCertificateRequest { csr, validity_duration: 0 }).await?;
    let chain = answer.into_inner().cert_chain;
    let chain: Vec<_> =
        chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes())).collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|reason| anyhow::anyhow!("{reason}"))?;
    let tls = ClientConfig::builder_with_protocol_versions(&[&TLS13])
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    let wanted = [
        (Kind::Node, vec![format!("bench/app-{number}")]),
        (Kind::TrustBundle, vec![TRUST_DOMAIN.to_owned()]),
        (Kind::Service, (number..number + FOLLOWED).map(|number| service_name(number % SERVICES)).collect()),
    ];
    Ok(Proxy { number, discovery, tls: over_http2(tls), held: BTreeMap::new(), wanted: wanted.into() })
}

impl Proxy {
    /// Holds a stream, and comes back when it ends; without end.
    async fn stay(mut self) {
        let mut bound = FIRST_STEP;
        loop {
            let mut has_answered = false;
            // Why a stream ended does not matter: it is the control plane that is measured.
            let _ = self.follow(&mut has_answered).await;
            bound = if has_answered { FIRST_STEP } else { bound.saturating_mul(2).min(LAST_STEP) };
            tokio::time::sleep(bound.mul_f64(fastrand::f64())).await;
        }
    }

    async fn follow(&mut self, has_answered: &mut bool) -> Result<()> {
        let channel = Channel::connect(self.discovery, Arc::clone(&self.tls), None).await?;
        let (requests, taken) = mpsc::channel(QUEUE);
        let mut client = AggregatedDiscoveryServiceClient::with_origin(channel, Channel::origin(self.discovery)?);
        let mut node = Some(self.node());
        for kind in Kind::ALL {
            if let Some(names) = self.wanted.get(&kind).filter(|names| !names.is_empty()) {
                requests.send(self.subscribe(kind, names, node.take())).await?;
            }
        }
        let mut responses = client.delta_aggregated_resources(ReceiverStream::new(taken)).await?.into_inner();
        while let Some(response) = responses.message().await? {
            *has_answered = true;
            for request in self.take(response)? {
                requests.send(request).await?;
            }
        }
        Ok(())
    }

    fn node(&self) -> Node {
        let registration = Registration {
            namespace: "bench".to_owned(),
            workload: format!("app-{}", self.number),
            service_account: "app".to_owned(),
            labels: [("app".to_owned(), "app".to_owned())].into(),
            // No address: they call others. With one, the control plane would look whether its port answers.
            ready: true,
            ..Registration::default()
        };
        Node {
            id: format!("bench/app-{}", self.number),
            user_agent_name: "outrigger-bench".to_owned(),
            user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            client_features: FEATURES.iter().map(ToString::to_string).collect(),
            registration: Some(registration),
        }
    }

    fn subscribe(&self, kind: Kind, names: &[String], node: Option<Node>) -> DeltaDiscoveryRequest {
        let held = self.held.iter().filter(|((held, _), _)| *held == kind);
        DeltaDiscoveryRequest {
            node,
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: names.to_vec(),
            initial_resource_versions: held.map(|((_, name), version)| (name.clone(), version.clone())).collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Takes a response in; gives its acknowledgement, and what must be asked for because of it.
    fn take(&mut self, response: DeltaDiscoveryResponse) -> Result<Vec<DeltaDiscoveryRequest>> {
        let kind = Kind::from_type_url(&response.type_url).context("a kind that nobody asked for")?;
        let mut more = Vec::new();
        for resource in response.resources {
            if kind == Kind::Service
                && let Some(any) = &resource.resource
            {
                more.extend(self.references(&Service::decode(any.value.as_slice())?));
            }
            self.held.insert((kind, resource.name), resource.version);
        }
        for name in response.removed_resources {
            self.held.remove(&(kind, name));
        }
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        more.insert(0, ack);
        Ok(more)
    }

    /// What a service refers to and is not followed yet.
    fn references(&mut self, service: &Service) -> Vec<DeltaDiscoveryRequest> {
        let routes = service.ports.iter().flat_map(|port| port.routes.values().cloned()).collect();
        let policies = service.ports.iter().flat_map(|port| port.policies.values().cloned()).collect();
        let named: [(Kind, Vec<String>); 3] = [
            (Kind::EndpointShard, service.endpoint_shards.clone()),
            (Kind::BackendPolicy, policies),
            (Kind::RouteTable, routes),
        ];
        let mut requests = Vec::new();
        for (kind, names) in named {
            let followed = self.wanted.entry(kind).or_default();
            let new: Vec<_> = names.into_iter().filter(|name| !followed.contains(name)).collect();
            if !new.is_empty() {
                followed.extend(new.iter().cloned());
                requests.push(DeltaDiscoveryRequest {
                    type_url: kind.type_url().to_owned(),
                    resource_names_subscribe: new,
                    ..DeltaDiscoveryRequest::default()
                });
            }
        }
        requests
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_followed_to_what_it_refers_to_once() {
        // The control plane would be measured with proxies that ask for less, or for more, than sidecars do.
        let config = ClientConfig::builder_with_protocol_versions(&[&TLS13])
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let mut proxy = Proxy {
            number: 258,
            discovery: "127.0.0.1:1".parse().unwrap(),
            tls: over_http2(config),
            held: BTreeMap::new(),
            wanted: BTreeMap::new(),
        };
        let service = Service {
            endpoint_shards: vec!["s/0".to_owned()],
            ports: vec![outrigger_proto::mesh::ServicePort {
                routes: [(String::new(), "r".to_owned())].into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let kinds = |requests: Vec<DeltaDiscoveryRequest>| {
            requests.iter().filter_map(|request| Kind::from_type_url(&request.type_url)).collect::<Vec<_>>()
        };
        assert_eq!(kinds(proxy.references(&service)), [Kind::EndpointShard, Kind::RouteTable]);
        assert!(proxy.references(&service).is_empty());
        assert_eq!(proxy.node().registration.unwrap().workload, "app-258");
    }
}
