//! Handshakes over in-memory pipes, with authorities made on the spot.
#![allow(clippy::unwrap_used)]

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    /// Signs a leaf with these URI names, changed by `edit`.
    fn sign(&self, uris: &[&str], edit: impl FnOnce(&mut CertificateParams)) -> (CertificateDer<'static>, KeyPair) {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        edit(&mut parameters);
        let key = KeyPair::generate().unwrap();
        (parameters.signed_by(&key, &self.0).unwrap().der().clone(), key)
    }

    fn root(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    fn material(&self, uri: &str) -> Material {
        let (leaf, key) = self.sign(&[uri], |_| ());
        material(leaf, &key, self.root())
    }

    fn configs(&self, uri: &str) -> TlsConfigs {
        TlsConfigs::new(&self.material(uri)).unwrap()
    }

    /// Settings with a certificate that our own checks would not let through.
    fn crooked(&self, leaf: CertificateDer<'static>, key: &KeyPair) -> TlsConfigs {
        let mut configs = self.configs("spiffe://td/ns/a/sa/decoy");
        let mut server = rustls::ServerConfig::clone(&configs.server);
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = PROVIDER.key_provider.load_private_key(der).unwrap();
        let certified = Arc::new(rustls::sign::CertifiedKey::new(vec![leaf], signing));
        server.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(&certified)));
        configs.server = Arc::new(server);
        configs.clients = configs.clients.map(|client| {
            let mut client = rustls::ClientConfig::clone(&client);
            client.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(&certified)));
            Arc::new(client)
        });
        configs
    }
}

fn material(leaf: CertificateDer<'static>, key: &KeyPair, root: CertificateDer<'static>) -> Material {
    Material {
        chain: vec![leaf],
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        roots: vec![root],
        trust_domain: "td".into(),
    }
}

type Sides = (Result<(Peer, u8), TlsFailure>, Result<(Option<Alpn>, io::Result<u8>), TlsFailure>);

/// A handshake, then one byte from the server if it accepted.
async fn handshake(client: &TlsConfigs, server: &TlsConfigs, offer: Offer, expected: &Expected) -> Sides {
    let (near, far) = duplex(16 * 1024);
    let server = async {
        let (mut io, peer) = server::accept(far, server, TIMEOUT).await?;
        io.write_u8(7).await.unwrap();
        io.flush().await.unwrap();
        let answer = io.read_u8().await.map_err(TlsFailure::Handshake)?;
        Ok((peer, answer))
    };
    let client = async {
        let (mut io, alpn) = client::connect(near, client, offer, expected, TIMEOUT).await?;
        let byte = io.read_u8().await;
        if byte.is_ok() {
            io.write_u8(8).await.unwrap();
            io.flush().await.unwrap();
        }
        Ok((alpn, byte))
    };
    tokio::join!(server, client)
}

#[tokio::test(start_paused = true)]
async fn two_workloads_prove_themselves() {
    // No traffic between sidecars, or traffic labelled with the wrong caller.
    let authority = Authority::new();
    let client = authority.configs("spiffe://td/ns/shop/sa/front");
    let server = authority.configs("spiffe://td/ns/shop/sa/reviews");
    for (offer, chosen) in
        [(Offer::Http2, Alpn::MeshHttp2), (Offer::Http1, Alpn::MeshHttp1), (Offer::Opaque, Alpn::MeshOpaque)]
    {
        for expected in [Expected::TrustDomain, Expected::Exactly(server.identity().clone())] {
            let (served, connected) = handshake(&client, &server, offer, &expected).await;
            let (peer, byte) = served.unwrap();
            assert_eq!((&peer.identity, peer.alpn, byte), (client.identity(), Some(chosen), 8));
            assert_eq!(peer.server_name, None);
            let (alpn, byte) = connected.unwrap();
            assert_eq!((alpn, byte.unwrap()), (Some(chosen), 7));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_somebody_else_is_refused() {
    // Requests for one service would reach whoever answers at its address.
    let authority = Authority::new();
    let client = authority.configs("spiffe://td/ns/shop/sa/front");
    let server = authority.configs("spiffe://td/ns/shop/sa/impostor");
    let expected = SpiffeId::new("td", "shop", "reviews").unwrap();
    let (served, connected) = handshake(&client, &server, Offer::Http2, &Expected::Exactly(expected.clone())).await;
    assert!(matches!(served, Err(TlsFailure::Handshake(_))));
    let failure = connected.unwrap_err();
    assert_eq!(failure.reason(), Reason::UpstreamIdentityMismatch);
    let TlsFailure::Identity { expected: told, proved } = failure else { panic!("{failure:?}") };
    assert_eq!((&*told, &proved), (expected.as_str(), server.identity()));
}

#[tokio::test(start_paused = true)]
async fn certificates_that_prove_nothing_are_refused_on_both_sides() {
    // Each row is a way to get into the mesh without being a workload of it.
    let authority = Authority::new();
    let stranger = Authority::new();
    let good = authority.configs("spiffe://td/ns/shop/sa/good");
    let id = "spiffe://td/ns/shop/sa/bad";
    let past = rcgen::date_time_ymd(2020, 1, 1);
    let future = rcgen::date_time_ymd(2090, 1, 1);
    let cases = [
        ("foreign trust domain", authority.sign(&["spiffe://other/ns/shop/sa/bad"], |_| ()), true),
        ("another authority", stranger.sign(&[id], |_| ()), false),
        ("expired", authority.sign(&[id], |leaf| (leaf.not_before, leaf.not_after) = (past, past)), false),
        ("not valid yet", authority.sign(&[id], |leaf| (leaf.not_before, leaf.not_after) = (future, future)), false),
        ("no URI name", authority.sign(&[], |leaf| leaf.subject_alt_names = dns("td")), true),
        ("two URI names", authority.sign(&[id, "spiffe://td/ns/shop/sa/other"], |_| ()), true),
        ("the same URI name twice", authority.sign(&[id, id], |_| ()), true),
        ("no SPIFFE id", authority.sign(&["https://td/ns/shop/sa/bad"], |_| ()), true),
        (
            "no purpose",
            authority.sign(&[id], |leaf| {
                leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
            }),
            false,
        ),
    ];
    for (name, (leaf, key), trusted) in cases {
        let bad = authority.crooked(leaf, &key);
        let by_identity =
            |failure: &TlsFailure| matches!(failure, TlsFailure::Identity { .. } | TlsFailure::NoIdentity(_));

        let (served, connected) = handshake(&bad, &good, Offer::Http2, &Expected::TrustDomain).await;
        let failure = served.unwrap_err();
        assert_eq!(by_identity(&failure), trusted, "{name} as client: {failure:?}");
        assert!(connected.is_err() || connected.unwrap().1.is_err(), "{name} as client saw data");

        let (served, connected) = handshake(&good, &bad, Offer::Http2, &Expected::TrustDomain).await;
        let failure = connected.unwrap_err();
        assert_eq!(by_identity(&failure), trusted, "{name} as server: {failure:?}");
        assert!(served.is_err(), "{name} as server got data");
    }
}

fn dns(name: &str) -> Vec<SanType> {
    vec![SanType::DnsName(name.try_into().unwrap())]
}

#[tokio::test(start_paused = true)]
async fn a_client_without_a_certificate_gets_nothing() {
    // STRICT would let anybody in who speaks TLS.
    let authority = Authority::new();
    let server = authority.configs("spiffe://td/ns/shop/sa/reviews");
    let mut client = authority.configs("spiffe://td/ns/shop/sa/front");
    client.clients = client.clients.map(|config| {
        let mut config = rustls::ClientConfig::clone(&config);
        config.client_auth_cert_resolver = Arc::new(Nobody);
        Arc::new(config)
    });
    let (served, connected) = handshake(&client, &server, Offer::Opaque, &Expected::TrustDomain).await;
    assert!(matches!(served, Err(TlsFailure::Handshake(_))));
    assert!(connected.unwrap().1.is_err());
}

#[derive(Debug)]
struct Nobody;

impl rustls::client::ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test(start_paused = true)]
async fn tls_1_2_is_refused_with_an_alert() {
    // Old clients would get weaker protection than the mesh promises.
    let authority = Authority::new();
    let server = authority.configs("spiffe://td/ns/shop/sa/reviews");
    let (mut near, far) = duplex(16 * 1024);
    // ClientHello of TLS 1.2: one suite of that version, P-256, ECDSA with SHA-256, no supported_versions.
    let mut hello = vec![0x03, 0x03];
    hello.extend([9; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    let extensions = [0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3];
    hello.extend([0, extensions.len() as u8]);
    hello.extend(extensions);
    let mut record = vec![0x16, 0x03, 0x01, 0, hello.len() as u8 + 4, 1, 0, 0, hello.len() as u8];
    record.extend(hello);
    near.write_all(&record).await.unwrap();
    let failure = server::accept(far, &server, TIMEOUT).await.unwrap_err();
    assert!(matches!(failure, TlsFailure::Handshake(_)), "{failure:?}");
    let mut alert = Vec::new();
    near.read_to_end(&mut alert).await.unwrap();
    // A fatal protocol_version alert (RFC 8446 §6.2).
    assert_eq!((alert.first(), alert.get(5..)), (Some(&0x15), Some([2, 70].as_slice())));
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_ends_after_the_timeout() {
    // Half-open handshakes would pile up until the connection limit is reached.
    let authority = Authority::new();
    let configs = authority.configs("spiffe://td/ns/shop/sa/a");
    let start = host::now();
    let (_silent, io) = duplex(1024);
    let failure = server::accept(io, &configs, TIMEOUT).await.unwrap_err();
    assert!(matches!(failure, TlsFailure::Timeout));
    let (_silent, io) = duplex(1024);
    let failure = client::connect(io, &configs, Offer::Http2, &Expected::TrustDomain, TIMEOUT).await.unwrap_err();
    assert_eq!(failure.reason(), Reason::UpstreamConnectTimeout);
    assert_eq!(host::now() - start, TIMEOUT * 2);
}

#[test]
fn unusable_material_is_refused_with_the_cause() {
    // A bad rotation would take the workload off the mesh; refused, the old certificate stays in use.
    let authority = Authority::new();
    let good = "spiffe://td/ns/shop/sa/a";
    assert!(TlsConfigs::new(&authority.material(good)).is_ok());

    let mut empty = authority.material(good);
    empty.chain.clear();
    assert!(matches!(TlsConfigs::new(&empty), Err(TlsSetupError::NoCertificate)));

    let mut garbage = authority.material(good);
    garbage.chain = vec![vec![1, 2, 3].into()];
    assert!(matches!(TlsConfigs::new(&garbage), Err(TlsSetupError::Malformed)));

    let mut rootless = authority.material(good);
    rootless.roots = vec![vec![1, 2, 3].into()];
    assert!(matches!(TlsConfigs::new(&rootless), Err(TlsSetupError::NoRoots)));

    let mut foreign = authority.material(good);
    foreign.trust_domain = "other".into();
    assert!(matches!(TlsConfigs::new(&foreign), Err(TlsSetupError::ForeignTrustDomain { .. })));

    let mut other_key = authority.material(good);
    other_key.key = authority.material(good).key;
    assert!(matches!(TlsConfigs::new(&other_key), Err(TlsSetupError::Key(_))));

    let mut other_root = authority.material(good);
    other_root.roots = vec![Authority::new().root()];
    assert!(matches!(TlsConfigs::new(&other_root), Err(TlsSetupError::Untrusted { .. })));

    let nameless = authority.sign(&[], |leaf| leaf.subject_alt_names = dns("td"));
    let nameless = material(nameless.0, &nameless.1, authority.root());
    assert!(matches!(TlsConfigs::new(&nameless), Err(TlsSetupError::Identity(IdentityProblem::NoUri))));
}

#[test]
fn the_end_of_the_certificate_is_known() {
    // Renewal would come too late.
    let authority = Authority::new();
    let (leaf, key) =
        authority.sign(&["spiffe://td/ns/a/sa/b"], |leaf| leaf.not_after = rcgen::date_time_ymd(2050, 1, 1));
    let configs = TlsConfigs::new(&material(leaf, &key, authority.root())).unwrap();
    assert_eq!(configs.not_after().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 2_524_608_000);
    assert_eq!(configs.identity().as_str(), "spiffe://td/ns/a/sa/b");
}
