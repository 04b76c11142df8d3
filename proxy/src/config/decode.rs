//! From a resource's bytes to checked types, or a refusal that names resource, field and reason. Pure.
//!
//! Called by `apply` for everything that comes from the control plane, from disk or from a static file. Whatever
//! leaves here needs no further check: ports are ports, header names are header names, enumerations have a meaning,
//! defaults are filled in as the `.proto` files document them. An unknown enumeration value or choice is refused,
//! since half of a rule is another rule. Which resource refers to which is not looked at here.

mod balancing;
mod node;
mod policy;
mod route;
mod service;

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc, time::Duration};

use outrigger_proto::{kind::Kind, mesh};
use prost::Message;
use rustls_pki_types::{CertificateDer, pem::PemObject};

pub use service::{DefinedPort, Definition};

use super::view::{Endpoint, Node, PolicySet, Protocol};
use crate::route::{RouteTable, Target};

/// Why a resource was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    pub resource: String,
    /// Field path inside the resource, such as `http[2].matches[0].path`; empty: the resource as a whole.
    pub path: String,
    pub reason: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resource, path, reason } = self;
        if path.is_empty() { write!(f, "{resource}: {reason}") } else { write!(f, "{resource}: {path}: {reason}") }
    }
}

impl std::error::Error for Rejected {}

/// A checked resource.
#[derive(Clone, Debug)]
pub enum Resource {
    /// Roots of one trust domain, at least one.
    TrustBundle(Arc<[CertificateDer<'static>]>),
    EndpointShard(Arc<[Arc<Endpoint>]>),
    BackendPolicy(Arc<PolicySet>),
    Service(Arc<Definition>),
    RouteTable(Arc<RouteTable<Target>>),
    Node(Arc<Node>),
}

/// Endpoints in one shard, as `EndpointShard` documents.
pub const SHARD_ENDPOINTS: usize = 64;

/// Bytes of one resource name.
pub const NAME_BYTES: usize = 1024;

/// Checks one resource.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn decode(kind: Kind, name: &str, encoded: &[u8]) -> Result<Resource, Rejected> {
    let checked = || -> Checked<Resource> {
        check_name(name).map_err(|fault| fault.under("name"))?;
        Ok(match kind {
            Kind::TrustBundle => Resource::TrustBundle(roots(&message(encoded)?)?),
            Kind::EndpointShard => Resource::EndpointShard(service::shard(&message(encoded)?)?),
            Kind::BackendPolicy => Resource::BackendPolicy(Arc::new(policy::policy_set(&message(encoded)?)?)),
            Kind::Service => Resource::Service(Arc::new(service::definition(name, &message(encoded)?)?)),
            Kind::RouteTable => Resource::RouteTable(Arc::new(route::table(&message(encoded)?)?)),
            Kind::Node => Resource::Node(Arc::new(node::node(name, &message(encoded)?)?)),
        })
    };
    checked().map_err(|Fault { path, reason }| Rejected { resource: name.to_owned(), path, reason })
}

/// What is wrong, seen from the message that is being read.
#[derive(Debug)]
struct Fault {
    path: String,
    reason: String,
}

type Checked<T> = Result<T, Fault>;

impl Fault {
    fn new(reason: impl Into<String>) -> Self {
        Self { path: String::new(), reason: reason.into() }
    }

    /// The same fault, seen from the message around.
    fn under(mut self, field: impl fmt::Display) -> Self {
        self.path = if self.path.is_empty() { field.to_string() } else { format!("{field}.{}", self.path) };
        self
    }
}

fn refuse<T>(reason: impl Into<String>) -> Checked<T> {
    Err(Fault::new(reason))
}

/// Adds the field's name to the path of a fault.
trait In {
    fn in_field(self, field: &str) -> Self;
}

impl<T> In for Checked<T> {
    fn in_field(self, field: &str) -> Self {
        self.map_err(|fault| fault.under(field))
    }
}

/// Checks every element of a repeated field.
fn each<A, B>(field: &str, items: &[A], check: impl Fn(&A) -> Checked<B>) -> Checked<Vec<B>> {
    let checked = |(index, item)| check(item).map_err(|fault: Fault| fault.under(format_args!("{field}[{index}]")));
    items.iter().enumerate().map(checked).collect()
}

fn message<M: Message + Default>(encoded: &[u8]) -> Checked<M> {
    M::decode(encoded).map_err(|error| Fault::new(format!("is no valid message: {error}")))
}

fn check_name(name: &str) -> Checked<()> {
    match name {
        "" => refuse("is empty"),
        _ if name.len() > NAME_BYTES => refuse(format!("is longer than {NAME_BYTES} bytes")),
        _ if name.chars().any(char::is_control) => refuse("contains a control character"),
        _ => Ok(()),
    }
}

/// A name that must be there.
fn named(value: &str, field: &str) -> Checked<Arc<str>> {
    check_name(value).in_field(field)?;
    Ok(value.into())
}

/// Values of a map from client namespace to resource name.
fn scoped(names: &BTreeMap<String, String>, field: &str) -> Checked<BTreeMap<String, Arc<str>>> {
    let checked = |(scope, name): (&String, &String)| {
        check_name(name).map_err(|fault| fault.under(format_args!("{field}[{scope:?}]")))?;
        Ok((scope.clone(), Arc::from(name.as_str())))
    };
    names.iter().map(checked).collect()
}

fn address(bytes: &[u8]) -> Checked<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(four));
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(sixteen) => Ok(IpAddr::from(sixteen).to_canonical()),
        Err(_) => refuse(format!("has {} bytes, an address has 4 or 16", bytes.len())),
    }
}

fn port(number: u32) -> Checked<u16> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => refuse(format!("{number} is no port, ports are 1 to 65535")),
    }
}

/// A duration; `None` when it is absent or zero, which mean the same in every resource.
fn duration(value: Option<&prost_types::Duration>) -> Checked<Option<Duration>> {
    let Some(value) = value else { return Ok(None) };
    // google/protobuf/duration.proto: seconds "must be from -315,576,000,000 to +315,576,000,000 inclusive",
    // nanos "from -999,999,999 to +999,999,999", of the same sign.
    let seconds = u64::try_from(value.seconds).ok().filter(|seconds| *seconds <= 315_576_000_000);
    let nanos = u32::try_from(value.nanos).ok().filter(|nanos| *nanos <= 999_999_999);
    match (seconds, nanos) {
        (Some(seconds), Some(nanos)) => Ok(Some(Duration::new(seconds, nanos)).filter(|duration| !duration.is_zero())),
        _ if value.seconds < 0 || value.nanos < 0 => refuse("is negative"),
        _ => refuse("is out of range"),
    }
}

/// A percentage; `None` when zero.
fn percent(value: f64) -> Checked<Option<f64>> {
    if (0.0..=100.0).contains(&value) {
        Ok(Some(value).filter(|value| *value > 0.0))
    } else {
        refuse(format!("{value} is no percentage, percentages are 0 to 100"))
    }
}

fn protocol(value: i32) -> Checked<Protocol> {
    use mesh::Protocol as Wire;
    Ok(match Wire::try_from(value) {
        Ok(Wire::Detect) => Protocol::Detect,
        Ok(Wire::Tcp) => Protocol::Tcp,
        Ok(Wire::Tls) => Protocol::Tls,
        Ok(Wire::Http1) => Protocol::Http1,
        Ok(Wire::Http2) => Protocol::Http2,
        Ok(Wire::Grpc) => Protocol::Grpc,
        Ok(Wire::Http) => Protocol::Http,
        Ok(Wire::Unspecified) => return refuse("is unspecified"),
        Err(_) => return unknown(value),
    })
}

fn unknown<T>(value: i32) -> Checked<T> {
    refuse(format!("{value} is not known to this version (hint: update the proxy)"))
}

fn roots(bundle: &mesh::TrustBundle) -> Checked<Arc<[CertificateDer<'static>]>> {
    let roots = each("roots", &bundle.roots, |pem| {
        let certificate = CertificateDer::from_pem_slice(pem).map_err(|_| Fault::new("is no certificate in PEM"))?;
        match webpki::anchor_from_trusted_cert(&certificate) {
            Ok(_) => Ok(certificate.clone()),
            Err(error) => refuse(format!("cannot be a root: {error}")),
        }
    })?;
    if roots.is_empty() {
        return refuse("is empty").in_field("roots");
    }
    Ok(roots.into())
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests;
