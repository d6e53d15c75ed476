//! What changes do to a table, with a database's strictness: steps all at once, or refused; a replay
//! one by one.

use tailwater_apply::{Change, ConflictPolicy, StepOutcome, TargetError};
use tailwater_change::{DecodeError, Operation};

use crate::table::Denied;
use crate::target::damaged;
use crate::{MemoryTable, Planted, UniqueChecks};

pub(crate) fn delete_all(
    table: &mut MemoryTable,
    rows: &[Change],
) -> Result<StepOutcome, DecodeError> {
    for change in rows.iter().rev() {
        let Some(key) = table.locate(change)? else { return Ok(refused("a row is missing")) };
        table.remove(&key);
    }
    Ok(StepOutcome::Applied)
}

/// Rows in the reverse of the order they were given in: a statement promises none.
pub(crate) fn update_all(
    table: &mut MemoryTable,
    rows: &[Change],
) -> Result<StepOutcome, DecodeError> {
    let mut replacements = Vec::with_capacity(rows.len());
    for change in rows.iter().rev() {
        let Some(key) = table.locate(change)? else { return Ok(refused("a row is missing")) };
        let after = change.after.as_deref().unwrap_or_default();
        let cells = table.cells(&change.table.schema, after, &change.unsent)?;
        let Some(row) = MemoryTable::filled(cells, table.get(&key)) else {
            return Ok(refused("a row is missing"));
        };
        replacements.push((key, row));
    }
    if table.definition().checks == UniqueChecks::Statement {
        for (key, _) in &replacements {
            table.remove(key);
        }
        for (_, row) in replacements {
            if table.insert(row).is_err() {
                return Ok(refused("a unique key"));
            }
        }
        return Ok(StepOutcome::Applied);
    }
    for (key, row) in replacements {
        if table.replace(&key, row).is_err() {
            return Ok(refused("a unique key"));
        }
    }
    Ok(StepOutcome::Applied)
}

pub(crate) fn insert_all(
    table: &mut MemoryTable,
    rows: &[Change],
    planted: Option<Planted>,
) -> Result<StepOutcome, DecodeError> {
    for change in rows.iter().rev() {
        let after = change.after.as_deref().unwrap_or_default();
        let cells = table.cells(&change.table.schema, after, &change.unsent)?;
        let Some(row) = MemoryTable::filled(cells, None) else {
            return Ok(refused("a column was not sent"));
        };
        let row = match planted {
            Some(bug) => bug.row(row),
            None => row,
        };
        if table.insert(row).is_err() && planted != Some(Planted::SkipsDuplicates) {
            return Ok(refused("a row is there"));
        }
    }
    Ok(StepOutcome::Applied)
}

/// Executes one change; whether the row had to be repaired.
pub(crate) fn replay(
    table: &mut MemoryTable,
    change: &Change,
    policy: ConflictPolicy,
) -> Result<bool, TargetError> {
    let conflict = |detail: &str| TargetError::Conflict {
        table: change.table.target.name.clone(),
        detail: detail.to_owned(),
    };
    if change.operation == Operation::Truncate {
        table.clear();
        return Ok(false);
    }
    let found = match change.operation {
        Operation::Insert | Operation::Read if change.table.schema.key().is_empty() => None,
        _ => table.locate(change).map_err(damaged)?,
    };
    let expected = !matches!(change.operation, Operation::Insert | Operation::Read);
    let repaired = found.is_some() != expected;
    if repaired && policy == ConflictPolicy::Stop {
        return Err(conflict(if expected { "a row is missing" } else { "a row is there" }));
    }
    let Some(after) = &change.after else {
        if let Some(key) = found {
            table.remove(&key);
        }
        return Ok(repaired);
    };
    let cells = table.cells(&change.table.schema, after, &change.unsent).map_err(damaged)?;
    let old = found.as_ref().and_then(|key| table.get(key));
    let row = MemoryTable::filled(cells, old)
        .ok_or_else(|| conflict("a row is missing and not all of it was sent"))?;
    let written = match &found {
        Some(key) => table.replace(key, row.clone()),
        None => table.insert(row.clone()),
    };
    match written {
        Ok(()) => Ok(repaired),
        // The identity that the row moves to is taken.
        Err(Denied::Exists) if policy == ConflictPolicy::Repair => {
            if let Some(key) = &found {
                table.remove(key);
            }
            table.remove(&table.key_of(&row));
            table.insert(row).map_err(|_| conflict("a unique key"))?;
            Ok(true)
        }
        Err(Denied::Exists) => Err(conflict("a row is there")),
        Err(Denied::Unique) => Err(conflict("a unique key has this value already")),
    }
}

fn refused(what: &str) -> StepOutcome {
    StepOutcome::Refused(what.to_owned())
}
