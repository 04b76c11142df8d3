//! The certificate of our own listeners: issued by our own authority, replaced before it runs out.
//!
//! Handshakes read the newest one; connections that are open keep what they have. The chain includes the root, so that a
//! sidecar which knows only the root's pin can find it in the handshake.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rcgen::KeyPair;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_util::sync::CancellationToken;

use super::{Authority, Identity, sign::HostName};

/// Lifetime of the listeners' certificate; replaced at half of it.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Wait after a failed replacement.
const RETRY: Duration = Duration::from_secs(60);

/// The certificate that handshakes use now.
#[derive(Debug)]
pub struct ServingCertificate {
    current: ArcSwap<CertifiedKey>,
}

/// Why a listener has no certificate or no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    #[error("cannot issue the listeners' certificate: {0}")]
    Sign(#[from] rcgen::Error),
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("cannot trust the root: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

impl ServingCertificate {
    /// Issues the first one. Identity: `spiffe://<trust-domain>/ns/outrigger-system/sa/outrigger`; `hosts` are further names.
    ///
    /// # Errors
    /// When a host name cannot stand in a certificate.
    pub fn issue(authority: &Authority, hosts: &[HostName]) -> Result<Arc<Self>, ServingError> {
        let current = ArcSwap::from_pointee(issue(authority, hosts, SystemTime::now())?);
        Ok(Arc::new(Self { current }))
    }

    /// Replaces the certificate at half of its life until `stop`.
    pub async fn renew_until(&self, authority: Arc<Authority>, hosts: Vec<HostName>, stop: CancellationToken) {
        let mut wait = LIFETIME / 2;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = match issue(&authority, &hosts, SystemTime::now()) {
                Ok(certificate) => {
                    self.current.store(Arc::new(certificate));
                    tracing::info!("replaced the listeners' certificate");
                    LIFETIME / 2
                }
                Err(error) => {
                    tracing::error!(%error, "cannot replace the listeners' certificate");
                    RETRY
                }
            };
        }
    }

    /// TLS 1.3 with ALPN h2. With `clients`, a client certificate is verified against the root if one is sent.
    ///
    /// # Errors
    /// When the root cannot be trusted.
    pub fn server_config(self: &Arc<Self>, authority: &Authority, clients: bool) -> Result<ServerConfig, ServingError> {
        let provider: Arc<CryptoProvider> = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let builder = if clients {
            let mut roots = RootCertStore::empty();
            roots.add(authority.root().clone())?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would carry an identity whose certificate was checked long ago.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn issue(authority: &Authority, hosts: &[HostName], now: SystemTime) -> Result<CertifiedKey, ServingError> {
    let key = KeyPair::generate()?;
    let identity = Identity {
        trust_domain: authority.trust_domain().to_owned(),
        namespace: "outrigger-system".to_owned(),
        service_account: "outrigger".to_owned(),
    };
    let leaf = authority.sign_leaf(&key, &identity, hosts, LIFETIME, now)?;
    let chain = std::iter::once(leaf.der().clone()).chain(authority.chain().iter().cloned()).collect();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(CertifiedKey::new(chain, aws_lc_rs::sign::any_supported_type(&key)?))
}
