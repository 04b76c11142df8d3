//! Keeps our certificate fresh: asks the control plane to sign, again and again.
//!
//! Runs beside everything else for the life of the process. Speaks `istio.v1.auth`, so another signer can take the
//! control plane's place. First proves itself with the join token, later with the certificate it has; if that is
//! refused, with the token again. A certificate stays in use until a better one is there.

use std::{sync::Arc, time::Duration};

use http::Uri;
use outrigger_proto::ca::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_client::IstioCertificateServiceClient as Client,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, metadata::MetadataValue};
use tracing::{info, warn};

use super::{
    Identity, Material,
    memory::MemoryFile,
    renewal::{LIFETIME, Renewal},
    request::SigningRequest,
    spiffe_id::{SpiffeId, SpiffeIdError},
    token::{Token, TokenError},
    trust::{Trust, client_config, control_plane_id},
};
use crate::{
    config::connect::{Channel, ConnectError, MESSAGE_BYTES, connect},
    host,
    settings::{ControlPlane, NodeSettings},
    tls::TlsSetupError,
};

/// Longest wait for a connection, and for the signature after that.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Certificates in one answer.
const CHAIN_LENGTH: usize = 16;

/// What is needed to ask.
#[derive(Clone, Debug)]
pub struct Options {
    pub control_plane: ControlPlane,
    pub node: NodeSettings,
    /// `SO_MARK` for our connections; `None`: none.
    pub mark: Option<u32>,
    /// Where the identity is kept over a restart; `None`: nowhere.
    pub kept: Option<MemoryFile>,
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    #[error("this workload has no valid identity: {0} (hint: check namespace, service account and trust domain)")]
    Name(#[from] SpiffeIdError),
    #[error("no join token is set (hint: make one with `outrigger token create`)")]
    NoToken,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("root file {path:?} cannot be used: {reason}")]
    RootFile { path: String, reason: String },
    #[error("nobody to trust is set (hint: use a join token with a pin, or a root file)")]
    NoTrust,
    #[error("key cannot be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("control plane did not sign in time")]
    Timeout,
    #[error(
        "control plane refused this workload: {0} (hint: is the token valid for this namespace and service account?)"
    )]
    Refused(String),
    #[error("control plane failed to sign: {0}")]
    Failed(String),
    #[error("signed certificate cannot be used: {0}")]
    Useless(String),
    #[error("signed certificate cannot be used: {0}")]
    Setup(#[from] TlsSetupError),
}

/// Asks for certificates until `stop`.
pub async fn keep(identity: Arc<Identity>, options: Options, stop: CancellationToken) {
    let mut renewal = Renewal::default();
    // With the certificate we have, unless that was what failed last.
    let mut with_certificate = true;
    loop {
        let renewed = tokio::select! {
            () = stop.cancelled() => return,
            renewed = renew(&identity, &options, with_certificate) => renewed,
        };
        let wait = match renewed {
            Ok(()) => {
                with_certificate = true;
                let not_after = identity.not_after().unwrap_or_else(host::wall_clock);
                let wait = renewal.succeeded(not_after, host::wall_clock(), host::random_unit());
                info!(renew_in = ?wait, "certificate received");
                wait
            }
            Err(error) => {
                with_certificate =
                    !(with_certificate && matches!(error, SigningError::Refused(_) | SigningError::Connect(_)));
                let wait = renewal.failed(host::random_unit());
                warn!(%error, retry_in = ?wait, still_valid = identity.current().is_some(), "no new certificate");
                wait
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = host::sleep(wait) => {}
        }
    }
}

/// One attempt.
async fn renew(identity: &Identity, options: &Options, with_certificate: bool) -> Result<(), SigningError> {
    let node = &options.node;
    let id = SpiffeId::new(&node.trust_domain, &node.namespace, &node.service_account)?;
    let valid = identity.not_after().is_some_and(|end| end > host::wall_clock());
    let material = identity.material().filter(|_| with_certificate && valid);
    let token = match (&options.control_plane.token, &material) {
        (Some(setting), _) => Some(Token::load(setting)?),
        (None, Some(_)) => None,
        (None, None) => return Err(SigningError::NoToken),
    };
    let trust = trust(&options.control_plane, &node.trust_domain, identity, token.as_ref())?;
    let config = Arc::new(client_config(trust, material.as_deref())?);
    let channel = connect(&options.control_plane.address, config, options.mark, TIMEOUT).await?;
    let token = token.filter(|_| material.is_none());
    let material = sign(channel, &options.control_plane.address, &id, token.as_ref(), &node.trust_domain).await?;
    identity.replace(material)?;
    if let (Some(file), Some(material)) = (&options.kept, identity.material())
        && let Err(error) = file.save(&material)
    {
        warn!(%error, "identity is not kept for a restart");
    }
    Ok(())
}

/// Whom to believe at the control plane's address: the root file, the token's pin, the roots of the mesh.
///
/// # Errors
/// When there is nothing of these.
pub(crate) fn trust(
    control_plane: &ControlPlane,
    trust_domain: &str,
    identity: &Identity,
    token: Option<&Token>,
) -> Result<Trust, SigningError> {
    let mut roots = identity.material().map(|material| material.roots.clone()).unwrap_or_default();
    if let Some(path) = &control_plane.root_file {
        let unusable = |reason: String| SigningError::RootFile { path: path.display().to_string(), reason };
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))?;
        let before = roots.len();
        for certificate in certificates {
            roots.push(certificate.map_err(|error| unusable(error.to_string()))?);
        }
        if roots.len() == before {
            return Err(unusable("no certificate in it (hint: PEM is expected)".to_owned()));
        }
    }
    let pin = token.and_then(|token| token.pin);
    if roots.is_empty() && pin.is_none() {
        return Err(SigningError::NoTrust);
    }
    Ok(Trust { roots, pin, server: control_plane_id(trust_domain) })
}

/// Has a fresh key signed over an open connection.
async fn sign(
    channel: Channel,
    address: &str,
    id: &SpiffeId,
    token: Option<&Token>,
    trust_domain: &str,
) -> Result<Material, SigningError> {
    let signing = SigningRequest::new(id)?;
    let origin = Uri::builder().scheme("https").authority(address).path_and_query("/").build();
    let origin = origin.map_err(|_| ConnectError::Address(address.to_owned()))?;
    let mut client = Client::with_origin(channel, origin).max_decoding_message_size(MESSAGE_BYTES);
    let validity_duration = i64::try_from(LIFETIME.as_secs()).unwrap_or(0);
    let mut request = Request::new(IstioCertificateRequest { csr: signing.csr.clone(), validity_duration });
    if let Some(token) = token {
        let mut value = MetadataValue::try_from(token.authorization()).map_err(|_| TokenError::Malformed)?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    let answer = tokio::select! {
        answer = client.create_certificate(request) => answer,
        () = host::sleep(TIMEOUT) => return Err(SigningError::Timeout),
    };
    material(answer.map_err(failure)?.into_inner(), signing, trust_domain)
}

fn failure(status: Status) -> SigningError {
    let text = status.message().to_owned();
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument => SigningError::Refused(text),
        code => SigningError::Failed(format!("{code}: {text}")),
    }
}

/// Chain and roots out of an answer: leaf first, root last.
fn material(
    answer: IstioCertificateResponse,
    signing: SigningRequest,
    trust_domain: &str,
) -> Result<Material, SigningError> {
    let useless = |reason: &str| SigningError::Useless(reason.to_owned());
    let mut chain = Vec::new();
    for pem in &answer.cert_chain {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            chain.push(certificate.map_err(|_| useless("the answer holds something that is no PEM"))?);
            if chain.len() > CHAIN_LENGTH {
                return Err(useless("the chain is too long"));
            }
        }
    }
    if chain.len() < 2 {
        return Err(useless("the answer does not hold a leaf and a root"));
    }
    let root = chain.pop().ok_or_else(|| useless("the answer is empty"))?;
    Ok(Material { chain, key: signing.into_key(), roots: vec![root], trust_domain: trust_domain.into() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use hyper_util::rt::{TokioExecutor, TokioIo};
    use outrigger_proto::ca::istio_certificate_service_server::{
        IstioCertificateService, IstioCertificateServiceServer,
    };
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use tonic::Response;

    use super::*;
    use crate::config::connect::handshake;

    /// Answers with what it was made with, and remembers what it was asked.
    #[derive(Clone)]
    struct Authority {
        answer: Result<Vec<String>, Code>,
        seen: Arc<Mutex<Vec<Asked>>>,
    }

    /// Authorization header, signing request, wanted lifetime.
    type Asked = (Option<String>, String, i64);

    #[tonic::async_trait]
    impl IstioCertificateService for Authority {
        async fn create_certificate(
            &self,
            request: Request<IstioCertificateRequest>,
        ) -> Result<Response<IstioCertificateResponse>, Status> {
            let bearer = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
            let request = request.into_inner();
            self.seen.lock().unwrap().push((bearer, request.csr, request.validity_duration));
            let answer = self.answer.clone();
            answer
                .map(|cert_chain| Response::new(IstioCertificateResponse { cert_chain }))
                .map_err(|code| Status::new(code, "because"))
        }
    }

    async fn ask(
        answer: Result<Vec<String>, Code>,
        token: Option<&str>,
    ) -> (Result<Material, SigningError>, Authority) {
        let authority = Authority { answer, seen: Arc::default() };
        let server = IstioCertificateServiceServer::new(authority.clone());
        let (near, far) = tokio::io::duplex(64 * 1024);
        host::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let mut server = server.clone();
                async move { tonic::codegen::Service::call(&mut server, request).await }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(far), service).await;
        });
        let id = SpiffeId::new("mesh.local", "shop", "reviews").unwrap();
        let token = token.map(|token| Token::parse(token).unwrap());
        let channel = handshake(near).await.unwrap();
        (sign(channel, "control-plane:15012", &id, token.as_ref(), "mesh.local").await, authority)
    }

    fn root() -> String {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[tokio::test(start_paused = true)]
    async fn a_signed_chain_becomes_material_and_the_pin_is_not_shown() {
        // Without this no workload joins.
        let (leaf, middle, root) = (root(), root(), root());
        let pinned = format!("orj1.id.c2VjcmV0.{}", "ab".repeat(32));
        for chain in [vec![leaf.clone(), middle.clone(), root.clone()], vec![format!("{leaf}{middle}"), root.clone()]] {
            let (material, authority) = ask(Ok(chain), Some(&pinned)).await;
            let material = material.unwrap();
            let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            assert_eq!(material.chain, [der(&leaf), der(&middle)]);
            assert_eq!(material.roots, [der(&root)]);
            let seen = authority.seen.lock().unwrap().pop().unwrap();
            assert_eq!(seen.0.as_deref(), Some("Bearer orj1.id.c2VjcmV0"));
            assert!(seen.1.starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
            assert_eq!(seen.2, 86_400);
        }
        // With a certificate there is nothing to show.
        let (_, authority) = ask(Ok(vec![leaf, root]), None).await;
        assert_eq!(authority.seen.lock().unwrap().pop().unwrap().0, None);
    }

    #[tokio::test(start_paused = true)]
    async fn every_other_answer_is_an_error_that_says_so() {
        // A wrong token must read as one, not as a network problem.
        assert!(
            matches!(ask(Err(Code::Unauthenticated), None).await.0, Err(SigningError::Refused(why)) if why == "because")
        );
        assert!(matches!(ask(Err(Code::Unavailable), None).await.0, Err(SigningError::Failed(_))));
        for chain in [
            vec![],
            vec![root()],
            vec![root(), "-----BEGIN CERTIFICATE-----\n%\n-----END CERTIFICATE-----".to_owned()],
            vec![root(); 20],
        ] {
            assert!(matches!(ask(Ok(chain), None).await.0, Err(SigningError::Useless(_))));
        }
    }
}
