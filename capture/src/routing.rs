//! Which partition of the topic a row goes to.
//!
//! All rows of one identity go to one partition, so that each partition alone has an order in which
//! its rows can be applied. The number is a function of the table's name and the identity's bytes,
//! and of nothing that changes while an epoch lasts: it is written into the state topic, and a
//! source whose settings say otherwise stops.
//!
//! A row whose identity changes may belong to two partitions. It is then deleted in the one and
//! inserted into the other, both under the one place that it has: who merges the partitions sees
//! that it is one change.

use serde::{Deserialize, Serialize};
use tailwater_change::{DecodeError, Operation, TableSchema, identity};

use crate::changes::{Changes, RowEvent};

/// What decides about the partition of a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionBy {
    /// Its table and its identity. Rows of a table without a key stay together.
    #[default]
    Key,
    /// Its table.
    Table,
}

/// How the rows of one table are spread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Routing {
    partitions: u32,
    /// What the hash of an identity begins with.
    table: u32,
    by_key: bool,
}

/// Where a row goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    To(usize),
    /// No partition may go past it while another is before it.
    All,
    /// It is one change of a row that leaves one partition for another.
    Both(usize, usize),
    /// It leaves one partition, under this identity, for another.
    Moved {
        from: usize,
        key: std::borrow::Cow<'a, [u8]>,
        to: usize,
    },
}

impl Routing {
    pub(crate) fn of(by: PartitionBy, partitions: usize, schema: &TableSchema) -> Self {
        let table = crc32c::crc32c(schema.table.schema.as_bytes());
        let table = crc32c::crc32c_append(table, &[0]);
        let table = crc32c::crc32c_append(table, schema.table.name.as_bytes());
        Self {
            partitions: u32::try_from(partitions).unwrap_or(u32::MAX).max(1),
            table,
            by_key: by == PartitionBy::Key && !schema.key().is_empty(),
        }
    }

    /// Where `row` of `schema` goes.
    ///
    /// # Errors
    /// The connector wrote an old row that is none of this table.
    pub(crate) fn route<'a>(
        self,
        schema: &TableSchema,
        changes: &'a Changes,
        row: &RowEvent,
    ) -> Result<Route<'a>, DecodeError> {
        if row.operation == Operation::Truncate {
            return Ok(Route::All);
        }
        if !self.by_key {
            return Ok(Route::To(self.partition(&[])));
        }
        let to = self.partition(changes.image(&row.key));
        let (Operation::Update, Some(before)) = (row.operation, &row.before) else {
            return Ok(Route::To(to));
        };
        let before = changes.image(before);
        let key = if row.before_full { identity(schema, before)? } else { before.into() };
        let from = self.partition(&key);
        if from == to {
            return Ok(Route::To(to));
        }
        // What was not sent could not be inserted: the change stays whole, and both know of it.
        if !row.unsent.is_empty() {
            return Ok(Route::Both(from, to));
        }
        Ok(Route::Moved { from, key, to })
    }

    fn partition(self, key: &[u8]) -> usize {
        let hash = if self.by_key { crc32c::crc32c_append(self.table, key) } else { self.table };
        (hash % self.partitions) as usize
    }
}
