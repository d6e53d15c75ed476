//! Where a batch must be cut: at truncates, around tables that fire, and where a table's schema
//! changes, since rows of two versions cannot share a statement.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tailwater_change::{Operation, TableId};

use crate::{Change, Table};

/// Consecutive changes that are planned by one rule.
#[derive(Debug)]
pub(super) enum Segment {
    /// Truncates of one transaction, at once: tables that refer to each other go together.
    Truncate(Vec<Change>),
    /// Only the source's order is safe.
    Ordered(Vec<Change>),
    /// Tables that are independent of each other, each with its changes in order.
    Free(Vec<(Arc<Table>, Vec<Change>)>),
}

/// Between changes that fire, fewer others than this are replayed along: a savepoint and set-based
/// steps for them would cost more than they save.
const FREE_RUN: usize = 64;

/// Cuts a batch.
pub(super) fn cut(changes: Vec<Change>) -> Vec<Segment> {
    let mut cutter = Cutter::default();
    for change in changes {
        cutter.add(change);
    }
    cutter.end_free();
    cutter.segments
}

#[derive(Debug, Default)]
struct Cutter {
    segments: Vec<Segment>,
    tables: Vec<(Arc<Table>, Vec<Change>)>,
    /// Where a version of a table, by its address, stands in `tables`.
    known: HashMap<*const Table, usize>,
    names: HashSet<TableId>,
    last: usize,
    /// The changes in `tables`, so far as they may still have to be replayed in order.
    in_order: Vec<Change>,
    free: usize,
}

impl Cutter {
    fn add(&mut self, change: Change) {
        if change.operation == Operation::Truncate {
            self.end_free();
            self.add_truncate(change);
        } else if change.table.target.fires {
            self.end_free();
            match self.segments.last_mut() {
                Some(Segment::Ordered(changes)) => changes.push(change),
                _ => self.segments.push(Segment::Ordered(vec![change])),
            }
        } else {
            self.add_free(change);
        }
    }

    fn add_truncate(&mut self, change: Change) {
        if let Some(Segment::Truncate(changes)) = self.segments.last_mut() {
            let together = |other: &Change| other.place.same_transaction(&change.place);
            let again = |other: &Change| other.table.target.name == change.table.target.name;
            if changes.iter().all(together) && !changes.iter().any(again) {
                changes.push(change);
                return;
            }
        }
        self.segments.push(Segment::Truncate(vec![change]));
    }

    fn add_free(&mut self, change: Change) {
        // After changes that fire, hold a run back until it is long enough to be planned.
        if matches!(self.segments.last(), Some(Segment::Ordered(_))) && self.free < FREE_RUN {
            self.in_order.push(change);
            self.free += 1;
            if self.free == FREE_RUN {
                for change in std::mem::take(&mut self.in_order) {
                    self.place(change);
                }
            }
            return;
        }
        self.place(change);
    }

    fn place(&mut self, change: Change) {
        if let Some((table, changes)) = self.tables.get_mut(self.last)
            && Arc::ptr_eq(table, &change.table)
        {
            changes.push(change);
            return;
        }
        if let Some(&at) = self.known.get(&Arc::as_ptr(&change.table)) {
            self.last = at;
        } else {
            if self.names.contains(&change.table.target.name) {
                self.end_tables();
            }
            self.last = self.tables.len();
            self.known.insert(Arc::as_ptr(&change.table), self.last);
            self.names.insert(change.table.target.name.clone());
            self.tables.push((Arc::clone(&change.table), Vec::new()));
        }
        self.tables[self.last].1.push(change);
    }

    fn end_tables(&mut self) {
        self.known.clear();
        self.names.clear();
        self.last = 0;
        let tables = std::mem::take(&mut self.tables);
        if !tables.is_empty() {
            self.segments.push(Segment::Free(tables));
        }
    }

    fn end_free(&mut self) {
        self.end_tables();
        self.free = 0;
        let mut held = std::mem::take(&mut self.in_order);
        if held.is_empty() {
            return;
        }
        match self.segments.last_mut() {
            Some(Segment::Ordered(changes)) => changes.append(&mut held),
            _ => self.segments.push(Segment::Ordered(held)),
        }
    }
}
