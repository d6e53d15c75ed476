//! A batch of changes becomes stretches: set-based steps with the same outcome as the changes.
//!
//! Legal is what leaves the target as if the changes had been made one by one. What is decided
//! where:
//!
//! | case | decided by |
//! |---|---|
//! | triggers, foreign keys or cascades act on the table (`fires`) | plan: the source's order, with everything that stands among its changes |
//! | identities that may be equal without being equal bytes; tables without a key | plan: runs of inserts are steps, all else in the source's order |
//! | several changes of one row | plan: their net effect ([`net`](self)) |
//! | rows that trade identities without being sent whole | plan: the table in the source's order |
//! | values of secondary unique keys that move from row to row | refusal: deletes, then updates, then inserts is tried; the target refuses what it cannot take in that order, the loop goes back to the savepoint and replays |
//! | a row already there, or missing | refusal, then replay repairs or stops |
//! | truncate | plan: a barrier |
//!
//! A step can be refused but not be wrong: every row is addressed by its identity and gets its
//! final values, so whatever order the target takes has the same outcome or is an error there.
//! Tables that do not fire are independent of each other, so their changes may be taken apart.
//!
//! No IO. Linear in the number of changes.

mod cut;
mod net;

use std::sync::Arc;

use cut::Segment;
use tailwater_change::{Identity, Operation};

use crate::{Change, Step, Stretch, Table};

/// Fewer consecutive inserts than this are not worth a step and its savepoint of their own.
const INSERT_RUN: usize = 16;

/// Plans a batch: consecutive changes in the source's order.
pub fn plan(changes: Vec<Change>) -> Vec<Stretch> {
    let mut stretches = Vec::new();
    for segment in cut::cut(changes) {
        match segment {
            Segment::Truncate(changes) => {
                let tables = changes.iter().map(|change| Arc::clone(&change.table)).collect();
                stretches.push(Stretch { steps: vec![Step::Truncate(tables)], changes });
            }
            Segment::Ordered(changes) => stretches.push(replayed(changes)),
            Segment::Free(tables) => plan_free(tables, &mut stretches),
        }
    }
    stretches
}

/// Tables without secondary unique keys are hardly ever refused and share one stretch, and with
/// it one savepoint; the others stand alone, so that a refusal costs only their own rows.
fn plan_free(tables: Vec<(Arc<Table>, Vec<Change>)>, stretches: &mut Vec<Stretch>) {
    let mut shared = Stretch::default();
    for (table, changes) in tables {
        if changes.iter().all(is_whole_insert) {
            let rows = changes.clone();
            let stretch = Stretch { steps: vec![Step::Insert { table, rows }], changes };
            add(stretch, &mut shared, stretches);
        } else if is_ordered(&table) {
            plan_in_order(&table, changes, stretches);
        } else {
            let stretch = match net::net(&table, &changes) {
                Some(steps) => Stretch { steps, changes },
                None => replayed(changes),
            };
            add(stretch, &mut shared, stretches);
        }
    }
    if !shared.changes.is_empty() {
        stretches.push(shared);
    }
}

fn add(mut stretch: Stretch, shared: &mut Stretch, stretches: &mut Vec<Stretch>) {
    let alone = stretch.steps.is_empty()
        || stretch
            .changes
            .first()
            .is_some_and(|change| !change.table.target.unique_keys.is_empty());
    if alone {
        // Changes without any effect (inserted and deleted again) leave nothing to do, but
        // replaying them is right too: an empty plan means exactly that.
        stretches.push(stretch);
    } else {
        shared.steps.append(&mut stretch.steps);
        shared.changes.append(&mut stretch.changes);
    }
}

fn replayed(changes: Vec<Change>) -> Stretch {
    Stretch { steps: Vec::new(), changes }
}

/// Whether changes of one row cannot be recognised by comparing bytes.
fn is_ordered(table: &Table) -> bool {
    match table.schema.identity {
        Identity::Full => true,
        Identity::Key(_) => !table.target.identity_is_bytes,
    }
}

fn is_whole_insert(change: &Change) -> bool {
    matches!(change.operation, Operation::Insert | Operation::Read) && change.unsent.is_empty()
}

/// Runs of inserts as steps, everything between them in order.
fn plan_in_order(table: &Arc<Table>, changes: Vec<Change>, stretches: &mut Vec<Stretch>) {
    let mut rest = Vec::new();
    let mut run: Vec<Change> = Vec::new();
    for change in changes {
        if is_whole_insert(&change) {
            run.push(change);
            continue;
        }
        end_run(table, &mut run, &mut rest, stretches);
        rest.push(change);
    }
    end_run(table, &mut run, &mut rest, stretches);
    if !rest.is_empty() {
        stretches.push(replayed(rest));
    }
}

fn end_run(
    table: &Arc<Table>,
    run: &mut Vec<Change>,
    rest: &mut Vec<Change>,
    stretches: &mut Vec<Stretch>,
) {
    if run.len() < INSERT_RUN {
        rest.append(run);
        return;
    }
    if !rest.is_empty() {
        stretches.push(replayed(std::mem::take(rest)));
    }
    let changes = std::mem::take(run);
    let step = Step::Insert { table: Arc::clone(table), rows: changes.clone() };
    stretches.push(Stretch { steps: vec![step], changes });
}
