//! The gRPC method: moves one session's requests and responses over the wire.
//!
//! One task per stream. It waits for requests, for the next catalogue, for room to send and for its end; what to do is the
//! session's business. The identity was proved before the stream began; the first request says which proxy this is.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use outrigger_proto::{
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node,
        aggregated_discovery_service_server::AggregatedDiscoveryService,
    },
    kind::Kind,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use super::{Catalogue, Session, Sessions, sessions::Connected};
use crate::{
    authority::authenticate::Caller, listener::Peer, pipeline::Moments, registry::Registry, settings::Limits,
    telemetry::Metrics,
};

/// Responses that wait for the wire, for each stream.
const OUTPUT_RESPONSES: usize = 2;
/// Longest wait for the first request of a stream.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// Longest wait for the catalogue that knows a new workload; after it the stream goes on with what there is.
const FIRST_CATALOGUE: Duration = Duration::from_secs(5);

/// What every stream needs.
#[derive(Clone)]
pub struct DiscoveryService {
    pub sessions: Arc<Sessions>,
    pub registry: Arc<Registry>,
    pub catalogue: watch::Receiver<Arc<Catalogue>>,
    pub moments: Arc<Moments>,
    pub metrics: Arc<Metrics>,
    pub limits: Limits,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for DiscoveryService {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (Some(caller), Some(peer)) =
            (request.extensions().get::<Caller>().cloned(), request.extensions().get::<Peer>().cloned())
        else {
            return Err(Status::unauthenticated("no identity"));
        };
        let (output, responses) = mpsc::channel(OUTPUT_RESPONSES);
        let (service, requests) = (self.clone(), request.into_inner());
        self.tasks.spawn(async move {
            if let Err(status) = service.serve(caller, &peer, requests, &output).await {
                tracing::debug!(address = %peer.address, %status, "discovery stream ended");
                // Best effort, and never waiting for a client that does not read.
                let _ = output.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

impl DiscoveryService {
    async fn serve(
        mut self,
        caller: Caller,
        peer: &Peer,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        output: &mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) -> Result<(), Status> {
        let first = tokio::time::timeout(FIRST_REQUEST, requests.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no request within 10 s of opening the stream"))??;
        let Some(first) = first else { return Ok(()) };
        let node = first
            .node
            .clone()
            .ok_or_else(|| Status::invalid_argument("the first request of a stream must carry `node`"))?;
        check_node(&node, &caller)?;
        let number = self.sessions.next_stream();
        let replaced = CancellationToken::new();
        let stream =
            Stream { service: &self, caller: &caller, number, id: node.id.clone(), replaced: replaced.clone() };
        let generation = stream.register(&node)?;
        // From here on, leaving this function by any way takes the stream off the lists.
        let _registered = Registered { registry: Arc::clone(&self.registry), uid: node.id.clone(), number };
        let known = self.catalogue.wait_for(|catalogue| catalogue.registry_generation >= generation);
        // Its own Node resource must be there before it asks for it.
        let _ = tokio::time::timeout(FIRST_CATALOGUE, known).await;
        let catalogue = Arc::clone(&self.catalogue.borrow_and_update());
        let limits = &self.limits;
        let session = Session::new(
            &node.id,
            node.client_features.clone(),
            catalogue,
            limits.response_bytes,
            limits.subscriptions_per_proxy,
        );
        let connected = Arc::new(Connected {
            stream: number,
            id: node.id.clone(),
            identity: caller.identity.clone(),
            address: peer.address,
            version: format!("{} {}", node.user_agent_name, node.user_agent_version).trim().to_owned(),
            since: SystemTime::now(),
            session: Mutex::new(session),
        });
        self.sessions.add(Arc::clone(&connected));
        let _listed = Listed { sessions: Arc::clone(&self.sessions), number };
        tracing::info!(proxy = node.id, address = %peer.address, "proxy connected");
        let link = Link { caller, connected, replaced, closing: peer.closing.clone() };
        self.run(first, link, requests, output).await
    }

    async fn run(
        &self,
        first: DeltaDiscoveryRequest,
        link: Link,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        output: &mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) -> Result<(), Status> {
        let Link { caller, connected, replaced, closing } = link;
        let stream = Stream {
            service: self,
            caller: &caller,
            number: connected.stream,
            id: connected.id.clone(),
            replaced: replaced.clone(),
        };
        let mut catalogue = self.catalogue.clone();
        let mut drain: Option<tokio::task::JoinHandle<()>> = None;
        let mut incoming = Some(first);
        let mut drain_seen = false;
        loop {
            if let Some(request) = incoming.take() {
                if let Some(node) = &request.node {
                    let generation = stream.register(node)?;
                    let draining = node.registration.as_ref().is_some_and(|r| r.draining);
                    if draining && !std::mem::replace(&mut drain_seen, true) {
                        drain = Some(self.tasks.spawn(self.clone().peers_have_stopped(generation, connected.stream)));
                    }
                }
                let outcome = connected.session.lock().request(&request);
                let outcome = outcome.map_err(|e| Status::invalid_argument(e.to_string()))?;
                for refused in &outcome.refused {
                    self.metrics.rejects[refused.kind as usize].add(1);
                    tracing::warn!(
                        proxy = connected.id, kind = ?refused.kind, resource = %refused.name,
                        path = refused.refusal.path, reason = refused.refusal.reason, "proxy refused a resource"
                    );
                }
            }
            self.send(&connected, output);
            let full = output.capacity() == 0;
            tokio::select! {
                request = requests.message() => match request? {
                    Some(request) => incoming = Some(request),
                    None => return Ok(()),
                },
                changed = catalogue.changed() => match changed {
                    Ok(()) => {
                        let newest = Arc::clone(&catalogue.borrow_and_update());
                        connected.session.lock().set_catalogue(newest);
                    }
                    Err(_) => return Err(Status::unavailable("the control plane is stopping")),
                },
                _ = output.reserve(), if full => {}
                () = wait(&mut drain), if drain.is_some() => {
                    drain = None;
                    connected.session.lock().confirm_drain();
                }
                () = replaced.cancelled() => return Err(Status::aborted("a newer stream of this workload took its place")),
                () = self.stop.cancelled() => return Err(Status::unavailable("the control plane is stopping")),
                () = closing.cancelled() => return Err(Status::unavailable("the connection is old; come back on a new one")),
                () = output.closed() => return Ok(()),
            }
        }
    }

    /// Hands over responses while there is room. What does not fit is not made yet.
    fn send(&self, connected: &Connected, output: &mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>) {
        let now = Instant::now();
        let before = connected.session.lock().in_effect();
        while let Ok(place) = output.try_reserve() {
            let Some(response) = connected.session.lock().next_response(now) else { break };
            if let Some(kind) = Kind::from_type_url(&response.type_url) {
                self.metrics.pushes[kind as usize].add(1);
            }
            let bytes: usize =
                response.resources.iter().filter_map(|r| r.resource.as_ref()).map(|r| r.value.len()).sum();
            #[allow(clippy::cast_precision_loss)]
            self.metrics.config_size.observe(bytes as f64);
            place.send(Ok(response));
        }
        let after = connected.session.lock().in_effect();
        if after > before
            && let Some(stored) = self.moments.of(after)
        {
            self.metrics.convergence.observe_time(now.saturating_duration_since(stored));
        }
        self.sessions.progressed();
    }

    /// Waits until no other proxy counts on the workload any more, or long enough.
    async fn peers_have_stopped(self, generation: u64, stream: u64) {
        let mut catalogue = self.catalogue.clone();
        let stopped = async {
            let sequence = match catalogue.wait_for(|c| c.registry_generation >= generation).await {
                Ok(catalogue) => catalogue.sequence,
                Err(_) => return,
            };
            self.sessions.all_synced(Kind::EndpointShard, sequence, stream).await;
        };
        if tokio::time::timeout(self.limits.drain_confirmation, stopped).await.is_err() {
            tracing::info!("not every peer of a draining workload confirmed in time");
        }
    }
}

async fn wait(task: &mut Option<tokio::task::JoinHandle<()>>) {
    if let Some(task) = task {
        let _ = task.await;
    }
}

/// One stream, once it is known whose it is.
struct Link {
    caller: Caller,
    connected: Arc<Connected>,
    /// Cancelled when a newer stream of the same workload takes its place.
    replaced: CancellationToken,
    /// Cancelled when the connection is asked to go.
    closing: CancellationToken,
}

/// What registering needs to know of the stream.
struct Stream<'a> {
    service: &'a DiscoveryService,
    caller: &'a Caller,
    number: u64,
    id: String,
    replaced: CancellationToken,
}

impl Stream<'_> {
    /// Registers what the node says of its workload; the generation from which on it is known.
    fn register(&self, node: &Node) -> Result<u64, Status> {
        let Some(registration) = &node.registration else { return Ok(0) };
        if node.id != self.id || crate::registry::uid(registration) != self.id {
            return Err(Status::invalid_argument(format!(
                "the node's id is {:?}, its registration is of {:?}; both must stay {:?}",
                node.id,
                crate::registry::uid(registration),
                self.id
            )));
        }
        self.service
            .registry
            .register(registration.clone(), &self.caller.identity, self.number, &self.replaced)
            .map_err(|refused| {
                tracing::warn!(proxy = self.id, reason = %refused, "refused a registration");
                match refused {
                    crate::registry::RegistrationRefused::Identity { .. } => {
                        Status::permission_denied(refused.to_string())
                    }
                    crate::registry::RegistrationRefused::Duplicate { .. } => {
                        Status::already_exists(refused.to_string())
                    }
                    crate::registry::RegistrationRefused::Invalid { .. } => {
                        Status::invalid_argument(refused.to_string())
                    }
                    crate::registry::RegistrationRefused::Full(_) => Status::resource_exhausted(refused.to_string()),
                }
            })
    }
}

fn check_node(node: &Node, caller: &Caller) -> Result<(), Status> {
    let in_namespace = node.id.split_once('/').is_some_and(|(namespace, workload)| {
        namespace == caller.identity.namespace && !workload.is_empty() && !workload.contains('/')
    });
    if node.id.len() > 512 || !in_namespace {
        return Err(Status::permission_denied(format!(
            "node id {:?} is not of the form \"{}/<workload>\", the namespace of its certificate",
            node.id.chars().take(200).collect::<String>(),
            caller.identity.namespace
        )));
    }
    if node.client_features.len() > 256 {
        return Err(Status::invalid_argument("more than 256 features"));
    }
    Ok(())
}

/// Takes the workload's stream off the registry when the stream ends, however it ends.
struct Registered {
    registry: Arc<Registry>,
    uid: String,
    number: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.disconnected(&self.uid, self.number);
    }
}

/// Takes the proxy off the list of connected ones.
struct Listed {
    sessions: Arc<Sessions>,
    number: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.sessions.remove(self.number);
    }
}
