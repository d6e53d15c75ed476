//! A row while it is being decoded: what could be borrowed is, the rest lies in a scratch buffer.
//!
//! A value that has to be made (a decimal's text, a string in another character set) goes to the
//! end of a buffer that may move as it grows, so it is known by its range until the row is complete.

use std::ops::Range;

use tailwater_change::Value;

/// One column of a row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cell<'b> {
    /// A value that needs nothing, or a slice of what was read.
    Ready(Value<'b>),
    /// Text in the scratch buffer.
    Text(Range<usize>),
    /// Bytes in the scratch buffer.
    Bytes(Range<usize>),
}

/// Where values are made, for one row at a time (for both images of an update).
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) text: String,
    pub(crate) bytes: Vec<u8>,
}

/// A large value's room is given back after its row.
const KEPT_BYTES: usize = 1 << 20;

impl Scratch {
    /// Empties it for the next row.
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.bytes.clear();
        if self.text.capacity() > KEPT_BYTES {
            self.text = String::new();
        }
        if self.bytes.capacity() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
    }

    /// The cells as values.
    pub(crate) fn values<'v>(&'v self, cells: &[Cell<'v>], out: &mut Vec<Value<'v>>) {
        out.extend(cells.iter().map(|cell| match cell {
            Cell::Ready(value) => *value,
            Cell::Text(range) => Value::Text(self.text.get(range.clone()).unwrap_or_default()),
            Cell::Bytes(range) => Value::Bytes(self.bytes.get(range.clone()).unwrap_or_default()),
        }));
    }
}

/// The same vector, empty, for values that live elsewhere: keeps its allocation, because collecting
/// from a vector's own iterator into elements of the same layout does.
pub(crate) fn recycle<'a>(mut values: Vec<Value<'_>>) -> Vec<Value<'a>> {
    values.clear();
    values.into_iter().map(|_| Value::Null).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recycled_vector_keeps_its_room() {
        let values: Vec<Value<'static>> = Vec::with_capacity(100);
        assert_eq!(recycle(values).capacity(), 100);
    }

    #[test]
    fn made_and_borrowed_values_stand_side_by_side() {
        let mut scratch = Scratch::default();
        scratch.text.push_str("12.50");
        scratch.bytes.extend([1, 0]);
        let cells = [Cell::Text(0..5), Cell::Ready(Value::Int(7)), Cell::Bytes(0..2)];
        let mut values = Vec::new();
        scratch.values(&cells, &mut values);
        assert_eq!(values, [Value::Text("12.50"), Value::Int(7), Value::Bytes(&[1, 0])]);
    }
}
