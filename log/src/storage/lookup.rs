//! Finding records by time. Blocks: it may read from segments.

use std::path::PathBuf;
use std::sync::Arc;

use tailwater_kafka::{Limits, Offset, RecordBatch};

use crate::Error;
use crate::storage::disk::{Disk, DiskFile};
use crate::storage::index::IndexFile;
use crate::storage::partition::{Offsets, Online, Partition};
use crate::storage::read::{NotRead, ReadBelow, ReadRequest, open_for_reading};
use crate::storage::scan::{BatchScan, Scanned};
use crate::storage::segment::{self, Kind};

/// A record found by its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FoundRecord {
    pub(crate) offset: Offset,
    pub(crate) timestamp_ms: i64,
}

/// A segment in which the search goes on.
enum Candidate {
    Sealed { path: PathBuf, size: u64 },
    Active { file: Arc<dyn DiskFile>, path: PathBuf, size: u64, position: u64 },
}

impl Partition {
    /// The first readable record whose timestamp is at or after `timestamp_ms`.
    ///
    /// # Errors
    /// If the partition has stopped, or does now because a segment is damaged.
    pub(crate) fn first_at_or_after(
        &self,
        timestamp_ms: i64,
    ) -> Result<Option<FoundRecord>, NotRead> {
        loop {
            let (candidates, offsets, replacements) = {
                let mut state = self.lock_state();
                let online = state.online()?;
                let candidates = self.candidates(online, timestamp_ms);
                (candidates, online.offsets(), online.replacements)
            };
            let disk = &*self.shared.config.disk;
            let outcome = search_all(disk, &candidates, timestamp_ms, offsets);
            if !self.replaced_since(replacements)? {
                return outcome.map_err(|error| self.search_failed(offsets, error));
            }
            self.wait_for_exchange();
        }
    }

    /// The readable record with the greatest timestamp, the first of several.
    ///
    /// # Errors
    /// As [`Partition::first_at_or_after`].
    pub(crate) fn greatest_timestamp(&self) -> Result<Option<FoundRecord>, NotRead> {
        let greatest = {
            let mut state = self.lock_state();
            let online = state.online()?;
            // Of all that is written while everything is readable: retention may have removed the
            // record that was the greatest when the high watermark moved last.
            if online.high_watermark == online.written_end {
                online.written_max_timestamp()
            } else {
                online.readable_max_timestamp
            }
        };
        if greatest < 0 { Ok(None) } else { self.first_at_or_after(greatest) }
    }

    fn candidates(&self, online: &Online, timestamp_ms: i64) -> Vec<Candidate> {
        let sealed =
            online.sealed.iter().filter(|segment| segment.max_timestamp >= timestamp_ms).map(
                |segment| Candidate::Sealed {
                    path: segment::path(&self.folder, segment.base, Kind::Log),
                    size: segment.size,
                },
            );
        let active =
            (online.active.index.max_timestamp() >= timestamp_ms).then(|| Candidate::Active {
                file: Arc::clone(&online.active.file),
                path: online.active.path.clone(),
                size: online.active.size,
                position: online.active.index.position_of_time(timestamp_ms),
            });
        sealed.chain(active).collect()
    }

    fn search_failed(&self, offsets: Offsets, error: Error) -> NotRead {
        let request = ReadRequest {
            from: offsets.start,
            below: ReadBelow::HighWatermark,
            max_bytes: 0,
            at_least_one: false,
        };
        self.read_failed(request, error)
    }
}

fn search_all(
    disk: &dyn Disk,
    candidates: &[Candidate],
    timestamp_ms: i64,
    offsets: Offsets,
) -> Result<Option<FoundRecord>, Error> {
    for candidate in candidates {
        if let Some(found) = search(disk, candidate, timestamp_ms, offsets)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn search(
    disk: &dyn Disk,
    candidate: &Candidate,
    timestamp_ms: i64,
    offsets: Offsets,
) -> Result<Option<FoundRecord>, Error> {
    match candidate {
        Candidate::Active { file, path, size, position } => {
            search_from(&**file, path, (*position, *size), timestamp_ms, offsets)
        }
        Candidate::Sealed { path, size } => {
            let file = open_for_reading(disk, path)?;
            let index = IndexFile::open(&path.with_extension("index"));
            let position = index.ok().and_then(|index| index.position_of_time(timestamp_ms).ok());
            if let Some(position) = position
                && position < *size
                && let Ok(Some(found)) =
                    search_from(&*file, path, (position, *size), timestamp_ms, offsets)
            {
                return Ok(Some(found));
            }
            // Without an index that makes sense a segment is read from the front.
            search_from(&*file, path, (0, *size), timestamp_ms, offsets)
        }
    }
}

fn search_from(
    file: &dyn DiskFile,
    path: &std::path::Path,
    (position, size): (u64, u64),
    timestamp_ms: i64,
    offsets: Offsets,
) -> Result<Option<FoundRecord>, Error> {
    let mut scan = BatchScan::new(file, path, position, size).verified();
    loop {
        let at = scan.position();
        let batch = match scan.next()? {
            Scanned::End => return Ok(None),
            Scanned::Invalid(problem) => return Err(Error::corrupt(path, at, problem)),
            Scanned::Batch(batch) => batch,
        };
        if batch.base_offset() >= offsets.high_watermark {
            return Ok(None);
        }
        if batch.max_timestamp() < timestamp_ms {
            continue;
        }
        if let Some(found) = search_batch(&batch, timestamp_ms, offsets.start) {
            return Ok(Some(found));
        }
    }
}

fn search_batch(batch: &RecordBatch, timestamp_ms: i64, start: Offset) -> Option<FoundRecord> {
    let whole_batch =
        FoundRecord { offset: batch.base_offset().max(start), timestamp_ms: batch.max_timestamp() };
    // What a producer compressed in a way that cannot be undone is still at its batch's place.
    let Ok(records) = batch.records(Limits::default()) else { return Some(whole_batch) };
    for record in records {
        let Ok(record) = record else { return Some(whole_batch) };
        if record.timestamp_ms >= timestamp_ms && record.offset >= start {
            return Some(FoundRecord { offset: record.offset, timestamp_ms: record.timestamp_ms });
        }
    }
    None
}
