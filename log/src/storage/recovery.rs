//! What a segment holds after a crash, and whether that may be.
//!
//! A crash leaves the last segment with a tail that was not yet flushed: nobody was told that it
//! is there, so it may go. Everything else must be whole. The judgement, for a walk that meets
//! bytes which are no valid batch at position P, with `floor` the offset through which the segment
//! is known to have been flushed (see [`checkpoint`](crate::storage::checkpoint)):
//!
//! ```text
//!            valid                     P  not valid
//!   |─────────────────────────────────|~~~~~~~~~~~~~~~~~~~~~~~~|
//!                     floor ≤ P: next question       no valid batch behind P  → torn tail: cut at P
//!                     floor > P: flushed bytes       one, P's batch lacks a page → never written: cut at P
//!                     are damaged: refuse            one, behind other bytes     → a hole: refuse
//! ```
//!
//! Why that is enough: a write appends, and a flush puts all of the file on the disk that was
//! written before it. So if the bytes at P never came there, no flush ended after they were
//! written, and nothing from P on was acknowledged. A process that dies leaves a prefix of what it
//! wrote. A power cut leaves some of the pages that were not flushed, in any order, and where a
//! file's length reached the disk before a page did, that page reads as zeroes. Nothing that we
//! write begins or ends with a zeroed page, so a batch at P that does lacks it, and no flush ended
//! after that batch. Where only a page in its middle is missing we cannot tell; that is refused, as
//! are any other bytes with a valid batch behind them: it may have been acknowledged.
//!
//! After a crash of the process `floor` is exact; after a power cut it is some seconds old, and
//! between it and the end the shape decides, as just said. A refused partition stays as it is, for
//! a human.

use std::path::Path;

use tailwater_kafka::{BatchHeader, HEADER_BYTES, Offset, RecordBatch};

use crate::Error;
use crate::storage::disk::DiskFile;
use crate::storage::index::SegmentIndex;
use crate::storage::scan::{BatchScan, Scanned, find_batch_after};

/// What a file system writes at once, or a divisor of it.
const PAGE_BYTES: u64 = 4096;

/// What a partition's offsets may look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Continuity {
    /// Each batch begins where the one before ended.
    Exact,
    /// Compaction may have left gaps.
    Gaps,
}

impl Continuity {
    fn allows(self, expected: Offset, found: Offset) -> bool {
        match self {
            Self::Exact => expected == found,
            Self::Gaps => expected <= found,
        }
    }
}

/// What a walk over a segment found.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) index: SegmentIndex,
    /// Bytes of valid batches.
    pub(crate) size: u64,
    /// First offset after them.
    pub(crate) end: Offset,
    /// Bytes cut off behind them.
    pub(crate) torn_bytes: u64,
}

/// A segment file to be looked through.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Suspect<'a> {
    pub(crate) file: &'a dyn DiskFile,
    pub(crate) path: &'a Path,
    /// The offset in its name.
    pub(crate) base: Offset,
    pub(crate) continuity: Continuity,
}

impl Suspect<'_> {
    /// Walks the last segment, showing each valid batch, and cuts off a torn tail.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if more than an unacknowledged tail is damaged; nothing is changed then.
    pub(crate) fn recover_last(
        &self,
        floor: Offset,
        each: &mut dyn FnMut(&RecordBatch),
    ) -> Result<Recovered, Error> {
        let length = self.length()?;
        let (mut recovered, problem) = self.walk(length, each)?;
        if let Some(problem) = problem {
            self.judge(&recovered, &problem, floor)?;
            recovered.torn_bytes = length - recovered.size;
            self.file.truncate(recovered.size).map_err(Error::io("cut", self.path))?;
            self.file.sync().map_err(Error::io("flush", self.path))?;
        } else if recovered.end < floor {
            return Err(self.damage(
                &recovered,
                &format!("the file ends here, but was flushed through offset {floor}"),
            ));
        }
        Ok(recovered)
    }

    /// Walks a segment that is not the last: it was flushed as a whole, so it must be whole.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is not.
    pub(crate) fn check_sealed(
        &self,
        each: &mut dyn FnMut(&RecordBatch),
    ) -> Result<Recovered, Error> {
        match self.walk(self.length()?, each)? {
            (recovered, None) => Ok(recovered),
            (recovered, Some(problem)) => Err(self.damage(&recovered, &problem)),
        }
    }

    fn length(&self) -> Result<u64, Error> {
        self.file.len().map_err(Error::io("read the length of", self.path))
    }

    fn walk(
        &self,
        length: u64,
        each: &mut dyn FnMut(&RecordBatch),
    ) -> Result<(Recovered, Option<String>), Error> {
        let mut scan = BatchScan::new(self.file, self.path, 0, length).verified();
        let mut index = SegmentIndex::new(self.base);
        let mut end = self.base;
        loop {
            let position = scan.position();
            let problem = match scan.next()? {
                Scanned::End => None,
                Scanned::Invalid(problem) => Some(problem),
                Scanned::Batch(batch) if self.continuity.allows(end, batch.base_offset()) => {
                    index.note(batch.base_offset(), position, batch.max_timestamp());
                    end = batch.next_offset();
                    each(&batch);
                    continue;
                }
                Scanned::Batch(batch) => {
                    Some(format!("a batch has offset {}, expected {end}", batch.base_offset()))
                }
            };
            return Ok((Recovered { index, size: position, end, torn_bytes: 0 }, problem));
        }
    }

    fn judge(&self, recovered: &Recovered, problem: &str, floor: Offset) -> Result<(), Error> {
        if recovered.end < floor {
            return Err(self.damage(
                recovered,
                &format!("{problem}, but the file was flushed through offset {floor}"),
            ));
        }
        match find_batch_after(self.file, self.path, recovered.size, recovered.end)? {
            Some(behind) if !self.was_never_written(recovered.size, behind)? => Err(self.damage(
                recovered,
                &format!(
                    "{problem}, and there is a valid batch behind it at byte {behind}: a hole"
                ),
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the batch at `at` lacks a page that never came to the disk, with `behind` the next
    /// valid one: it begins with zeroes to the end of its page, or the last page that it reaches
    /// into is nothing but zeroes, also where the batch after it would begin.
    fn was_never_written(&self, at: u64, behind: u64) -> Result<bool, Error> {
        let page_end = (at / PAGE_BYTES + 1) * PAGE_BYTES;
        if page_end <= behind && self.is_zero(at, page_end)? {
            return Ok(true);
        }
        let mut header = [0; HEADER_BYTES];
        self.file.read_at(&mut header, at).map_err(Error::io("read", self.path))?;
        let bytes = match BatchHeader::parse(&header) {
            Ok(Some(header)) => header.total_bytes(),
            Ok(None) | Err(_) => HEADER_BYTES,
        };
        let last_page = (at + bytes as u64 - 1) / PAGE_BYTES * PAGE_BYTES;
        let next_page = last_page + PAGE_BYTES;
        Ok(last_page > at && next_page <= behind && self.is_zero(last_page, next_page)?)
    }

    fn is_zero(&self, from: u64, to: u64) -> Result<bool, Error> {
        let mut bytes = vec![1; usize::try_from(to - from).unwrap_or(usize::MAX)];
        let read = self.file.read_at(&mut bytes, from).map_err(Error::io("read", self.path))?;
        Ok(read == bytes.len() && bytes.iter().all(|byte| *byte == 0))
    }

    fn damage(&self, recovered: &Recovered, problem: &str) -> Error {
        Error::corrupt(
            self.path,
            recovered.size,
            format!(
                "{problem} (everything below offset {} is whole); restore the file from a copy, or \
                 delete the topic and let its source write it again",
                recovered.end
            ),
        )
    }
}
