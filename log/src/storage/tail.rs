//! The newest batches of a partition, in memory, for readers that keep up.
//!
//! Batches stand here from the moment they are appended (before they are written; the partition
//! shows readers only what is below its high watermark) until newer ones push them out. So a
//! reader at the tail costs no system call, and what it gets is the very buffer that is written.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use tailwater_kafka::{Offset, RecordBatch};

/// A run of batches without gaps, ending with the newest.
#[derive(Debug, Default)]
pub(crate) struct TailCache {
    batches: VecDeque<RecordBatch>,
    bytes: usize,
}

impl TailCache {
    /// Takes the newest batch, and lets go of the oldest down to `limit` bytes.
    pub(crate) fn push(&mut self, batch: RecordBatch, limit: usize) {
        self.bytes += batch.bytes().len();
        self.batches.push_back(batch);
        self.trim(limit);
    }

    /// Lets go of the oldest down to `limit` bytes.
    pub(crate) fn trim(&mut self, limit: usize) {
        while self.bytes > limit
            && let Some(oldest) = self.batches.pop_front()
        {
            self.bytes -= oldest.bytes().len();
        }
    }

    /// Lets go of everything at or after `end`: it was taken back.
    pub(crate) fn truncate(&mut self, end: Offset) {
        while let Some(newest) = self.batches.back()
            && newest.base_offset() >= end
        {
            self.bytes -= newest.bytes().len();
            self.batches.pop_back();
        }
    }

    /// Whole batches from the one with `from` on, up to `below` and `max_bytes`; the first one
    /// whatever its size if `at_least_one`. `None` if `from` is not in memory.
    pub(crate) fn read(
        &self,
        from: Offset,
        below: Offset,
        max_bytes: usize,
        at_least_one: bool,
    ) -> Option<Bytes> {
        let first = self.batches.partition_point(|batch| batch.last_offset() < from);
        if self.batches.get(first)?.base_offset() > from && first == 0 {
            return None;
        }
        let mut bytes = 0;
        let readable = self
            .batches
            .range(first..)
            .enumerate()
            .take_while(|(number, batch)| {
                bytes += batch.bytes().len();
                batch.last_offset() < below
                    && (bytes <= max_bytes || (at_least_one && *number == 0))
            })
            .map(|(_, batch)| batch.bytes());
        Some(join(readable))
    }
}

/// One buffer of several; a single one is shared, not copied.
fn join<'a>(parts: impl Iterator<Item = &'a Bytes>) -> Bytes {
    let parts: Vec<&Bytes> = parts.collect();
    match parts[..] {
        [] => Bytes::new(),
        [one] => one.clone(),
        _ => {
            let mut joined = BytesMut::with_capacity(parts.iter().map(|part| part.len()).sum());
            for part in parts {
                joined.extend_from_slice(part);
            }
            joined.freeze()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::testing::batch_at;

    fn cache() -> (TailCache, usize) {
        let mut cache = TailCache::default();
        for base in [10, 12, 14, 16] {
            cache.push(batch_at(base, 2), 1 << 20);
        }
        (cache, batch_at(10, 2).bytes().len())
    }

    fn offsets(bytes: Option<Bytes>) -> Option<Vec<i64>> {
        let mut rest = bytes?;
        let mut offsets = Vec::new();
        while let Some((batch, after)) = RecordBatch::parse(rest).unwrap() {
            offsets.push(batch.base_offset().get());
            rest = after;
        }
        Some(offsets)
    }

    #[test]
    fn reads_whole_batches_within_the_bounds() {
        let (cache, size) = cache();
        let read = |from, below, max| {
            offsets(cache.read(Offset::new(from), Offset::new(below), max, true))
        };
        assert_eq!(read(9, 18, 1 << 20), None);
        assert_eq!(read(11, 18, 1 << 20), Some(vec![10, 12, 14, 16]));
        assert_eq!(read(12, 16, 1 << 20), Some(vec![12, 14]));
        assert_eq!(read(12, 18, 2 * size), Some(vec![12, 14]));
        assert_eq!(read(12, 18, 1), Some(vec![12]));
        assert_eq!(read(18, 18, 1), None);
        assert_eq!(read(16, 16, 1 << 20), Some(vec![]));
    }

    #[test]
    fn lets_go_of_the_oldest_and_of_what_was_taken_back() {
        let (mut cache, size) = cache();
        cache.push(batch_at(18, 2), 3 * size);
        assert_eq!(cache.bytes, 3 * size);
        cache.truncate(Offset::new(16));
        assert_eq!(cache.bytes, size);
        assert_eq!(
            offsets(cache.read(Offset::new(14), Offset::new(20), 1 << 20, true)),
            Some(vec![14])
        );
    }

    #[test]
    fn keeps_to_a_share_that_became_smaller() {
        let (mut cache, size) = cache();
        cache.trim(2 * size);
        assert_eq!(cache.bytes, 2 * size);
        let left = cache.read(Offset::new(14), Offset::new(18), 1 << 20, true);
        assert_eq!(offsets(left), Some(vec![14, 16]));
        cache.trim(0);
        assert_eq!(cache.bytes, 0);
    }
}
