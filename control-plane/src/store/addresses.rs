//! Virtual addresses for services that have none: 240.240.0.0/16, stable over restarts.
//!
//! A service keeps its address for as long as it exists and gets it back when it returns. Addresses of services that
//! are gone are given away only when the range is used up: a client that still remembers the old one must not reach
//! somebody else.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use redb::{ReadableTable as _, TableDefinition, WriteTransaction};

use super::{META, Store, StoreError};

const ADDRESSES: TableDefinition<'_, &str, u32> = TableDefinition::new("addresses");

/// First two bytes of every virtual address.
const NETWORK: u32 = u32::from_be_bytes([240, 240, 0, 0]);
/// The first and the last address of the range stay free.
const COUNT: u32 = 0xFFFE;

pub(super) fn create_tables(transaction: &WriteTransaction) -> Result<(), StoreError> {
    transaction.open_table(ADDRESSES)?;
    Ok(())
}

impl Store {
    /// An address for each of these services (`namespace/host`). Services for which none is left are absent.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn virtual_addresses(&self, services: &[String]) -> Result<BTreeMap<String, Ipv4Addr>, StoreError> {
        let known: BTreeMap<String, u32> = {
            let table = self.read()?.open_table(ADDRESSES)?;
            let mut known = BTreeMap::new();
            for row in table.iter()? {
                let (service, address) = row?;
                known.insert(service.value().to_owned(), address.value());
            }
            known
        };
        let (given, changes) = allocate(&known, services, COUNT);
        if !changes.is_empty() {
            let transaction = self.database.begin_write()?;
            {
                let mut table = transaction.open_table(ADDRESSES)?;
                for change in &changes {
                    match change {
                        Allocation::Give(service, number) => drop(table.insert(service.as_str(), number)?),
                        Allocation::Forget(service) => drop(table.remove(service.as_str())?),
                    }
                }
                let mut meta = transaction.open_table(META)?;
                meta.insert("addresses", u64::try_from(given.len()).unwrap_or(u64::MAX))?;
            }
            transaction.commit()?;
        }
        Ok(given.into_iter().map(|(service, number)| (service, Ipv4Addr::from(NETWORK + number))).collect())
    }
}

enum Allocation {
    Give(String, u32),
    Forget(String),
}

/// Numbers 1 to `count` for `services`, given what was allocated before; and what to write down.
fn allocate(
    known: &BTreeMap<String, u32>,
    services: &[String],
    count: u32,
) -> (BTreeMap<String, u32>, Vec<Allocation>) {
    let mut given: BTreeMap<String, u32> = BTreeMap::new();
    let mut missing = Vec::new();
    for service in services {
        match known.get(service) {
            Some(number) => drop(given.insert(service.clone(), *number)),
            None => missing.push(service),
        }
    }
    let mut changes = Vec::new();
    if missing.is_empty() {
        return (given, changes);
    }
    let taken: BTreeSet<u32> = known.values().copied().collect();
    let mut never_used = (1..=count).filter(|number| !taken.contains(number));
    let mut gone = known.iter().filter(|(service, _)| !given.contains_key(*service)).collect::<Vec<_>>().into_iter();
    let mut new = BTreeMap::new();
    for service in missing {
        let number = match never_used.next() {
            Some(number) => number,
            None => match gone.next() {
                Some((old, number)) => {
                    changes.push(Allocation::Forget(old.clone()));
                    *number
                }
                None => continue,
            },
        };
        changes.push(Allocation::Give(service.clone(), number));
        new.insert(service.clone(), number);
    }
    given.extend(new);
    (given, changes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn addresses_stay_over_restarts_and_absence() {
        // A client that cached the address of a service must never reach another one.
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), 10).unwrap();
        let first = store.virtual_addresses(&names(&["shop/a", "shop/b"])).unwrap();
        drop(store);
        let store = Store::open(folder.path(), 10).unwrap();
        let without_a = store.virtual_addresses(&names(&["shop/b", "shop/c"])).unwrap();
        let all = store.virtual_addresses(&names(&["shop/a", "shop/b", "shop/c"])).unwrap();
        assert_eq!(all["shop/a"], first["shop/a"]);
        assert_eq!(all["shop/b"], first["shop/b"]);
        assert_eq!(all["shop/c"], without_a["shop/c"]);
        assert_eq!(all.values().collect::<BTreeSet<_>>().len(), 3);
        assert!(all.values().all(|ip| ip.octets()[..2] == [240, 240] && ip.octets()[2..] != [0, 0]));
    }

    #[test]
    fn a_full_range_takes_from_the_gone_and_never_from_the_living() {
        // Exhaustion must cost new services only.
        let known: BTreeMap<String, u32> = [("a".to_owned(), 1), ("gone".to_owned(), 2)].into();
        let (given, changes) = allocate(&known, &names(&["a", "x", "y"]), 2);
        assert_eq!(given, [("a".to_owned(), 1), ("x".to_owned(), 2)].into());
        assert_eq!(changes.len(), 2);
    }
}
