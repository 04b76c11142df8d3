//! Where to: from a normalised request to the rule that decides, and from the rule to one leg of its split.
//!
//! Pure. Knows neither endpoints nor sockets: what a leg leads to is the type parameter `L`
//! (a [`Target`] name as decoded, a live backend once `upstream` has joined it).

pub mod edit;
pub mod matching;
pub mod split;
mod sticky;
pub mod table;

pub use edit::{HeaderEdit, PathRewrite, Redirect, Rewrite};
pub(crate) use matching::query_value;
pub use matching::{PathMatch, RegexError, RequestMatch, StringMatch, check_regex};
pub use split::{Arm, Leg, Split};
pub use sticky::Sticky;
pub use table::{Action, HttpRule, RouteTable, RuleInfo, TcpRule};

use std::sync::Arc;

/// The name of what a leg leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Name of a Service resource: "namespace/host".
    pub service: Arc<str>,
    pub port: u16,
    /// Empty: all endpoints.
    pub subset: Arc<str>,
}
