//! A fake sidecar's client side: TLS, a join token or certificate, a discovery stream that acks what it is told to.

use std::{
    collections::BTreeMap,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use outrigger_control_plane::control_plane::Running;
use outrigger_proto::{
    ca::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient},
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    kind::{Kind, REFUSAL_TYPE_URL},
    mesh::{Refusal, RegisteredPort, Registration},
    rpc,
};
use prost::Message as _;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, body::Body};

/// Longest wait for anything that must come.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A gRPC channel over one TLS connection.
#[derive(Clone)]
pub struct Channel(hyper::client::conn::http2::SendRequest<Body>);

impl tonic::codegen::Service<http::Request<Body>> for Channel {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        *request.uri_mut() = format!("https://localhost{path}").parse().unwrap();
        Box::pin(self.0.send_request(request))
    }
}

/// A certificate and its key.
#[derive(Clone)]
pub struct Svid {
    pub chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

pub async fn channel(address: SocketAddr, root_pem: &str, svid: Option<&Svid>) -> Channel {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match svid {
        Some(svid) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.key.clone()));
            builder.with_client_auth_cert(svid.chain.clone(), key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(tls);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (send, connection) = hyper::client::conn::http2::Builder::new(executor).handshake(io).await.unwrap();
    tokio::spawn(connection);
    Channel(send)
}

/// A request for `uris` with a new key.
pub fn csr(uris: &[&str]) -> (String, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    (params.serialize_request(&key).unwrap().pem().unwrap(), key)
}

/// Asks for a certificate; `bearer` or the channel's own certificate prove who asks.
pub async fn sign(channel: Channel, bearer: Option<&str>, csr: &str, seconds: i64) -> Result<Vec<String>, Status> {
    let mut request = tonic::Request::new(IstioCertificateRequest { csr: csr.to_owned(), validity_duration: seconds });
    if let Some(token) = bearer {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let response = IstioCertificateServiceClient::new(channel).create_certificate(request).await?;
    Ok(response.into_inner().cert_chain)
}

pub fn svid(chain: &[String], key: &KeyPair) -> Svid {
    let chain = chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).collect();
    Svid { chain, key: key.serialize_der() }
}

/// Joins with a new token.
pub async fn join(plane: &Running, namespace: &str, account: &str) -> Svid {
    let token = plane.create_token(namespace, account, None, None).await.unwrap();
    let (csr, key) = csr(&[&format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")]);
    let channel = channel(plane.discovery_address, plane.root_pem(), None).await;
    svid(&sign(channel, Some(&token), &csr, 0).await.unwrap(), &key)
}

pub fn registration(namespace: &str, account: &str, workload: &str, port: u16) -> Registration {
    Registration {
        namespace: namespace.to_owned(),
        workload: workload.to_owned(),
        service_account: account.to_owned(),
        labels: [("app".to_owned(), account.to_owned())].into(),
        address: vec![127, 0, 0, 1].into(),
        ports: vec![RegisteredPort { target_port: 8080, name: "http".to_owned(), reachable_port: port.into() }],
        ready: true,
        ..Default::default()
    }
}

/// One discovery stream.
pub struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    pub held: BTreeMap<(Kind, String), Vec<u8>>,
}

impl Stream {
    /// Opens a stream; its first request subscribes to the node's own resource.
    pub async fn open(plane: &Running, svid: &Svid, registration: &Registration) -> Result<Self, Status> {
        let channel = channel(plane.discovery_address, plane.root_pem(), Some(svid)).await;
        let (requests, rx) = mpsc::channel(64);
        let id = format!("{}/{}", registration.namespace, registration.workload);
        let node = Node {
            id: id.clone(),
            user_agent_name: "fake".to_owned(),
            user_agent_version: "1".to_owned(),
            client_features: outrigger_proto::kind::FEATURES.iter().map(|f| (*f).to_owned()).collect(),
            registration: Some(registration.clone()),
        };
        requests.send(DeltaDiscoveryRequest { node: Some(node), ..subscribe(Kind::Node, &[&id]) }).await.unwrap();
        let responses = AggregatedDiscoveryServiceClient::new(channel)
            .delta_aggregated_resources(ReceiverStream::new(rx))
            .await?
            .into_inner();
        Ok(Self { requests, responses, held: BTreeMap::new() })
    }

    pub async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    /// Says something new of its workload.
    pub async fn report(&self, registration: &Registration) {
        let id = format!("{}/{}", registration.namespace, registration.workload);
        let node = Node { id, registration: Some(registration.clone()), ..Default::default() };
        self.send(DeltaDiscoveryRequest { node: Some(node), ..Default::default() }).await;
    }

    /// The next response, not acked.
    pub async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message = tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("no response came");
        message?.ok_or_else(|| Status::ok("end of stream"))
    }

    pub async fn ack(&self, response: &DeltaDiscoveryResponse) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        })
        .await;
    }

    pub async fn nack(&self, response: &DeltaDiscoveryResponse, name: &str, path: &str, reason: &str) {
        let refusal = Refusal { resource_name: name.to_owned(), path: path.to_owned(), reason: reason.to_owned() };
        let detail = prost_types::Any { type_url: REFUSAL_TYPE_URL.to_owned(), value: refusal.encode_to_vec() };
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: Some(rpc::Status { code: 3, message: reason.to_owned(), details: vec![detail] }),
            ..Default::default()
        })
        .await;
    }

    /// Takes one response in and acks it.
    pub async fn take(&mut self) -> DeltaDiscoveryResponse {
        let response = self.next().await.unwrap();
        let kind = Kind::from_type_url(&response.type_url).unwrap();
        for resource in &response.resources {
            let any = resource.resource.as_ref().unwrap();
            assert_eq!(any.type_url, response.type_url);
            self.held.insert((kind, resource.name.clone()), any.value.clone());
        }
        for name in &response.removed_resources {
            self.held.remove(&(kind, name.clone()));
        }
        self.ack(&response).await;
        response
    }

    /// Takes responses in until what is held satisfies `done`.
    pub async fn until(&mut self, what: &str, done: impl Fn(&BTreeMap<(Kind, String), Vec<u8>>) -> bool) {
        let end = tokio::time::Instant::now() + PATIENCE;
        while !done(&self.held) {
            assert!(tokio::time::Instant::now() < end, "never: {what}");
            self.take().await;
        }
    }

    pub fn get<M: prost::Message + Default>(&self, kind: Kind, name: &str) -> Option<M> {
        self.held.get(&(kind, name.to_owned())).map(|bytes| M::decode(bytes.as_slice()).unwrap())
    }
}

pub fn subscribe(kind: Kind, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: names.iter().map(|n| (*n).to_owned()).collect(),
        ..Default::default()
    }
}
