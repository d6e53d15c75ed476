//! The captured tables, and what the binlog's table numbers stand for.

use std::collections::HashMap;
use std::sync::Arc;

use tailwater_change::{TableId, TableSchema};

use super::image::Form;
use super::statement::Name;
use super::table_map::{Collations, TableMap};
use super::take::Broken;
use crate::source::filter::Filter;

/// Table numbers change with every definition and every server start: what is remembered of them is
/// only a short cut, and may be forgotten at any time.
const MAPPED_MAX: usize = 4096;

/// A captured table.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) schema: Arc<TableSchema>,
    /// Whether the table is in the log: not one that was made while nobody looked, until the
    /// binlog comes to where it was made.
    pub(crate) born: bool,
    /// Whether capture has been told its schema.
    pub(crate) announced: bool,
    pub(crate) is_key: Vec<bool>,
}

/// What a table number stands for.
#[derive(Debug, Clone)]
pub(crate) struct Mapped {
    /// The event that said so.
    body: Vec<u8>,
    /// Its slot if it is captured.
    pub(crate) slot: Option<usize>,
    pub(crate) forms: Arc<[Form]>,
}

/// Why rows of a table cannot be taken.
#[derive(Debug)]
pub(crate) enum MapError {
    Broken(Broken),
    /// A captured table is not what it was.
    Changed {
        slot: usize,
        why: String,
    },
    /// A table matches the patterns that nobody has seen.
    Unknown(TableId),
}

impl From<Broken> for MapError {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) captured: Vec<Captured>,
    slots: HashMap<TableId, usize>,
    mapped: HashMap<u64, Mapped>,
    filter: Filter,
    collations: Collations,
}

impl Tables {
    pub(crate) fn new(filter: Filter, collations: Collations) -> Self {
        Self {
            captured: Vec::new(),
            slots: HashMap::new(),
            mapped: HashMap::new(),
            filter,
            collations,
        }
    }

    /// Adds a table; a second of the same name is ignored.
    pub(crate) fn add(&mut self, schema: Arc<TableSchema>, born: bool) {
        if self.slots.contains_key(&schema.table) {
            return;
        }
        self.slots.insert(schema.table.clone(), self.captured.len());
        let key = schema.key();
        let is_key = (0..schema.columns.len()).map(|at| key.contains(&at)).collect();
        self.captured.push(Captured { schema, born, announced: false, is_key });
    }

    /// The schemas of tables that are in the log.
    pub(crate) fn schemas(&self) -> impl Iterator<Item = &Arc<TableSchema>> {
        self.captured.iter().filter(|table| table.born).map(|table| &table.schema)
    }

    /// Takes a TABLE_MAP event's body.
    pub(crate) fn map(&mut self, id: u64, body: &[u8]) -> Result<(), MapError> {
        if self.mapped.get(&id).is_some_and(|known| known.body == body) {
            return Ok(());
        }
        let map = TableMap::read(super::take::Take(body))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let table = TableId::new(text(map.schema), text(map.table));
        let slot = self.slots.get(&table).copied();
        let captured = slot.and_then(|slot| Some((slot, self.captured.get(slot)?)));
        let (slot, forms) = match captured {
            Some((slot, captured)) if captured.born => {
                let forms = map.bind(&captured.schema, &self.collations);
                (Some(slot), forms.map_err(|why| MapError::Changed { slot, why })?)
            }
            None if !self.filter.captures(&table) => (None, map.shapes()),
            Some(_) | None => return Err(MapError::Unknown(table)),
        };
        if self.mapped.len() >= MAPPED_MAX {
            self.mapped.clear();
        }
        self.mapped.insert(id, Mapped { body: body.to_vec(), slot, forms: forms.into() });
        Ok(())
    }

    /// Takes a TABLE_MAP of a transaction whose rows are only counted.
    pub(crate) fn map_skipped(&mut self, id: u64, body: &[u8]) -> Result<(), Broken> {
        let map = TableMap::read(super::take::Take(body))?;
        // No body: the same event must be read anew where rows are taken.
        self.mapped.insert(id, Mapped { body: Vec::new(), slot: None, forms: map.shapes().into() });
        Ok(())
    }

    /// What `id` stands for.
    pub(crate) fn mapped(&self, id: u64) -> Option<&Mapped> {
        self.mapped.get(&id)
    }

    /// The captured table that a statement in `database` calls `name`. Case does not count: some
    /// servers fold it.
    pub(crate) fn named(&self, name: &Name, database: &str) -> Option<usize> {
        let schema = name.schema.as_deref().unwrap_or(database);
        self.captured.iter().position(|captured| {
            let table = &captured.schema.table;
            table.schema.eq_ignore_ascii_case(schema) && table.name.eq_ignore_ascii_case(&name.name)
        })
    }

    /// Whether a table of that name would be captured.
    pub(crate) fn would_capture(&self, name: &Name, database: &str) -> Option<TableId> {
        let table = TableId::new(name.schema.as_deref().unwrap_or(database), &name.name);
        self.filter.captures(&table).then_some(table)
    }

    /// A captured table of the database.
    pub(crate) fn in_database(&self, database: &str) -> Option<usize> {
        let is_there =
            |captured: &Captured| captured.schema.table.schema.eq_ignore_ascii_case(database);
        self.captured.iter().position(is_there)
    }

    /// A captured table whose name is among `words`.
    pub(crate) fn mentioned(&self, words: &[String]) -> Option<usize> {
        self.captured.iter().position(|captured| {
            let name = &captured.schema.table.name;
            words.iter().any(|word| word.eq_ignore_ascii_case(name))
        })
    }
}
