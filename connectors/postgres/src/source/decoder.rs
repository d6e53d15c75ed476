//! From `pgoutput` messages to [`Changes`]: transactions, ordinals, old and new rows.
//!
//! ```text
//!   Begin ─► (Relation | Type | Insert | Update | Delete | Truncate)* ─► Commit
//! ```
//!
//! No IO. Protocol 1 sends whole transactions in commit order, so there is at most one open. The
//! ordinal counts every row message, captured or not. A transaction without captured rows becomes
//! an `Idle`: nothing of ours committed up to there.
//!
//! What the decoder decides: a column that was not sent (TOAST, unchanged) is taken from the old
//! row where the server sent one, else it is [`Value::Unsent`]; a key must be known, or the stream
//! stops. A Relation that differs from the known table stops it too (`state`).

use std::collections::HashMap;
use std::sync::Arc;

use tailwater_capture::{Changes, Event, Image, SourceError, TableSlot};
use tailwater_change::{
    Commit, Identity, Operation, Ordinal, Problem, TableId, TableSchema, Value,
};

use crate::source::pgoutput::{Message, Old, Relation, Tuples, parse};
use crate::source::state::{KnownTable, schema_changed};
use crate::types::{BadColumn, Cell, Scratch, ValueError, recycle, recycle_cells};

/// Says whether a table that is not known should be captured.
pub(crate) type Wanted = Box<dyn Fn(&TableId) -> bool + Send + Sync>;

/// The stream's decoder.
pub(crate) struct Decoder {
    tables: HashMap<u32, KnownTable>,
    wanted: Wanted,
    bound: Bound,
    open: Option<Open>,
    /// Everything up to here was said, inclusive.
    said: u64,
    /// Outside a transaction: nothing up to here, inclusive.
    idle: Option<u64>,
    stopped: Option<Problem>,
    room: Room,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("said", &self.said).finish_non_exhaustive()
    }
}

/// The open transaction.
#[derive(Debug)]
struct Open {
    commit: u64,
    committed_at_us: i64,
    xid: u32,
    ordinal: Ordinal,
    /// Whether capture has heard of it: it has once there is a row.
    told: bool,
}

/// Relations that this stream has announced.
#[derive(Debug, Default)]
struct Bound {
    by_oid: HashMap<u32, Binding>,
    tables: Vec<BoundTable>,
    /// Rows come in runs of one table.
    last: Option<(u32, usize)>,
}

/// What rows of a relation are to us.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Binding {
    /// Rows of this table.
    Captured(usize),
    /// Not captured.
    Ignored,
    /// They should be captured, and cannot: the table and what is wrong with it. A partition is
    /// announced like this too, but its rows come under its root's name.
    Unknown(TableId, &'static str),
}

impl Bound {
    fn find(&mut self, oid: u32) -> Option<Binding> {
        if let Some((last, index)) = self.last
            && last == oid
        {
            return Some(Binding::Captured(index));
        }
        let found = self.by_oid.get(&oid)?.clone();
        if let Binding::Captured(index) = found {
            self.last = Some((oid, index));
        }
        Some(found)
    }
}

/// A captured table and how its rows' cells lie.
#[derive(Debug)]
struct BoundTable {
    slot: TableSlot,
    schema: Arc<TableSchema>,
    /// The schema's column of each cell.
    map: Vec<usize>,
    /// The key's cells, in the key's order.
    key_cells: Vec<usize>,
    /// The key's columns, in the same order.
    key_columns: Vec<usize>,
}

/// Vectors used over and over.
#[derive(Debug, Default)]
struct Room {
    tuples: Tuples<'static>,
    key: Vec<Cell<'static>>,
    old_values: Vec<Value<'static>>,
    new_values: Vec<Value<'static>>,
    old_scratch: Scratch,
    new_scratch: Scratch,
}

impl Decoder {
    /// Decodes what comes after `said` (inclusive).
    pub(crate) fn new(tables: Vec<KnownTable>, wanted: Wanted, said: u64) -> Self {
        Self {
            tables: tables.into_iter().map(|table| (table.oid, table)).collect(),
            wanted,
            bound: Bound::default(),
            open: None,
            said,
            idle: None,
            stopped: None,
            room: Room::default(),
        }
    }

    /// Why nothing more is decoded, once the events that say so are out.
    pub(crate) fn stopped(&self) -> Option<&Problem> {
        self.stopped.as_ref()
    }

    /// A keepalive: the server has sent everything below `wal_end`.
    pub(crate) fn keepalive(&mut self, wal_end: u64) {
        if self.open.is_none() {
            self.nothing_through(wal_end.saturating_sub(1));
        }
    }

    /// Adds what `keepalive` and empty transactions have shown. Called when a round ends.
    pub(crate) fn finish_round(&mut self, out: &mut Changes) {
        if self.open.is_none()
            && let Some(through) = self.idle.take()
            && through > self.said
        {
            self.said = through;
            out.push(Event::Idle { through: Commit::lsn(through) });
        }
    }

    /// Decodes one message.
    ///
    /// # Errors
    /// It is not one, or cannot be taken over without losing something.
    pub(crate) fn message(&mut self, bytes: &[u8], out: &mut Changes) -> Result<(), SourceError> {
        let mut tuples = Tuples {
            old: recycle_cells(std::mem::take(&mut self.room.tuples.old)),
            new: recycle_cells(std::mem::take(&mut self.room.tuples.new)),
        };
        let message = parse(bytes, &mut tuples).map_err(|error| protocol(error.to_string()))?;
        let done = match message {
            Message::Insert { relation } => {
                self.row(relation, Operation::Insert, Old::None, &mut tuples, out)
            }
            Message::Update { relation, old } => {
                self.row(relation, Operation::Update, old, &mut tuples, out)
            }
            Message::Delete { relation, old } => {
                self.row(relation, Operation::Delete, old, &mut tuples, out)
            }
            Message::Truncate { relations } => self.truncate(relations, out),
            Message::Begin { commit_lsn, committed_at_us, xid } => {
                self.begin(commit_lsn, committed_at_us, xid)
            }
            Message::Commit { commit_lsn, .. } => self.commit(commit_lsn, out),
            Message::Relation(relation) => {
                self.relation(&relation, out);
                Ok(())
            }
            Message::Type | Message::Origin | Message::Logical => Ok(()),
        };
        self.room.tuples.old = recycle_cells(tuples.old);
        self.room.tuples.new = recycle_cells(tuples.new);
        done
    }

    fn begin(&mut self, commit: u64, committed_at_us: i64, xid: u32) -> Result<(), SourceError> {
        if self.open.is_some() {
            return Err(protocol("a Begin inside a transaction".into()));
        }
        if commit <= self.said {
            return Err(protocol(format!(
                "a transaction at {} after one at {}",
                Commit::lsn(commit),
                Commit::lsn(self.said)
            )));
        }
        self.open =
            Some(Open { commit, committed_at_us, xid, ordinal: Ordinal::ZERO, told: false });
        Ok(())
    }

    fn commit(&mut self, commit: u64, out: &mut Changes) -> Result<(), SourceError> {
        let Some(open) = self.open.take().filter(|open| open.commit == commit) else {
            return Err(protocol("a Commit without its Begin".into()));
        };
        if open.told {
            self.said = commit;
            out.end(Some(open.xid.to_string()));
        } else {
            self.nothing_through(commit);
        }
        Ok(())
    }

    fn nothing_through(&mut self, through: u64) {
        if through > self.said {
            self.idle = Some(self.idle.map_or(through, |idle| idle.max(through)));
        }
    }

    fn relation(&mut self, relation: &Relation<'_>, out: &mut Changes) {
        self.bound.last = None;
        let Some(known) = self.tables.get(&relation.oid) else {
            self.unknown(relation);
            return;
        };
        if let Some(what) = known.difference(relation) {
            let slot = match self.bound.by_oid.get(&relation.oid) {
                Some(Binding::Captured(index)) => Some(TableSlot(*index)),
                _ => None,
            };
            let table = known.schema.table.clone();
            self.stop(slot, &table, what, out);
            return;
        }
        if self.bound.by_oid.contains_key(&relation.oid) {
            return;
        }
        let slot = TableSlot(self.bound.tables.len());
        let table = BoundTable::new(slot, known);
        out.schema(slot, Arc::clone(&table.schema));
        self.bound.tables.push(table);
        self.bound.by_oid.insert(relation.oid, Binding::Captured(slot.0));
    }

    /// A published table that the snapshot did not have.
    fn unknown(&mut self, relation: &Relation<'_>) {
        let table = TableId::new(relation.namespace, relation.name);
        let before = self.tables.values().any(|known| known.schema.table == table);
        let binding = if before {
            Binding::Unknown(table, "dropped and created again")
        } else if (self.wanted)(&table) {
            Binding::Unknown(table, "added after the snapshot")
        } else {
            Binding::Ignored
        };
        self.bound.by_oid.insert(relation.oid, binding);
    }

    fn stop(&mut self, slot: Option<TableSlot>, table: &TableId, what: String, out: &mut Changes) {
        self.stopped = Some(schema_changed(table, &what));
        out.push(Event::SchemaChange { slot, table: table.clone(), description: what });
    }

    fn row<'a>(
        &mut self,
        relation: u32,
        operation: Operation,
        old: Old,
        tuples: &mut Tuples<'a>,
        out: &mut Changes,
    ) -> Result<(), SourceError> {
        let Some((index, ordinal)) = self.count(relation, out)? else { return Ok(()) };
        let table = &self.bound.tables[index];
        let room = &mut self.room;
        let mut key = recycle_cells(std::mem::take(&mut room.key));
        let mut old_values = recycle(std::mem::take(&mut room.old_values));
        let mut new_values = recycle(std::mem::take(&mut room.new_values));

        table.complete(operation, old, tuples)?;
        if operation != Operation::Delete {
            room.new_scratch
                .decode(&table.schema, &table.map, &tuples.new, &mut new_values)
                .map_err(|bad| bad_column(&table.schema, bad))?;
        }
        let before = table.before(operation, old, tuples, &mut key)?;
        let cells = match before {
            Before::None => None,
            Before::Key => Some((&table.key_columns, &key)),
            Before::Full => Some((&table.map, &tuples.old)),
        };
        if let Some((map, cells)) = cells {
            room.old_scratch
                .decode(&table.schema, map, cells, &mut old_values)
                .map_err(|bad| bad_column(&table.schema, bad))?;
        }
        let before = match before {
            Before::None => None,
            Before::Key => Some(Image::Key(&old_values)),
            Before::Full => Some(Image::Full(&old_values)),
        };
        let after = (operation != Operation::Delete).then_some(new_values.as_slice());
        out.row(table.slot, &table.schema, operation, ordinal, before, after);

        room.key = recycle_cells(key);
        room.old_values = recycle(old_values);
        room.new_values = recycle(new_values);
        room.old_scratch.give_back();
        room.new_scratch.give_back();
        Ok(())
    }

    fn truncate(&mut self, relations: &[[u8; 4]], out: &mut Changes) -> Result<(), SourceError> {
        for oid in relations {
            let Some((index, ordinal)) = self.count(u32::from_be_bytes(*oid), out)? else {
                continue;
            };
            let table = &self.bound.tables[index];
            out.row(table.slot, &table.schema, Operation::Truncate, ordinal, None, None);
        }
        Ok(())
    }

    /// Gives the next row its number, and tells capture of its transaction if it is ours.
    fn count(
        &mut self,
        relation: u32,
        out: &mut Changes,
    ) -> Result<Option<(usize, Ordinal)>, SourceError> {
        let Some(open) = &mut self.open else {
            return Err(protocol("a row outside a transaction".into()));
        };
        let Some(found) = self.bound.find(relation) else {
            return Err(protocol(format!("a row of relation {relation} before its Relation")));
        };
        let ordinal = open.ordinal;
        open.ordinal = ordinal.next();
        let index = match found {
            Binding::Captured(index) => index,
            Binding::Ignored => return Ok(None),
            Binding::Unknown(table, what) => {
                self.stop(None, &table, what.into(), out);
                return Ok(None);
            }
        };
        if !open.told {
            open.told = true;
            out.begin(Commit::lsn(open.commit), Some(open.committed_at_us));
        }
        Ok(Some((index, ordinal)))
    }
}

/// What capture hears of the old row.
#[derive(Debug, Clone, Copy)]
enum Before {
    None,
    Key,
    Full,
}

impl BoundTable {
    fn new(slot: TableSlot, known: &KnownTable) -> Self {
        let map = known.flowing();
        let key_columns = known.schema.key().to_vec();
        let key_cells =
            key_columns.iter().filter_map(|key| map.iter().position(|index| index == key));
        Self {
            slot,
            schema: Arc::new(known.schema.clone()),
            key_cells: key_cells.collect(),
            key_columns,
            map,
        }
    }

    /// Fills in what the new row lacks and the old one has, and checks that no more is missing
    /// than may be.
    fn complete(
        &self,
        operation: Operation,
        old: Old,
        tuples: &mut Tuples<'_>,
    ) -> Result<(), SourceError> {
        let sent = [
            (operation != Operation::Delete).then_some(tuples.new.len()),
            (old != Old::None).then_some(tuples.old.len()),
        ];
        if sent.into_iter().flatten().any(|count| count != self.map.len()) {
            return Err(protocol(format!(
                "a row of {} with another number of columns than its Relation",
                self.schema.table
            )));
        }
        if tuples.old.contains(&Cell::Unsent) {
            return Err(protocol(format!("an old row of {} with a gap", self.schema.table)));
        }
        if !tuples.new.contains(&Cell::Unsent) {
            return Ok(());
        }
        if operation == Operation::Insert {
            return Err(protocol(format!("a new row of {} with a gap", self.schema.table)));
        }
        for index in 0..tuples.new.len() {
            let from_old = match old {
                Old::None => false,
                Old::Key => self.key_cells.contains(&index),
                Old::Full => true,
            };
            if tuples.new[index] != Cell::Unsent {
                continue;
            }
            if from_old {
                tuples.new[index] = tuples.old[index];
            } else if self.key_cells.contains(&index) {
                return Err(self.key_not_sent(index));
            }
        }
        Ok(())
    }

    fn key_not_sent(&self, cell: usize) -> SourceError {
        let (table, column) = (&self.schema.table, &self.schema.columns[self.map[cell]].name);
        SourceError::Refused(Problem::new(
            format!(
                "the key column {column} of {table} is stored out of line (TOAST) and was not \
                 sent with an update: the row cannot be told"
            ),
            format!(
                "update the server to its last minor release, or ALTER TABLE {} REPLICA IDENTITY \
                 FULL, and take a new snapshot: `tailwater resync`",
                crate::connect::quote_table(table)
            ),
        ))
    }

    /// Chooses what to say of the old row; for `Before::Key`, its cells are in `key`.
    fn before<'a>(
        &self,
        operation: Operation,
        old: Old,
        tuples: &Tuples<'a>,
        key: &mut Vec<Cell<'a>>,
    ) -> Result<Before, SourceError> {
        if operation == Operation::Insert {
            return Ok(Before::None);
        }
        match (&self.schema.identity, old) {
            (Identity::Full, Old::Full) => Ok(Before::Full),
            (Identity::Key(_), Old::None) if operation == Operation::Update => Ok(Before::None),
            (Identity::Key(_), Old::Key | Old::Full) => {
                let changed = operation == Operation::Delete
                    || self.key_cells.iter().any(|&cell| tuples.old[cell] != tuples.new[cell]);
                if !changed {
                    return Ok(Before::None);
                }
                key.extend(self.key_cells.iter().map(|&cell| tuples.old[cell]));
                Ok(Before::Key)
            }
            (Identity::Full, Old::None | Old::Key) | (Identity::Key(_), Old::None) => {
                Err(SourceError::Refused(Problem::new(
                    format!(
                        "{} sent a change without the old row that its replica identity promises",
                        self.schema.table
                    ),
                    format!(
                        "ALTER TABLE {} REPLICA IDENTITY FULL, for each of its partitions too, and \
                         take a new snapshot: `tailwater resync`",
                        crate::connect::quote_table(&self.schema.table)
                    ),
                )))
            }
        }
    }
}

/// The error of a value that cannot be read; never with the value.
pub(crate) fn bad_column(schema: &TableSchema, bad: BadColumn) -> SourceError {
    let column = schema.columns.get(bad.index).map_or("", |column| column.name.as_str());
    let what = format!("column {column} of {}: {}", schema.table, bad.error);
    match bad.error {
        ValueError::Malformed => protocol(what),
        ValueError::Label => SourceError::Refused(schema_changed(&schema.table, &what)),
        ValueError::Utf8 => SourceError::Refused(Problem::new(
            what,
            "the database's encoding lets any bytes in (SQL_ASCII): convert the column to bytea, \
             or the database to UTF8",
        )),
    }
}

fn protocol(detail: String) -> SourceError {
    SourceError::Protocol { operation: "decoding pgoutput".into(), detail }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};
    use tailwater_change::RowReader;

    use super::*;
    use crate::catalog::ReplicaIdentity;
    use crate::source::state::tests::known;

    const BEGIN: &[u8] = b"B\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\x07";
    const COMMIT: &[u8] = b"C\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\x30\0\0\0\0\0\0\0\0";

    fn relation(identity: u8) -> Vec<u8> {
        let mut bytes = b"R\0\0\x40\x01public\0t\0".to_vec();
        bytes.extend([identity, 0, 3]);
        bytes.extend(b"\x01id\0\0\0\0\x17\xFF\xFF\xFF\xFF");
        bytes.extend(b"\0name\0\0\0\0\x19\xFF\xFF\xFF\xFF");
        bytes.extend(b"\0raw\0\0\0\0\x11\xFF\xFF\xFF\xFF");
        bytes
    }

    fn tuple(cells: &[Option<&str>]) -> Vec<u8> {
        let mut bytes = vec![0, u8::try_from(cells.len()).unwrap()];
        for cell in cells {
            match cell {
                None => bytes.push(b'n'),
                Some("unsent") => bytes.push(b'u'),
                Some(text) => {
                    bytes.push(b't');
                    bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                    bytes.extend(text.as_bytes());
                }
            }
        }
        bytes
    }

    fn update(old: Option<(u8, &[Option<&str>])>, new: &[Option<&str>]) -> Vec<u8> {
        let mut bytes = b"U\0\0\x40\x01".to_vec();
        if let Some((letter, cells)) = old {
            bytes.push(letter);
            bytes.extend(tuple(cells));
        }
        bytes.push(b'N');
        bytes.extend(tuple(new));
        bytes
    }

    fn decoder(identity: ReplicaIdentity) -> Decoder {
        Decoder::new(vec![known(identity)], Box::new(|table| table.name == "wanted"), 16)
    }

    /// Decodes one row message and prints what capture is told.
    fn check(identity: ReplicaIdentity, message: &[u8]) -> Result<String, SourceError> {
        let (mut decoder, mut out) = (decoder(identity), Changes::new());
        let letter = if identity == ReplicaIdentity::Full { b'f' } else { b'd' };
        decoder.message(BEGIN, &mut out)?;
        decoder.message(&relation(letter), &mut out)?;
        decoder.message(message, &mut out)?;
        decoder.message(COMMIT, &mut out)?;
        let schema = known(identity).schema;
        let Some(Event::Row(row)) =
            out.events().iter().find(|event| matches!(event, Event::Row(_)))
        else {
            panic!("no row in {:?}", out.events())
        };
        let print = |range: &Option<std::ops::Range<usize>>| {
            let mut values = Vec::new();
            let Some(range) = range else { return "-".to_owned() };
            RowReader::new(&schema).read(out.image(range), &mut values).unwrap();
            format!("{values:?}")
        };
        Ok(format!(
            "{} full={} {} unsent={:?}",
            print(&row.before),
            row.before_full,
            print(&row.after),
            out.unsent(&row.unsent)
        ))
    }

    #[test]
    fn an_unchanged_toast_value_is_not_sent_and_not_null() {
        let message = update(None, &[Some("1"), Some("unsent"), None]);
        assert_eq!(
            check(ReplicaIdentity::Default, &message).unwrap(),
            "- full=false [Int(1), Null, Null] unsent=[2]"
        );
    }

    #[test]
    fn a_full_old_row_fills_what_the_new_one_lacks() {
        let old: &[_] = &[Some("1"), Some("long"), Some("\\x00ff")];
        let message = update(Some((b'O', old)), &[Some("1"), Some("unsent"), Some("unsent")]);
        assert_eq!(
            check(ReplicaIdentity::Full, &message).unwrap(),
            "- full=false [Int(1), Text(\"long\"), Bytes([0, 255])] unsent=[]"
        );
    }

    #[test]
    fn the_old_key_is_said_where_it_changed_and_only_there() {
        let old: &[_] = &[Some("1"), None, None];
        let moved = update(Some((b'K', old)), &[Some("2"), Some("a"), None]);
        assert_eq!(
            check(ReplicaIdentity::Default, &moved).unwrap(),
            "[Int(1), Null, Null] full=false [Int(2), Text(\"a\"), Null] unsent=[]"
        );
        let stayed = update(Some((b'K', old)), &[Some("unsent"), Some("a"), None]);
        assert_eq!(
            check(ReplicaIdentity::Default, &stayed).unwrap(),
            "- full=false [Int(1), Text(\"a\"), Null] unsent=[]"
        );
    }

    #[test]
    fn a_key_that_was_not_sent_stops_by_name() {
        let message = update(None, &[Some("unsent"), Some("a"), None]);
        let error = check(ReplicaIdentity::Default, &message).unwrap_err();
        assert!(error.to_string().contains("key column id of public.t"), "{error}");
        assert!(matches!(error, SourceError::Refused(_)));
    }

    #[test]
    fn a_changed_relation_is_told_and_stops() {
        let (mut decoder, mut out) = (decoder(ReplicaIdentity::Default), Changes::new());
        decoder.message(BEGIN, &mut out).unwrap();
        decoder.message(&relation(b'f'), &mut out).unwrap();
        assert!(matches!(
            out.events(),
            [Event::SchemaChange { description, .. }] if description == "replica identity changed"
        ));
        assert!(decoder.stopped().unwrap().what.contains("public.t"));
    }

    #[test]
    fn empty_transactions_and_keepalives_become_one_idle() {
        let (mut decoder, mut out) = (decoder(ReplicaIdentity::Default), Changes::new());
        decoder.message(BEGIN, &mut out).unwrap();
        decoder.keepalive(0x2000);
        decoder.finish_round(&mut out);
        assert!(out.is_empty(), "inside a transaction nothing is known");
        decoder.message(COMMIT, &mut out).unwrap();
        decoder.keepalive(0x131);
        decoder.keepalive(0x120);
        decoder.finish_round(&mut out);
        decoder.finish_round(&mut out);
        assert_eq!(out.events(), [Event::Idle { through: Commit::lsn(0x130) }]);
    }

    proptest! {
        #[test]
        fn any_messages_are_decoded_or_refused(
            messages in proptest::collection::vec(("[BCRIUDTOYM]", any::<Vec<u8>>()), 0..8)
        ) {
            let (mut decoder, mut out) = (decoder(ReplicaIdentity::Default), Changes::new());
            decoder.message(BEGIN, &mut out).unwrap();
            decoder.message(&relation(b'd'), &mut out).unwrap();
            for (letter, bytes) in messages {
                let _any = decoder.message(&[letter.as_bytes(), &bytes].concat(), &mut out);
                let tail = [b"\0\0\x40\x01".as_slice(), &bytes].concat();
                let _any = decoder.message(&[letter.as_bytes(), &tail].concat(), &mut out);
            }
        }
    }
}
