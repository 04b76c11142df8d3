//! One canonical request.
use http::{Request, uri::{Authority, Scheme}};

use super::Body;
use crate::{failure::Failure, settings::Limits};

/// Where a request wants to go, apart from its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Lower case, without a trailing dot; `None` only for HTTP/1.0 without Host.
    pub authority: Option<Authority>,
    pub scheme: Scheme,
}

/// Gives the request its one meaning, or refuses it.
///
/// # Errors
/// A `Failure` with `BadRequest` or `HeadTooLarge`.
pub fn normalize(_request: &mut Request<Body>, _limits: &Limits) -> Result<(), Failure> {
    unimplemented!()
}

/// The authority that routing sees.
pub fn authority(request: &Request<Body>) -> Option<&Authority> {
    request.extensions().get::<Target>()?.authority.as_ref()
}
