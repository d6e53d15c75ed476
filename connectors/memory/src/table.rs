//! A table with a primary key and unique keys, as strict as a database's.

use std::collections::BTreeMap;

use tailwater_apply::{Change, TargetTable};
use tailwater_change::{DecodeError, Identity, RowReader, TableId, TableSchema};

use crate::Cell;

/// A row: one cell per column of the table.
pub(crate) type Row = Vec<Cell>;

/// When a set-based statement checks unique keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UniqueChecks {
    /// With every row, as databases do unless told otherwise.
    Immediate,
    /// When the statement ends.
    Statement,
}

/// What a table is like.
#[derive(Debug, Clone)]
pub struct Definition {
    /// Names of its columns.
    pub columns: Vec<String>,
    /// Indexes of the key's columns; none: rows may be equal.
    pub key: Vec<usize>,
    /// Indexes of the columns of further unique keys. A NULL in one makes it equal to nothing.
    pub unique: Vec<Vec<usize>>,
    /// Names of its foreign keys. They are not enforced.
    pub foreign_keys: Vec<String>,
    /// Whether the key's texts are equal whatever their case.
    pub fold_case: bool,
    /// Whether to say that triggers act on it.
    pub fires: bool,
    /// When set-based statements check unique keys.
    pub checks: UniqueChecks,
}

impl Definition {
    /// A table with these columns and key.
    pub fn new(columns: &[&str], key: &[usize]) -> Self {
        Self {
            columns: columns.iter().map(|&name| name.to_owned()).collect(),
            key: key.to_vec(),
            unique: Vec::new(),
            foreign_keys: Vec::new(),
            fold_case: false,
            fires: false,
            checks: UniqueChecks::Immediate,
        }
    }

    /// The table that rows of `schema` need: columns and key, further unique keys not yet.
    pub fn of(schema: &TableSchema) -> Self {
        let columns: Vec<&str> = schema.columns.iter().map(|column| column.name.as_str()).collect();
        Self::new(&columns, schema.key())
    }

    /// Whether a foreign key may reference these columns.
    pub(crate) fn is_unique(&self, columns: &[String]) -> bool {
        let named = |key: &Vec<usize>| key.iter().map(|&at| &self.columns[at]).eq(columns);
        named(&self.key) || self.unique.iter().any(named)
    }

    /// The columns of `schema`'s unique indexes.
    pub(crate) fn unique_of(&self, schema: &TableSchema) -> Vec<Vec<usize>> {
        let column = |name: &String| self.columns.iter().position(|have| have == name);
        let unique = schema.indexes.iter().filter(|index| index.unique && !index.primary);
        unique.filter_map(|index| index.columns.iter().map(column).collect()).collect()
    }
}

/// Why a row could not be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Denied {
    /// A row with this key is there.
    Exists,
    /// A unique key has this value already.
    Unique,
}

/// A table and its rows.
#[derive(Debug, Clone)]
pub struct MemoryTable {
    definition: Definition,
    /// By key; for tables without one by the whole row, with a number for equal ones.
    rows: BTreeMap<Row, Row>,
    /// Per unique key: who has a value.
    unique: Vec<BTreeMap<Row, Row>>,
    /// Tells equal rows of a table without a key apart.
    next_number: u64,
}

impl MemoryTable {
    /// An empty table.
    pub fn new(definition: Definition) -> Self {
        let unique = definition.unique.iter().map(|_| BTreeMap::new()).collect();
        Self { definition, rows: BTreeMap::new(), unique, next_number: 0 }
    }

    /// What it is like.
    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    /// Its rows in the order of their keys.
    pub fn rows(&self) -> impl Iterator<Item = &Vec<Cell>> {
        self.rows.values()
    }

    /// How many rows it has.
    pub fn row_count(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn describe(&self, name: &TableId, schema: &TableSchema) -> TargetTable {
        let to_schema = |column: &usize| schema.column(&self.definition.columns[*column]);
        let unique = self.definition.unique.iter();
        TargetTable {
            name: name.clone(),
            identity_is_bytes: !self.definition.fold_case,
            unique_keys: unique
                .filter_map(|columns| columns.iter().map(to_schema).collect())
                .collect(),
            fires: self.definition.fires,
        }
    }

    /// What `self`, which was `base` once, has changed, done to `current` instead: other sessions
    /// have written it since. Rows without a key are not told apart: of those, the last one wins.
    pub(crate) fn rebased(&self, base: &Self, current: &Self) -> Result<Self, Denied> {
        if self.definition.key.is_empty() {
            return Ok(self.clone());
        }
        let mut rebased = current.clone();
        let gone = base.rows.keys().filter(|key| !self.rows.contains_key(*key));
        for key in gone {
            rebased.remove(key);
        }
        for (key, row) in &self.rows {
            if base.rows.get(key) != Some(row) {
                rebased.remove(key);
                rebased.insert(row.clone())?;
            }
        }
        Ok(rebased)
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.definition.clone());
    }

    /// Adds unique keys that are not there yet; `false` if rows already violate one.
    pub(crate) fn add_unique(&mut self, keys: Vec<Vec<usize>>) -> bool {
        let mut definition = self.definition.clone();
        for key in keys {
            if !definition.unique.contains(&key) {
                definition.unique.push(key);
            }
        }
        let mut table = Self::new(definition);
        for row in self.rows.values() {
            if table.insert(row.clone()).is_err() {
                return false;
            }
        }
        *self = table;
        true
    }

    pub(crate) fn add_foreign_key(&mut self, name: &str) {
        if !self.definition.foreign_keys.iter().any(|have| have == name) {
            self.definition.foreign_keys.push(name.to_owned());
        }
    }

    /// The key under which the row is kept, by the table's own equality.
    pub(crate) fn key_of(&self, row: &Row) -> Row {
        let cells = self.definition.key.iter().map(|&column| &row[column]);
        if self.definition.fold_case {
            cells.map(Cell::folded).collect()
        } else {
            cells.cloned().collect()
        }
    }

    pub(crate) fn get(&self, key: &Row) -> Option<&Row> {
        self.rows.get(key)
    }

    /// The key under which a row equal to this one is kept, for tables without a key.
    pub(crate) fn find_equal(&self, row: &Row) -> Option<Row> {
        self.rows.iter().find(|(_, kept)| *kept == row).map(|(key, _)| key.clone())
    }

    pub(crate) fn insert(&mut self, row: Row) -> Result<(), Denied> {
        let key = if self.definition.key.is_empty() {
            self.next_number += 1;
            vec![Cell::Uint(self.next_number)]
        } else {
            self.key_of(&row)
        };
        if self.rows.contains_key(&key) {
            return Err(Denied::Exists);
        }
        if self.unique_values(&row).any(|(at, value)| self.unique[at].contains_key(&value)) {
            return Err(Denied::Unique);
        }
        self.index(&key, &row);
        self.rows.insert(key, row);
        Ok(())
    }

    pub(crate) fn remove(&mut self, key: &Row) -> Option<Row> {
        let row = self.rows.remove(key)?;
        let values: Vec<_> = self.unique_values(&row).collect();
        for (at, value) in values {
            self.unique[at].remove(&value);
        }
        Some(row)
    }

    /// Replaces the row at `key` by `row`, whose key may be another.
    pub(crate) fn replace(&mut self, key: &Row, row: Row) -> Result<(), Denied> {
        let Some(old) = self.remove(key) else { return Err(Denied::Exists) };
        // A row of a table without a key keeps its number.
        let result = if self.definition.key.is_empty() {
            self.index(key, &row);
            self.rows.insert(key.clone(), row);
            Ok(())
        } else {
            self.insert(row)
        };
        if result.is_err() {
            self.index(key, &old);
            self.rows.insert(key.clone(), old);
        }
        result
    }

    fn index(&mut self, key: &Row, row: &Row) {
        let values: Vec<_> = self.unique_values(row).collect();
        for (at, value) in values {
            self.unique[at].insert(value, key.clone());
        }
    }

    fn unique_values<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = (usize, Row)> + 'a {
        self.definition.unique.iter().enumerate().filter_map(|(at, columns)| {
            let value: Row = columns.iter().map(|&column| row[column].clone()).collect();
            (!value.contains(&Cell::Null)).then_some((at, value))
        })
    }

    /// The cells of an image, in the table's order: `None` where the image says nothing.
    pub(crate) fn cells(
        &self,
        schema: &TableSchema,
        image: &[u8],
        unsent: &[u32],
    ) -> Result<Vec<Option<Cell>>, DecodeError> {
        let mut values = Vec::new();
        RowReader::new(schema).read_with_unsent(image, unsent, &mut values)?;
        let mut cells = vec![Some(Cell::Null); self.definition.columns.len()];
        for (column, value) in schema.columns.iter().zip(values) {
            if let Some(at) = self.definition.columns.iter().position(|name| *name == column.name) {
                cells[at] = Cell::of(value);
            }
        }
        Ok(cells)
    }

    /// The key under which the row that `change` names is kept, if it is there.
    pub(crate) fn locate(&self, change: &Change) -> Result<Option<Row>, DecodeError> {
        let schema = &change.table.schema;
        let Some(image) = change.identity() else { return Ok(None) };
        let row: Row = self
            .cells(schema, image, &[])?
            .into_iter()
            .map(|cell| cell.unwrap_or(Cell::Null))
            .collect();
        Ok(match schema.identity {
            Identity::Full => self.find_equal(&row),
            Identity::Key(_) => {
                let key = self.key_of(&row);
                self.rows.contains_key(&key).then_some(key)
            }
        })
    }

    /// `cells`, with what they do not say taken from `old`; `None` where there is no old row.
    pub(crate) fn filled(cells: Vec<Option<Cell>>, old: Option<&Row>) -> Option<Row> {
        cells
            .into_iter()
            .enumerate()
            .map(|(at, cell)| cell.or_else(|| old.map(|old| old[at].clone())))
            .collect()
    }
}
