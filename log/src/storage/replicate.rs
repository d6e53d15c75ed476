//! Following: what to ask the leader for, and taking what it answers, as it is, offsets, epochs and
//! all. And the leader's side of that. No IO.
//!
//! What the leader took is a fact here: producers' sequences are noted, never judged. What the
//! leader *sent* is outside input: every batch is whole, its checksum right, and it continues this
//! replica's log, or nothing of the answer is taken. And it is taken only while the leader of that
//! time, in that epoch, is still the one to follow.

use bytes::{Bytes, BytesMut};
use tailwater_kafka::{BatchError, BrokerId, LeaderEpoch, Offset, RecordBatch};
use tokio::sync::OwnedSemaphorePermit;

use crate::producers::ProducerBatch;
use crate::replica::{EpochEnd, Event, Fetched, WrongEpoch, divergence};
use crate::storage::epochs::EpochFalls;
use crate::storage::partition::{Offsets, Online, Partition, Pending, Stopped};

/// Whom a replica follows, and in which of its epochs.
pub(crate) type Leadership = (BrokerId, LeaderEpoch);

/// What a follower asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) leadership: Leadership,
    /// Everything below is flushed here.
    pub(crate) from: Offset,
    /// The epoch of the last record here; [`LeaderEpoch::NONE`] without any.
    pub(crate) last_epoch: LeaderEpoch,
    pub(crate) start: Offset,
}

/// What a leader answered.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) leadership: Leadership,
    pub(crate) records: Bytes,
    pub(crate) high_watermark: Offset,
    pub(crate) log_start: Offset,
}

/// Why an answer of the leader is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReplicated {
    /// The partition serves nobody.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// Somebody else is to be followed by now, or nobody.
    #[error("another leader is to be followed")]
    NotFollowing,
    /// Damaged on the way, or at the leader.
    #[error("a batch of the leader is not whole")]
    Damaged(#[from] BatchError),
    /// Of an epoch before that of the records here.
    #[error(transparent)]
    Epoch(#[from] EpochFalls),
    /// Not what comes next here.
    #[error("the leader sent offset {found} of epoch {epoch}, expected offset {expected}")]
    OutOfOrder { expected: Offset, found: Offset, epoch: LeaderEpoch },
}

/// Why a follower is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotServed {
    /// The partition serves nobody.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// It does not lead, or not in that epoch.
    #[error("another leader epoch")]
    WrongEpoch(WrongEpoch),
    /// Nothing is, or ever was, there.
    #[error("offset is outside of {} to {}", .0.start, .0.end)]
    OutOfRange(Offsets),
}

impl Partition {
    /// What to ask the leader for; `None` while there is nobody to follow, or what was fetched is
    /// not flushed yet.
    pub(crate) fn wanted(&self) -> Option<Wanted> {
        let mut state = self.lock_state();
        let leadership = state.replica.follows()?;
        let online = state.online().ok()?;
        (online.durable_end == online.end).then(|| Wanted {
            leadership,
            from: online.end,
            last_epoch: online.epochs.last_written(online.end),
            start: online.start,
        })
    }

    /// Takes the leader's answer: whole batches one after the other; bytes of a last one that is cut
    /// off are left. `room` is their part of the memory for waiting batches. Returns whether the
    /// partition must now be handed to a flush thread.
    ///
    /// # Errors
    /// If they do not continue this log; then nothing has changed.
    pub(crate) fn append_replicated(
        &self,
        answered: &Answered,
        mut room: Option<OwnedSemaphorePermit>,
    ) -> Result<bool, NotReplicated> {
        // Copied once: the answer's buffer holds other partitions' batches too.
        let batches = whole_batches(BytesMut::from(&answered.records[..]).freeze())?;
        let tail_share = self.shared.tail_share();
        let now = self.shared.config.clock.now_ms();
        let mut state = self.lock_state();
        if state.replica.follows() != Some(answered.leadership) {
            return Err(NotReplicated::NotFollowing);
        }
        let online = state.online()?;
        online.check_run(&batches, self.topic_config().compact)?;
        for batch in batches {
            if let Some(producer) = ProducerBatch::of(batch.header()) {
                online.producers.record(&producer, batch.base_offset(), batch.last_offset(), now);
            }
            // Not the newest epoch that is known: before the first record there is none, and the
            // first leader's is 0 as well.
            if online.epochs.epoch_of(batch.base_offset()) != Some(batch.leader_epoch()) {
                online.epochs.note(batch.leader_epoch(), batch.base_offset())?;
            }
            online.end = batch.next_offset();
            online.tail.push(batch.clone(), tail_share);
            let own = room.as_mut().and_then(|room| room.split(batch.bytes().len()));
            online.pending.push_back(Pending { batch, _room: own });
        }
        let Answered { leadership: (_, leader_epoch), high_watermark, log_start, .. } = *answered;
        state.tell(self, Event::LeaderSaid { leader_epoch, high_watermark, log_start });
        Ok(state.online().is_ok_and(Online::schedule))
    }

    /// A follower asks from `fetched.from`, its last record being of `last_epoch`: everything below
    /// is flushed there. Where that is no part of this log, where they part.
    ///
    /// # Errors
    /// If this is not the leader that it means.
    pub(crate) fn follower_asks(
        &self,
        fetched: Fetched,
        leader_epoch: LeaderEpoch,
        last_epoch: LeaderEpoch,
    ) -> Result<Option<EpochEnd>, NotServed> {
        let mut state = self.lock_state();
        state.online()?;
        state.replica.check_leader(leader_epoch).map_err(NotServed::WrongEpoch)?;
        let online = state.online()?;
        if let Some(parts) = divergence(&online.epochs, online.end, last_epoch, fetched.from) {
            return Ok(Some(parts));
        }
        if fetched.from < online.start || fetched.from > online.end {
            return Err(NotServed::OutOfRange(online.offsets()));
        }
        state.tell(self, Event::Fetched(fetched));
        Ok(None)
    }
}

impl Online {
    /// A compacted leader has gaps.
    fn check_run(&self, batches: &[RecordBatch], gaps: bool) -> Result<(), NotReplicated> {
        let (mut expected, mut epoch) = (self.end, self.epochs.last_written(self.end));
        for batch in batches {
            let base = batch.base_offset();
            let continues = base == expected || (gaps && base > expected);
            if !continues || batch.leader_epoch() < epoch {
                return Err(NotReplicated::OutOfOrder {
                    expected,
                    found: base,
                    epoch: batch.leader_epoch(),
                });
            }
            (expected, epoch) = (batch.next_offset(), batch.leader_epoch());
        }
        Ok(())
    }
}

fn whole_batches(mut rest: Bytes) -> Result<Vec<RecordBatch>, BatchError> {
    let mut batches = Vec::new();
    while let Some((batch, after)) = RecordBatch::parse(rest)? {
        batch.verify_crc()?;
        batches.push(batch);
        rest = after;
    }
    Ok(batches)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::FileSystem;
    use crate::storage::checkpoint::PartitionDescription;
    use crate::storage::testing::{Failing, answered, bases, following, partition, replicated};

    #[test]
    fn batches_are_taken_as_they_are_and_are_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0");
        let follower = following(&path, Arc::new(FileSystem));
        assert!(follower.append_replicated(&answered(replicated(0, 40, 3)), None).unwrap());
        assert_eq!(follower.wanted(), None, "not flushed yet");
        follower.write_round();
        assert_eq!(follower.wanted().unwrap().last_epoch.get(), 3);
        assert!(follower.append_replicated(&answered(replicated(40, 60, 5)), None).unwrap());
        follower.write_round();
        let expected: Vec<i64> = (0..60).step_by(2).collect();
        assert_eq!(bases(&follower), expected);
        drop(follower);
        let again = partition(&path, Arc::new(FileSystem));
        assert_eq!(bases(&again), expected);
        let epochs: Vec<_> =
            again.epochs().unwrap().entries().map(|(e, o)| (e.get(), o.get())).collect();
        assert_eq!(epochs, [(3, 0), (5, 40)]);
    }

    #[test]
    fn whatever_breaks_off_the_epoch_of_the_last_record_is_known() {
        for operations in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("0");
            let disk = Failing::default();
            let follower = following(&path, Arc::new(disk.clone()));
            follower.append_replicated(&answered(replicated(0, 40, 3)), None).unwrap();
            follower.write_round();
            follower.append_replicated(&answered(replicated(40, 60, 5)), None).unwrap();
            disk.fail_after(operations);
            follower.write_round();
            let broke_off = follower.offsets().is_err();
            drop(follower);
            let again = partition(&path, Arc::new(FileSystem));
            let last = *bases(&again).last().unwrap();
            let end = again.written_end();
            let epoch = if last < 40 { 3 } else { 5 };
            let known = again.epochs().unwrap().last_written(end);
            assert_eq!(known.get(), epoch, "after {operations} operations, end {end}");
            if !broke_off {
                assert!(operations > 1, "only {operations} operations");
                return;
            }
        }
    }

    /// A replica was elected and wrote nothing; then it copied what an older leader had written.
    #[test]
    fn an_epoch_without_a_record_gives_way_to_an_older_one_with_records() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0");
        let follower = following(&path, Arc::new(FileSystem));
        follower.append_replicated(&answered(replicated(0, 40, 3)), None).unwrap();
        follower.write_round();
        drop(follower);
        let mut description = PartitionDescription::read(&path).unwrap();
        description.epochs.begin(LeaderEpoch::new(5), Offset::new(40)).unwrap();
        description.write(&path).unwrap();
        let follower = following(&path, Arc::new(FileSystem));
        follower.append_replicated(&answered(replicated(40, 60, 3)), None).unwrap();
        follower.write_round();
        drop(follower);
        let again = partition(&path, Arc::new(FileSystem));
        assert_eq!(again.epochs().unwrap().last_written(Offset::new(60)).get(), 3);
    }

    /// The first epoch is 0, as is what a log without records is in.
    #[test]
    fn what_the_first_leader_wrote_is_of_its_epoch() {
        let folder = tempfile::tempdir().unwrap();
        let follower = following(&folder.path().join("0"), Arc::new(FileSystem));
        follower.append_replicated(&answered(replicated(0, 10, 0)), None).unwrap();
        follower.write_round();
        assert_eq!(follower.wanted().unwrap().last_epoch.get(), 0);
    }

    #[test]
    fn what_does_not_continue_the_log_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let follower = following(&folder.path().join("0"), Arc::new(FileSystem));
        follower.append_replicated(&answered(replicated(0, 10, 3)), None).unwrap();
        follower.write_round();
        let refused =
            |records: Bytes| follower.append_replicated(&answered(records), None).unwrap_err();
        assert!(matches!(refused(replicated(8, 12, 3)), NotReplicated::OutOfOrder { .. }));
        assert!(matches!(refused(replicated(10, 12, 2)), NotReplicated::OutOfOrder { .. }));
        assert!(matches!(refused(replicated(12, 14, 3)), NotReplicated::OutOfOrder { .. }));
        let whole = replicated(10, 14, 3);
        // Offset and epoch are the leader's to set, and outside of the checksum.
        let unchecked = |position: usize| position % (whole.len() / 2) < 16;
        for position in (0..whole.len()).filter(|position| !unchecked(*position)) {
            let mut damaged = whole.to_vec();
            damaged[position] ^= 0x20;
            // A length that became greater is an answer that was cut off: nothing of it is taken.
            if follower.append_replicated(&answered(damaged.into()), None).is_ok() {
                follower.write_round();
                assert!(bases(&follower).last() <= Some(&10), "byte {position}");
                follower.truncate(Offset::new(10)).unwrap();
            }
            assert_eq!(bases(&follower), [0, 2, 4, 6, 8], "byte {position}");
        }
        // What is cut off at its end is taken as far as it is whole.
        let cut_off = whole.slice(..whole.len() - 1);
        follower.append_replicated(&answered(cut_off), None).unwrap();
        follower.write_round();
        assert_eq!(bases(&follower), [0, 2, 4, 6, 8, 10]);
    }
}
