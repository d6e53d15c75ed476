//! Walking the batches of a segment file from front to back, trusting nothing in it.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use tailwater_kafka::Offset;
use tailwater_kafka::{BatchHeader, HEADER_BYTES, RecordBatch};

use crate::Error;
use crate::storage::disk::DiskFile;

/// How much is read at once. A batch is usually at most 1 MiB.
const CHUNK_BYTES: usize = 1 << 20;

/// What stands at the next position.
#[derive(Debug)]
pub(crate) enum Scanned {
    /// A whole batch whose header makes sense; its checksum is checked on request.
    Batch(RecordBatch),
    /// The end of the file, exactly behind a batch.
    End,
    /// Bytes that are no batch.
    Invalid(String),
}

/// A walk over a segment file.
#[derive(Debug)]
pub(crate) struct BatchScan<'a> {
    file: &'a dyn DiskFile,
    path: &'a Path,
    /// Where in the file `buffer` begins.
    position: u64,
    /// Where the walk ends.
    length: u64,
    buffer: Bytes,
    verify_checksums: bool,
}

impl<'a> BatchScan<'a> {
    /// A walk from `position`, which must be where a batch begins, up to `length`.
    pub(crate) fn new(file: &'a dyn DiskFile, path: &'a Path, position: u64, length: u64) -> Self {
        Self { file, path, position, length, buffer: Bytes::new(), verify_checksums: false }
    }

    /// Also compares each batch with its checksum.
    pub(crate) fn verified(mut self) -> Self {
        self.verify_checksums = true;
        self
    }

    /// Where the next batch begins.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The file that is walked.
    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    /// The next batch. After [`Scanned::Invalid`] the walk stays where it is.
    ///
    /// # Errors
    /// Only if the file cannot be read.
    pub(crate) fn next(&mut self) -> Result<Scanned, Error> {
        self.fill(HEADER_BYTES)?;
        if self.buffer.is_empty() {
            return Ok(Scanned::End);
        }
        let header = match BatchHeader::parse(&self.buffer) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(Scanned::Invalid("a batch header is cut off".to_owned())),
            Err(error) => return Ok(Scanned::Invalid(error.to_string())),
        };
        let rest = self.length - self.position;
        if header.total_bytes() as u64 > rest {
            return Ok(Scanned::Invalid(format!(
                "a batch of {} bytes is cut off after {rest}",
                header.total_bytes()
            )));
        }
        self.fill(header.total_bytes())?;
        match RecordBatch::parse(self.buffer.clone()) {
            Ok(Some((batch, rest))) => {
                if self.verify_checksums
                    && let Err(error) = batch.verify_crc()
                {
                    return Ok(Scanned::Invalid(error.to_string()));
                }
                self.position += batch.bytes().len() as u64;
                self.buffer = rest;
                Ok(Scanned::Batch(batch))
            }
            Ok(None) => Ok(Scanned::Invalid("the file became shorter".to_owned())),
            Err(error) => Ok(Scanned::Invalid(error.to_string())),
        }
    }

    /// Makes the buffer hold at least `wanted` bytes, or all up to the end.
    fn fill(&mut self, wanted: usize) -> Result<(), Error> {
        if self.buffer.len() >= wanted {
            return Ok(());
        }
        let from = self.position + self.buffer.len() as u64;
        let left = usize::try_from(self.length.saturating_sub(from)).unwrap_or(usize::MAX);
        let more = left.min(wanted.max(CHUNK_BYTES) - self.buffer.len());
        let mut grown = BytesMut::with_capacity(self.buffer.len() + more);
        grown.extend_from_slice(&self.buffer);
        grown.resize(self.buffer.len() + more, 0);
        let read = self
            .file
            .read_at(&mut grown[self.buffer.len()..], from)
            .map_err(Error::io("read", self.path))?;
        grown.truncate(self.buffer.len() + read);
        self.buffer = grown.freeze();
        Ok(())
    }
}

/// Looks for a whole batch with a right checksum at or after `position`, at any byte, whose offset
/// could follow `expected`. Returns where it begins.
///
/// # Errors
/// Only if the file cannot be read.
pub(crate) fn find_batch_after(
    file: &dyn DiskFile,
    path: &Path,
    position: u64,
    expected: Offset,
) -> Result<Option<u64>, Error> {
    let length = file.len().map_err(Error::io("read the length of", path))?;
    let mut window = vec![0; CHUNK_BYTES];
    let mut from = position;
    while from + HEADER_BYTES as u64 <= length {
        let read = file.read_at(&mut window, from).map_err(Error::io("read", path))?;
        let Some(starts) = (read + 1).checked_sub(HEADER_BYTES) else { break };
        for start in 0..starts {
            let at = from + start as u64;
            if is_plausible(&window[start..read], expected, length - at)
                && is_whole(file, path, at, length)?
            {
                return Ok(Some(at));
            }
        }
        from += starts as u64;
    }
    Ok(None)
}

fn is_plausible(bytes: &[u8], expected: Offset, rest: u64) -> bool {
    // The magic byte first: it rules out nearly every position at the price of one comparison.
    bytes[16] == 2
        && matches!(BatchHeader::parse(bytes), Ok(Some(header))
            if header.total_bytes() as u64 <= rest
                && header.record_count() > 0
                && header.base_offset() >= expected
                && header.base_offset().get() - expected.get() < i64::from(i32::MAX))
}

fn is_whole(file: &dyn DiskFile, path: &Path, at: u64, length: u64) -> Result<bool, Error> {
    let mut scan = BatchScan::new(file, path, at, length).verified();
    Ok(matches!(scan.next()?, Scanned::Batch(_)))
}
