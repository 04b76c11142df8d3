//! Who a certificate names.

use outrigger_proxy::{
    identity::{Material, SpiffeId},
    tls::TlsConfigs,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A certificate that nobody signed is nobody; a name that is accepted has one spelling.
pub fn san_match(bytes: &[u8]) {
    let leaf = CertificateDer::from(bytes.to_vec());
    let material = Material {
        chain: vec![leaf.clone()],
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(vec![0; 8])),
        roots: vec![leaf],
        trust_domain: "mesh.local".into(),
    };
    assert!(TlsConfigs::new(&material).is_err(), "a key of zeros became somebody");
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(id) = SpiffeId::parse(text) else { return };
    assert_eq!(id.as_str(), text);
    let path =
        text.strip_prefix("spiffe://").and_then(|rest| rest.strip_prefix(id.trust_domain())).expect("its own parts");
    assert!(path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte)), "{path:?}");
    assert!(
        id.trust_domain()
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte))
    );
    if let (Some(namespace), Some(account)) = (id.namespace(), id.service_account()) {
        let built = SpiffeId::new(id.trust_domain(), namespace, account).expect("parts of a valid id");
        assert_eq!(built.as_str(), text);
    }
}
