//! Names of the mesh as DNS answers: a service's name gives its virtual address.

use std::sync::Arc;

use crate::{
    config::demand::{Answer, DemandName},
    intercept::dns::{Lookup, LookupFuture, NameSource},
    residents::Residents,
    upstream::Mesh,
};

/// Looks names up in the newest picture, and asks the control plane for those it does not hold.
pub(super) struct Names(pub(super) Arc<Residents>);

impl NameSource for Names {
    fn addresses<'a>(&'a self, name: &'a str) -> LookupFuture<'a> {
        Box::pin(async move {
            let Some(mesh) = self.0.mesh() else { return Lookup::Failed };
            if let Some(found) = known(&mesh, name) {
                return found;
            }
            if !may_be_ours(&mesh, name) {
                return Lookup::NotMesh;
            }
            let limit = self.0.settings.timeouts.demand;
            match self.0.demand.want(DemandName::Host(name.to_owned()), limit).await {
                Answer::Found => self.0.mesh().and_then(|mesh| known(&mesh, name)).unwrap_or(Lookup::Failed),
                Answer::Absent => Lookup::NotMesh,
                Answer::TimedOut => Lookup::Failed,
            }
        })
    }
}

fn known(mesh: &Mesh, name: &str) -> Option<Lookup> {
    mesh.service_by_host(name).map(|service| Lookup::Found(service.config.addresses.clone()))
}

/// Whether a name can be a mesh name at all, so that every name of the outside world does not become a question to the
/// control plane: short, by namespace, or below the mesh's own suffix.
fn may_be_ours(mesh: &Mesh, name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let suffix = mesh.view.node.domain_suffix.as_ref();
    name.ends_with(suffix) || name.ends_with(".svc") || name.split('.').count() <= 2
}
