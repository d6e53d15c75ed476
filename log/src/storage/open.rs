//! Putting a partition together again from its files.
//!
//! A clean stop leaves a seal beside every segment, also beside the last: then nothing is read but
//! seals and the newest producer snapshot. After a crash the last segment has none that fits its
//! length, and [`recovery`](crate::storage::recovery) looks through it. Any segment without a
//! fitting seal is looked through too, and the run of segments must be without gaps, reach from the
//! first offset that is kept to at least what was flushed. A partition that cannot be put together
//! is still there: offline, with the reason in its status, its files untouched. If that was for want
//! of something that others may give back, it is tried again.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, RwLock};

use tailwater_kafka::{Offset, RecordBatch};

use crate::Error;
use crate::producers::{ProducerBatch, ProducerStates};
use crate::replica::Replica;
use crate::storage::checkpoint::{FlushedFile, PartitionDescription};
use crate::storage::compaction;
use crate::storage::disk;
use crate::storage::epochs::EpochHistory;
use crate::storage::index::{self, SegmentIndex};
use crate::storage::partition::{
    Condition, Files, Offsets, Online, Partition, PartitionName, Shared, State, Stopped, lock,
};
use crate::storage::recovery::{Continuity, Suspect};
use crate::storage::scan::{BatchScan, Scanned};
use crate::storage::segment::{self, ActiveSegment, Kind, SealedSegment};
use crate::storage::tail::TailCache;
use crate::topic_config::TopicConfig;

impl Partition {
    /// Opens the partition in `folder`. One that cannot be opened is there, but offline.
    pub(crate) fn open(
        folder: PathBuf,
        name: PartitionName,
        topic: TopicConfig,
        shared: Arc<Shared>,
    ) -> Self {
        let opening = Opening { folder: &folder, name: &name, topic: &topic, shared: &shared };
        let (condition, files) = match opening.open() {
            Ok((online, files)) => (Condition::Online(Box::new(online)), files),
            Err(error) => {
                let why = Stopped::by(&error);
                tracing::error!(
                    topic = %name.topic,
                    partition = %name.partition,
                    reason = %why,
                    "partition is offline"
                );
                let nowhere = Offset::ZERO;
                let offsets = Offsets { start: nowhere, high_watermark: nowhere, end: nowhere };
                let stopped = Condition::Stopped { why, offsets, size: 0 };
                let files = Files {
                    flushed: None,
                    flushed_end: Offset::ZERO,
                    described: EpochHistory::default(),
                    refused: error.passes(),
                    unremoved: Vec::new(),
                };
                (stopped, files)
            }
        };
        Self::put_together(folder, name, topic, shared, (condition, files))
    }

    /// Opens a partition that was just made: nobody has anything in it yet.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(crate) fn open_new(
        folder: PathBuf,
        name: PartitionName,
        topic: TopicConfig,
        shared: Arc<Shared>,
    ) -> Result<Self, Error> {
        let opening = Opening { folder: &folder, name: &name, topic: &topic, shared: &shared };
        let (online, files) = opening.open()?;
        let condition = Condition::Online(Box::new(online));
        Ok(Self::put_together(folder, name, topic, shared, (condition, files)))
    }

    /// Tries again if there were no files, no memory or no space; says whether there are none still.
    /// Blocks.
    pub(crate) fn open_again(&self) -> bool {
        let mut files = lock(&self.files);
        // Taken, so that nobody repeats what panics.
        if !std::mem::take(&mut files.refused) {
            return false;
        }
        let topic = self.topic_config();
        let Self { folder, name, shared, .. } = self;
        let opened = Opening { folder, name, topic: &topic, shared }.open();
        let mut state = self.lock_state();
        match (opened, &mut state.condition) {
            (Ok((online, opened)), _) => {
                tracing::info!(topic = %name.topic, partition = %name.partition, "online again");
                *files = opened;
                state.condition = Condition::Online(Box::new(online));
                shared.opened_late.store(true, Ordering::Relaxed);
                state.wake();
            }
            (Err(error), Condition::Stopped { why, .. }) => {
                files.refused = error.passes();
                *why = Stopped::by(&error);
                if !files.refused {
                    tracing::error!(
                        topic = %name.topic,
                        partition = %name.partition,
                        reason = %why,
                        "partition stays offline"
                    );
                }
            }
            (Err(_), Condition::Online(_)) => {}
        }
        files.refused
    }

    fn put_together(
        folder: PathBuf,
        name: PartitionName,
        topic: TopicConfig,
        shared: Arc<Shared>,
        (condition, files): (Condition, Files),
    ) -> Self {
        let start = match &condition {
            Condition::Online(online) => online.start,
            Condition::Stopped { offsets, .. } => offsets.start,
        };
        let replica = Replica::new(shared.config.node_id, shared.config.replica(), start);
        Self {
            name,
            folder,
            topic: RwLock::new(Arc::new(topic)),
            shared,
            state: Mutex::new(State {
                condition,
                replica,
                waiting: Vec::new(),
                fetcher: None,
                followers: Vec::new(),
            }),
            files: Mutex::new(files),
            compacting: Mutex::default(),
        }
    }

    /// Makes the files of a partition that has never had a record.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn create(folder: &Path, name: &PartitionName) -> Result<(), Error> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        PartitionDescription {
            topic_id: name.topic_id,
            partition: name.partition.get(),
            start: Offset::ZERO,
            epochs: EpochHistory::default(),
        }
        .write(folder)
    }
}

/// A partition's files, about to be opened.
pub(super) struct Opening<'a> {
    pub(super) folder: &'a Path,
    pub(super) name: &'a PartitionName,
    pub(super) topic: &'a TopicConfig,
    pub(super) shared: &'a Shared,
}

/// The last segment as it was found.
struct Last {
    active: ActiveSegment,
    end: Offset,
}

impl Opening<'_> {
    /// Puts the partition together.
    ///
    /// # Errors
    /// The system's, and damage.
    pub(super) fn open(&self) -> Result<(Online, Files), Error> {
        let mut description = self.description()?;
        let (mut flushed, floor) = FlushedFile::open(self.folder)?;
        compaction::remove_unfinished(self.folder)?;
        let mut bases = segment::list(self.folder, Kind::Log)?;
        let fresh = bases.is_empty();
        if fresh {
            self.begin(&description, floor)?;
            bases.push(description.start);
        }
        let last_base = bases.pop().expect("at least one segment");

        let mut sealed = Vec::with_capacity(bases.len());
        for (number, base) in bases.iter().enumerate() {
            let next = bases.get(number + 1).copied().unwrap_or(last_base);
            sealed.push(self.open_sealed(*base, next)?);
        }
        let last = self.open_last(last_base, floor)?;
        self.check_run(&sealed, last_base, description.start, last.end)?;
        self.remove_before(&mut sealed, description.start)?;

        let producers = self.producers(&sealed, &last)?;
        let described = description.epochs.clone();
        // What was noted for records that did not come to the disk.
        description.epochs.truncate(last.end);
        // The seal of a segment that is written again must not be believed any more.
        disk::remove_file(&segment::path(self.folder, last_base, Kind::Index))?;
        flushed.write(last.end)?;
        let mut online = Online {
            sealed,
            active: last.active,
            start: description.start,
            high_watermark: description.start,
            durable_end: last.end,
            written_end: last.end,
            end: last.end,
            readable_max_timestamp: -1,
            epochs: description.epochs,
            leads_since: None,
            producers_written: producers.clone(),
            producers,
            pending: std::collections::VecDeque::new(),
            acknowledgements: Vec::new(),
            tail: TailCache::default(),
            leader_start: Offset::ZERO,
            beginning: None,
            scheduled: false,
            compacted_to: Offset::ZERO,
            replacements: 0,
        };
        online.readable_max_timestamp = online.written_max_timestamp();
        let files = Files {
            flushed: Some(flushed),
            flushed_end: last.end,
            described,
            refused: false,
            unremoved: Vec::new(),
        };
        Ok((online, files))
    }

    fn description(&self) -> Result<PartitionDescription, Error> {
        let description = PartitionDescription::read(self.folder)?;
        if description.topic_id != self.name.topic_id
            || description.partition != self.name.partition.get()
        {
            return Err(Error::corrupt(
                self.folder,
                0,
                format!(
                    "the folder holds partition {} of topic id {}, not partition {} of {}",
                    description.partition,
                    description.topic_id,
                    self.name.partition,
                    self.name.topic_id
                ),
            ));
        }
        Ok(description)
    }

    /// Makes the first segment of a partition.
    fn begin(&self, description: &PartitionDescription, floor: Offset) -> Result<(), Error> {
        if floor > description.start {
            return Err(Error::corrupt(
                self.folder,
                0,
                format!(
                    "there are no segments, but offsets {} to {floor} were flushed; restore the \
                     *.log files from a copy",
                    description.start
                ),
            ));
        }
        let path = segment::path(self.folder, description.start, Kind::Log);
        self.shared.config.disk.create(&path).map_err(Error::io("create", &path))?;
        disk::sync_folder(&*self.shared.config.disk, self.folder)
    }

    fn continuity(&self) -> Continuity {
        if self.topic.compact { Continuity::Gaps } else { Continuity::Exact }
    }

    fn open_sealed(&self, base: Offset, next: Offset) -> Result<SealedSegment, Error> {
        let path = segment::path(self.folder, base, Kind::Log);
        let index_path = segment::path(self.folder, base, Kind::Index);
        let metadata = std::fs::metadata(&path).map_err(Error::io("open", &path))?;
        let (size, written_ms) = (metadata.len(), disk::modified_ms(&metadata));
        if let Some(seal) = index::read_seal(&index_path)?
            && seal.size == size
        {
            let max_timestamp = seal.max_timestamp;
            return self.in_run(
                &path,
                SealedSegment { base, end: seal.end, size, max_timestamp, written_ms },
                next,
            );
        }
        let file = self.shared.config.disk.open(&path).map_err(Error::io("open", &path))?;
        let suspect = Suspect { file: &*file, path: &path, base, continuity: self.continuity() };
        let found = suspect.check_sealed(&mut |_| {})?;
        let max_timestamp = found.index.max_timestamp();
        let segment = SealedSegment { base, end: found.end, size, max_timestamp, written_ms };
        // Compaction may have removed the last records before the next segment.
        let end = if self.topic.compact { next } else { found.end };
        let segment = self.in_run(&path, SealedSegment { end, ..segment }, next)?;
        if let Err(error) = found.index.write(&index_path, size, segment.end) {
            // Searched from the front without it, which a full disk is no reason to refuse.
            tracing::warn!(error = %error.full_text(), "index not written");
        }
        Ok(segment)
    }

    fn in_run(
        &self,
        path: &Path,
        segment: SealedSegment,
        next: Offset,
    ) -> Result<SealedSegment, Error> {
        if segment.end == next {
            return Ok(segment);
        }
        Err(Error::corrupt(
            path,
            segment.size,
            format!(
                "the segment ends with offset {}, the next one begins with {next}; restore the \
                 missing segment from a copy",
                segment.end
            ),
        ))
    }

    fn open_last(&self, base: Offset, floor: Offset) -> Result<Last, Error> {
        let path = segment::path(self.folder, base, Kind::Log);
        let file = self.shared.config.disk.open(&path).map_err(Error::io("open", &path))?;
        let metadata = std::fs::metadata(&path).map_err(Error::io("open", &path))?;
        let (length, written_ms) = (metadata.len(), disk::modified_ms(&metadata));
        let now = self.shared.config.clock.now_ms();
        let began_ms = |size| if size > 0 { Some(now) } else { None };
        if let Some((index, seal)) =
            SegmentIndex::read(&segment::path(self.folder, base, Kind::Index), base)?
            && seal.size == length
            && seal.end >= floor
        {
            let (size, began_ms) = (length, began_ms(length));
            let active = ActiveSegment { base, path, file, size, index, began_ms, written_ms };
            return Ok(Last { active, end: seal.end });
        }
        let suspect = Suspect { file: &*file, path: &path, base, continuity: self.continuity() };
        let mut flushed_bytes = 0;
        let found = suspect.recover_last(floor, &mut |batch| {
            if batch.next_offset() <= floor {
                flushed_bytes += batch.bytes().len() as u64;
            }
        })?;
        if found.torn_bytes > 0 {
            tracing::info!(
                topic = %self.name.topic,
                partition = %self.name.partition,
                offset = %found.end,
                torn_bytes = found.torn_bytes,
                "cut off an unacknowledged tail"
            );
        }
        disk::write_again(&*file, &path, flushed_bytes, found.size)?;
        let active = ActiveSegment {
            base,
            path,
            file,
            size: found.size,
            index: found.index,
            began_ms: began_ms(found.size),
            written_ms,
        };
        Ok(Last { active, end: found.end })
    }

    fn check_run(
        &self,
        sealed: &[SealedSegment],
        last_base: Offset,
        start: Offset,
        end: Offset,
    ) -> Result<(), Error> {
        let first = sealed.first().map_or(last_base, |segment| segment.base);
        if first <= start && start <= end {
            return Ok(());
        }
        Err(Error::corrupt(
            self.folder,
            0,
            format!(
                "the segments hold offsets {first} to {end}, the first one kept should be {start}; \
                 restore the missing segments from a copy"
            ),
        ))
    }

    /// Finishes a removal that a crash interrupted.
    fn remove_before(&self, sealed: &mut Vec<SealedSegment>, start: Offset) -> Result<(), Error> {
        let gone = sealed.partition_point(|segment| segment.end <= start);
        for segment in sealed.drain(..gone) {
            disk::remove_file(&segment::path(self.folder, segment.base, Kind::Log))?;
            disk::remove_file(&segment::path(self.folder, segment.base, Kind::Index))?;
        }
        Ok(())
    }

    /// The producers' state at the end: the newest snapshot, and the batches behind it.
    fn producers(&self, sealed: &[SealedSegment], last: &Last) -> Result<ProducerStates, Error> {
        let mut from = sealed.first().map_or(last.active.base, |segment| segment.base);
        let mut states = ProducerStates::default();
        for offset in segment::list(self.folder, Kind::Producers)?.into_iter().rev() {
            let path = segment::path(self.folder, offset, Kind::Producers);
            if offset > last.end {
                // Of a tail that is gone.
                disk::remove_file(&path)?;
                continue;
            }
            if let Some(found) =
                disk::read_if_exists(&path)?.as_deref().and_then(ProducerStates::decode)
            {
                (from, states) = (offset, found);
                break;
            }
        }
        let now = self.shared.config.clock.now_ms();
        let mut replay = |batch: &RecordBatch| {
            if batch.base_offset() >= from
                && let Some(producer) = ProducerBatch::of(batch.header())
            {
                states.record(&producer, batch.base_offset(), batch.last_offset(), now);
            }
        };
        for segment in sealed.iter().filter(|segment| segment.end > from) {
            let path = segment::path(self.folder, segment.base, Kind::Log);
            let file = self.shared.config.disk.open(&path).map_err(Error::io("open", &path))?;
            walk(&mut BatchScan::new(&*file, &path, 0, segment.size), &mut replay)?;
        }
        if last.end > from {
            let active = &last.active;
            let mut scan = BatchScan::new(&*active.file, &active.path, 0, active.size);
            walk(&mut scan, &mut replay)?;
        }
        Ok(states)
    }
}

fn walk(scan: &mut BatchScan<'_>, each: &mut dyn FnMut(&RecordBatch)) -> Result<(), Error> {
    loop {
        let position = scan.position();
        match scan.next()? {
            Scanned::Batch(batch) => each(&batch),
            Scanned::End => return Ok(()),
            Scanned::Invalid(problem) => {
                return Err(Error::corrupt(scan.path(), position, problem));
            }
        }
    }
}
