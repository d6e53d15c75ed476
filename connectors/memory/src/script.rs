//! What happens on a source: changes that its tables took, by hand or from a seed.

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use std::sync::Arc;

use tailwater_change::{Commit, Kind, Operation, TableSchema};

use crate::{Cell, Definition, MemoryTable};

/// A change that a source's table took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptedChange {
    /// Which of the script's tables.
    pub table: usize,
    /// What.
    pub operation: Operation,
    /// The whole old row.
    pub before: Option<Vec<Cell>>,
    /// The whole new row.
    pub after: Option<Vec<Cell>>,
    /// Columns of the new row that equal the old row's and are not sent.
    pub unsent: Vec<usize>,
}

/// A transaction that committed on a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptedTransaction {
    /// Where.
    pub commit: Commit,
    /// When: microseconds since 1970, UTC.
    pub committed_at_us: i64,
    /// What.
    pub changes: Vec<ScriptedChange>,
}

/// The tables of a source and what was done to them.
#[derive(Debug, Clone)]
pub struct Script {
    schemas: Vec<Arc<TableSchema>>,
    tables: Vec<MemoryTable>,
    log: Vec<ScriptedTransaction>,
    next_position: u64,
}

impl Script {
    /// Empty tables with the keys and unique indexes of these schemas.
    pub fn new(schemas: Vec<Arc<TableSchema>>) -> Self {
        let table = |schema: &Arc<TableSchema>| {
            let mut definition = Definition::of(schema);
            definition.unique = definition.unique_of(schema);
            MemoryTable::new(definition)
        };
        let tables = schemas.iter().map(table).collect();
        Self { schemas, tables, log: Vec::new(), next_position: 100 }
    }

    /// The tables' schemas.
    pub fn schemas(&self) -> &[Arc<TableSchema>] {
        &self.schemas
    }

    /// The rows of a table as they are now.
    pub fn rows(&self, table: usize) -> Vec<Vec<Cell>> {
        self.tables[table].rows().cloned().collect()
    }

    /// What has committed.
    pub fn log(&self) -> &[ScriptedTransaction] {
        &self.log
    }

    /// The position at or below which everything has committed.
    pub fn current(&self) -> Commit {
        Commit::lsn(self.next_position - 1)
    }

    /// Inserts a row; `None` if a key denies it.
    pub fn insert(&mut self, table: usize, row: Vec<Cell>) -> Option<ScriptedChange> {
        self.tables[table].insert(row.clone()).ok()?;
        Some(ScriptedChange {
            table,
            operation: Operation::Insert,
            before: None,
            after: Some(row),
            unsent: Vec::new(),
        })
    }

    /// Replaces a row; columns in `unsent` that stay the same are not sent. `None` if a key denies
    /// it or there is no such row.
    pub fn update(
        &mut self,
        table: usize,
        old: &[Cell],
        new: Vec<Cell>,
        unsent: &[usize],
    ) -> Option<ScriptedChange> {
        let old = old.to_vec();
        let kept = &mut self.tables[table];
        let keyless = kept.definition().key.is_empty();
        let key = if keyless { kept.find_equal(&old)? } else { kept.key_of(&old) };
        if kept.get(&key)? != &old {
            return None;
        }
        kept.replace(&key, new.clone()).ok()?;
        // A key is always sent, and a table without one sends whole rows.
        let sent = |&column: &usize| {
            !keyless && old[column] == new[column] && !kept.definition().key.contains(&column)
        };
        let unsent = unsent.iter().copied().filter(sent).collect();
        let (before, after) = (Some(old), Some(new));
        Some(ScriptedChange { table, operation: Operation::Update, before, after, unsent })
    }

    /// Deletes a row; `None` if it is not there.
    pub fn delete(&mut self, table: usize, old: &[Cell]) -> Option<ScriptedChange> {
        let old = old.to_vec();
        let kept = &mut self.tables[table];
        let keyless = kept.definition().key.is_empty();
        let key = if keyless { kept.find_equal(&old)? } else { kept.key_of(&old) };
        if kept.get(&key)? != &old {
            return None;
        }
        kept.remove(&key);
        Some(ScriptedChange {
            table,
            operation: Operation::Delete,
            before: Some(old),
            after: None,
            unsent: Vec::new(),
        })
    }

    /// Empties a table.
    pub fn truncate(&mut self, table: usize) -> ScriptedChange {
        self.tables[table].clear();
        ScriptedChange {
            table,
            operation: Operation::Truncate,
            before: None,
            after: None,
            unsent: Vec::new(),
        }
    }

    /// Commits what was done.
    pub fn commit(&mut self, changes: Vec<ScriptedChange>) -> Commit {
        let commit = Commit::lsn(self.next_position);
        let committed_at_us = i64::try_from(self.next_position).unwrap_or(i64::MAX) * 1000;
        self.log.push(ScriptedTransaction { commit, committed_at_us, changes });
        self.next_position += 10;
        commit
    }

    /// Does up to `count` random things that the tables allow, with small values so that keys
    /// meet: rows move, swap unique values, come back after their deletion.
    pub fn random_changes(
        &mut self,
        rng: &mut SmallRng,
        count: usize,
        truncates: bool,
    ) -> Vec<ScriptedChange> {
        let mut changes = Vec::new();
        for _ in 0..count {
            if rng.random_bool(0.1) {
                changes.extend(self.random_swap(rng));
            } else {
                changes.extend(self.random_change(rng, truncates));
            }
        }
        changes
    }

    /// A transaction of random changes, committed.
    pub fn random_transaction(&mut self, rng: &mut SmallRng, rows: usize) -> Commit {
        let count = rng.random_range(1..=rows);
        let changes = self.random_changes(rng, count, true);
        self.commit(changes)
    }

    fn random_change(&mut self, rng: &mut SmallRng, truncates: bool) -> Option<ScriptedChange> {
        let table = rng.random_range(0..self.tables.len());
        let rows = self.rows(table);
        let existing = rows.choose(rng);
        match (rng.random_range(0..100), existing) {
            (0, _) if truncates => Some(self.truncate(table)),
            (0..=34, _) | (_, None) => {
                let row = self.random_row(rng, table);
                self.insert(table, row)
            }
            (35..=54, Some(old)) => self.delete(table, old),
            (_, Some(old)) => {
                let mut new = old.clone();
                for (column, cell) in self.random_row(rng, table).into_iter().enumerate() {
                    let keyed = self.tables[table].definition().key.contains(&column);
                    if rng.random_bool(if keyed { 0.3 } else { 0.5 }) {
                        new[column] = cell;
                    }
                }
                let unsent: Vec<usize> = (0..new.len()).filter(|_| rng.random_bool(0.5)).collect();
                self.update(table, old, new, &unsent)
            }
        }
    }

    /// Two rows trade a value through NULL, as far as their keys allow it.
    fn random_swap(&mut self, rng: &mut SmallRng) -> Vec<ScriptedChange> {
        let table = rng.random_range(0..self.tables.len());
        let rows = self.rows(table);
        let column = rng.random_range(0..self.schemas[table].columns.len());
        let definition = self.tables[table].definition();
        let (Some(one), Some(two)) = (rows.choose(rng), rows.choose(rng)) else {
            return Vec::new();
        };
        if one == two || definition.key.contains(&column) {
            return Vec::new();
        }
        let with = |row: &[Cell], cell: &Cell| {
            let mut row = row.to_vec();
            row[column] = cell.clone();
            row
        };
        let without = with(one, &Cell::Null);
        let mut changes = Vec::new();
        changes.extend(self.update(table, one, without.clone(), &[]));
        changes.extend(self.update(table, two, with(two, &one[column]), &[]));
        changes.extend(self.update(table, &without, with(one, &two[column]), &[]));
        changes
    }

    fn random_row(&self, rng: &mut SmallRng, table: usize) -> Vec<Cell> {
        let schema = &self.schemas[table];
        let key = schema.key();
        let columns = schema.columns.iter().enumerate();
        columns
            .map(|(at, column)| {
                if column.nullable && !key.contains(&at) && rng.random_bool(0.2) {
                    return Cell::Null;
                }
                let number = rng.random_range(0..9);
                match &column.kind {
                    Kind::Bool => Cell::Bool(number % 2 == 0),
                    Kind::Int { signed: true, .. } => Cell::Int(number),
                    Kind::Int { signed: false, .. } => Cell::Uint(number.unsigned_abs()),
                    Kind::Float32 => Cell::Float32(1.5_f32.to_bits()),
                    Kind::Float64 => Cell::Float64(2.5_f64.to_bits()),
                    Kind::Bytes { .. } => Cell::Bytes(vec![7; rng.random_range(0..4)]),
                    _ => Cell::Text(format!("value {number}")),
                }
            })
            .collect()
    }
}
