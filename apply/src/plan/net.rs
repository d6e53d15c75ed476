//! The net effect of a table's changes on each row.
//!
//! For every identity that the changes touch, two things are kept: whether the row was there
//! before them, and what is there now. What is there now is either known whole, or lacks columns
//! that the source did not send: those are the ones the row had *before the batch*, under the
//! identity it had then (its **base**).
//!
//! ```text
//!   before   now                          step
//!   there    nothing                      delete
//!   nothing  whole                        insert
//!   there    whole                        update of every column
//!   there    partial, base here           update of what was sent
//!   any      partial, base elsewhere      update that changes the identity; a row that was here is
//!                                         deleted first, a row that took the base's identity is
//!                                         inserted last
//! ```
//!
//! Whole rows that change their identity are thus a delete and an insert (or update), which says
//! the same where nothing fires. Rows come out in their key's order, where they lie on the target
//! one beside the other. What does not fit the picture (a partial row whose base's own
//! identity is taken by another partial row, an insert where a row is) is left to replay: `None`.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tailwater_change::{Operation, Place, TableSchema, identity, overlay, rank};

use crate::{Change, RowImage, Step, Table};

/// The steps with the effect of `changes`, all of `table`; `None` if only replaying has it.
pub(super) fn net(table: &Arc<Table>, changes: &[Change]) -> Option<Vec<Step>> {
    let mut rows = Rows {
        schema: &table.schema,
        rows: Vec::with_capacity(changes.len()),
        known: HashMap::with_capacity(changes.len()),
    };
    for change in changes {
        rows.add(change)?;
    }
    rows.steps(table)
}

/// What is under an identity after the changes so far.
#[derive(Debug, Clone)]
struct Content {
    row: Bytes,
    /// Field numbers that `row` lacks: they are the base's.
    unsent: Vec<u32>,
    /// The identity that the row had before the batch; `None` if `row` is whole.
    base: Option<usize>,
}

#[derive(Debug)]
struct Row {
    identity: Bytes,
    was_there: bool,
    now: Option<Content>,
    place: Place,
}

struct Rows<'a> {
    schema: &'a TableSchema,
    rows: Vec<Row>,
    known: HashMap<Bytes, usize>,
}

impl Rows<'_> {
    fn add(&mut self, change: &Change) -> Option<()> {
        match change.operation {
            Operation::Insert | Operation::Read => self.insert(change),
            Operation::Update => self.update(change),
            Operation::Delete => self.delete(change),
            Operation::Truncate => None,
        }
    }

    fn insert(&mut self, change: &Change) -> Option<()> {
        if !change.unsent.is_empty() {
            return None;
        }
        let row = change.after.clone()?;
        let at = self.at(self.identity(&row)?, false, change.place);
        let slot = &mut self.rows[at];
        if slot.now.is_some() {
            return None;
        }
        slot.now = Some(Content { row, unsent: Vec::new(), base: None });
        slot.place = change.place;
        Some(())
    }

    fn delete(&mut self, change: &Change) -> Option<()> {
        let before = change.before.as_ref()?;
        let at = self.at(self.identity(&before.bytes)?, true, change.place);
        self.rows[at].place = change.place;
        self.rows[at].now.take().map(drop)
    }

    fn update(&mut self, change: &Change) -> Option<()> {
        let after = change.after.as_ref()?;
        let to = self.identity(after)?;
        let from = match &change.before {
            Some(before) => self.identity(&before.bytes)?,
            None => to.clone(),
        };
        let moved = from != to;
        let from = self.at(from, true, change.place);
        let old = self.rows[from].now.take()?;
        self.rows[from].place = change.place;
        let to = if moved { self.at(to, false, change.place) } else { from };
        let slot = &mut self.rows[to];
        if slot.now.is_some() {
            return None;
        }
        slot.now = Some(overlaid(old, after, &change.unsent)?);
        slot.place = change.place;
        Some(())
    }

    /// The slot of an identity. One that is first met is `there` or not, as the change says.
    fn at(&mut self, identity: Bytes, there: bool, place: Place) -> usize {
        if let Some(&at) = self.known.get(&identity) {
            return at;
        }
        let at = self.rows.len();
        self.known.insert(identity.clone(), at);
        // Nothing is known of a row that is there but that none of its columns was sent.
        let unsent = Content { row: Bytes::new(), unsent: Vec::new(), base: Some(at) };
        self.rows.push(Row { identity, was_there: there, now: there.then_some(unsent), place });
        at
    }

    fn identity(&self, row: &Bytes) -> Option<Bytes> {
        match identity(self.schema, row).ok()? {
            std::borrow::Cow::Borrowed(slice) => Some(row.slice_ref(slice)),
            std::borrow::Cow::Owned(bytes) => Some(bytes.into()),
        }
    }

    fn steps(mut self, table: &Arc<Table>) -> Option<Vec<Step>> {
        let moved = self.moved_bases()?;
        let (mut deletes, mut updates, mut inserts) = (Vec::new(), Vec::new(), Vec::new());
        for at in self.order(table) {
            let moved = moved[at];
            let now = self.rows[at].now.take();
            let row = &self.rows[at];
            let elsewhere = now.as_ref().and_then(|now| now.base).is_some_and(|base| base != at);
            // Gone from here without living on elsewhere, or in the way of one that comes here.
            if row.was_there && !moved && (now.is_none() || elsewhere) {
                deletes.push(self.delete_of(table, at));
            }
            let Some(now) = now else { continue };
            if elsewhere || (row.was_there && !moved) {
                updates.push(self.update_of(table, at, now));
            } else {
                inserts.push(self.insert_of(table, at, now));
            }
        }
        let mut steps = Vec::new();
        if !deletes.is_empty() {
            steps.push(Step::Delete { table: Arc::clone(table), rows: deletes });
        }
        if !updates.is_empty() {
            steps.push(Step::Update { table: Arc::clone(table), rows: updates });
        }
        if !inserts.is_empty() {
            steps.push(Step::Insert { table: Arc::clone(table), rows: inserts });
        }
        Some(steps)
    }

    /// The slots in the order in which their rows lie on the target, as far as it is known: the next
    /// is then on the page of the one before. Where another unique key has a say, as they came.
    fn order(&self, table: &Table) -> Vec<usize> {
        let mut slots: Vec<usize> = (0..self.rows.len()).collect();
        if table.target.unique_keys.is_empty() {
            slots.sort_by_cached_key(|&at| rank(self.schema, &self.rows[at].identity));
        }
        slots
    }

    /// Per slot, whether the row that was there lives on under another identity. `None` where one
    /// such row takes the place of another: no order of set-based steps does that.
    fn moved_bases(&self) -> Option<Vec<bool>> {
        let mut moved = vec![false; self.rows.len()];
        let mut taken = Vec::new();
        for (at, row) in self.rows.iter().enumerate() {
            if let Some(base) = row.now.as_ref().and_then(|now| now.base)
                && base != at
            {
                moved[base] = true;
                taken.push(at);
            }
        }
        taken.iter().all(|&at| !moved[at]).then_some(moved)
    }

    fn delete_of(&self, table: &Arc<Table>, at: usize) -> Change {
        Change {
            table: Arc::clone(table),
            operation: Operation::Delete,
            before: Some(self.key_image(at)),
            after: None,
            unsent: Vec::new(),
            place: self.rows[at].place,
        }
    }

    fn update_of(&self, table: &Arc<Table>, at: usize, now: Content) -> Change {
        let base = now.base.filter(|&base| base != at);
        Change {
            table: Arc::clone(table),
            operation: Operation::Update,
            before: base.map(|base| self.key_image(base)),
            after: Some(now.row),
            unsent: now.unsent,
            place: self.rows[at].place,
        }
    }

    fn insert_of(&self, table: &Arc<Table>, at: usize, now: Content) -> Change {
        Change {
            table: Arc::clone(table),
            operation: Operation::Insert,
            before: None,
            after: Some(now.row),
            unsent: Vec::new(),
            place: self.rows[at].place,
        }
    }

    fn key_image(&self, at: usize) -> RowImage {
        RowImage { bytes: self.rows[at].identity.clone(), full: false }
    }
}

/// `old` after an update that sent `after` without `unsent`.
fn overlaid(old: Content, after: &Bytes, unsent: &[u32]) -> Option<Content> {
    if unsent.is_empty() {
        return Some(Content { row: after.clone(), unsent: Vec::new(), base: None });
    }
    let untouched = old.row.is_empty() && old.base.is_some();
    if untouched {
        return Some(Content { row: after.clone(), unsent: unsent.to_vec(), base: old.base });
    }
    let mut row = Vec::with_capacity(old.row.len().max(after.len()));
    overlay(&old.row, after, unsent, &mut row).ok()?;
    let unsent: Vec<u32> =
        unsent.iter().copied().filter(|field| old.unsent.contains(field)).collect();
    // What the row lacks now it lacked before; if that is nothing, it needs its base no more.
    let base = if unsent.is_empty() { None } else { old.base };
    Some(Content { row: row.into(), unsent, base })
}
