//! From a resource's bytes to checked types, or a refusal that names resource, field and reason. Pure.

/// Why a resource was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    pub resource: String,
    /// Field path inside the resource, such as "http[2].matches[0].path"; empty: the resource as a whole.
    pub path: String,
    pub reason: String,
}
