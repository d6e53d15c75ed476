//! Keeping of each key only its last record, for topics with `cleanup.policy=compact`.
//!
//! A pass reads the sealed segments that are new since the last one and remembers for each key the
//! last offset at which it stands; then it writes every segment anew without the records that a
//! later one supersedes, and puts the new file in the old one's place. Records keep their offsets,
//! times, producers and order; what is left of a batch becomes one batch per run of neighbours, so
//! there are gaps between batches and none inside. The rules that keep it right:
//!
//! - Only sealed segments below the high watermark are touched.
//! - The newest batch of a producer stays whole, so that its numbers are there after a restart.
//! - Tombstones stay: a reader that was away for long must still learn of the deletion.
//!   (`delete.retention.ms` says how long *at least*.)
//! - What cannot be taken apart (control batches, batches that do not decompress) stays whole.
//! - The new file is flushed, then renamed over the old one: a crash leaves one or the other. The
//!   index goes first and is written again last; without it a start looks through the segment.
//! - A reader on its way to the old file would look in the new one for the old one's positions. So
//!   [`Online::replacements`](super::partition::Online) counts: odd while files are being exchanged,
//!   another number afterwards; a reader that finds it odd or changed starts over.
//!
//! Keys are remembered as 128-bit keyed hashes, at most [`MAX_KEYS`] at a time: a pass that meets
//! more stops there, and the next one goes on.

use std::collections::HashMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use tailwater_kafka::{
    BatchBuilder, BatchStamp, Limits, Offset, ProducerId, Record, RecordBatch, Sequence, place,
};

use crate::Error;
use crate::producers::ProducerStates;
use crate::storage::disk::{self, Disk};
use crate::storage::index::SegmentIndex;
use crate::storage::partition::{Partition, lock};
use crate::storage::read::open_for_reading;
use crate::storage::scan::{BatchScan, Scanned};
use crate::storage::segment::{self, Kind, SealedSegment};

/// Keys remembered in one pass: about 24 MiB.
const MAX_KEYS: usize = 1 << 19;

const UNFINISHED: &str = "cleaned";

/// The last offset of each key below [`LastOffsets::end`].
struct LastOffsets {
    hashers: [RandomState; 2],
    of_key: HashMap<(u64, u64), Offset>,
    /// First offset that is not looked at.
    end: Offset,
}

impl LastOffsets {
    fn new(start: Offset) -> Self {
        let hashers = [RandomState::new(), RandomState::new()];
        Self { hashers, of_key: HashMap::new(), end: start }
    }

    /// Takes a batch into account; `false` if there is no room for its keys.
    fn add(&mut self, batch: &RecordBatch) -> bool {
        let count = usize::try_from(batch.record_count()).unwrap_or(usize::MAX);
        // At least one batch a pass, or it would never get on.
        if !self.of_key.is_empty() && self.of_key.len().saturating_add(count) > MAX_KEYS {
            return false;
        }
        if let Some(records) = records_of(batch) {
            for record in &records {
                if let Some(key) = &record.key {
                    let hash = self.hash(key);
                    self.of_key.insert(hash, record.offset);
                }
            }
        }
        self.end = batch.next_offset();
        true
    }

    fn supersedes(&self, record: &Record) -> bool {
        let Some(key) = &record.key else { return false };
        self.of_key.get(&self.hash(key)).is_some_and(|last| *last > record.offset)
    }

    fn hash(&self, key: &[u8]) -> (u64, u64) {
        (self.hashers[0].hash_one(key), self.hashers[1].hash_one(key))
    }
}

/// A segment written anew and not yet in its place.
struct Cleaned {
    path: PathBuf,
    size: u64,
    index: SegmentIndex,
}

/// Removes what a pass that did not finish left.
pub(super) fn remove_unfinished(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if path.extension().is_some_and(|extension| extension == UNFINISHED) {
            disk::remove_file(&path)?;
        }
    }
    Ok(())
}

impl Partition {
    /// Removes superseded records if enough of the partition is new. Returns how many bytes that
    /// freed. Blocks.
    ///
    /// # Errors
    /// The system's, and damage; every segment is then either the old or the new one.
    pub(crate) fn compact(&self) -> Result<u64, Error> {
        if !self.topic_config().compact {
            return Ok(0);
        }
        let Ok(_one_pass_at_a_time) = self.compacting.try_lock() else { return Ok(0) };
        let Some((segments, from, producers)) = self.worth_compacting() else { return Ok(0) };
        let last_offsets = self.last_offsets(&segments, from)?;
        let mut freed = 0;
        for segment in segments.iter().filter(|segment| segment.base < last_offsets.end) {
            let cleaned = self.rewrite(segment, &last_offsets, &producers)?;
            if cleaned.size < segment.size {
                freed += segment.size - cleaned.size;
                self.exchange(segment, cleaned)?;
            } else {
                disk::remove_file(&cleaned.path)?;
            }
        }
        if let Ok(online) = self.lock_state().online() {
            online.compacted_to = last_offsets.end;
        }
        if freed > 0 {
            tracing::info!(
                topic = %self.name.topic,
                partition = %self.name.partition,
                freed_bytes = freed,
                "compacted"
            );
        }
        Ok(freed)
    }

    fn worth_compacting(&self) -> Option<(Vec<SealedSegment>, Offset, ProducerStates)> {
        let mut state = self.lock_state();
        let online = state.online().ok()?;
        let from = online.compacted_to.max(online.start);
        let readable = |segment: &&SealedSegment| segment.end <= online.high_watermark;
        let segments: Vec<_> = online.sealed.iter().filter(readable).cloned().collect();
        let size = |new: bool| -> u64 {
            let counted = segments.iter().filter(|segment| !new || segment.end > from);
            counted.map(|segment| segment.size).sum()
        };
        let (new, all) = (size(true), size(false));
        #[expect(clippy::cast_precision_loss, reason = "a ratio that decides when, not what")]
        let worth = new > 0 && new as f64 >= self.topic_config().min_cleanable_ratio * all as f64;
        worth.then(|| (segments, from, online.producers_written.clone()))
    }

    fn last_offsets(&self, segments: &[SealedSegment], from: Offset) -> Result<LastOffsets, Error> {
        let mut last_offsets = LastOffsets::new(from);
        let disk = &*self.shared.config.disk;
        for segment in segments.iter().filter(|segment| segment.end > from) {
            let path = segment::path(&self.folder, segment.base, Kind::Log);
            let mut room = true;
            walk(disk, &path, segment.size, &mut |batch| {
                room = room && (batch.base_offset() < from || last_offsets.add(batch));
                Ok(())
            })?;
            if !room {
                return Ok(last_offsets);
            }
            last_offsets.end = segment.end;
        }
        Ok(last_offsets)
    }

    /// Writes what is left of a segment beside it, flushed.
    fn rewrite(
        &self,
        segment: &SealedSegment,
        last_offsets: &LastOffsets,
        producers: &ProducerStates,
    ) -> Result<Cleaned, Error> {
        let path = segment::path(&self.folder, segment.base, Kind::Log);
        let beside = path.with_extension(UNFINISHED);
        let disk = &self.shared.config.disk;
        let file = disk.create(&beside).map_err(Error::io("create", &beside))?;
        let mut size = 0;
        let mut index = SegmentIndex::new(segment.base);
        let written = walk(&**disk, &path, segment.size, &mut |batch| {
            for part in remaining(batch, last_offsets, producers) {
                index.note(part.base_offset(), size, part.max_timestamp());
                let bytes = part.bytes().clone();
                let length = bytes.len() as u64;
                file.write_all_at(&[bytes], size).map_err(Error::io("write", &beside))?;
                size += length;
            }
            Ok(())
        })
        .and_then(|()| file.sync().map_err(Error::io("flush", &beside)));
        if let Err(error) = written {
            disk::remove_file(&beside)?;
            return Err(error);
        }
        Ok(Cleaned { path: beside, size, index })
    }

    /// Puts the new file in the old one's place, unless that is gone meanwhile.
    fn exchange(&self, segment: &SealedSegment, cleaned: Cleaned) -> Result<(), Error> {
        let _files = lock(&self.files);
        if !self.begin_exchange(segment) {
            return disk::remove_file(&cleaned.path);
        }
        let path = segment::path(&self.folder, segment.base, Kind::Log);
        let index_path = segment::path(&self.folder, segment.base, Kind::Index);
        let disk = &*self.shared.config.disk;
        let renamed = disk::remove_file(&index_path)
            .and_then(|()| disk::sync_folder(disk, &self.folder))
            .and_then(|()| fs::rename(&cleaned.path, &path).map_err(Error::io("replace", &path)));
        let written = match &renamed {
            Ok(()) => disk::sync_folder(disk, &self.folder)
                .and_then(|()| cleaned.index.write(&index_path, cleaned.size, segment.end)),
            Err(_) => Ok(()),
        };
        self.end_exchange(segment, renamed.is_ok().then_some(&cleaned));
        renamed.and(written)
    }

    fn begin_exchange(&self, segment: &SealedSegment) -> bool {
        let mut state = self.lock_state();
        let Ok(online) = state.online() else { return false };
        let is_there = online.sealed.contains(segment);
        if is_there {
            online.replacements += 1;
        }
        is_there
    }

    fn end_exchange(&self, segment: &SealedSegment, cleaned: Option<&Cleaned>) {
        let mut state = self.lock_state();
        let Ok(online) = state.online() else { return };
        online.replacements += 1;
        if let Some(cleaned) = cleaned
            && let Some(place) = online.sealed.iter_mut().find(|other| *other == segment)
        {
            place.size = cleaned.size;
            place.max_timestamp = cleaned.index.max_timestamp();
        }
    }
}

fn walk(
    disk: &dyn Disk,
    path: &Path,
    size: u64,
    each: &mut dyn FnMut(&RecordBatch) -> Result<(), Error>,
) -> Result<(), Error> {
    let file = open_for_reading(disk, path)?;
    let mut scan = BatchScan::new(&*file, path, 0, size).verified();
    loop {
        let position = scan.position();
        match scan.next()? {
            Scanned::Batch(batch) => each(&batch)?,
            Scanned::End => return Ok(()),
            Scanned::Invalid(problem) => return Err(Error::corrupt(path, position, problem)),
        }
    }
}

fn records_of(batch: &RecordBatch) -> Option<Vec<Record>> {
    if batch.is_control() {
        return None;
    }
    batch.records(Limits::default()).ok()?.collect::<Result<_, _>>().ok()
}

/// What is left of a batch: itself, parts of it, or nothing.
fn remaining(
    batch: &RecordBatch,
    last_offsets: &LastOffsets,
    producers: &ProducerStates,
) -> Vec<RecordBatch> {
    let whole = || vec![batch.clone()];
    let Some(records) = records_of(batch) else { return whole() };
    let kept: Vec<&Record> =
        records.iter().filter(|record| !last_offsets.supersedes(record)).collect();
    if kept.len() == records.len()
        || producers.is_newest_batch(batch.producer_id(), batch.last_offset())
    {
        return whole();
    }
    let runs = kept.chunk_by(|one, next| one.offset.next() == next.offset);
    let parts: Option<Vec<_>> = runs.map(|run| part_of(batch, run)).collect();
    parts.unwrap_or_else(whole)
}

/// A batch of neighbouring records of another one; `None` if they cannot be written again.
fn part_of(batch: &RecordBatch, records: &[&Record]) -> Option<RecordBatch> {
    let first = records.first()?.offset;
    let mut builder = BatchBuilder::with_capacity(batch.bytes().len());
    for record in records {
        let mut headers = Vec::with_capacity(record.headers.len());
        for header in record.headers.iter() {
            headers.push((std::str::from_utf8(header.name).ok()?, header.value?));
        }
        let value = record.value.as_ref().map(|value| [&value[..]]);
        let value = value.as_ref().map(|parts| &parts[..]);
        builder.append(record.key.as_deref(), value, record.timestamp_ms, &headers);
    }
    let skipped = u32::try_from(first.get() - batch.base_offset().get()).ok()?;
    let base_sequence = if batch.producer_id() == ProducerId::NONE {
        Sequence::NONE
    } else {
        batch.base_sequence().advance(skipped)
    };
    let stamp = BatchStamp {
        producer_id: batch.producer_id(),
        producer_epoch: batch.producer_epoch(),
        base_sequence,
        base_offset: first,
        transactional: batch.is_transactional(),
        control: false,
        compression: batch.compression(),
    };
    let mut bytes = BytesMut::from(builder.finish(stamp).ok()?);
    place(&mut bytes, first, batch.leader_epoch()).ok()?;
    let bytes: Bytes = bytes.freeze();
    RecordBatch::parse(bytes).ok()?.map(|(part, _)| part)
}
