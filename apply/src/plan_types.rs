//! What a plan consists of: stretches of changes, and the set-based steps that have their effect.

use std::sync::Arc;

use bytes::Bytes;
use tailwater_change::{Operation, Place, TableSchema};

use crate::TargetTable;

/// One version of a source table and what it is on the target.
#[derive(Debug)]
pub struct Table {
    /// As the rows were written.
    pub schema: Arc<TableSchema>,
    /// As the target described it.
    pub target: TargetTable,
}

/// A row image: a row message of the table's schema, a slice of the read buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowImage {
    /// The message.
    pub bytes: Bytes,
    /// Whether it has every column, or only the identity's.
    pub full: bool,
}

/// One change, or the net effect of several on one row.
#[derive(Debug, Clone)]
pub struct Change {
    /// Where.
    pub table: Arc<Table>,
    /// What. [`Operation::Read`] is an insert.
    pub operation: Operation,
    /// The row that is changed or deleted: for updates only if its identity differs from
    /// `after`'s, or the table has no key.
    pub before: Option<RowImage>,
    /// The new row: every column that flows, except those in `unsent`.
    pub after: Option<Bytes>,
    /// Field numbers of `after` that were not sent: the target keeps what it has.
    pub unsent: Vec<u32>,
    /// The place of the (last) change.
    pub place: Place,
}

impl Change {
    /// The image that names the row on the target: the old one where there is one.
    pub fn identity(&self) -> Option<&Bytes> {
        self.before.as_ref().map(|before| &before.bytes).or(self.after.as_ref())
    }
}

/// Set-based work on one table (several for truncate). Rows of a step have different identities.
#[derive(Debug, Clone)]
pub enum Step {
    /// Empties these tables, at once.
    Truncate(Vec<Arc<Table>>),
    /// Deletes the rows with these identities. Each must be there once.
    Delete {
        /// The table.
        table: Arc<Table>,
        /// The rows; `before` is set.
        rows: Vec<Change>,
    },
    /// Changes the rows with these identities. Each must be there once.
    Update {
        /// The table.
        table: Arc<Table>,
        /// The rows; `after` is set, and `before` where the identity changes.
        rows: Vec<Change>,
    },
    /// Inserts these rows. None may be there.
    Insert {
        /// The table.
        table: Arc<Table>,
        /// The rows; `after` is set and complete.
        rows: Vec<Change>,
    },
}

/// A part of a batch that is executed together.
#[derive(Debug, Clone, Default)]
pub struct Stretch {
    /// Set-based statements, in order, with the effect of `changes`; empty where only the source's
    /// order is safe.
    pub steps: Vec<Step>,
    /// The source's changes in the source's order: what is replayed where the steps are refused.
    pub changes: Vec<Change>,
}
