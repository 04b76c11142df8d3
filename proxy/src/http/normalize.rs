//! x
use http::{Request, uri::{Authority, Scheme}};
use super::Body;
use crate::{failure::{Failure, Reason}, settings::Limits};
#[derive(Clone, Debug)]
pub struct Target { pub authority: Option<Authority>, pub scheme: Scheme }
pub fn normalize(request: &mut Request<Body>, _limits: &Limits) -> Result<(), Failure> {
    let a = match request.uri().authority() { Some(a) => Some(a.clone()), None => request.headers().get("host").and_then(|h| Authority::try_from(h.as_bytes()).ok()) };
    let a = a.ok_or(Reason::BadRequest)?;
    if let Some(p) = request.uri().path_and_query().cloned() { *request.uri_mut() = p.into(); }
    request.extensions_mut().insert(Target { authority: Some(a), scheme: Scheme::HTTP });
    Ok(())
}
pub fn authority(request: &Request<Body>) -> Option<&Authority> { request.extensions().get::<Target>().and_then(|t| t.authority.as_ref()) }
