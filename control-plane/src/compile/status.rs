//! What became of each object, as conditions. Pure.
//!
//! `Accepted` and `ResolvedRefs` with Gateway API's reasons where it has one. `Programmed` is added by the side that knows what
//! proxies have in effect.

use serde::Serialize;

use crate::{
    api::ObjectKey,
    model::{Mesh, Outcome},
};

/// One condition of an object's status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// `Accepted` or `ResolvedRefs`.
    pub condition: &'static str,
    pub status: bool,
    /// One word, Gateway API's where it has one.
    pub reason: &'static str,
    /// For people; empty when all is well.
    pub message: String,
}

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectStatus {
    pub object: ObjectKey,
    /// Generation of the object that this is about.
    pub generation: u64,
    pub conditions: Vec<Condition>,
}

/// Conditions of every object, sorted by key.
pub fn status(mesh: &Mesh) -> Vec<ObjectStatus> {
    mesh.outcomes.iter().map(|(object, outcome)| of_object(object, outcome)).collect()
}

fn of_object(object: &ObjectKey, outcome: &Outcome) -> ObjectStatus {
    let (status, reason, message) = match &outcome.refused {
        // Something took it, so it is accepted; the message says who did not.
        Some((_, message)) if outcome.attached > 0 => (true, "Accepted", message.clone()),
        Some((reason, message)) => (false, *reason, message.clone()),
        None => (true, "Accepted", String::new()),
    };
    let mut conditions = vec![Condition { condition: "Accepted", status, reason, message }];
    let refers = matches!(object.kind.as_str(), "HTTPRoute" | "TCPRoute" | "DestinationRule" | "CircuitBreaker");
    if refers {
        let (status, reason, message) = match &outcome.unresolved {
            Some((reason, message)) => (false, *reason, message.clone()),
            None => (true, "ResolvedRefs", String::new()),
        };
        conditions.push(Condition { condition: "ResolvedRefs", status, reason, message });
    }
    ObjectStatus { object: object.clone(), generation: outcome.generation, conditions }
}
