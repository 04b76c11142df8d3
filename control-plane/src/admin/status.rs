//! What became of an object: accepted, resolved, and in effect at the proxies.
//!
//! The model says the first two; whether it is programmed shows in what proxies refused. A refusal names a resource, and the
//! resource names the objects it came from.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value as Json, json};

use crate::{api::ObjectKey, discovery::Sessions, pipeline::Picture};

/// Refusals in an object's message; further ones are counted.
const SHOWN: usize = 3;

/// What proxies refused, by the object that it came from: sentences, one for each proxy and resource.
pub fn refusals(sessions: &Sessions) -> BTreeMap<ObjectKey, BTreeSet<String>> {
    let mut by_object: BTreeMap<ObjectKey, BTreeSet<String>> = BTreeMap::new();
    for connected in sessions.all() {
        let session = connected.session.lock();
        for refused in session.refused() {
            let Some(resource) = session.catalogue().find(refused.kind, &refused.name) else { continue };
            let path = if refused.refusal.path.is_empty() { "" } else { " at " };
            let text = format!(
                "proxy {} keeps its previous version: {:?} {}{path}{}: {}",
                connected.id, refused.kind, refused.name, refused.refusal.path, refused.refusal.reason
            );
            for origin in &resource.origins {
                by_object.entry(origin.clone()).or_default().insert(text.clone());
            }
        }
    }
    by_object
}

/// The conditions of one object, in Kubernetes' shape; `None` for kinds without any.
pub fn conditions(
    picture: &Picture,
    refusals: &BTreeMap<ObjectKey, BTreeSet<String>>,
    key: &ObjectKey,
    generation: u64,
) -> Option<Json> {
    let word = |status: bool| if status { "True" } else { "False" };
    let known = picture.status.iter().find(|status| status.object == *key);
    let mut conditions: Vec<Json> = known
        .iter()
        .flat_map(|status| {
            status.conditions.iter().map(|c| {
                json!({
                    "type": c.condition, "status": word(c.status), "reason": c.reason, "message": c.message,
                    "observedGeneration": status.generation,
                })
            })
        })
        .collect();
    let has_effect = known.is_some() || picture.compiled.iter().any(|resource| resource.origins.contains(key));
    let refused = refusals.get(key);
    if has_effect || refused.is_some() {
        let (status, reason, message) = match refused {
            None => (true, "Programmed", "no proxy refused it".to_owned()),
            Some(sentences) => {
                let mut message = sentences.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
                if sentences.len() > SHOWN {
                    message.push_str(&format!("; and {} more", sentences.len() - SHOWN));
                }
                (false, "Refused", message)
            }
        };
        conditions.push(json!({
            "type": "Programmed", "status": word(status), "reason": reason, "message": message,
            "observedGeneration": generation,
        }));
    }
    (!conditions.is_empty()).then_some(Json::Array(conditions))
}
