//! What Outrigger's sidecars and control plane say to each other.
//!
//! Generated messages and services (see the `.proto` files), and the table of resource kinds. No behaviour.

#[allow(clippy::all, clippy::unwrap_used, clippy::use_self, unused_qualifications, rustdoc::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

/// Incremental discovery (delta xDS), wire-compatible with `envoy.service.discovery.v3`.
pub use generated::envoy::service::discovery::v3 as discovery;
/// `google.rpc.Status`.
pub use generated::google::rpc;
/// Certificate signing, wire-compatible with `istio.v1.auth`.
pub use generated::istio::v1::auth as ca;
/// What the command line asks of the control plane.
pub use generated::outrigger::admin::v1 as admin;
/// The resources: what a proxy must know.
pub use generated::outrigger::mesh::v1 as mesh;

pub mod kind;

/// The schema itself, an encoded `google.protobuf.FileDescriptorSet`, for programs that show messages of any kind.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
