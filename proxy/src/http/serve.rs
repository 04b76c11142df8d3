//! hyper's server side, and only here.
use std::future::Future;

use http::{Request, Response};

use super::Body;
use crate::{drain::DrainWatch, host::Stream, settings::Settings};

/// What the connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http1,
    Http2,
}

/// Prepared once from the settings; shared by connections.
pub struct ServeSettings(());

impl ServeSettings {
    /// `mesh_peer`: connections from other sidecars, which may open more streams.
    pub fn new(_settings: &Settings, _mesh_peer: bool) -> Self {
        unimplemented!()
    }
}

/// Serves one connection to its end.
///
/// # Errors
/// hyper's.
pub async fn serve<S, H, F>(
    _io: S,
    _version: Version,
    _settings: &ServeSettings,
    _drain: DrainWatch,
    _handler: H,
) -> Result<(), hyper::Error>
where
    S: Stream + 'static,
    H: Fn(Request<Body>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    unimplemented!()
}
