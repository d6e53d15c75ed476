//! The transaction that has begun and not ended.
//!
//! A row is a slice of the buffer it was read into, and keeps all of that buffer: the rows of other
//! tables in it, duplicates, markers. What is held is therefore measured by how much of the log has
//! been walked since the first row that is held, whatever became of it.

use tailwater_change::{Operation, Ordinal, Place};
use tailwater_kafka::Offset;

use super::{Logged, Mark, Part, PartBounds};
use crate::Change;

/// An unfinished transaction: what is held of it, and how far it has come.
#[derive(Debug)]
pub(super) struct Open {
    /// Any place within it; only epoch and commit count.
    transaction: Place,
    snapshot: bool,
    /// The last row seen, whether held or given away.
    last: Option<Ordinal>,
    from: Offset,
    given: bool,
    changes: Vec<Change>,
    /// What the changes hold besides the read buffers.
    bytes: usize,
    /// How much of the log had been walked before the first of them.
    held_since: u64,
    committed_at_us: Option<i64>,
}

impl Open {
    pub(super) fn transaction(transaction: Place, from: Offset) -> Self {
        Self {
            transaction,
            snapshot: false,
            last: None,
            from,
            given: false,
            changes: Vec::new(),
            bytes: 0,
            held_since: 0,
            committed_at_us: None,
        }
    }

    /// A snapshot's beginning is told at once: if it is voided, that is told too.
    pub(super) fn snapshot(transaction: Place, from: Offset) -> Self {
        Self { snapshot: true, given: true, ..Self::transaction(transaction, from) }
    }

    /// The transaction, at its first row.
    pub(super) fn place(&self) -> Place {
        Place { ordinal: Ordinal::ZERO, ..self.transaction }
    }

    pub(super) fn is_snapshot(&self) -> bool {
        self.snapshot
    }

    pub(super) fn is_snapshot_at(&self, place: Place) -> bool {
        self.snapshot && self.transaction.same_transaction(&place)
    }

    /// Whether this row has been seen.
    pub(super) fn has(&self, place: Place) -> bool {
        self.transaction.same_transaction(&place)
            && self.last.is_some_and(|last| place.ordinal <= last)
    }

    /// Adds a row, before which `walked` bytes of the log had been walked; `false`: it is there
    /// already.
    pub(super) fn add(&mut self, row: Logged, walked: u64) -> bool {
        if self.has(row.place) {
            return self.join(row);
        }
        self.last = Some(row.place.ordinal);
        self.committed_at(row.committed_at_us);
        if self.is_empty() {
            self.held_since = walked;
        }
        self.bytes += row.bytes;
        self.changes.extend(row.change);
        true
    }

    /// The second half of a row that moved from one partition to another; `false`: a duplicate.
    fn join(&mut self, row: Logged) -> bool {
        let (Some(gone), Some(come)) = (self.changes.last_mut(), row.change) else { return false };
        let halves = (gone.operation, come.operation) == (Operation::Delete, Operation::Insert);
        if gone.place != come.place || !halves {
            return false;
        }
        gone.operation = Operation::Update;
        (gone.after, gone.unsent) = (come.after, come.unsent);
        self.bytes += row.bytes;
        true
    }

    pub(super) fn committed_at(&mut self, committed_at_us: Option<i64>) {
        self.committed_at_us = committed_at_us.or(self.committed_at_us);
    }

    /// Whether what is held is to be given away, now that `walked` bytes of the log are walked.
    pub(super) fn is_full(&self, bounds: PartBounds, walked: u64) -> bool {
        let held = walked - self.held_since + self.bytes as u64;
        !self.is_empty() && (self.changes.len() >= bounds.rows || held >= bounds.bytes as u64)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(super) fn was_given(&self) -> bool {
        self.given
    }

    /// How far one is with everything held now; `passed`: what was applied before.
    pub(super) fn reached(&self, end: bool, passed: Place) -> Place {
        if end {
            return Place::end_of(self.transaction.epoch, self.transaction.commit);
        }
        match self.last {
            Some(ordinal) => Place { ordinal, ..self.transaction },
            None => passed,
        }
    }

    /// Gives away what is held; `walked` bytes of the log were walked since the last part.
    pub(super) fn give(&mut self, end: bool, mark: Mark, walked: u64) -> Part {
        let first = !std::mem::replace(&mut self.given, true);
        Part {
            changes: std::mem::take(&mut self.changes),
            bytes: usize::try_from(walked)
                .unwrap_or(usize::MAX)
                .saturating_add(std::mem::take(&mut self.bytes)),
            from: self.from,
            first,
            end,
            snapshot: self.snapshot,
            committed_at_us: self.committed_at_us,
            mark,
        }
    }
}
