//! Fields that concern a hop.
use http::{HeaderMap, HeaderValue, header::HeaderName};

use super::upgrade::Upgrade;
use crate::{identity::spiffe_id::SpiffeId, tls::Peer};

/// Marks HTTP/1 carried as HTTP/2 between two sidecars.
pub const ORIG_PROTO: HeaderName = HeaderName::from_static("x-outrigger-orig-proto");
/// Envoy's count of tries, from 1.
pub const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
/// Envoy's request id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Who called, as the verifying proxy saw it.
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

pub fn strip_hop_by_hop(_headers: &mut HeaderMap, _keep_upgrade: Option<&Upgrade>) {
    unimplemented!()
}
pub fn request_id(_headers: &mut HeaderMap) -> HeaderValue {
    unimplemented!()
}
pub fn set_client_cert(_headers: &mut HeaderMap, _peer: Option<&Peer>, _own: &SpiffeId) {
    unimplemented!()
}
pub fn set_attempt_count(_headers: &mut HeaderMap, _attempt: u32) {
    unimplemented!()
}
pub fn set_orig_proto(_headers: &mut HeaderMap, _version: http::Version) {
    unimplemented!()
}
pub fn take_orig_proto(_headers: &mut HeaderMap) -> Option<http::Version> {
    unimplemented!()
}
