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
    /// When they do not fit together; then everything stays as it was.
    pub fn replace(&self, mut material: Material) -> Result<(), TlsSetupError> {
        let mut held = self.held.lock();
        let signed = material.roots.clone();
        material.roots = union(&held.announced, &signed);
        let configs = TlsConfigs::new(&material)?;
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
