//! Row events: from images to rows of `Changes`.

use tailwater_capture::{Changes, Event, Image, TableSlot};
use tailwater_change::{Commit, Identity, Operation, Ordinal, Problem, TableSchema, Value};

use super::header::kind;
use super::image::{self, Present};
use super::take::{Broken, Take};
use super::{DecodeError, Decoder, payload};
use crate::cell::{Cell, Scratch, recycle};

/// A row event for no table: it only ends a statement.
const NO_TABLE: u64 = 0xFF_FFFF;

/// What is kept from row to row so that none allocates.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// An event of a compressed transaction.
    pub(super) event: Vec<u8>,
    scratch: Scratch,
    before: Vec<Value<'static>>,
    after: Vec<Value<'static>>,
    /// Where the event that is being decoded begins.
    pub(super) start: Commit,
}

/// What a row event does, and how its head is laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowsEvent {
    operation: Operation,
    /// Whether extra data stands in the head (version 2).
    extra: bool,
    compressed: bool,
}

impl RowsEvent {
    /// The row event of this type.
    pub(super) fn of(number: u8) -> Option<Self> {
        let (operation, extra, compressed) = match number {
            kind::WRITE_ROWS_V1 => (Operation::Insert, false, false),
            kind::UPDATE_ROWS_V1 => (Operation::Update, false, false),
            kind::DELETE_ROWS_V1 => (Operation::Delete, false, false),
            kind::WRITE_ROWS => (Operation::Insert, true, false),
            kind::UPDATE_ROWS => (Operation::Update, true, false),
            kind::DELETE_ROWS => (Operation::Delete, true, false),
            kind::MARIADB_WRITE_ROWS_COMPRESSED_V1 => (Operation::Insert, false, true),
            kind::MARIADB_UPDATE_ROWS_COMPRESSED_V1 => (Operation::Update, false, true),
            kind::MARIADB_DELETE_ROWS_COMPRESSED_V1 => (Operation::Delete, false, true),
            kind::MARIADB_WRITE_ROWS_COMPRESSED => (Operation::Insert, true, true),
            kind::MARIADB_UPDATE_ROWS_COMPRESSED => (Operation::Update, true, true),
            kind::MARIADB_DELETE_ROWS_COMPRESSED => (Operation::Delete, true, true),
            _ => return None,
        };
        Some(Self { operation, extra, compressed })
    }
}

impl Decoder {
    pub(super) fn rows(
        &mut self,
        number: u8,
        event: RowsEvent,
        mut body: Take<'_>,
        out: &mut Changes,
    ) -> Result<(), DecodeError> {
        let result = read_table(&mut body, event).and_then(|table| {
            if event.compressed {
                let rows = payload::mariadb(body)?;
                return self.read_rows(event.operation, &table, Take(&rows), out);
            }
            self.read_rows(event.operation, &table, body, out)
        });
        match result {
            Ok(None) => Ok(()),
            Ok(Some(problem)) => Err(DecodeError::Stop(problem)),
            Err(broken) => Err(self.failed(number, broken)),
        }
    }

    /// Reads every row of an event; the problem if one cannot be taken.
    fn read_rows(
        &mut self,
        operation: Operation,
        rows: &Rows<'_>,
        mut body: Take<'_>,
        out: &mut Changes,
    ) -> Result<Option<Problem>, Broken> {
        if rows.table == NO_TABLE && body.is_empty() {
            return Ok(None);
        }
        let no_map = Broken("no table map stands before it");
        let mapped = self.tables.mapped(rows.table).ok_or(no_map)?;
        let (slot, forms) = (mapped.slot, std::sync::Arc::clone(&mapped.forms));
        if forms.len() != rows.width {
            return Err(Broken("it has other columns than its table map"));
        }
        let skipped = self.skips();
        let transaction = self.transaction.as_mut().ok_or(Broken("no transaction is open"))?;
        let Some(slot) = slot.filter(|_| !skipped) else {
            while !body.is_empty() {
                pass(&mut body, &forms, rows)?;
                transaction.rows += 1;
            }
            return Ok(None);
        };
        let captured = self.tables.captured.get_mut(slot).ok_or(no_map)?;
        let number = TableSlot(slot);
        if !captured.announced {
            captured.announced = true;
            out.schema(number, std::sync::Arc::clone(&captured.schema));
        }
        transaction.begin(out);
        transaction.captured = true;
        let (schema, is_key) = (&*captured.schema, &captured.is_key);
        let keyless = matches!(schema.identity, Identity::Full);
        let Buffers { scratch, before: before_buffer, after: after_buffer, .. } = &mut self.buffers;
        let (mut before_cells, mut after_cells) = (Vec::new(), Vec::new());
        while !body.is_empty() {
            let left = body.0.len();
            scratch.clear();
            before_cells.clear();
            after_cells.clear();
            if let Some(present) = rows.before {
                let wanted = |at: usize| keyless || is_key.get(at).copied().unwrap_or(false);
                image::read(&mut body, &forms, present, wanted, &mut before_cells, scratch)?;
            }
            if let Some(present) = rows.after {
                image::read(&mut body, &forms, present, |_| true, &mut after_cells, scratch)?;
            }
            if body.0.len() == left {
                return Err(Broken("a row without bytes"));
            }
            if let Some(problem) =
                complete(operation, schema, is_key, &before_cells, &mut after_cells)
            {
                return Ok(Some(problem));
            }
            let mut before = recycle(std::mem::take(before_buffer));
            let mut after = recycle(std::mem::take(after_buffer));
            scratch.values(&before_cells, &mut before);
            scratch.values(&after_cells, &mut after);
            let ordinal = Ordinal::new(transaction.rows);
            transaction.rows += 1;
            let old = match operation {
                Operation::Insert => None,
                _ if keyless => Some(Image::Full(&before)),
                Operation::Update if same_key(schema, &before, &after) => None,
                _ => Some(Image::Key(&before)),
            };
            let new = rows.after.is_some().then_some(&after[..]);
            out.row(number, schema, operation, ordinal, old, new);
            *before_buffer = recycle(before);
            *after_buffer = recycle(after);
        }
        Ok(None)
    }

    /// A table was emptied: a transaction of its own.
    pub(super) fn truncated(&mut self, slot: usize, out: &mut Changes) {
        let skipped = self.skips();
        let Some(transaction) = self.transaction.as_mut() else { return };
        let ordinal = Ordinal::new(transaction.rows);
        transaction.rows += 1;
        let Some(captured) = self.tables.captured.get_mut(slot).filter(|_| !skipped) else {
            return;
        };
        let number = TableSlot(slot);
        if !captured.announced {
            captured.announced = true;
            out.push(Event::Schema {
                slot: number,
                schema: std::sync::Arc::clone(&captured.schema),
            });
        }
        transaction.begin(out);
        transaction.captured = true;
        out.row(number, &captured.schema, Operation::Truncate, ordinal, None, None);
    }
}

/// The head of a row event.
struct Rows<'b> {
    table: u64,
    width: usize,
    before: Option<Present<'b>>,
    after: Option<Present<'b>>,
}

fn read_table<'b>(body: &mut Take<'b>, event: RowsEvent) -> Result<Rows<'b>, Broken> {
    let table = body.uint(6)?;
    body.u16()?;
    if event.extra {
        let extra = usize::from(body.u16()?).checked_sub(2).ok_or(Broken("its extra data"))?;
        body.bytes(extra)?;
    }
    let width = body.length()?;
    let first = Present::read(body, width)?;
    let (before, after) = match event.operation {
        Operation::Update => (Some(first), Some(Present::read(body, width)?)),
        Operation::Delete => (Some(first), None),
        Operation::Insert | Operation::Truncate | Operation::Read => (None, Some(first)),
    };
    Ok(Rows { table, width, before, after })
}

/// Passes one row.
fn pass(body: &mut Take<'_>, forms: &[image::Form], rows: &Rows<'_>) -> Result<(), Broken> {
    let left = body.0.len();
    for present in [rows.before, rows.after].into_iter().flatten() {
        image::skip(body, forms, present)?;
    }
    if body.0.len() == left { Err(Broken("a row without bytes")) } else { Ok(()) }
}

/// Fills in what an image left out and the row cannot do without; the problem if that is not known.
fn complete<'b>(
    operation: Operation,
    schema: &TableSchema,
    is_key: &[bool],
    before: &[Cell<'b>],
    after: &mut [Cell<'b>],
) -> Option<Problem> {
    let unsent = |cell: &Cell<'_>| *cell == Cell::Ready(Value::Unsent);
    let keyless = matches!(schema.identity, Identity::Full);
    for (at, column) in schema.columns.iter().enumerate() {
        let needed = column.flows() && (keyless || is_key.get(at).copied().unwrap_or(false));
        if needed && before.get(at).is_some_and(unsent) {
            return Some(partial(schema, &column.name));
        }
        let Some(cell) = after.get_mut(at).filter(|cell| column.flows() && unsent(cell)) else {
            continue;
        };
        if operation == Operation::Insert {
            // A column that the statement did not name: its default, which we know only if it is
            // none.
            if !column.nullable || column.default.is_some() {
                return Some(partial(schema, &column.name));
            }
            *cell = Cell::Ready(Value::Null);
        } else if needed {
            *cell = before.get(at)?.clone();
        }
    }
    None
}

fn partial(schema: &TableSchema, column: &str) -> Problem {
    Problem::new(
        format!("the binlog leaves out column {column} of a row of {}", schema.table),
        "run SET GLOBAL binlog_row_image = 'FULL' and let the applications reconnect, then take a \
         new snapshot of the source (tailwater resync)",
    )
}

fn same_key(schema: &TableSchema, before: &[Value<'_>], after: &[Value<'_>]) -> bool {
    schema.key().iter().all(|&at| before.get(at) == after.get(at))
}
