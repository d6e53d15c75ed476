//! Values of a unique key that move between rows in an order that no order of single rows allows.
//!
//! A source that checks unique keys only at the end of a statement or transaction (PostgreSQL's
//! deferrable constraints) may swap them. Then the rows of that transaction's changes on that table
//! go at once: deleted, and inserted as they end. Only where nothing fires, all columns are known
//! and identities are bytes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use tailwater_apply::{Change, ConflictPolicy, TargetError};
use tailwater_change::{Operation, RowWriter};

use super::load::Images;
use super::replay::{Single, conflict, require};
use super::session::Session;
use super::sql;
use super::table::Shape;

impl Session {
    /// A unique key is in the way: takes the transaction's remaining changes of this table
    /// together, if that is legal.
    pub(super) async fn settle(
        &mut self,
        changes: &[Change],
        at: usize,
        policy: ConflictPolicy,
        settled: &mut HashSet<usize>,
        key: &str,
    ) -> Result<u64, TargetError> {
        let change = &changes[at];
        let shape = self.shape(&change.table).await?;
        let taken =
            || conflict(&shape, change, &format!("another row has its value of unique key {key}"));
        let members = members(&shape, changes, at).ok_or_else(taken)?;
        // What more the transaction changes comes in a later part, when these rows are in.
        let goes_on = changes.last().is_some_and(|last| last.place.same_transaction(&change.place));
        let together: Vec<&Change> = members.iter().map(|at| &changes[*at]).collect();
        let there = self.identities_there(&shape, &together).await?;
        let net = Net::of(&shape, &together, &there)?.ok_or_else(taken)?;
        let mut repaired = 0;
        for old in &net.gone {
            let mut images = Images::default();
            sql::read(&shape, old, &[], &mut images.old)?;
            let mut statement = Vec::new();
            sql::put_delete(&shape, &images.old, &mut statement)?;
            let single = self.single(&shape, &statement).await?;
            if matches!(single, Single::Changed(2..)) {
                return Err(self.several(&shape, change).await);
            }
            if !matches!(single, Single::Changed(1)) {
                require(policy, &shape, change, "a row to change is not there")?;
                repaired += 1;
            }
        }
        for row in &net.rows {
            let insert = Change {
                operation: Operation::Insert,
                before: None,
                after: Some(row.clone()),
                ..change.clone()
            };
            let met = self.insert_or_equalise(&shape, &insert).await;
            let met = met.map_err(|error| if goes_on { of_parts(error) } else { error })?;
            if met > 0 {
                require(policy, &shape, &insert, "the row is already there")?;
            }
            repaired += met;
        }
        settled.extend(members);
        Ok(repaired)
    }

    /// The identities that rows come to and that rows of the target have already.
    async fn identities_there(
        &mut self,
        shape: &Shape,
        changes: &[&Change],
    ) -> Result<HashSet<Vec<u8>>, TargetError> {
        let mut there = HashSet::new();
        for after in changes.iter().filter_map(|change| change.after.as_ref()) {
            let mut values = Vec::new();
            sql::read(shape, after, &[], &mut values)?;
            let mut statement = format!("SELECT COUNT(*) FROM {}", shape.table).into_bytes();
            sql::put_where(shape, &values, &mut statement)?;
            if self.count(&statement, shape).await? > 0 {
                there.insert(key_of(shape, after)?);
            }
        }
        Ok(there)
    }
}

/// A transaction of more changes than go in one part may have moved the value by its end, and then
/// no repair of a row helps.
fn of_parts(error: TargetError) -> TargetError {
    match error {
        TargetError::Conflict { table, detail } => TargetError::Conflict {
            table,
            detail: format!(
                "{detail}; if that row changes later in the same transaction, which is too large to \
                 be taken at once: drop the unique key on the target, `tailwater resume`, and create \
                 it again"
            ),
        },
        other => other,
    }
}

/// What a transaction's changes of one table come to.
#[derive(Default)]
struct Net {
    /// Identities that are there before.
    gone: Vec<Bytes>,
    /// Rows that are there after.
    rows: Vec<Bytes>,
}

/// What becomes of one identity.
#[derive(Default)]
struct Fate {
    /// Whether a row had it before, and has not left it yet.
    original: bool,
    /// The row that came to it.
    arrived: Option<Bytes>,
}

impl Net {
    /// Of these changes; `there` are the identities that rows of the target have now, of those that
    /// rows come to.
    ///
    /// None where it cannot be known: as long as the old row is still there, a row that arrived
    /// shares its identity, and which of the two leaves only a whole old image tells.
    fn of(
        shape: &Shape,
        changes: &[&Change],
        there: &HashSet<Vec<u8>>,
    ) -> Result<Option<Self>, TargetError> {
        let mut fates: HashMap<Vec<u8>, Fate> = HashMap::new();
        let mut order = Vec::new();
        let mut net = Self::default();
        for change in changes {
            let Some(identity) = change.identity() else { return Ok(None) };
            if matches!(change.operation, Operation::Update | Operation::Delete) {
                let key = key_of(shape, identity)?;
                let fate = fates.entry(key.clone()).or_insert_with(|| {
                    order.push(key.clone());
                    Fate { original: true, arrived: None }
                });
                let arrived_leaves = match (&fate.arrived, fate.original) {
                    (None, true) => false,
                    (Some(_), false) => true,
                    (Some(row), true) => match &change.before {
                        Some(before) if before.full => before.bytes == *row,
                        _ => return Ok(None),
                    },
                    (None, false) => return Ok(None),
                };
                if arrived_leaves {
                    fate.arrived = None;
                } else {
                    fate.original = false;
                    net.gone.push(identity.clone());
                }
            }
            if let Some(after) =
                change.after.as_ref().filter(|_| change.operation != Operation::Delete)
            {
                let key = key_of(shape, after)?;
                let original = there.contains(&key);
                let fate = fates.entry(key.clone()).or_insert_with(|| {
                    order.push(key.clone());
                    Fate { original, arrived: None }
                });
                if fate.arrived.replace(after.clone()).is_some() {
                    return Ok(None);
                }
            }
        }
        net.rows = order.iter().filter_map(|key| fates.remove(key)?.arrived).collect();
        Ok(Some(net))
    }
}

/// The transaction's changes from `start` on that concern the same table; none where not all of
/// them may be taken together.
fn members(shape: &Shape, changes: &[Change], start: usize) -> Option<Vec<usize>> {
    let first = &changes[start];
    if shape.target.fires || !shape.target.identity_is_bytes {
        return None;
    }
    let mut members = Vec::new();
    for (at, change) in changes.iter().enumerate().skip(start) {
        if !change.place.same_transaction(&first.place) {
            break;
        }
        if change.table.target.name != first.table.target.name {
            continue;
        }
        let together = Arc::ptr_eq(&change.table, &first.table)
            && change.unsent.is_empty()
            && change.operation != Operation::Truncate;
        if !together {
            return None;
        }
        members.push(at);
    }
    Some(members)
}

/// The identity's columns of a row, as bytes.
fn key_of(shape: &Shape, row: &[u8]) -> Result<Vec<u8>, TargetError> {
    let mut values = Vec::new();
    sql::read(shape, row, &[], &mut values)?;
    let mut out = Vec::new();
    let mut writer = RowWriter::new(&mut out);
    for at in &shape.key {
        let source = shape.fields[*at].source;
        writer.column(shape.schema.columns[source].field, values[source]);
    }
    Ok(out)
}
