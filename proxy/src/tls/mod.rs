//! Who is it? Mutual TLS between sidecars: handshakes, and what they must prove.
//!
//! TLS 1.3 only, certificates on both sides, identities as SPIFFE ids. `server` and `client` do the handshakes for the journeys
//! and for `upstream`; `verify` holds every rule about the other side's certificate; `alpn` the protocol names.
//! Nothing is resumed: rustls does not verify again on resumption, and authorization must see the identity of today.
//! The settings are immutable and replaced as a whole when the certificate is; open connections keep theirs.

pub mod alpn;
pub mod client;
pub mod server;
mod validity;
mod verify;

#[cfg(test)]
mod tests;

use std::{
    io,
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use rustls::{
    RootCertStore,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::UnixTime,
    server::NoServerSessionStorage,
    time_provider::TimeProvider,
};

pub use alpn::{Alpn, Offer};

/// What waits encrypted for a socket, where memory is bounded (`resilience/growth.rs`): part of what is reckoned for each connection. rustls
/// alone keeps twice as much, which saves calls where there is memory.
const BUFFER_BYTES: usize = 32 * 1024;
pub use verify::IdentityProblem;

use crate::telemetry::Handshake;
use crate::{
    failure::Reason,
    host,
    identity::{Material, spiffe_id::SpiffeId},
};

/// Both sides' TLS settings for one certificate. Immutable; rebuilt on rotation.
pub struct TlsConfigs {
    identity: SpiffeId,
    not_after: SystemTime,
    roots: Arc<RootCertStore>,
    server: Arc<rustls::ServerConfig>,
    /// For any peer of our trust domain, one per [`Offer`], in the order of [`Offer::ALL`].
    clients: [Arc<rustls::ClientConfig>; 3],
}

/// Why no TLS settings can be made of the material.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    #[error("certificate chain is empty")]
    NoCertificate,
    #[error("trust bundle holds no usable root certificate")]
    NoRoots,
    #[error("certificate is not readable as X.509")]
    Malformed,
    #[error("certificate does not name a workload: {0}")]
    Identity(#[from] IdentityProblem),
    #[error("certificate is for {identity}, the trust domain here is {trust_domain:?}")]
    ForeignTrustDomain { identity: SpiffeId, trust_domain: Box<str> },
    #[error(
        "certificate of {identity} is not trusted by our own bundle: {source} (hint: chain and bundle must come from the same authority)"
    )]
    Untrusted { identity: SpiffeId, source: rustls::Error },
    #[error(
        "certificate is for {identity}, and this workload is {own} (hint: an identity changes with a restart only)"
    )]
    OtherIdentity { identity: SpiffeId, own: SpiffeId },
    #[error("certificate and key cannot be used together: {0}")]
    Key(#[source] rustls::Error),
}

impl TlsConfigs {
    /// Checks the material and prepares both sides.
    ///
    /// # Errors
    /// When chain, key, roots and trust domain do not fit together, or the certificate is not valid now. The caller
    /// keeps what it has.
    pub fn new(material: &Material) -> Result<Self, TlsSetupError> {
        let leaf = material.chain.first().ok_or(TlsSetupError::NoCertificate)?;
        let not_after = validity::not_after(leaf).ok_or(TlsSetupError::Malformed)?;
        let identity = verify::identity(leaf)?;
        if identity.trust_domain() != &*material.trust_domain {
            let trust_domain = (&*material.trust_domain).into();
            return Err(TlsSetupError::ForeignTrustDomain { identity, trust_domain });
        }
        let mut roots = RootCertStore::empty();
        let (usable, _) = roots.add_parsable_certificates(material.roots.iter().cloned());
        if usable == 0 {
            return Err(TlsSetupError::NoRoots);
        }
        let roots = Arc::new(roots);
        let anyone = Arc::new(verify::Verifier::new(
            Arc::clone(&roots),
            &PROVIDER,
            Expected::TrustDomain,
            Arc::clone(&material.trust_domain),
        ));
        let intermediates = material.chain.get(1..).unwrap_or_default();
        anyone
            .verify_chain(leaf, intermediates, wall_clock())
            .map_err(|source| TlsSetupError::Untrusted { identity: identity.clone(), source })?;

        let mut server = rustls::ServerConfig::builder_with_details(Arc::clone(&PROVIDER), Arc::new(WallClock))
            .with_protocol_versions(VERSIONS)
            .map_err(TlsSetupError::Key)?
            .with_client_cert_verifier(Arc::clone(&anyone) as _)
            .with_single_cert(material.chain.clone(), material.key.clone_key())
            .map_err(TlsSetupError::Key)?;
        server.alpn_protocols = alpn::tokens(&Alpn::ALL);
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});

        let mut client = rustls::ClientConfig::builder_with_details(Arc::clone(&PROVIDER), Arc::new(WallClock))
            .with_protocol_versions(VERSIONS)
            .map_err(TlsSetupError::Key)?
            .dangerous()
            .with_custom_certificate_verifier(anyone)
            .with_client_auth_cert(material.chain.clone(), material.key.clone_key())
            .map_err(TlsSetupError::Key)?;
        client.resumption = Resumption::disabled();
        // A sidecar has one certificate; a name in clear would only tell the network who is called.
        client.enable_sni = false;
        let clients = Offer::ALL.map(|offer| {
            let mut client = client.clone();
            client.alpn_protocols = alpn::tokens(offer.protocols());
            Arc::new(client)
        });
        Ok(Self { identity, not_after, roots, server: Arc::new(server), clients })
    }

    /// Who we are.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// When our certificate ends; peers refuse it from then on.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.server)
    }

    fn client(&self, offer: Offer, expected: &Expected) -> Arc<rustls::ClientConfig> {
        let [http2, http1, opaque] = &self.clients;
        let any = match offer {
            Offer::Http2 => http2,
            Offer::Http1 => http1,
            Offer::Opaque => opaque,
        };
        if *expected == Expected::TrustDomain {
            return Arc::clone(any);
        }
        // The expectation lives in the verifier, so that the handshake itself fails and the other side learns why.
        let mut exact = rustls::ClientConfig::clone(any);
        exact.dangerous().set_certificate_verifier(Arc::new(verify::Verifier::new(
            Arc::clone(&self.roots),
            &PROVIDER,
            expected.clone(),
            self.identity.trust_domain().into(),
        )));
        Arc::new(exact)
    }
}

/// The verified other side of an accepted connection.
#[derive(Clone, Debug)]
pub struct Peer {
    pub identity: SpiffeId,
    /// `None`: the client offered no protocol.
    pub alpn: Option<Alpn>,
    /// What the client asked for; not verified, never a reason to trust.
    pub server_name: Option<Box<str>>,
}

/// What a server must prove.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expected {
    /// This identity.
    Exactly(SpiffeId),
    /// Any identity of our own trust domain.
    TrustDomain,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsFailure {
    #[error("TLS handshake took too long")]
    Timeout,
    /// The connection broke, the other side refused us, or its certificate is not one we trust.
    #[error("TLS handshake failed: {0}")]
    Handshake(#[source] io::Error),
    /// A certificate we trust, of somebody else.
    #[error("peer proved identity {proved}, expected {expected}")]
    Identity { expected: Box<str>, proved: SpiffeId },
    /// A certificate we trust that does not name a workload.
    #[error("peer's certificate does not name a workload: {0}")]
    NoIdentity(Box<str>),
}

impl TlsFailure {
    /// The reason for responses, logs and metrics, seen from the connecting side.
    ///
    /// A slow handshake counts as a slow connect: both are the time until the first byte of a request may be sent.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Timeout => Reason::UpstreamConnectTimeout,
            Self::Handshake(_) => Reason::UpstreamTlsFailed,
            Self::Identity { .. } | Self::NoIdentity(_) => Reason::UpstreamIdentityMismatch,
        }
    }

    /// The word for metrics.
    pub fn handshake(&self) -> Handshake {
        match self {
            Self::Timeout => Handshake::Timeout,
            Self::Handshake(error) => match error.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe => Handshake::Closed,
                _ => match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                    Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
                        Handshake::Certificate
                    }
                    _ => Handshake::Protocol,
                },
            },
            Self::Identity { .. } => Handshake::Identity,
            Self::NoIdentity(_) => Handshake::Certificate,
        }
    }

    fn from_handshake(error: io::Error) -> Self {
        match verify::problem_in(&error) {
            Some(IdentityProblem::Unexpected { expected, proved }) => {
                Self::Identity { expected: expected.clone(), proved: proved.clone() }
            }
            Some(problem) => Self::NoIdentity(problem.to_string().into()),
            None => Self::Handshake(error),
        }
    }
}

/// Runs a handshake for at most `timeout`.
async fn in_time<T>(timeout: Duration, handshake: impl Future<Output = io::Result<T>>) -> Result<T, TlsFailure> {
    tokio::select! {
        biased;
        done = handshake => done.map_err(TlsFailure::from_handshake),
        () = host::sleep(timeout) => Err(TlsFailure::Timeout),
    }
}

static VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Never the process-wide default: that one panics when two providers are linked.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        // AES-128 first: measured the cheapest per record, and 128 bits are beyond reach.
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        // Hybrid first: recorded traffic stays unreadable for a later quantum computer, for 15 % more handshake.
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// Certificates are judged by the wall clock of the seam, so that a simulation can turn it.
#[derive(Debug)]
struct WallClock;

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(wall_clock())
    }
}

fn wall_clock() -> UnixTime {
    UnixTime::since_unix_epoch(host::wall_clock().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}
