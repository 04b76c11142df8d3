//! The table of resource kinds and their type URLs.

/// Kinds of resources, in the order in which they are sent: what is referred to before what refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    TrustBundle,
    EndpointShard,
    BackendPolicy,
    Service,
    RouteTable,
    Node,
}

impl Kind {
    /// Every kind, in sending order; removals go the other way round.
    pub const ALL: [Self; 6] =
        [Self::TrustBundle, Self::EndpointShard, Self::BackendPolicy, Self::Service, Self::RouteTable, Self::Node];

    /// The type URL that stands in `type_url` and in every packed resource.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::TrustBundle => "type.googleapis.com/outrigger.mesh.v1.TrustBundle",
            Self::EndpointShard => "type.googleapis.com/outrigger.mesh.v1.EndpointShard",
            Self::BackendPolicy => "type.googleapis.com/outrigger.mesh.v1.BackendPolicy",
            Self::Service => "type.googleapis.com/outrigger.mesh.v1.Service",
            Self::RouteTable => "type.googleapis.com/outrigger.mesh.v1.RouteTable",
            Self::Node => "type.googleapis.com/outrigger.mesh.v1.Node",
        }
    }

    /// The kind of a type URL, or `None` for one that is not ours.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }
}

/// Type URL of [`crate::mesh::Refusal`] in the details of a refusal's status.
pub const REFUSAL_TYPE_URL: &str = "type.googleapis.com/outrigger.mesh.v1.Refusal";

/// What a client of this version understands, listed on connect.
///
/// A word is added whenever a field is added whose absence would change meaning.
pub const FEATURES: &[&str] = &[
    "core/v1",
    "breaker/v1",
    "fallback/v1",
    "consistent-hash/v1",
    "least-in-flight/v1",
    "locality/v1",
    "warmup/v1",
    "sticky-split/v1",
];
