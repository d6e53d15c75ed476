//! Rows of a snapshot: `COPY … TO STDOUT` in text format, taken apart where they lie.
//!
//! COPY prints values with the same output functions as pgoutput, so after its escapes are undone
//! the same decoder reads both: a snapshot's row and the stream's are byte-identical.
//! <https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.2>

use std::ops::Range;
use std::sync::Arc;

use tailwater_capture::{Changes, SourceError, TableSlot};
use tailwater_change::{Operation, Ordinal, TableSchema};

use crate::connect::{quote, quote_table};
use crate::source::decoder::bad_column;
use crate::source::state::KnownTable;
use crate::types::{Cell, Scratch, recycle, recycle_cells};

/// Room for unescaped text above this is given back: one large row must not hold its size.
const KEPT_TEXT_BYTES: usize = 1 << 20;

/// Decodes the rows of one table.
#[derive(Debug)]
pub(crate) struct CopyDecoder {
    slot: TableSlot,
    schema: Arc<TableSchema>,
    map: Vec<usize>,
    text: Vec<u8>,
    found: Vec<Field>,
    cells: Vec<Cell<'static>>,
    values: Vec<tailwater_change::Value<'static>>,
    scratch: Scratch,
}

impl CopyDecoder {
    /// Decodes rows of `table`.
    pub(crate) fn new(slot: TableSlot, table: &KnownTable) -> Self {
        Self {
            slot,
            schema: Arc::new(table.schema.clone()),
            map: table.flowing(),
            text: Vec::new(),
            found: Vec::new(),
            cells: Vec::new(),
            values: Vec::new(),
            scratch: Scratch::default(),
        }
    }

    /// The table.
    pub(crate) fn schema(&self) -> &Arc<TableSchema> {
        &self.schema
    }

    /// What rows are called.
    pub(crate) fn slot(&self) -> TableSlot {
        self.slot
    }

    /// The statement that reads the table: of an inheritance parent only its own rows, of a
    /// partition root those of all partitions.
    pub(crate) fn statement(&self, partitioned: bool) -> String {
        let columns: Vec<String> =
            self.map.iter().map(|&index| quote(&self.schema.columns[index].name)).collect();
        let (columns, table) = (columns.join(", "), quote_table(&self.schema.table));
        if partitioned || self.map.is_empty() {
            let only = if partitioned { "" } else { "ONLY " };
            return format!("COPY (SELECT {columns} FROM {only}{table}) TO STDOUT");
        }
        format!("COPY {table} ({columns}) TO STDOUT")
    }

    /// Adds the row in one CopyData message.
    ///
    /// # Errors
    /// It is not a row of the table.
    pub(crate) fn row(
        &mut self,
        line: &[u8],
        ordinal: Ordinal,
        out: &mut Changes,
    ) -> Result<(), SourceError> {
        let wrong = |detail: &str| SourceError::Protocol {
            operation: format!("reading {}", self.schema.table),
            detail: detail.to_owned(),
        };
        let line = line.strip_suffix(b"\n").ok_or_else(|| wrong("a row without an end"))?;
        let mut cells = recycle_cells(std::mem::take(&mut self.cells));
        let mut values = recycle(std::mem::take(&mut self.values));
        if !self.map.is_empty() {
            split(line, &mut self.text, &mut self.found, &mut cells)
                .ok_or_else(|| wrong("an unknown escape"))?;
        }
        if cells.len() != self.map.len() {
            return Err(wrong("a row with another number of columns"));
        }
        self.scratch
            .decode(&self.schema, &self.map, &cells, &mut values)
            .map_err(|bad| bad_column(&self.schema, bad))?;
        out.row(self.slot, &self.schema, Operation::Read, ordinal, None, Some(&values));
        self.cells = recycle_cells(cells);
        self.values = recycle(values);
        self.scratch.give_back();
        if self.text.capacity() > KEPT_TEXT_BYTES {
            self.text = Vec::new();
        }
        Ok(())
    }
}

/// Where a field's bytes are.
#[derive(Debug, Clone)]
enum Field {
    Null,
    /// In the line.
    Whole(Range<usize>),
    /// Among the unescaped, up to here.
    Unescaped(usize),
}

/// Cuts a line into cells; only fields with escapes are copied, to `text`.
fn split<'a>(
    line: &'a [u8],
    text: &'a mut Vec<u8>,
    found: &mut Vec<Field>,
    cells: &mut Vec<Cell<'a>>,
) -> Option<()> {
    let fields = line.split(|&byte| byte == b'\t');
    if memchr::memchr(b'\\', line).is_none() {
        cells.extend(fields.map(Cell::Text));
        return Some(());
    }
    text.clear();
    found.clear();
    let mut start = 0;
    for field in fields {
        let end = start + field.len();
        found.push(match field {
            b"\\N" => Field::Null,
            // So begins a bytea, and nothing else in it is escaped.
            [b'\\', b'\\', rest @ ..] if memchr::memchr(b'\\', rest).is_none() => {
                Field::Whole(start + 1..end)
            }
            field if memchr::memchr(b'\\', field).is_none() => Field::Whole(start..end),
            field => {
                unescape(field, text)?;
                Field::Unescaped(text.len())
            }
        });
        start = end + 1;
    }
    let mut rest = text.as_slice();
    let mut taken = 0;
    for field in found {
        cells.push(match field {
            Field::Null => Cell::Null,
            Field::Whole(range) => Cell::Text(&line[range.clone()]),
            Field::Unescaped(end) => {
                let (own, after) = rest.split_at(*end - taken);
                (rest, taken) = (after, *end);
                Cell::Text(own)
            }
        });
    }
    Some(())
}

fn unescape(mut field: &[u8], out: &mut Vec<u8>) -> Option<()> {
    while let Some(at) = memchr::memchr(b'\\', field) {
        out.extend_from_slice(&field[..at]);
        out.push(match field.get(at + 1)? {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            b'\\' => b'\\',
            _ => return None,
        });
        field = &field[at + 2..];
    }
    out.extend_from_slice(field);
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    fn cells(line: &[u8]) -> Option<Vec<Option<String>>> {
        let (mut text, mut found, mut cells) = (Vec::new(), Vec::new(), Vec::new());
        split(line, &mut text, &mut found, &mut cells)?;
        let print = |cell: &Cell<'_>| match cell {
            Cell::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
            Cell::Null | Cell::Unsent => None,
        };
        Some(cells.iter().map(print).collect())
    }

    #[test]
    fn nulls_empty_texts_and_escapes_are_told_apart() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(cells(b"1\t\t\\N").unwrap(), [some("1"), some(""), None]);
        assert_eq!(
            cells(b"\\\\N\ta\\tb\\n\t\\\\x00").unwrap(),
            [some("\\N"), some("a\tb\n"), some("\\x00")]
        );
        assert_eq!(cells(b""), Some(vec![some("")]));
        assert_eq!(cells(b"\\"), None);
        assert_eq!(cells(b"\\q"), None);
    }

    proptest! {
        #[test]
        fn any_line_is_cut_or_refused(line in any::<Vec<u8>>()) {
            let _any = cells(&line);
        }
    }
}
