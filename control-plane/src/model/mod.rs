//! The mesh in our own words: services, endpoints, routes and policies, with references resolved and conflicts settled. Pure.
//!
//! Built from all objects and registered workloads at once; the order of either never matters. `compile` turns it into
//! resources.

pub mod protocol;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

pub use outrigger_proto::mesh::PeerKind;

use crate::{api::Object, validate::Problem};

/// What is true for the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshSettings {
    /// Trust domain of all identities. Default `cluster.local`.
    pub trust_domain: String,
    /// Domain of service names. Default `cluster.local`.
    pub domain_suffix: String,
    /// Namespace whose policies apply to the whole mesh. Default `istio-system`.
    pub root_namespace: String,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            domain_suffix: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
        }
    }
}

/// A port that a sidecar registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPort {
    /// Port of the application.
    pub target_port: u16,
    /// Name of that port; may be empty.
    pub name: String,
    /// Port on the workload's address where peers reach it.
    pub reachable_port: u16,
}

/// A workload that its sidecar registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredWorkload {
    /// `namespace/workload`.
    pub uid: String,
    pub namespace: String,
    pub workload: String,
    pub service_account: String,
    pub labels: BTreeMap<String, String>,
    /// `region/zone/subzone`; empty when unknown.
    pub locality: String,
    /// `None` for one that only calls others.
    pub address: Option<IpAddr>,
    pub ports: Vec<WorkloadPort>,
    /// The application passes its health check, or has none.
    pub ready: bool,
    /// The sidecar is going away.
    pub draining: bool,
    /// How peers speak to it where no PeerAuthentication disables mutual TLS.
    pub mesh: PeerKind,
}

/// All that the mesh is made from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub objects: &'a [Arc<Object>],
    pub workloads: &'a [RegisteredWorkload],
    /// Addresses given to services that have none of their own, by service key `namespace/host`.
    pub virtual_addresses: &'a BTreeMap<String, Vec<IpAddr>>,
    pub settings: &'a MeshSettings,
}

/// The mesh, ready to be compiled.
#[derive(Clone, Debug)]
pub struct Mesh {
    pub(crate) settings: MeshSettings,
}

impl Mesh {
    /// Puts everything together. Problems are those that only show together with other objects; none is an error.
    pub fn build(inputs: Inputs<'_>) -> (Self, Vec<Problem>) {
        (Self { settings: inputs.settings.clone() }, Vec::new())
    }
}

/// Keys (`namespace/host`) of the services to which the caller must assign a virtual address, sorted.
pub fn needs_virtual_address(_objects: &[Arc<Object>], _settings: &MeshSettings) -> Vec<String> {
    Vec::new()
}
