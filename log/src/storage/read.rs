//! Reading batches by offset: from memory at the tail, from the segments elsewhere.
//!
//! Whole batches only, as they were written; a reader that starts inside a batch gets all of it
//! and skips (Kafka's contract). Below the high watermark only, but for followers, who copy what
//! has no high watermark yet. What comes from a segment is
//! compared with its checksum on the way, so damage shows up here and not at a reader far away;
//! it takes the partition offline. A read that fails without saying anything about what is stored
//! (no file descriptor left) fails alone. An index is a cache: one that errs, or leads somewhere
//! that makes no sense, costs a walk from the segment's front before anything is called damaged.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tailwater_kafka::{BatchHeader, HEADER_BYTES, Offset, RecordBatch};

use crate::Error;
use crate::storage::disk::{Disk, DiskFile};
use crate::storage::index::{INDEX_INTERVAL_BYTES, IndexFile};
use crate::storage::partition::{Offsets, Online, Partition, Stopped, lock};
use crate::storage::segment::{self, Kind};

/// How far a reader may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadBelow {
    /// What every in-sync replica has.
    HighWatermark,
    /// Everything that is written here: for followers. What is not written may still be taken back,
    /// and its offset given to another record of the same epoch.
    Written,
}

/// What a reader asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadRequest {
    /// The first offset wanted.
    pub(crate) from: Offset,
    pub(crate) below: ReadBelow,
    /// Bytes of batches at most.
    pub(crate) max_bytes: usize,
    /// Give the first batch even if it alone is larger (KIP-74): no reader hangs on it.
    pub(crate) at_least_one: bool,
}

/// What a reader gets.
#[derive(Debug)]
pub(crate) struct ReadBatches {
    /// Whole batches, one after the other.
    pub(crate) batches: Bytes,
    /// Where the partition stood.
    pub(crate) offsets: Offsets,
}

/// Why a reader gets nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotRead {
    /// The partition serves nobody.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// Nothing is, or ever was, at this offset.
    #[error("offset is outside of {} to {}", .0.start, .0.end)]
    OutOfRange(Offsets),
    /// This time only: nothing is known to be wrong with what is stored.
    #[error("{0}")]
    Failed(String),
}

/// Whether a read is done, or needs the disk.
#[derive(Debug)]
pub(crate) enum Read {
    Done(ReadBatches),
    /// To be finished by [`Partition::read_cold`], where blocking is allowed.
    Cold(ColdRead),
}

/// A read that must go to a segment.
#[derive(Debug)]
pub(crate) struct ColdRead {
    request: ReadRequest,
    offsets: Offsets,
    /// Only batches before it.
    below: Offset,
    source: Source,
    /// [`Online::replacements`] when the source was looked up.
    replacements: u64,
}

/// Where the batches of an offset are.
#[derive(Debug)]
pub(super) enum Source {
    Sealed { base: Offset, end: Offset, size: u64, path: PathBuf },
    Active { file: Arc<dyn DiskFile>, size: u64, path: PathBuf, position: u64 },
}

impl Partition {
    /// Reads from memory, or says what to read from the disk.
    ///
    /// # Errors
    /// If there is nothing to read from.
    pub(crate) fn read(&self, request: ReadRequest) -> Result<Read, NotRead> {
        let mut state = self.lock_state();
        let online = state.online()?;
        let offsets = online.offsets();
        if request.from < offsets.start || request.from > offsets.end {
            return Err(NotRead::OutOfRange(offsets));
        }
        let below = match request.below {
            ReadBelow::HighWatermark => offsets.high_watermark,
            ReadBelow::Written => online.written_end,
        };
        if request.from >= below {
            return Ok(Read::Done(ReadBatches { batches: Bytes::new(), offsets }));
        }
        let cached = online.tail.read(request.from, below, request.max_bytes, request.at_least_one);
        if let Some(batches) = cached {
            return Ok(Read::Done(ReadBatches { batches, offsets }));
        }
        let source = self.source_of(online, request.from);
        let replacements = online.replacements;
        Ok(Read::Cold(ColdRead { request, offsets, below, source, replacements }))
    }

    /// Finishes a read from the disk. Blocks.
    ///
    /// # Errors
    /// If the partition has stopped, or does now because the segment is damaged.
    pub(crate) fn read_cold(&self, mut cold: ColdRead) -> Result<ReadBatches, NotRead> {
        loop {
            let outcome = cold.run(&*self.shared.config.disk);
            if self.replaced_since(cold.replacements)? {
                self.wait_for_exchange();
                match self.read(cold.request)? {
                    Read::Done(found) => return Ok(found),
                    Read::Cold(again) => cold = again,
                }
                continue;
            }
            let batches = match outcome {
                Ok(Some(batches)) => batches,
                // The rest of this segment was compacted away: on to the next.
                Ok(None) => match self.next_source(&cold)? {
                    Some(next) => {
                        cold = next;
                        continue;
                    }
                    None => Bytes::new(),
                },
                Err(error) => return Err(self.read_failed(cold.request, error)),
            };
            return Ok(ReadBatches { batches, offsets: cold.offsets });
        }
    }

    pub(super) fn source_of(&self, online: &Online, offset: Offset) -> Source {
        let after = online.sealed.partition_point(|segment| segment.end <= offset);
        match online.sealed.get(after) {
            Some(sealed) => Source::Sealed {
                base: sealed.base,
                end: sealed.end,
                size: sealed.size,
                path: segment::path(&self.folder, sealed.base, Kind::Log),
            },
            None => Source::Active {
                file: Arc::clone(&online.active.file),
                size: online.active.size,
                path: online.active.path.clone(),
                position: online.active.index.position_of_offset(offset),
            },
        }
    }

    /// Whether compaction has exchanged a file since, or is about to: what was read from one file
    /// may have been looked up in another.
    pub(super) fn replaced_since(&self, replacements: u64) -> Result<bool, Stopped> {
        let mut state = self.lock_state();
        let now = state.online()?.replacements;
        Ok(now != replacements || now % 2 == 1)
    }

    /// Waits for an exchange that is under way.
    pub(super) fn wait_for_exchange(&self) {
        drop(lock(&self.files));
    }

    fn next_source(&self, cold: &ColdRead) -> Result<Option<ColdRead>, Stopped> {
        let Source::Sealed { end, .. } = cold.source else { return Ok(None) };
        let mut state = self.lock_state();
        let online = state.online()?;
        if end >= cold.below {
            return Ok(None);
        }
        let source = self.source_of(online, end);
        Ok(Some(ColdRead {
            request: ReadRequest { from: end, ..cold.request },
            offsets: online.offsets(),
            below: cold.below,
            source,
            replacements: online.replacements,
        }))
    }

    /// Retention may have removed the file under a reader; only damage stops the partition.
    pub(super) fn read_failed(&self, request: ReadRequest, error: Error) -> NotRead {
        match self.offsets() {
            Err(stopped) => stopped.into(),
            Ok(offsets) if request.from < offsets.start => NotRead::OutOfRange(offsets),
            Ok(_) if !error.is_damage() => {
                let error = error.full_text();
                tracing::warn!(
                    topic = %self.name.topic,
                    partition = %self.name.partition,
                    error,
                    "a read failed; its reader asks again"
                );
                NotRead::Failed(error)
            }
            Ok(_) => {
                let why = Stopped::by(&error);
                self.stop(why.clone());
                why.into()
            }
        }
    }
}

impl ColdRead {
    /// `None` if the segment has nothing at or after the offset.
    fn run(&self, disk: &dyn Disk) -> Result<Option<Bytes>, Error> {
        match &self.source {
            Source::Active { file, size, path, position } => {
                OpenSegment { file: &**file, size: *size, path }.read(*position, self)
            }
            Source::Sealed { base, size, path, .. } => {
                let file = open_for_reading(disk, path)?;
                let segment = OpenSegment { file: &*file, size: *size, path };
                let index = IndexFile::open(&path.with_extension("index"));
                let position =
                    index.ok().and_then(|index| index.position_of_offset(*base, self.from()).ok());
                if let Some(position) = position
                    && let Some(found) = segment.read_believing(position, self)
                {
                    return Ok(Some(found));
                }
                segment.read(0, self)
            }
        }
    }

    fn from(&self) -> Offset {
        self.request.from
    }
}

/// Opens a sealed segment.
pub(super) fn open_for_reading(
    disk: &dyn Disk,
    path: &std::path::Path,
) -> Result<Arc<dyn DiskFile>, Error> {
    disk.open(path).map_err(Error::io("open", path))
}

struct OpenSegment<'a> {
    file: &'a dyn DiskFile,
    size: u64,
    path: &'a std::path::Path,
}

impl OpenSegment<'_> {
    /// Reads from where an index says; `None` if that leads to nothing, or cannot be right: an
    /// index points to a batch at or before the offset.
    fn read_believing(&self, position: u64, cold: &ColdRead) -> Option<Bytes> {
        let header = self.bytes(position, HEADER_BYTES).ok()?;
        let first = self.header(&header, position).ok()?;
        if first.base_offset() > cold.from() {
            return None;
        }
        self.read(position, cold).ok()?
    }

    fn read(&self, position: u64, cold: &ColdRead) -> Result<Option<Bytes>, Error> {
        match self.find(position, cold.from())? {
            Some((position, first)) => {
                self.read_from(position, &first, &cold.request, cold.below).map(Some)
            }
            None => Ok(None),
        }
    }

    /// Walks headers from `position` to the batch that holds `offset`, or the first one after it.
    fn find(&self, position: u64, offset: Offset) -> Result<Option<(u64, BatchHeader)>, Error> {
        let mut position = position;
        // The batches up to the next index entry begin within this.
        let mut window = Bytes::new();
        let mut window_at = position;
        while position < self.size {
            let inside = usize::try_from(position - window_at).unwrap_or(usize::MAX);
            if inside.saturating_add(HEADER_BYTES) > window.len() {
                let wanted = usize::try_from(INDEX_INTERVAL_BYTES).unwrap_or(4096) + HEADER_BYTES;
                window = self.bytes(position, wanted)?;
                window_at = position;
            }
            let inside = usize::try_from(position - window_at).unwrap_or(usize::MAX);
            let header = self.header(&window[inside..], position)?;
            if header.last_offset() >= offset {
                return Ok(Some((position, header)));
            }
            position += header.total_bytes() as u64;
        }
        Ok(None)
    }

    fn read_from(
        &self,
        position: u64,
        first: &BatchHeader,
        request: &ReadRequest,
        below: Offset,
    ) -> Result<Bytes, Error> {
        let wanted = if first.total_bytes() <= request.max_bytes {
            request.max_bytes
        } else if request.at_least_one {
            first.total_bytes()
        } else {
            return Ok(Bytes::new());
        };
        let bytes = self.bytes(position, wanted)?;
        let mut rest = bytes.clone();
        loop {
            let at = position + (bytes.len() - rest.len()) as u64;
            let damaged = |error: tailwater_kafka::BatchError| {
                Error::corrupt(self.path, at, error.to_string())
            };
            match RecordBatch::parse(rest.clone()).map_err(damaged)? {
                Some((batch, after)) if batch.last_offset() < below => {
                    batch.verify_crc().map_err(damaged)?;
                    rest = after;
                }
                _ => break,
            }
        }
        if rest.len() == bytes.len() && first.last_offset() < below {
            return Err(Error::corrupt(self.path, position, "a batch is cut off"));
        }
        Ok(bytes.slice(..bytes.len() - rest.len()))
    }

    fn header(&self, bytes: &[u8], position: u64) -> Result<BatchHeader, Error> {
        BatchHeader::parse(bytes)
            .map_err(|error| Error::corrupt(self.path, position, error.to_string()))?
            .ok_or_else(|| Error::corrupt(self.path, position, "a batch header is cut off"))
    }

    /// Up to `wanted` bytes, fewer only at the segment's end.
    fn bytes(&self, position: u64, wanted: usize) -> Result<Bytes, Error> {
        let left = usize::try_from(self.size.saturating_sub(position)).unwrap_or(usize::MAX);
        let mut buffer = BytesMut::zeroed(wanted.min(left));
        let read =
            self.file.read_at(&mut buffer, position).map_err(Error::io("read", self.path))?;
        buffer.truncate(read);
        Ok(buffer.freeze())
    }
}
