//! The gRPC method that signs: caller (already authenticated) -> permit -> certificate chain.

use std::{sync::Arc, time::Duration, time::SystemTime};

use outrigger_proto::ca::{
    IstioCertificateRequest, IstioCertificateResponse, istio_certificate_service_server::IstioCertificateService,
};
use tonic::{Request, Response, Status};

use super::{Authority, authenticate::Caller, permit};
use crate::{store::Store, telemetry::Metrics};

/// Signs for workloads of one mesh.
pub struct CertificateService {
    authority: Arc<Authority>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    longest: Duration,
}

impl CertificateService {
    /// `longest`: lifetime of certificates whose caller wants none or a longer one.
    pub fn new(authority: Arc<Authority>, store: Arc<Store>, metrics: Arc<Metrics>, longest: Duration) -> Self {
        Self { authority, store, metrics, longest }
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller =
            request.extensions().get::<Caller>().cloned().ok_or_else(|| Status::unauthenticated("no credentials"))?;
        let request = request.into_inner();
        let permit = permit::permit(&request.csr, &caller.identity, request.validity_duration, self.longest).map_err(
            |refused| {
                self.metrics.certificates_refused.add(1);
                tracing::warn!(identity = %caller.identity, reason = %refused, "refused a certificate request");
                Status::invalid_argument(refused.to_string())
            },
        )?;
        if let Some(id) = caller.token.clone() {
            // Counted after the permit, so that a faulty request does not use up a single-use token.
            let store = Arc::clone(&self.store);
            let counted = tokio::task::spawn_blocking(move || store.use_token(&id))
                .await
                .map_err(|e| Status::internal(e.to_string()))?
                .map_err(|e| Status::internal(e.to_string()))?;
            if !counted {
                return Err(Status::unauthenticated(super::authenticate::Unauthenticated::Token.to_string()));
            }
        }
        let leaf = self
            .authority
            .sign_leaf(&permit.public_key, &caller.identity, &[], permit.lifetime, SystemTime::now())
            .map_err(|e| Status::internal(format!("cannot sign: {e}")))?;
        self.metrics.certificates_issued.add(1);
        tracing::debug!(identity = %caller.identity, lifetime_s = permit.lifetime.as_secs(), "signed a certificate");
        let cert_chain = std::iter::once(leaf.pem()).chain(self.authority.chain_pem().iter().cloned()).collect();
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
