//! The calls of the command line, one method each. The caller has shown the admin token before any of them runs.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use outrigger_proto::admin::{
    ApplyRequest, ApplyResponse, CreateTokenRequest, CreateTokenResponse, DeleteRequest, DiffRequest, DiffResponse,
    GetRequest, GetResponse, HistoryRequest, HistoryResponse, InfoRequest, InfoResponse, ListProxiesRequest,
    ListProxiesResponse, ListTokensRequest, ListTokensResponse, Proxy, ProxyConfigRequest, ProxyConfigResponse,
    Revision, RevokeTokenRequest, RevokeTokenResponse, RollbackRequest, Rollout, StoredObject, TokenInfo,
    WatchRolloutRequest, admin_server::Admin,
};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{dump, objects, rollout, status};
use crate::{
    api::{self, ObjectKey},
    authority::{Authority, Identity, authenticate::unix_seconds, token::JoinToken},
    discovery::{Catalogue, Sessions},
    model::MeshSettings,
    pipeline::{Moments, Picture, Signal},
    registry::Registry,
    store::{Edit, Store, StoreError, TokenRecord, Written},
    telemetry::Metrics,
};

/// Lifetime of a join token where none is asked for.
const TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest lifetime of a join token.
const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// Revisions listed where no limit is asked for, and at most.
const HISTORY: usize = 20;
const MAX_HISTORY: usize = 10_000;
/// Longest message of a revision, in bytes.
const MAX_MESSAGE_BYTES: usize = 4096;
/// Header in which the command line says who is asking, for the history. Not proof of anything.
pub const AUTHOR_HEADER: &str = "outrigger-author";

/// Everything the calls need.
#[derive(Clone)]
pub struct AdminService {
    pub store: Arc<Store>,
    pub registry: Arc<Registry>,
    pub sessions: Arc<Sessions>,
    pub authority: Arc<Authority>,
    pub signal: Arc<Signal>,
    pub moments: Arc<Moments>,
    pub metrics: Arc<Metrics>,
    pub picture: Arc<ArcSwap<Picture>>,
    pub catalogue: watch::Receiver<Arc<Catalogue>>,
    pub mesh: MeshSettings,
    /// Where sidecars connect, as they should be told.
    pub discovery_address: String,
}

impl AdminService {
    /// Runs something that waits for the disk.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Status> {
        let service = self.clone();
        tokio::task::spawn_blocking(move || work(&service))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| store_status(&e))
    }

    /// Wakes the pipeline when a change made a new revision.
    fn written(&self, before: u64, written: &Written) {
        if written.revision > before {
            self.moments.note(written.revision);
            self.signal.soon();
        }
    }

    /// Makes a join token; what the command line's `token create` does.
    ///
    /// # Errors
    /// When a name cannot be part of an identity, or the disk fails.
    pub async fn issue_token(
        &self,
        namespace: &str,
        service_account: &str,
        ttl: Option<Duration>,
        uses: Option<u32>,
    ) -> Result<(String, TokenRecord), Status> {
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        let service_account = if service_account.is_empty() { "default" } else { service_account };
        Identity::new(self.authority.trust_domain(), namespace, service_account)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let ttl = ttl.unwrap_or(TOKEN_LIFETIME);
        if ttl > MAX_TOKEN_LIFETIME || ttl.is_zero() {
            return Err(Status::invalid_argument(format!(
                "lifetime of {} s is not between 1 s and 366 days",
                ttl.as_secs()
            )));
        }
        let token = JoinToken::generate(self.authority.pin()).map_err(|_| Status::internal("no randomness"))?;
        let record = TokenRecord {
            id: token.id.clone(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            secret_hash: token.secret_hash(),
            expires_unix: unix_seconds(SystemTime::now() + ttl),
            uses_left: uses,
        };
        let kept = record.clone();
        self.blocking(move |service| {
            // Those that ran out a day ago are of no interest to anybody.
            service.store.forget_tokens(unix_seconds(SystemTime::now()) - 86_400)?;
            service.store.add_token(kept)
        })
        .await?;
        Ok((token.reveal(), record))
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn info(&self, _request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let revision = self.store.newest().map_err(|e| store_status(&e))?;
        Ok(Response::new(InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision,
            trust_domain: self.authority.trust_domain().to_owned(),
            connected_proxies: u32::try_from(self.sessions.len()).unwrap_or(u32::MAX),
            discovery_address: self.discovery_address.clone(),
            root_pin: self.authority.pin().to_owned(),
            root_pem: self.authority.root_pem().to_owned(),
        }))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let author = author(&request);
        let request = request.into_inner();
        let response = self
            .blocking(move |service| {
                let before = service.store.newest()?;
                let checked = objects::check(
                    &request.documents,
                    &request.namespace,
                    &service.store,
                    &service.picture.load(),
                    &service.registry,
                    &service.mesh,
                )?;
                let problems = checked.problems.iter().map(objects::problem).collect();
                if checked.is_refused() {
                    service.metrics.validation_failed.add(1);
                    return Ok(ApplyResponse { revision: before, changes: Vec::new(), problems, refused: true });
                }
                service.metrics.validation_passed.add(1);
                let edits = checked.edits();
                let expected = (request.expected_revision != 0).then_some(request.expected_revision);
                let written = if request.dry_run {
                    service.store.preview(&edits)?
                } else {
                    service.store.write(&edits, expected, &author, message(&request.message), now_unix_ms())?
                };
                service.written(before, &written);
                Ok(response(&written, problems))
            })
            .await?;
        Ok(Response::new(response))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<ApplyResponse>, Status> {
        let author = author(&request);
        let request = request.into_inner();
        let keys = request.objects.iter().map(object_key).collect::<Result<Vec<_>, _>>()?;
        let response = self
            .blocking(move |service| {
                let before = service.store.newest()?;
                let edits: Vec<Edit> = keys.into_iter().map(Edit::Delete).collect();
                let expected = (request.expected_revision != 0).then_some(request.expected_revision);
                // All or none: one name that does not exist is more likely a mistake than a wish.
                let preview = service.store.preview(&edits)?;
                if let Some(missing) = preview.changes.iter().find(|c| c.action == crate::store::Action::Unchanged) {
                    return Ok(Err(format!("{} does not exist; nothing was deleted", missing.object)));
                }
                let written =
                    service.store.write(&edits, expected, &author, message(&request.message), now_unix_ms())?;
                service.written(before, &written);
                Ok(Ok(response(&written, Vec::new())))
            })
            .await?;
        response.map(Response::new).map_err(Status::not_found)
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let request = request.into_inner();
        let kind = if request.kind.is_empty() { None } else { Some(canonical_kind(&request.kind)?) };
        let (revision, mut found) = self
            .blocking(move |service| {
                let at = (request.revision != 0).then_some(request.revision);
                let mut found = service.store.objects(at)?;
                found.retain(|object| {
                    kind.as_ref().is_none_or(|kind| *kind == object.key.kind)
                        && (request.namespace.is_empty()
                            || object.key.namespace.is_empty()
                            || request.namespace == object.key.namespace)
                        && (request.name.is_empty() || request.name == object.key.name)
                });
                Ok((at.map_or_else(|| service.store.newest(), Ok)?, found))
            })
            .await?;
        let picture = self.picture.load();
        let refusals = status::refusals(&self.sessions);
        for object in &mut found {
            if let Some(conditions) = status::conditions(&picture, &refusals, &object.key, object.generation)
                && let Some(json) = object.json.as_object_mut()
            {
                json.insert("status".to_owned(), json!({"conditions": conditions}));
            }
        }
        let objects = found
            .into_iter()
            .map(|object| StoredObject {
                key: Some(objects::key(&object.key)),
                json: object.json.to_string(),
                generation: object.generation,
                revision: object.revision,
                created_unix: object.created_unix,
            })
            .collect();
        Ok(Response::new(GetResponse { objects, revision }))
    }

    async fn history(&self, request: Request<HistoryRequest>) -> Result<Response<HistoryResponse>, Status> {
        let request = request.into_inner();
        let limit = match request.limit {
            0 => HISTORY,
            limit => usize::try_from(limit).unwrap_or(MAX_HISTORY).min(MAX_HISTORY),
        };
        let object = request.object.filter(|o| !o.kind.is_empty()).map(|o| object_key(&o)).transpose()?;
        let revisions = self.blocking(move |service| service.store.history(limit, object.as_ref())).await?;
        let revisions = revisions
            .into_iter()
            .map(|revision| Revision {
                revision: revision.revision,
                time_unix_ms: revision.time_unix_ms,
                author: revision.author,
                message: revision.message,
                changes: revision.changes.iter().map(objects::change).collect(),
            })
            .collect();
        Ok(Response::new(HistoryResponse { revisions }))
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        let request = request.into_inner();
        let response = self
            .blocking(move |service| {
                if request.documents.is_empty() {
                    let to = (request.to != 0).then_some(request.to);
                    let objects = objects::diff_revisions(request.from, to, &service.store)?;
                    return Ok(DiffResponse { objects, problems: Vec::new() });
                }
                let checked = objects::check(
                    &request.documents,
                    &request.namespace,
                    &service.store,
                    &service.picture.load(),
                    &service.registry,
                    &service.mesh,
                )?;
                let objects = objects::diff_documents(&checked.objects, &service.store)?;
                Ok(DiffResponse { objects, problems: checked.problems.iter().map(objects::problem).collect() })
            })
            .await?;
        Ok(Response::new(response))
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Result<Response<ApplyResponse>, Status> {
        let author = author(&request);
        let request = request.into_inner();
        let response = self
            .blocking(move |service| {
                let before = service.store.newest()?;
                let text = match message(&request.message) {
                    "" => format!("rollback to revision {}", request.to),
                    text => text.to_owned(),
                };
                let written = service.store.rollback(request.to, &author, &text, now_unix_ms())?;
                service.written(before, &written);
                Ok(response(&written, Vec::new()))
            })
            .await?;
        Ok(Response::new(response))
    }

    type WatchRolloutStream = ReceiverStream<Result<Rollout, Status>>;

    async fn watch_rollout(
        &self,
        request: Request<WatchRolloutRequest>,
    ) -> Result<Response<Self::WatchRolloutStream>, Status> {
        let request = request.into_inner();
        let newest = self.store.newest().map_err(|e| store_status(&e))?;
        let revision = if request.revision == 0 { newest } else { request.revision };
        if revision > newest {
            return Err(Status::not_found(format!("revision {revision} does not exist; the newest is {newest}")));
        }
        let (reports, stream) = mpsc::channel(4);
        let catalogue = self.catalogue.clone();
        let published = move || catalogue.borrow().revision;
        let (sessions, moments) = (Arc::clone(&self.sessions), Arc::clone(&self.moments));
        tokio::spawn(rollout::watch(sessions, moments, published, revision, request.timeout_ms, reports));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn list_proxies(
        &self,
        _request: Request<ListProxiesRequest>,
    ) -> Result<Response<ListProxiesResponse>, Status> {
        let mut proxies: Vec<Proxy> = Vec::new();
        let registrations = self.registry.registrations();
        for connected in self.sessions.all() {
            let registration = registrations.iter().find(|(uid, ..)| *uid == connected.id).map(|(_, r, _)| r);
            let session = connected.session.lock();
            proxies.push(Proxy {
                id: connected.id.clone(),
                identity: connected.identity.to_string(),
                version: connected.version.clone(),
                address: connected.address.to_string(),
                revision: session.in_effect(),
                connected: true,
                ready: registration.is_some_and(|r| r.ready),
                draining: registration.is_some_and(|r| r.draining),
                connected_unix_ms: unix_ms(connected.since),
                resources: u32::try_from(session.held().count()).unwrap_or(u32::MAX),
                refused: session.refused().iter().map(|r| rollout::refused(&connected.id, r)).collect(),
                features: session.features().to_vec(),
            });
        }
        for (uid, registration, _) in registrations {
            if proxies.iter().any(|proxy| proxy.id == uid) {
                continue;
            }
            let identity = Identity {
                trust_domain: self.authority.trust_domain().to_owned(),
                namespace: registration.namespace.clone(),
                service_account: registration.service_account.clone(),
            };
            proxies.push(Proxy {
                id: uid,
                identity: identity.to_string(),
                ready: registration.ready,
                draining: registration.draining,
                ..Proxy::default()
            });
        }
        proxies.sort_by(|a, b| a.id.cmp(&b.id));
        let revision = self.store.newest().map_err(|e| store_status(&e))?;
        Ok(Response::new(ListProxiesResponse { proxies, revision }))
    }

    async fn proxy_config(
        &self,
        request: Request<ProxyConfigRequest>,
    ) -> Result<Response<ProxyConfigResponse>, Status> {
        let wanted = request.into_inner().proxy;
        let all = self.sessions.all();
        let exact = all.iter().rev().find(|c| c.id == wanted);
        let by_name: Vec<_> = all.iter().filter(|c| c.id.rsplit('/').next() == Some(&*wanted)).collect();
        let connected = match (exact, by_name.as_slice()) {
            (Some(connected), _) => connected,
            (None, [connected]) => connected,
            (None, []) => {
                return Err(Status::not_found(format!(
                    "proxy {wanted:?} is not connected (hint: `outrigger proxies` lists those that are)"
                )));
            }
            (None, several) => {
                let names: Vec<&str> = several.iter().map(|c| c.id.as_str()).collect();
                return Err(Status::invalid_argument(format!("{wanted:?} could be any of {}", names.join(", "))));
            }
        };
        let json = dump::session(&connected.session.lock());
        Ok(Response::new(ProxyConfigResponse { json: json.to_string() }))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let request = request.into_inner();
        let ttl = (request.ttl_seconds != 0).then(|| Duration::from_secs(request.ttl_seconds));
        let uses = (request.uses != 0).then_some(request.uses);
        let (token, record) = self.issue_token(&request.namespace, &request.service_account, ttl, uses).await?;
        Ok(Response::new(CreateTokenResponse { token, info: Some(token_info(&record)) }))
    }

    async fn list_tokens(&self, _request: Request<ListTokensRequest>) -> Result<Response<ListTokensResponse>, Status> {
        let tokens = self.blocking(|service| service.store.tokens()).await?;
        Ok(Response::new(ListTokensResponse { tokens: tokens.iter().map(token_info).collect() }))
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<RevokeTokenResponse>, Status> {
        // The whole token is accepted too: it is what people have at hand.
        let given = request.into_inner().id;
        let id = JoinToken::parse(&given).map_or(given, |token| token.id);
        let wanted = id.clone();
        if self.blocking(move |service| service.store.remove_token(&wanted)).await? {
            return Ok(Response::new(RevokeTokenResponse {}));
        }
        Err(Status::not_found(format!("token {id:?} does not exist (hint: `outrigger token list`)")))
    }
}

fn response(written: &Written, problems: Vec<outrigger_proto::admin::Problem>) -> ApplyResponse {
    let changes = written.changes.iter().map(objects::change).collect();
    ApplyResponse { revision: written.revision, changes, problems, refused: false }
}

fn token_info(record: &TokenRecord) -> TokenInfo {
    TokenInfo {
        id: record.id.clone(),
        namespace: record.namespace.clone(),
        service_account: record.service_account.clone(),
        expires_unix: record.expires_unix,
        uses_left: record.uses_left.map_or(-1, i64::from),
    }
}

fn canonical_kind(text: &str) -> Result<String, Status> {
    api::canonical_kind(text)
        .map(str::to_owned)
        .ok_or_else(|| Status::invalid_argument(format!("kind {text:?} is not known")))
}

fn object_key(key: &outrigger_proto::admin::ObjectKey) -> Result<ObjectKey, Status> {
    if key.name.is_empty() {
        return Err(Status::invalid_argument(format!("no name given for {}", key.kind)));
    }
    Ok(ObjectKey { kind: canonical_kind(&key.kind)?, namespace: key.namespace.clone(), name: key.name.clone() })
}

fn author<T>(request: &Request<T>) -> String {
    let named = request.metadata().get(AUTHOR_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name: String = named.chars().take(256).collect();
    if name.is_empty() { "admin".to_owned() } else { name }
}

/// A revision's message, cut where it is too long.
fn message(text: &str) -> &str {
    let mut end = text.len().min(MAX_MESSAGE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn store_status(error: &StoreError) -> Status {
    match error {
        StoreError::Conflict { .. } => Status::aborted(error.to_string()),
        StoreError::NoRevision(_) => Status::not_found(error.to_string()),
        _ => Status::internal(error.to_string()),
    }
}

fn unix_ms(at: SystemTime) -> i64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

fn now_unix_ms() -> i64 {
    unix_ms(SystemTime::now())
}
