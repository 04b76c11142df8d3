//! Join tokens: hashes, whom they prove, until when, how often.

use redb::{ReadableTable as _, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, decode, encode};

const TOKENS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tokens");

/// What is kept of a token; the secret itself is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    pub id: String,
    pub namespace: String,
    pub service_account: String,
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
    pub expires_unix: i64,
    /// `None`: unlimited.
    pub uses_left: Option<u32>,
}

pub(super) fn create_tables(transaction: &WriteTransaction) -> Result<(), StoreError> {
    transaction.open_table(TOKENS)?;
    Ok(())
}

impl Store {
    /// Keeps a token.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn add_token(&self, record: TokenRecord) -> Result<(), StoreError> {
        let transaction = self.database.begin_write()?;
        {
            let mut tokens = transaction.open_table(TOKENS)?;
            tokens.insert(record.id.as_str(), encode(&record)?.as_slice())?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// The token with this id.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn token(&self, id: &str) -> Result<Option<TokenRecord>, StoreError> {
        let tokens = self.read()?.open_table(TOKENS)?;
        tokens.get(id)?.map(|bytes| decode(bytes.value())).transpose()
    }

    /// Every token, by id.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        let tokens = self.read()?.open_table(TOKENS)?;
        tokens.iter()?.map(|row| decode(row?.1.value())).collect()
    }

    /// Counts one use; `false` when none was left or the token is gone. Unlimited tokens cost no write.
    ///
    /// # Errors
    /// When the disk fails; the use is not counted then and must not be granted.
    pub fn use_token(&self, id: &str) -> Result<bool, StoreError> {
        match self.token(id)? {
            None => return Ok(false),
            Some(TokenRecord { uses_left: None, .. }) => return Ok(true),
            Some(_) => {}
        }
        let transaction = self.database.begin_write()?;
        let granted = {
            let mut tokens = transaction.open_table(TOKENS)?;
            // Read again: another use may have been counted since.
            let record: Option<TokenRecord> = tokens.get(id)?.map(|bytes| decode(bytes.value())).transpose()?;
            match record {
                Some(mut record) => match record.uses_left {
                    Some(0) => false,
                    Some(left) => {
                        record.uses_left = Some(left - 1);
                        tokens.insert(id, encode(&record)?.as_slice())?;
                        true
                    }
                    None => true,
                },
                None => false,
            }
        };
        transaction.commit()?;
        Ok(granted)
    }

    /// Revokes a token; `false` when there is none with this id. Certificates that it brought stay valid until they run out.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn remove_token(&self, id: &str) -> Result<bool, StoreError> {
        let transaction = self.database.begin_write()?;
        let existed = transaction.open_table(TOKENS)?.remove(id)?.is_some();
        transaction.commit()?;
        Ok(existed)
    }

    /// Forgets tokens that ran out before this moment.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn forget_tokens(&self, before_unix: i64) -> Result<(), StoreError> {
        let transaction = self.database.begin_write()?;
        transaction
            .open_table(TOKENS)?
            .retain(|_, bytes| decode::<TokenRecord>(bytes).is_ok_and(|record| record.expires_unix >= before_unix))?;
        transaction.commit()?;
        Ok(())
    }
}
