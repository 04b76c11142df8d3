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

    /// An authority below this one; `edit` changes its certificate.
    fn intermediate(&self, name: &str, edit: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        edit(&mut parameters);
        Self(CertifiedIssuer::signed_by(parameters, KeyPair::generate().unwrap(), &self.0).unwrap())
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
    fn crooked(&self, chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> TlsConfigs {
        let mut configs = self.configs("spiffe://td/ns/a/sa/decoy");
        let mut server = rustls::ServerConfig::clone(&configs.server);
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = PROVIDER.key_provider.load_private_key(der).unwrap();
        let certified = Arc::new(rustls::sign::CertifiedKey::new(chain, signing));
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

/// Who says no to a certificate, on either side.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Refused {
    /// The chain is not trusted, or not for this.
    Chain,
    /// The chain is; the name is not one we believe.
    Name,
}

/// A handshake with a workload that proves itself with this chain fails in both roles, and nobody gets a byte of data.
async fn refused_on_both_sides(
    authority: &Authority,
    what: &str,
    chain: Vec<CertificateDer<'static>>,
    key: &KeyPair,
    by: Refused,
) {
    let good = authority.configs("spiffe://td/ns/shop/sa/good");
    let bad = authority.crooked(chain, key);
    let by_name = |failure: &TlsFailure| match failure {
        TlsFailure::Identity { .. } | TlsFailure::NoIdentity(_) => Refused::Name,
        _ => Refused::Chain,
    };
    let (served, connected) = handshake(&bad, &good, Offer::Http2, &Expected::TrustDomain).await;
    let failure = served.unwrap_err();
    assert_eq!(by_name(&failure), by, "{what} as client: {failure:?}");
    // What operators see: somebody has a bad certificate, and no broken network.
    assert!(matches!(failure.handshake(), Handshake::Certificate | Handshake::Identity), "{what}: {failure:?}");
    assert!(connected.is_err() || connected.unwrap().1.is_err(), "{what} as client saw data");

    let (served, connected) = handshake(&good, &bad, Offer::Http2, &Expected::TrustDomain).await;
    let failure = connected.unwrap_err();
    assert_eq!(by_name(&failure), by, "{what} as server: {failure:?}");
    assert!(served.is_err(), "{what} as server got data");
}

const BAD: &str = "spiffe://td/ns/shop/sa/bad";

#[tokio::test(start_paused = true)]
async fn s01_dns_names_prove_nothing() {
    // A wildcard that covers more than its owner thinks would let one workload be another. Here no DNS name counts at all.
    let authority = Authority::new();
    for name in ["*.example.com", "a.b.example.com", "*", "td", "shop.svc.cluster.local"] {
        let (leaf, key) = authority.sign(&[], |leaf| leaf.subject_alt_names = dns(name));
        refused_on_both_sides(&authority, name, vec![leaf], &key, Refused::Name).await;
    }
    for uri in ["spiffe://*/ns/shop/sa/bad", "spiffe://*.td/ns/shop/sa/bad", "spiffe://td/ns/*/sa/bad", "spiffe://td/*"]
    {
        let (leaf, key) = authority.sign(&[uri], |_| ());
        refused_on_both_sides(&authority, uri, vec![leaf], &key, Refused::Name).await;
    }
}

#[tokio::test(start_paused = true)]
async fn s02_a_zero_byte_in_a_name_cuts_nothing_off() {
    // A reader that stops at the zero byte takes the front part for the whole name, and the certificate for somebody else's.
    let authority = Authority::new();
    for uri in
        ["spiffe://td/ns/shop/sa/good\0.evil", "spiffe://td\0.evil/ns/shop/sa/good", "\0spiffe://td/ns/shop/sa/good"]
    {
        let (leaf, key) = authority.sign(&[uri], |_| ());
        refused_on_both_sides(&authority, &uri.escape_debug().to_string(), vec![leaf], &key, Refused::Name).await;
    }
    // In other kinds of names it is not even looked at: they prove nothing alone, and change nothing beside a good one.
    let other =
        SanType::OtherName((vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3], "spiffe://td/ns/shop/sa/good\0x".to_owned().into()));
    let odd = || [dns("good\0.evil").remove(0), other.clone()];
    let (leaf, key) = authority.sign(&[], |leaf| leaf.subject_alt_names = odd().into());
    refused_on_both_sides(&authority, "other kinds of names", vec![leaf], &key, Refused::Name).await;
    let (leaf, _) = authority.sign(&[BAD], |leaf| leaf.subject_alt_names.extend(odd()));
    assert_eq!(verify::identity(&leaf).unwrap().as_str(), BAD);
}

#[tokio::test(start_paused = true)]
async fn s03_exactly_one_canonical_spiffe_id_counts() {
    // X.509-SVID §2 and §5.2: with two names it would be our choice who somebody is, with two spellings a rule's. All spellings:
    // `identity/spiffe_id.rs`.
    let authority = Authority::new();
    let long = format!("spiffe://td/{}", "x".repeat(2048));
    for uris in [
        vec![BAD, "spiffe://td/ns/shop/sa/other"],
        vec![BAD, BAD],
        vec![BAD, "https://td/ns/shop/sa/bad"],
        vec!["https://td/ns/shop/sa/bad"],
        vec!["SPIFFE://td/ns/shop/sa/bad"],
        vec!["spiffe://TD/ns/shop/sa/bad"],
        vec!["spiffe://td/ns/shop/sa/%62ad"],
        vec!["spiffe://td/ns/shop/%2e/bad"],
        vec!["spiffe://td/ns/shop/sa/bad/"],
        vec!["spiffe://td/ns/shop/sa/bad?q"],
        vec!["spiffe://td/ns/shop/sa/bad#f"],
        vec!["spiffe://td:443/ns/shop/sa/bad"],
        vec!["spiffe://u@td/ns/shop/sa/bad"],
        vec![&long],
    ] {
        let (leaf, key) = authority.sign(&uris, |_| ());
        refused_on_both_sides(&authority, &format!("{uris:?}"), vec![leaf], &key, Refused::Name).await;
    }
}

#[tokio::test(start_paused = true)]
async fn s05_another_trust_domain_is_refused() {
    // One authority may sign for several domains; each decides for itself whom it lets in.
    let authority = Authority::new();
    for domain in ["other", "td.other", "t", "tdx", "td."] {
        let (leaf, key) = authority.sign(&[&format!("spiffe://{domain}/ns/shop/sa/bad")], |_| ());
        refused_on_both_sides(&authority, domain, vec![leaf], &key, Refused::Name).await;
    }
    let stranger = Authority::new();
    let (leaf, key) = stranger.sign(&[BAD], |_| ());
    refused_on_both_sides(&authority, "another authority", vec![leaf], &key, Refused::Chain).await;
}

#[tokio::test(start_paused = true)]
async fn s06_certificates_count_only_while_they_are_valid() {
    // No grace, in neither direction: a stolen certificate must end when it says that it ends.
    let authority = Authority::new();
    let now = SystemTime::now();
    let minutes = |count: u64| Duration::from_secs(count * 60);
    for (what, from, to) in [
        ("expired long ago", now - minutes(600), now - minutes(300)),
        ("expired a minute ago", now - minutes(60), now - minutes(1)),
        ("expired a second ago", now - minutes(60), now - Duration::from_secs(1)),
        ("valid in a minute", now + minutes(1), now + minutes(60)),
        ("valid in five minutes", now + minutes(5), now + minutes(60)),
    ] {
        let valid = |one: &mut CertificateParams| (one.not_before, one.not_after) = (from.into(), to.into());
        let (leaf, key) = authority.sign(&[BAD], valid);
        refused_on_both_sides(&authority, what, vec![leaf], &key, Refused::Chain).await;
        // Nor does a good leaf help below an intermediate that is not valid.
        let between = authority.intermediate("between", valid);
        let (leaf, key) = between.sign(&[BAD], |_| ());
        refused_on_both_sides(
            &authority,
            &format!("intermediate {what}"),
            vec![leaf, between.root()],
            &key,
            Refused::Chain,
        )
        .await;
    }
    let between = authority.intermediate("between", |_| ());
    let (leaf, key) = between.sign(&[BAD], |_| ());
    let good = authority.crooked(vec![leaf, between.root()], &key);
    let (served, _) =
        handshake(&good, &authority.configs("spiffe://td/ns/a/sa/b"), Offer::Http2, &Expected::TrustDomain).await;
    assert_eq!(served.unwrap().0.identity.as_str(), BAD, "a valid intermediate is fine");
}

#[tokio::test(start_paused = true)]
async fn s07_a_certificate_is_good_for_its_purpose_only() {
    // The certificate of a web server would let its holder call every workload, and a client's let it answer as one.
    let authority = Authority::new();
    let good = authority.configs("spiffe://td/ns/shop/sa/good");
    for (purposes, as_client, as_server) in [
        (vec![ExtendedKeyUsagePurpose::ServerAuth], false, true),
        (vec![ExtendedKeyUsagePurpose::ClientAuth], true, false),
        (vec![ExtendedKeyUsagePurpose::CodeSigning], false, false),
        (vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth], true, true),
    ] {
        let (leaf, key) = authority.sign(&[BAD], |leaf| leaf.extended_key_usages.clone_from(&purposes));
        let bad = authority.crooked(vec![leaf], &key);
        let (served, _) = handshake(&bad, &good, Offer::Http2, &Expected::TrustDomain).await;
        assert_eq!(served.is_ok(), as_client, "{purposes:?} as client: {served:?}");
        let (_, connected) = handshake(&good, &bad, Offer::Http2, &Expected::TrustDomain).await;
        assert_eq!(connected.is_ok(), as_server, "{purposes:?} as server: {connected:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn s08_constraints_on_names_hold_and_common_names_mean_nothing() {
    // An authority that may sign for a part only could sign for everybody (URI constraints were once ignored).
    let authority = Authority::new();
    let uri_constraint = |kind: u8, host: &str| {
        // NameConstraints { permitted [0] | excluded [1] { { uniformResourceIdentifier [6] } } } (RFC 5280 §4.2.1.10).
        let mut der = vec![0x86, u8::try_from(host.len()).unwrap()];
        der.extend(host.as_bytes());
        for tag in [0x30, kind, 0x30] {
            der = [vec![tag, u8::try_from(der.len()).unwrap()], der].concat();
        }
        let mut constraint = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 30], der);
        constraint.set_criticality(true);
        constraint
    };
    for (what, kind, host) in [
        ("only others are permitted", 0xa0, "other"),
        ("only subdomains are permitted", 0xa0, ".td"),
        ("we are excluded", 0xa1, "td"),
        ("everybody is excluded", 0xa1, ""),
    ] {
        let between = authority.intermediate(what, |one| one.custom_extensions.push(uri_constraint(kind, host)));
        let (leaf, key) = between.sign(&[BAD], |_| ());
        refused_on_both_sides(&authority, what, vec![leaf, between.root()], &key, Refused::Chain).await;
    }
    let (leaf, key) = authority.sign(&[], |leaf| {
        leaf.distinguished_name.push(rcgen::DnType::CommonName, "spiffe://td/ns/shop/sa/good");
    });
    refused_on_both_sides(&authority, "common name only", vec![leaf], &key, Refused::Name).await;
}

/// Counts the signatures that are checked.
#[derive(Debug)]
struct Counting(&'static dyn rustls::pki_types::SignatureVerificationAlgorithm);

static CHECKED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

impl rustls::pki_types::SignatureVerificationAlgorithm for Counting {
    fn verify_signature(
        &self,
        key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), rustls::pki_types::InvalidSignature> {
        CHECKED.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.0.verify_signature(key, message, signature)
    }

    fn public_key_alg_id(&self) -> rustls::pki_types::AlgorithmIdentifier {
        self.0.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> rustls::pki_types::AlgorithmIdentifier {
        self.0.signature_alg_id()
    }
}

#[test]
fn s09_a_maze_of_intermediates_costs_little() {
    // Twenty authorities of one name, each of which might have signed each other: one handshake could cost seconds.
    let authority = Authority::new();
    let stranger = Authority::new();
    let same = || stranger.intermediate("same", |_| ());
    let mut maze: Vec<Authority> = vec![same()];
    for _ in 1..20 {
        let next = maze.last().unwrap().intermediate("same", |_| ());
        maze.push(next);
    }
    let (leaf, _) = maze.last().unwrap().sign(&[BAD], |_| ());
    let intermediates: Vec<_> = maze.iter().map(Authority::root).collect();
    let mut provider = CryptoProvider::clone(&PROVIDER);
    let counted: Vec<&'static dyn rustls::pki_types::SignatureVerificationAlgorithm> = provider
        .signature_verification_algorithms
        .all
        .iter()
        .map(|one| &*Box::leak(Box::new(Counting(*one))) as _)
        .collect();
    provider.signature_verification_algorithms.all = counted.leak();
    let mut roots = RootCertStore::empty();
    roots.add(authority.root()).unwrap();
    let verifier = verify::Verifier::new(Arc::new(roots), &provider, Expected::TrustDomain, "td".into());
    assert!(verifier.verify_chain(&leaf, &intermediates, wall_clock()).is_err());
    let checked = CHECKED.load(std::sync::atomic::Ordering::SeqCst);
    assert!(checked <= 100, "{checked} signatures were checked");
}

fn dns(name: &str) -> Vec<SanType> {
    vec![SanType::DnsName(name.try_into().unwrap())]
}

#[tokio::test(start_paused = true)]
async fn s04_names_are_compared_as_they_are() {
    // An expected name read as a pattern would match others: a dot any character, a short name the front of a long one.
    let authority = Authority::new();
    let client = authority.configs("spiffe://td/ns/shop/sa/front");
    let expected = Expected::Exactly(SpiffeId::new("td", "shop", "a.b").unwrap());
    for (account, accepted) in
        [("a.b", true), ("aXb", false), ("A.B", false), ("a.bc", false), ("a", false), ("xa.b", false)]
    {
        let server = authority.configs(&format!("spiffe://td/ns/shop/sa/{account}"));
        let (_, connected) = handshake(&client, &server, Offer::Http2, &expected).await;
        assert_eq!(connected.is_ok(), accepted, "{account}: {connected:?}");
    }
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
async fn s20_tls_1_2_and_with_it_renegotiation_is_refused_with_an_alert() {
    // Old clients would get weaker protection than the mesh promises, and might change who they are in the middle. TLS 1.3 has no
    // renegotiation (RFC 8446 §4.1.2).
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
fn s23_unusable_material_is_refused_with_the_cause() {
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

/// A client that would resume and send early data if it could, as clients that are not ours may be.
fn eager(mut configs: TlsConfigs) -> TlsConfigs {
    configs.clients = configs.clients.map(|client| {
        let mut client = rustls::ClientConfig::clone(&client);
        client.resumption = Resumption::in_memory_sessions(16);
        client.enable_early_data = true;
        Arc::new(client)
    });
    configs
}

/// A whole conversation, after which a client has everything that it could resume with; whether the handshake was a full one, and
/// whether early data was possible.
async fn talk(client: &TlsConfigs, server: &TlsConfigs) -> Result<(rustls::HandshakeKind, bool), TlsFailure> {
    let (near, far) = duplex(16 * 1024);
    let name = rustls::pki_types::ServerName::try_from("reviews.shop").unwrap();
    let connector = tokio_rustls::TlsConnector::from(client.client(Offer::Http2, &Expected::TrustDomain));
    let served = async {
        let (mut io, _) = server::accept(far, server, TIMEOUT).await?;
        io.write_u8(7).await.unwrap();
        io.flush().await.unwrap();
        let _ = io.read_u8().await;
        Ok(())
    };
    let connected = async {
        let mut io = connector.connect(name, near).await.map_err(TlsFailure::from_handshake)?;
        let early = io.get_mut().1.early_data().is_some();
        io.write_u8(8).await.map_err(TlsFailure::from_handshake)?;
        io.flush().await.map_err(TlsFailure::from_handshake)?;
        io.read_u8().await.map_err(TlsFailure::from_handshake)?;
        Ok((io.get_ref().1.handshake_kind().unwrap(), early))
    };
    let (served, connected): (Result<(), TlsFailure>, _) = tokio::join!(served, connected);
    served.and(connected)
}

#[tokio::test(start_paused = true)]
async fn s14_every_handshake_is_a_full_one() {
    // A ticket from one name would open another one that asks for a certificate (CVE-2025-23419).
    let authority = Authority::new();
    let client = eager(authority.configs("spiffe://td/ns/shop/sa/front"));
    let server = authority.configs("spiffe://td/ns/shop/sa/reviews");
    for _ in 0..3 {
        let (kind, _) = talk(&client, &server).await.unwrap();
        assert!(
            matches!(kind, rustls::HandshakeKind::Full | rustls::HandshakeKind::FullWithHelloRetryRequest),
            "{kind:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn s15_an_old_session_opens_nothing_after_trust_was_tightened() {
    // Roots were taken away, or a workload's name; whoever had a session would stay in for its lifetime.
    let (authority, other) = (Authority::new(), Authority::new());
    let client = eager(authority.configs("spiffe://td/ns/shop/sa/front"));
    let mut material = other.material("spiffe://td/ns/shop/sa/reviews");
    // The server proves itself with what the client believes all the time; only whom it believes changes.
    let (leaf, key) = authority.sign(&["spiffe://td/ns/shop/sa/reviews"], |_| ());
    material.chain = vec![leaf];
    material.key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    material.roots = vec![authority.root(), other.root()];
    let before = TlsConfigs::new(&material).unwrap();
    talk(&client, &before).await.unwrap();
    let mut after = before;
    let mut roots = RootCertStore::empty();
    roots.add(other.root()).unwrap();
    let verifier = verify::Verifier::new(Arc::new(roots), &PROVIDER, Expected::TrustDomain, "td".into());
    let mut server = rustls::ServerConfig::builder_with_details(Arc::clone(&PROVIDER), Arc::new(WallClock))
        .with_protocol_versions(VERSIONS)
        .unwrap()
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::clone(&after.server.cert_resolver));
    server.alpn_protocols.clone_from(&after.server.alpn_protocols);
    // Even with the store that the sessions of before would be in.
    server.session_storage = Arc::clone(&after.server.session_storage);
    server.ticketer = Arc::clone(&after.server.ticketer);
    after.server = Arc::new(server);
    assert!(matches!(talk(&client, &after).await, Err(TlsFailure::Handshake(_))));
}

#[tokio::test(start_paused = true)]
async fn s18_there_is_no_early_data() {
    // RFC 8446 §8: early data can be sent again by anybody who has seen it; a payment would be made twice.
    let authority = Authority::new();
    let client = eager(authority.configs("spiffe://td/ns/shop/sa/front"));
    let server = authority.configs("spiffe://td/ns/shop/sa/reviews");
    assert_eq!(server.server.max_early_data_size, 0);
    assert_eq!(server.server.send_tls13_tickets, 0);
    for _ in 0..3 {
        assert!(!talk(&client, &server).await.unwrap().1, "the client was given what early data needs");
    }
    assert!(server.clients.iter().all(|client| !client.enable_early_data));
}

#[tokio::test(start_paused = true)]
async fn s19_nonsense_in_a_handshake_ends_it() {
    // One client could keep a worker busy with records that mean nothing, or make it panic.
    let authority = Authority::new();
    let server = authority.configs("spiffe://td/ns/shop/sa/reviews");
    let record = |kind: u8, content: &[u8]| [&[kind, 3, 3, 0, u8::try_from(content.len()).unwrap()], content].concat();
    let mut session = rustls::ClientConnection::new(
        authority.configs("spiffe://td/ns/a/sa/b").client(Offer::Http2, &Expected::TrustDomain),
        std::net::Ipv4Addr::LOCALHOST.into(),
    )
    .unwrap();
    let mut hello = Vec::new();
    session.write_tls(&mut hello).unwrap();
    for (what, before, flood) in [
        ("unknown alert", &[][..], record(21, &[2, 250])),
        ("unknown warning", &[], record(21, &[1, 250])),
        ("alert of an unknown level", &[], record(21, &[9, 0])),
        ("warnings", &[], record(21, &[1, 90])),
        ("close_notify at first", &[], record(21, &[1, 0])),
        ("close_notify after the hello", &hello, record(21, &[1, 0])),
        ("warnings after the hello", &hello, record(21, &[1, 90])),
        ("empty handshake records", &[], record(22, &[])),
        ("empty records of data", &[], record(23, &[])),
        ("empty records of data after the hello", &hello, record(23, &[])),
        ("a change of cipher, again and again", &hello, record(20, &[1])),
        ("a second hello", &hello, hello.clone()),
    ] {
        let (mut near, far) = duplex(16 * 1024);
        let flooding = async {
            if near.write_all(before).await.is_err() {
                return 0;
            }
            // A million of them, unless the other side has had enough.
            for sent in 0..1_000_000 {
                if near.write_all(&flood).await.is_err() {
                    return sent;
                }
            }
            1_000_000
        };
        // Answers are never read: they fit into the pipe, or the server must not care.
        let (failure, sent) = tokio::join!(server::accept(far, &server, TIMEOUT), flooding);
        let failure = failure.unwrap_err();
        assert!(matches!(failure, TlsFailure::Handshake(_)), "{what}: {failure:?} after {sent}");
        // As many as fit into the pipe may be sent before the end is seen.
        assert!(sent < 20_000, "{what}: {sent} were read");
    }
}
