//! A record larger than the topic's `max.message.bytes`: cut into chunks, joined again.
//!
//! The chunks of one attempt stand in consecutive records. A writer that dies in the middle leaves
//! a run without an end; its successor writes all of them again under another attempt. So a chunk
//! that is not the successor of the one before it drops the run: half a row is no row.

use crate::Control;

/// Cuts a framed record value into chunk messages.
#[derive(Debug)]
pub struct Chunks<'a> {
    attempt: u64,
    index: u64,
    rest: &'a [u8],
    chunk_bytes: usize,
    done: bool,
}

impl<'a> Chunks<'a> {
    /// Cuts `value` into pieces of at most `chunk_bytes`; `attempt` is unique to this try.
    pub fn new(value: &'a [u8], chunk_bytes: usize, attempt: u64) -> Self {
        Self { attempt, index: 0, rest: value, chunk_bytes: chunk_bytes.max(1), done: false }
    }
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Control<'a>;

    fn next(&mut self) -> Option<Control<'a>> {
        if self.done {
            return None;
        }
        let (data, rest) = self.rest.split_at(self.rest.len().min(self.chunk_bytes));
        self.rest = rest;
        self.done = rest.is_empty();
        let index = self.index;
        self.index += 1;
        Some(Control::Chunk { attempt: self.attempt, index, last: self.done, data })
    }
}

/// Why a chunk cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The row is larger than the reader can hold.
    #[error("a row of more than {limit} bytes does not fit in memory_limit")]
    TooLarge {
        /// The bound, in bytes.
        limit: usize,
    },
}

/// Joins chunks of one partition.
#[derive(Debug)]
pub struct ChunkJoiner {
    attempt: u64,
    next_index: u64,
    held: Vec<u8>,
    limit: usize,
}

impl ChunkJoiner {
    /// Joins records of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { attempt: 0, next_index: 0, held: Vec::new(), limit }
    }

    /// Takes a chunk; the record's framed value once it is whole.
    ///
    /// # Errors
    /// The record is larger than the bound. The reader stops: skipping it would lose a row.
    pub fn push(
        &mut self,
        attempt: u64,
        index: u64,
        last: bool,
        data: &[u8],
    ) -> Result<Option<Vec<u8>>, ChunkError> {
        if index == 0 {
            self.reset();
            self.attempt = attempt;
        } else if self.next_index != index || self.attempt != attempt {
            self.reset();
            return Ok(None);
        }
        if self.held.len().saturating_add(data.len()) > self.limit {
            self.reset();
            return Err(ChunkError::TooLarge { limit: self.limit });
        }
        self.held.extend_from_slice(data);
        if last {
            self.next_index = 0;
            return Ok(Some(std::mem::take(&mut self.held)));
        }
        self.next_index = index + 1;
        Ok(None)
    }

    /// Drops what is held: another record stands where the next chunk should.
    pub fn reset(&mut self) {
        self.next_index = 0;
        self.held = Vec::new();
    }

    /// Bytes held by an unfinished run.
    pub fn held_bytes(&self) -> usize {
        self.held.capacity()
    }

    /// Whether a run is unfinished.
    pub fn is_joining(&self) -> bool {
        self.next_index != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(joiner: &mut ChunkJoiner, chunk: &Control<'_>) -> Option<Vec<u8>> {
        let Control::Chunk { attempt, index, last, data } = chunk else { unreachable!() };
        joiner.push(*attempt, *index, *last, data).unwrap()
    }

    #[test]
    fn a_cut_value_comes_back_whole() {
        let value: Vec<u8> = (0..=255).collect();
        for chunk_bytes in [1, 7, 255, 256, 1000] {
            let mut joiner = ChunkJoiner::new(1 << 20);
            let mut joined = None;
            for chunk in Chunks::new(&value, chunk_bytes, 9) {
                assert!(joined.is_none());
                joined = push(&mut joiner, &chunk);
            }
            assert_eq!(joined.as_deref(), Some(value.as_slice()));
        }
    }

    #[test]
    fn a_run_without_its_end_is_dropped() {
        let mut joiner = ChunkJoiner::new(1 << 20);
        let first: Vec<_> = Chunks::new(b"abcdef", 2, 1).collect();
        let second: Vec<_> = Chunks::new(b"abcdef", 2, 2).collect();
        assert_eq!(push(&mut joiner, &first[0]), None);
        assert_eq!(push(&mut joiner, &first[1]), None);
        // The writer died; its successor begins again.
        assert_eq!(push(&mut joiner, &second[0]), None);
        // A late last chunk of the first attempt must not complete the second.
        assert_eq!(push(&mut joiner, &first[2]), None);
        assert_eq!(push(&mut joiner, &second[1]), None);
        assert_eq!(push(&mut joiner, &second[2]), None);
        assert!(!joiner.is_joining());
    }

    #[test]
    fn a_row_beyond_the_bound_is_an_error_and_not_a_gap() {
        let mut joiner = ChunkJoiner::new(4);
        assert_eq!(joiner.push(1, 0, false, b"abc"), Ok(None));
        assert_eq!(joiner.push(1, 1, true, b"de"), Err(ChunkError::TooLarge { limit: 4 }));
    }
}
