//! Cutting off the end of a partition: what the leader does not have is not part of the log.
//!
//! Only a follower is cut, and only where its leader says that their histories part. The order on
//! the disk makes a crash at any point harmless: first the flush mark goes down (so that a shorter
//! file is no damage), then files go from the newest to the oldest (so that there is never a gap),
//! then the file with the cut is shortened; what is left is then opened as after a crash. Readers
//! that were looking at the old files look again, as during compaction.

use std::path::PathBuf;
use std::sync::Arc;

use tailwater_kafka::Offset;

use crate::Error;
use crate::replica::{EpochEnd, OwnLog, Truncation, truncation_point};
use crate::storage::checkpoint::PartitionDescription;
use crate::storage::disk::{self, DiskFile};
use crate::storage::epochs::EpochHistory;
use crate::storage::open::Opening;
use crate::storage::partition::{Condition, Files, NotKept, Online, Partition, Stopped, lock};
use crate::storage::replicate::Leadership;
use crate::storage::scan::{BatchScan, Scanned};
use crate::storage::segment::{self, Kind};

impl Partition {
    /// The leader's log parts from this one at `said`: removes what is not the leader's. Blocks.
    ///
    /// # Errors
    /// As [`Partition::truncate`].
    pub(crate) fn part(&self, leadership: Leadership, said: EpochEnd) -> Result<(), Error> {
        let mut files = lock(&self.files);
        let cut = {
            let mut state = self.lock_state();
            if state.replica.follows() != Some(leadership) {
                return Ok(());
            }
            let high_watermark = state.replica.high_watermark();
            let Ok(online) = state.online() else { return Ok(()) };
            let (start, end) = (online.start, online.end);
            truncation_point(OwnLog { epochs: &online.epochs, start, end, high_watermark }, said)
        };
        let (to, committed) = match cut {
            None => return Ok(()),
            Some(Truncation::To(to)) => (to, false),
            Some(Truncation::BelowHighWatermark(to)) => (to, true),
            Some(Truncation::All) => (Offset::ZERO, true),
        };
        let (leader, leader_epoch) = leadership;
        let (topic, partition) = (&self.name.topic, self.name.partition);
        if committed {
            tracing::error!(
                %topic, %partition, %leader, %leader_epoch, %to,
                "records that were acknowledged are cut off: an unclean election chose a leader \
                 without them"
            );
        } else {
            tracing::info!(%topic, %partition, %leader, %leader_epoch, %to, "cut to the leader's log");
        }
        self.truncate_locked(&mut files, to).map(drop)
    }

    /// Removes every batch that has an offset at or after `to`. Blocks. Returns the end now: `to`,
    /// or less where a batch reaches over it.
    ///
    /// # Errors
    /// The system's; the partition is then offline, since what it has is not the leader's.
    #[cfg(test)]
    pub(crate) fn truncate(&self, to: Offset) -> Result<Offset, Error> {
        self.truncate_locked(&mut lock(&self.files), to)
    }

    fn truncate_locked(&self, files: &mut Files, to: Offset) -> Result<Offset, Error> {
        let written = match self.lock_state().online() {
            Ok(online) => online.written_end,
            Err(_) => return Err(Error::Closed),
        };
        if to >= written {
            return self.forget_pending(to);
        }
        self.reopened(files, |partition, files| partition.cut_files(files, to))
    }

    /// Begins anew at `start` with nothing: the leader no longer has what would come next here.
    /// Blocks.
    ///
    /// # Errors
    /// As [`Partition::truncate`].
    pub(crate) fn restart_at(&self, start: Offset) -> Result<(), Error> {
        let mut files = lock(&self.files);
        self.reopened(&mut files, |partition, files| partition.remove_all(files, start)).map(drop)
    }

    /// The end is in memory only.
    fn forget_pending(&self, to: Offset) -> Result<Offset, Error> {
        let mut state = self.lock_state();
        let Ok(online) = state.online() else { return Err(Error::Closed) };
        while online.pending.back().is_some_and(|pending| pending.batch.last_offset() >= to) {
            online.pending.pop_back();
        }
        let end = online.pending.back().map_or(online.written_end, |last| last.batch.next_offset());
        online.producers = online.producers_written.clone();
        let now = self.shared.config.clock.now_ms();
        for pending in &online.pending {
            if let Some(producer) = crate::producers::ProducerBatch::of(pending.batch.header()) {
                let (base, last) = (pending.batch.base_offset(), pending.batch.last_offset());
                online.producers.record(&producer, base, last, now);
            }
        }
        online.end = end;
        online.tail.truncate(end);
        online.epochs.truncate(end);
        online.refuse_from(end, &NotKept::NotLeader);
        Ok(end)
    }

    /// Changes the files with `change` and opens what is left; the end of that.
    fn reopened(
        &self,
        files: &mut Files,
        change: impl FnOnce(&Self, &mut Files) -> Result<(), Error>,
    ) -> Result<Offset, Error> {
        let before = self.begin_replacement()?;
        let topic = self.topic_config();
        let opened = change(self, files).and_then(|()| {
            let Self { folder, name, shared, .. } = self;
            Opening { folder, name, topic: &topic, shared }.open()
        });
        match opened {
            Ok((online, opened)) => {
                *files = opened;
                Ok(self.end_replacement(online, before))
            }
            Err(error) => {
                self.stop(Stopped::Offline(error.full_text()));
                Err(error)
            }
        }
    }

    /// Lets go of what is in memory only; what must outlive the replacement.
    fn begin_replacement(&self) -> Result<Kept, Error> {
        let mut state = self.lock_state();
        let Ok(online) = state.online() else { return Err(Error::Closed) };
        online.pending.clear();
        online.replacements += 1;
        Ok(Kept { high_watermark: online.high_watermark, replacements: online.replacements + 1 })
    }

    fn end_replacement(&self, mut next: Online, kept: Kept) -> Offset {
        let mut state = self.lock_state();
        let end = next.end;
        next.replacements = kept.replacements;
        next.high_watermark = kept.high_watermark.clamp(next.start, end);
        if let Ok(online) = state.online() {
            online.refuse_from(end, &NotKept::NotLeader);
            next.acknowledgements = std::mem::take(&mut online.acknowledgements);
            next.scheduled = online.scheduled;
            state.condition = Condition::Online(Box::new(next));
        }
        state.wake();
        end
    }

    fn cut_files(&self, files: &mut Files, to: Offset) -> Result<(), Error> {
        let (mut bases, start, epochs) = self.segments()?;
        let count = bases.partition_point(|base| *base < to).max(1).min(bases.len());
        let gone = bases.split_off(count);
        let Some(last) = bases.pop() else { return Ok(()) };
        let cut = self.find_cut(last, to)?;
        if let Some(flushed) = &mut files.flushed {
            flushed.write(cut.end)?;
            flushed.sync()?;
        }
        for base in gone.into_iter().rev() {
            self.remove_segment(base)?;
        }
        disk::remove_file(&segment::path(&self.folder, last, Kind::Index))?;
        cut.file.truncate(cut.position).map_err(Error::io("cut", &cut.path))?;
        cut.file.sync().map_err(Error::io("flush", &cut.path))?;
        self.describe_cut(files, start, epochs, cut.end)
    }

    fn remove_all(&self, files: &mut Files, start: Offset) -> Result<(), Error> {
        let (bases, _, _) = self.segments()?;
        if let Some(flushed) = &mut files.flushed {
            flushed.write(Offset::ZERO)?;
            flushed.sync()?;
        }
        for base in bases.into_iter().rev() {
            self.remove_segment(base)?;
        }
        for offset in segment::list(&self.folder, Kind::Producers)? {
            disk::remove_file(&segment::path(&self.folder, offset, Kind::Producers))?;
        }
        disk::sync_folder(&*self.shared.config.disk, &self.folder)?;
        self.describe_cut(files, start, EpochHistory::default(), start)
    }

    fn segments(&self) -> Result<(Vec<Offset>, Offset, EpochHistory), Error> {
        let bases = segment::list(&self.folder, Kind::Log)?;
        let mut state = self.lock_state();
        let Ok(online) = state.online() else { return Err(Error::Closed) };
        Ok((bases, online.start, online.epochs.clone()))
    }

    fn remove_segment(&self, base: Offset) -> Result<(), Error> {
        // Removed for good before an older one goes: a run has no gaps.
        disk::remove_file(&segment::path(&self.folder, base, Kind::Index))?;
        disk::remove_file(&segment::path(&self.folder, base, Kind::Log))?;
        disk::sync_folder(&*self.shared.config.disk, &self.folder)
    }

    /// Where the segment is to be cut, so that whole batches below `to` are left.
    fn find_cut(&self, base: Offset, to: Offset) -> Result<Cut, Error> {
        let path = segment::path(&self.folder, base, Kind::Log);
        let file = self.shared.config.disk.open(&path).map_err(Error::io("open", &path))?;
        let length = file.len().map_err(Error::io("read the length of", &path))?;
        let mut scan = BatchScan::new(&*file, &path, 0, length);
        let mut end = base;
        let position = loop {
            let position = scan.position();
            match scan.next()? {
                Scanned::Batch(batch) if batch.last_offset() < to => end = batch.next_offset(),
                // What is not valid here is behind everything that was written.
                Scanned::Batch(_) | Scanned::End | Scanned::Invalid(_) => break position,
            }
        };
        Ok(Cut { file, path, position, end })
    }

    /// Says what is left where the log was cut.
    fn describe_cut(
        &self,
        files: &mut Files,
        start: Offset,
        mut epochs: EpochHistory,
        end: Offset,
    ) -> Result<(), Error> {
        epochs.truncate(end);
        let (topic_id, partition) = (self.name.topic_id, self.name.partition.get());
        self.describe(files, PartitionDescription { topic_id, partition, start, epochs })
    }
}

/// Where a segment is cut.
struct Cut {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    position: u64,
    /// The end of what is left.
    end: Offset,
}

/// What outlives the files.
struct Kept {
    high_watermark: Offset,
    replacements: u64,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::storage::testing::{Failing, answered, bases, following, partition, replicated};
    use crate::storage::{Disk, FileSystem};

    /// Offsets 0 to 60 in several segments, epoch 1 to 30, epoch 4 from there on; the last ten not
    /// yet written.
    fn filled(path: &Path, disk: Arc<dyn Disk>) -> Partition {
        let follower = following(path, disk);
        for (from, to, epoch) in [(0, 20, 1), (20, 30, 1), (30, 40, 4), (40, 50, 4)] {
            follower.append_replicated(&answered(replicated(from, to, epoch)), None).unwrap();
            follower.write_round();
        }
        follower.append_replicated(&answered(replicated(50, 60, 4)), None).unwrap();
        follower
    }

    fn below(to: i64) -> Vec<i64> {
        (0..60).step_by(2).filter(|base| base + 2 <= to).collect()
    }

    #[test]
    fn what_is_left_is_a_prefix_wherever_it_is_cut() {
        for to in 0..=60 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("0");
            let follower = filled(&path, Arc::new(FileSystem));
            let end = follower.truncate(Offset::new(to)).unwrap();
            assert_eq!(end.get(), to / 2 * 2);
            follower.write_round();
            assert_eq!(bases(&follower), below(to), "cut at {to}");
            let epochs = follower.epochs().unwrap();
            assert!(epochs.entries().all(|(_, began)| began < end));
            // And goes on from there, under a newer leader.
            follower.append_replicated(&answered(replicated(end.get(), 64, 6)), None).unwrap();
            follower.write_round();
            let expected: Vec<i64> = (0..64).step_by(2).collect();
            assert_eq!(bases(&follower), expected, "cut at {to}");
            assert_eq!(follower.epochs().unwrap().epoch_of(end).unwrap().get(), 6);
            drop(follower);
            assert_eq!(bases(&partition(&path, Arc::new(FileSystem))), expected, "cut at {to}");
        }
    }

    #[test]
    fn begins_anew_where_the_leader_begins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0");
        let follower = filled(&path, Arc::new(FileSystem));
        follower.restart_at(Offset::new(100)).unwrap();
        assert!(bases(&follower).is_empty());
        follower.append_replicated(&answered(replicated(100, 110, 7)), None).unwrap();
        follower.write_round();
        drop(follower);
        let again = partition(&path, Arc::new(FileSystem));
        assert_eq!(bases(&again), [100, 102, 104, 106, 108]);
    }

    #[test]
    fn a_cut_that_breaks_off_leaves_a_prefix_that_can_be_cut_again() {
        for operations in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("0");
            let disk = Failing::default();
            let follower = filled(&path, Arc::new(disk.clone()));
            disk.fail_after(operations);
            let cut = follower.truncate(Offset::new(24));
            drop(follower);
            let again = partition(&path, Arc::new(FileSystem));
            let left = bases(&again);
            assert_eq!(left, below(60)[..left.len()], "after {operations} operations");
            assert!(left.len() >= 12, "after {operations} operations: {left:?}");
            again.truncate(Offset::new(24)).unwrap();
            assert_eq!(bases(&again), below(24));
            if cut.is_ok() {
                assert!(operations > 5, "only {operations} operations");
                return;
            }
        }
    }
}
