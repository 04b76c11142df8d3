//! Registered workloads, so that a restarted control plane knows them before their sidecars are back.

use outrigger_proto::mesh::Registration;
use prost::Message as _;
use redb::{ReadableTable as _, TableDefinition, WriteTransaction};

use super::{Store, StoreError};

const WORKLOADS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("workloads");

/// One registration as it was last reported.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredWorkload {
    /// `namespace/workload`.
    pub uid: String,
    /// `None`: it is gone.
    pub registration: Option<Registration>,
}

pub(super) fn create_tables(transaction: &WriteTransaction) -> Result<(), StoreError> {
    transaction.open_table(WORKLOADS)?;
    Ok(())
}

impl Store {
    /// Writes and removes registrations, all at once.
    ///
    /// # Errors
    /// When the disk fails; nothing is changed then.
    pub fn save_workloads(&self, changed: &[StoredWorkload]) -> Result<(), StoreError> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(WORKLOADS)?;
            for workload in changed {
                match &workload.registration {
                    Some(registration) => {
                        drop(table.insert(workload.uid.as_str(), registration.encode_to_vec().as_slice())?);
                    }
                    None => drop(table.remove(workload.uid.as_str())?),
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Every registration that was saved and not removed.
    ///
    /// # Errors
    /// When the file or a record cannot be read.
    pub fn workloads(&self) -> Result<Vec<StoredWorkload>, StoreError> {
        let table = self.read()?.open_table(WORKLOADS)?;
        let mut out = Vec::new();
        for row in table.iter()? {
            let (uid, bytes) = row?;
            let registration = Registration::decode(bytes.value()).map_err(|e| StoreError::Record(e.to_string()))?;
            out.push(StoredWorkload { uid: uid.value().to_owned(), registration: Some(registration) });
        }
        Ok(out)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn registrations_survive_a_restart() {
        // Without this, a restart of the control plane would empty every service until all sidecars are back.
        let folder = tempfile::tempdir().unwrap();
        let workload = |name: &str, registered: bool| StoredWorkload {
            uid: format!("shop/{name}"),
            registration: registered.then(|| Registration {
                workload: name.to_owned(),
                ready: true,
                ..Default::default()
            }),
        };
        let store = Store::open(folder.path(), 10).unwrap();
        store.save_workloads(&[workload("a", true), workload("b", true)]).unwrap();
        store.save_workloads(&[workload("a", false)]).unwrap();
        drop(store);
        assert_eq!(Store::open(folder.path(), 10).unwrap().workloads().unwrap(), [workload("b", true)]);
    }
}
