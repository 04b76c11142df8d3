//! The certificate in use, for everyone who needs it, and how it is exchanged.
//!
//! `client` puts in what the authority signed, `config` the roots of the trust domain; handshakes take what is
//! there now. Established connections keep what they were made with. Keys live here and nowhere else.

use std::{sync::Arc, time::SystemTime};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::Material;
use crate::tls::{TlsConfigs, TlsSetupError};

/// Our current certificate.
pub struct Identity {
    current: ArcSwapOption<TlsConfigs>,
    held: Mutex<HeldMaterial>,
    ready: watch::Sender<bool>,
}

#[derive(Default)]
struct HeldMaterial {
    material: Option<Arc<Material>>,
    /// Roots that the control plane announced; they count besides those that came with the certificate.
    announced: Arc<[CertificateDer<'static>]>,
    /// Roots that came with the certificate.
    signed: Vec<CertificateDer<'static>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("not_after", &self.not_after()).finish_non_exhaustive()
    }
}

impl Default for Identity {
    fn default() -> Self {
        Self { current: ArcSwapOption::empty(), held: Mutex::default(), ready: watch::Sender::new(false) }
    }
}

impl Identity {
    /// Without a certificate yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// With a certificate from elsewhere: static mode.
    ///
    /// # Errors
    /// When chain, key and roots do not fit together.
    pub fn fixed(material: Material) -> Result<Arc<Self>, TlsSetupError> {
        let identity = Self::new();
        identity.replace(material)?;
        Ok(identity)
    }

    /// The settings for new handshakes; `None` before the first certificate.
    pub fn current(&self) -> Option<Arc<TlsConfigs>> {
        self.current.load_full()
    }

    /// Waits until there is a certificate.
    pub async fn ready(&self) {
        let mut ready = self.ready.subscribe();
        // The sender lives in `self`: the wait cannot fail.
        let _ = ready.wait_for(|ready| *ready).await;
    }

    /// When the certificate ends; `None` without one.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.current.load().as_ref().map(|configs| configs.not_after())
    }

    /// The certificate and key themselves; `None` without one.
    pub fn material(&self) -> Option<Arc<Material>> {
        self.held.lock().material.clone()
    }

    /// Exchanges certificate and key. Roots that were announced stay trusted besides those in `material`.
    ///
    /// # Errors
    /// When they do not fit together, or name somebody else than before; then everything stays as it was.
    pub fn replace(&self, mut material: Material) -> Result<(), TlsSetupError> {
        let mut held = self.held.lock();
        let signed = material.roots.clone();
        material.roots = union(&held.announced, &signed);
        let configs = TlsConfigs::new(&material)?;
        // Pools, labels and what peers were told belong to the identity; another one must begin anew.
        if let Some(current) = self.current.load().as_ref()
            && current.identity() != configs.identity()
        {
            let (identity, own) = (configs.identity().clone(), current.identity().clone());
            return Err(TlsSetupError::OtherIdentity { identity, own });
        }
        held.signed = signed;
        held.material = Some(Arc::new(material));
        self.current.store(Some(Arc::new(configs)));
        self.ready.send_replace(true);
        Ok(())
    }

    /// Trusts exactly these roots and those that came with the certificate; says whether that is a change.
    ///
    /// # Errors
    /// When the certificate does not fit them; then everything stays as it was.
    pub fn announce(&self, roots: &Arc<[CertificateDer<'static>]>) -> Result<bool, TlsSetupError> {
        let mut held = self.held.lock();
        if held.announced == *roots {
            return Ok(false);
        }
        if let Some(old) = &held.material {
            let material = Material {
                chain: old.chain.clone(),
                key: old.key.clone_key(),
                roots: union(roots, &held.signed),
                trust_domain: Arc::clone(&old.trust_domain),
            };
            let configs = TlsConfigs::new(&material)?;
            held.material = Some(Arc::new(material));
            self.current.store(Some(Arc::new(configs)));
        }
        held.announced = Arc::clone(roots);
        Ok(true)
    }
}

fn union(first: &[CertificateDer<'static>], second: &[CertificateDer<'static>]) -> Vec<CertificateDer<'static>> {
    let mut all = first.to_vec();
    all.extend(second.iter().filter(|root| !first.contains(root)).cloned());
    all
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

    use super::*;

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
    }

    fn material(authority: &CertifiedIssuer<'_, KeyPair>, uri: &str) -> Material {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        Material {
            chain: vec![parameters.signed_by(&key, authority).unwrap().der().clone()],
            key: key.serialize_der().try_into().unwrap(),
            roots: vec![authority.der().clone()],
            trust_domain: "td".into(),
        }
    }

    #[test]
    fn s23_a_bad_exchange_leaves_the_old_certificate_in_use() {
        // A rotation that went wrong would take the workload off the mesh, or make it somebody else.
        let (authority, stranger) = (authority(), authority());
        let own = "spiffe://td/ns/shop/sa/api";
        let identity = Identity::fixed(material(&authority, own)).unwrap();
        let used = identity.current().unwrap();
        let same = |what: &str| {
            assert!(Arc::ptr_eq(&identity.current().unwrap(), &used), "{what}");
            assert_eq!(identity.material().unwrap().roots, [authority.der().clone()], "{what}");
        };

        let mut other_key = material(&authority, own);
        other_key.key = material(&authority, own).key;
        assert!(matches!(identity.replace(other_key), Err(TlsSetupError::Key(_))));
        same("a key of another certificate");

        let other = material(&authority, "spiffe://td/ns/shop/sa/admin");
        assert!(matches!(identity.replace(other), Err(TlsSetupError::OtherIdentity { .. })));
        same("another identity");

        assert!(identity.replace(material(&stranger, "spiffe://other/ns/a/sa/b")).is_err());
        same("another trust domain");

        let mut rootless = material(&authority, own);
        rootless.roots.clear();
        assert!(matches!(identity.replace(rootless), Err(TlsSetupError::NoRoots)));
        same("an empty bundle with the certificate");

        // An empty announcement takes nothing away from what came with the certificate.
        let _ = identity.announce(&Arc::from([]));
        assert!(!identity.material().unwrap().roots.is_empty(), "an empty bundle");

        identity.replace(material(&authority, own)).unwrap();
        assert!(!Arc::ptr_eq(&identity.current().unwrap(), &used), "a good one is taken");
    }
}
