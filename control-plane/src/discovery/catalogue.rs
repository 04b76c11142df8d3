//! One immutable picture of everything that can be sent, shared by all sessions.
//!
//! Made by the pipeline after each change. Resources are shared between pictures and sessions, so a change costs memory for
//! what changed only.

use std::{collections::HashMap, sync::Arc};

use outrigger_proto::kind::Kind;

use super::features;
use crate::compile::Resource;

/// Every resource that exists now.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// Counts pictures; a later one has a larger number.
    pub sequence: u64,
    /// Store revision that it was made from.
    pub revision: u64,
    /// Generation of the registry that it was made from.
    pub registry_generation: u64,
    kinds: [Table; Kind::ALL.len()],
}

#[derive(Debug, Default)]
struct Table {
    by_name: HashMap<Arc<str>, Arc<Resource>>,
    by_alias: HashMap<Arc<str>, Arc<str>>,
    /// Only resources that need more than `core/v1`.
    needs: HashMap<Arc<str>, Vec<&'static str>>,
    /// Sequence of the picture in which anything of this kind last changed.
    changed: u64,
}

impl Catalogue {
    /// The next picture after `previous`. Equal resources are taken over from it.
    pub fn next(
        previous: &Self,
        resources: impl Iterator<Item = Arc<Resource>>,
        revision: u64,
        registry_generation: u64,
    ) -> Self {
        let sequence = previous.sequence + 1;
        let mut next = Self { sequence, revision, registry_generation, kinds: Default::default() };
        let mut changed = [false; Kind::ALL.len()];
        for resource in resources {
            let index = resource.kind as usize;
            let (table, old) = (&mut next.kinds[index], &previous.kinds[index]);
            let resource = match old.by_name.get(&resource.name) {
                Some(same) if same.version == resource.version && same.aliases == resource.aliases => {
                    if let Some(needs) = old.needs.get(&same.name) {
                        table.needs.insert(Arc::clone(&same.name), needs.clone());
                    }
                    // Origins may carry a newer generation although the bytes are the same.
                    if same.origins == resource.origins { Arc::clone(same) } else { resource }
                }
                _ => {
                    changed[index] = true;
                    let needs = features::needed(&resource);
                    if !needs.is_empty() {
                        table.needs.insert(Arc::clone(&resource.name), needs);
                    }
                    resource
                }
            };
            for alias in &resource.aliases {
                table.by_alias.entry(Arc::clone(alias)).or_insert_with(|| Arc::clone(&resource.name));
            }
            table.by_name.insert(Arc::clone(&resource.name), resource);
        }
        for (index, table) in next.kinds.iter_mut().enumerate() {
            let old = &previous.kinds[index];
            let differs = changed[index] || table.by_name.len() != old.by_name.len();
            table.changed = if differs { sequence } else { old.changed };
        }
        next
    }

    /// The resource with this name, or else with this alias.
    pub fn find(&self, kind: Kind, name_or_alias: &str) -> Option<&Arc<Resource>> {
        let table = &self.kinds[kind as usize];
        table.by_name.get(name_or_alias).or_else(|| table.by_name.get(table.by_alias.get(name_or_alias)?))
    }

    /// Every resource of one kind, in no order.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Arc<Resource>> {
        self.kinds[kind as usize].by_name.values()
    }

    /// Sequence of the picture in which anything of this kind last changed.
    pub fn changed(&self, kind: Kind) -> u64 {
        self.kinds[kind as usize].changed
    }

    /// A feature that the resource needs and that is not among `features`.
    pub fn missing_feature(&self, resource: &Resource, features: &[String]) -> Option<&'static str> {
        let needs = self.kinds[resource.kind as usize].needs.get(&resource.name)?;
        needs.iter().copied().find(|need| !features.iter().any(|f| f == need))
    }

    /// How many resources there are, all kinds together.
    pub fn len(&self) -> usize {
        self.kinds.iter().map(|t| t.by_name.len()).sum()
    }

    /// Is there nothing at all?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
