//! x
use http::{HeaderMap, HeaderValue, header::HeaderName};
use super::upgrade::Upgrade;
use crate::{host, identity::spiffe_id::SpiffeId, tls::Peer};
pub const ORIG_PROTO: HeaderName = HeaderName::from_static("x-outrigger-orig-proto");
pub const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
pub const ERROR: HeaderName = HeaderName::from_static("x-outrigger-error");
pub fn strip_hop_by_hop(h: &mut HeaderMap, _keep_upgrade: Option<&Upgrade>) {
    for n in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] { h.remove(n); }
}
pub fn request_id(h: &mut HeaderMap) -> HeaderValue {
    if let Some(v) = h.get(REQUEST_ID) { return v.clone(); }
    let v = HeaderValue::from_str(&format!("{:032x}", host::random_u128())).unwrap();
    h.insert(REQUEST_ID, v.clone()); v
}
pub fn set_client_cert(h: &mut HeaderMap, _peer: Option<&Peer>, _own: &SpiffeId) { h.remove(CLIENT_CERT); }
pub fn set_attempt_count(h: &mut HeaderMap, attempt: u32) { if attempt > 1 { h.insert(ATTEMPT_COUNT, HeaderValue::from(attempt)); } }
pub fn set_orig_proto(h: &mut HeaderMap, _v: http::Version) { h.insert(ORIG_PROTO, HeaderValue::from_static("HTTP/1.1")); }
pub fn take_orig_proto(h: &mut HeaderMap) -> Option<http::Version> { h.remove(ORIG_PROTO).map(|_| http::Version::HTTP_11) }
