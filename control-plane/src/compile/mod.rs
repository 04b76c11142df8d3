//! What each proxy must know: the mesh as named, versioned, encoded resources. Pure.
//!
//! Called after every change by the discovery side, which knows names, versions and bytes but not what they mean.
//! The same mesh always gives the same bytes.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use outrigger_proto::kind::Kind;

use crate::{
    api::ObjectKey,
    model::{Mesh, RegisteredWorkload},
};

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
}

/// Compiles everything except Node resources. `roots_pem`: one certificate each.
pub fn compile(_mesh: &Mesh, _roots_pem: &[Bytes]) -> Compiled {
    Compiled::default()
}

/// The Node resource of one proxy; also for one that only calls others.
pub fn node(_mesh: &Mesh, workload: &RegisteredWorkload) -> Resource {
    Resource {
        kind: Kind::Node,
        name: workload.uid.as_str().into(),
        aliases: Vec::new(),
        version: "".into(),
        bytes: Bytes::new(),
        origins: Vec::new(),
    }
}

/// One condition of an object's status.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Condition {
    /// `Accepted` or `ResolvedRefs`.
    pub condition: &'static str,
    pub status: bool,
    /// One word, Gateway API's where it has one.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ObjectStatus {
    pub object: ObjectKey,
    /// Generation of the object that this is about.
    pub generation: u64,
    pub conditions: Vec<Condition>,
}

/// Conditions of every object, sorted by key. `Programmed` is added by the side that knows what proxies acked.
pub fn status(_mesh: &Mesh) -> Vec<ObjectStatus> {
    Vec::new()
}
