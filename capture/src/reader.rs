//! Reading rows of a table by key, on either end: what `verify` compares.

use async_trait::async_trait;
use tailwater_change::{TableId, TableSchema};

use crate::SourceError;

/// One row: its identity and all of it, as row messages of the source's schema, canonical: equal
/// rows are equal bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRow {
    /// The identity's columns. For tables without a key: the whole row again.
    pub key: Vec<u8>,
    /// Every column that flows.
    pub row: Vec<u8>,
}

/// Which rows are read.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// Rows in the order of this database's key. Refused for tables without one.
    Above {
        /// Identities above this one; none: from the start.
        after: Option<&'a [u8]>,
        /// At most so many rows.
        limit: usize,
    },
    /// The rows that have these identities now, in any order; those that are not there are left
    /// out.
    Keys(&'a [Vec<u8>]),
    /// Every row, in any order.
    All,
}

/// Reads tables of one database.
#[async_trait]
pub trait TableReader: Send {
    /// Gives each of the rows as it comes off the wire and holds none of those before it: what is
    /// read may be larger than memory.
    ///
    /// # Errors
    /// Cannot be read.
    async fn read(
        &mut self,
        schema: &TableSchema,
        name: &TableId,
        wanted: Wanted<'_>,
        each: &mut (dyn FnMut(ReadRow) + Send),
    ) -> Result<(), SourceError>;

    /// At most `limit` rows with identities above `after` (none: from the start) in the order of
    /// this database's key. An empty result is the end. Tables without a key are read whole,
    /// `after` being refused.
    ///
    /// # Errors
    /// Cannot be read.
    async fn chunk(
        &mut self,
        schema: &TableSchema,
        name: &TableId,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<ReadRow>, SourceError> {
        let whole = schema.key().is_empty() && after.is_none();
        let wanted = if whole { Wanted::All } else { Wanted::Above { after, limit } };
        let mut rows = Vec::new();
        self.read(schema, name, wanted, &mut |row| rows.push(row)).await?;
        Ok(rows)
    }

    /// The rows that have these identities now, in any order; those that are not there are left
    /// out.
    ///
    /// # Errors
    /// Cannot be read.
    async fn rows(
        &mut self,
        schema: &TableSchema,
        name: &TableId,
        keys: &[Vec<u8>],
    ) -> Result<Vec<ReadRow>, SourceError> {
        let mut rows = Vec::new();
        self.read(schema, name, Wanted::Keys(keys), &mut |row| rows.push(row)).await?;
        Ok(rows)
    }
}
