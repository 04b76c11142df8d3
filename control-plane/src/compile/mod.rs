//! What each proxy must know: the mesh as named, versioned, encoded resources. Pure.
//!
//! Called after every change by the discovery side, which knows names, versions and bytes but not what they mean.
//! The same mesh always gives the same bytes.

mod node;
mod resource;
mod services;
mod status;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
pub use node::node;
use outrigger_proto::{kind::Kind, mesh::TrustBundle};
pub use status::{Condition, ObjectStatus, status};

use crate::{api::ObjectKey, model::Mesh};

/// One resource, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub kind: Kind,
    pub name: Arc<str>,
    /// Further names it can be asked for by.
    pub aliases: Vec<Arc<str>>,
    /// Hex of the first 64 bits of the SHA-256 of `bytes`.
    pub version: Arc<str>,
    /// The encoded message, without the enclosing `Any`.
    pub bytes: Bytes,
    /// The user's objects that made it what it is.
    pub origins: Vec<ObjectKey>,
}

/// All resources of one mesh, except those that belong to a single proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    by_name: [BTreeMap<Arc<str>, Arc<Resource>>; Kind::ALL.len()],
    by_alias: [BTreeMap<Arc<str>, Arc<Resource>>; Kind::ALL.len()],
}

impl Compiled {
    /// The resource with this name, or else with this alias.
    pub fn get(&self, kind: Kind, name_or_alias: &str) -> Option<&Arc<Resource>> {
        let index = kind as usize;
        self.by_name[index].get(name_or_alias).or_else(|| self.by_alias[index].get(name_or_alias))
    }

    /// Every resource, in sending order of kinds and by name within a kind.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_name.iter().flat_map(BTreeMap::values)
    }

    /// Resources of one kind, by name.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_name[kind as usize].values()
    }

    fn add(&mut self, resource: Resource) {
        let resource = Arc::new(resource);
        let index = resource.kind as usize;
        for alias in &resource.aliases {
            self.by_alias[index].insert(alias.clone(), resource.clone());
        }
        self.by_name[index].insert(resource.name.clone(), resource);
    }
}

/// Compiles everything except Node resources. `roots_pem`: one certificate each.
pub fn compile(mesh: &Mesh, roots_pem: &[Bytes]) -> Compiled {
    let mut compiled = Compiled::default();
    let bundle = TrustBundle { roots: roots_pem.to_vec() };
    compiled.add(resource::encode(Kind::TrustBundle, &mesh.settings.trust_domain, Vec::new(), &bundle, &[]));
    for service in mesh.services() {
        services::add(service, &mut |resource| compiled.add(resource));
    }
    compiled
}
