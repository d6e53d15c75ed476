//! Taking batches from the leader: as they are, offsets, epochs and all. No IO.
//!
//! What the leader took is a fact here: producers' sequences are noted, never judged. What the
//! leader *sent* is outside input: every batch is whole, its checksum right, and it continues this
//! replica's log, or nothing of the answer is taken.

use bytes::{Bytes, BytesMut};
use tailwater_kafka::{BatchError, LeaderEpoch, Offset, RecordBatch};
use tokio::sync::OwnedSemaphorePermit;

use crate::producers::ProducerBatch;
use crate::storage::partition::{Online, Partition, Pending, Stopped};

/// Why batches of the leader are not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReplicated {
    /// The partition serves nobody.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// Damaged on the way, or at the leader.
    #[error("a batch of the leader is not whole")]
    Damaged(#[from] BatchError),
    /// Not what comes next here.
    #[error("the leader sent offset {found} of epoch {epoch}, expected offset {expected}")]
    OutOfOrder { expected: Offset, found: Offset, epoch: LeaderEpoch },
}

impl Partition {
    /// Takes the batches of a leader's answer, whole batches one after the other; bytes of a last
    /// one that is cut off are left. `room` is their part of the memory for waiting batches.
    /// Returns whether the partition must now be handed to a flush thread.
    ///
    /// # Errors
    /// If they do not continue this log; then nothing has changed.
    pub(crate) fn append_replicated(
        &self,
        records: &Bytes,
        mut room: Option<OwnedSemaphorePermit>,
    ) -> Result<bool, NotReplicated> {
        // Copied once: the answer's buffer holds other partitions' batches too.
        let batches = whole_batches(BytesMut::from(&records[..]).freeze())?;
        let tail_share = self.shared.tail_share();
        let now = self.shared.config.clock.now_ms();
        let mut state = self.lock_state();
        let online = state.online()?;
        online.check_run(&batches, self.topic.compact)?;
        for batch in batches {
            if let Some(producer) = ProducerBatch::of(batch.header()) {
                online.producers.record(&producer, batch.base_offset(), batch.last_offset(), now);
            }
            if batch.leader_epoch() > online.epochs.current() {
                online.epochs.note(batch.leader_epoch(), batch.base_offset());
                online.epochs_noted = true;
            }
            online.end = batch.next_offset();
            online.tail.push(batch.clone(), tail_share);
            let own = room.as_mut().and_then(|room| room.split(batch.bytes().len()));
            online.pending.push_back(Pending { batch, _room: own });
        }
        let schedule = online.schedule();
        state.wake_followers();
        Ok(schedule)
    }
}

impl Online {
    /// A compacted leader has gaps.
    fn check_run(&self, batches: &[RecordBatch], gaps: bool) -> Result<(), NotReplicated> {
        let (mut expected, mut epoch) = (self.end, self.epochs.current());
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
    use crate::storage::testing::{bases, partition, replicated};

    #[test]
    fn batches_are_taken_as_they_are_and_are_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0");
        let follower = partition(&path, Arc::new(FileSystem));
        assert!(follower.append_replicated(&replicated(0, 40, 3), None).unwrap());
        // Two are there to be followed on before they are written.
        assert_eq!(bases(&follower).len(), 20);
        follower.write_round();
        assert!(follower.append_replicated(&replicated(40, 60, 5), None).unwrap());
        follower.write_round();
        let expected: Vec<i64> = (0..60).step_by(2).collect();
        assert_eq!(bases(&follower), expected);
        drop(follower);
        let again = partition(&path, Arc::new(FileSystem));
        assert_eq!(bases(&again), expected);
        let epochs: Vec<_> =
            again.epochs().unwrap().entries().map(|(e, o)| (e.get(), o.get())).collect();
        assert_eq!(epochs[..2], [(3, 0), (5, 40)]);
    }

    #[test]
    fn what_does_not_continue_the_log_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let follower = partition(&folder.path().join("0"), Arc::new(FileSystem));
        follower.append_replicated(&replicated(0, 10, 3), None).unwrap();
        let refused = |records: &Bytes| follower.append_replicated(records, None).unwrap_err();
        assert!(matches!(refused(&replicated(8, 12, 3)), NotReplicated::OutOfOrder { .. }));
        assert!(matches!(refused(&replicated(10, 12, 2)), NotReplicated::OutOfOrder { .. }));
        assert!(matches!(refused(&replicated(12, 14, 3)), NotReplicated::OutOfOrder { .. }));
        let whole = replicated(10, 14, 3);
        // Offset and epoch are the leader's to set, and outside of the checksum.
        let unchecked = |position: usize| position % (whole.len() / 2) < 16;
        for position in (0..whole.len()).filter(|position| !unchecked(*position)) {
            let mut damaged = whole.to_vec();
            damaged[position] ^= 0x20;
            // A length that became greater is an answer that was cut off: nothing of it is taken.
            if follower.append_replicated(&damaged.into(), None).is_ok() {
                assert!(bases(&follower).last() <= Some(&10), "byte {position}");
                follower.truncate(Offset::new(10)).unwrap();
            }
            assert_eq!(bases(&follower), [0, 2, 4, 6, 8], "byte {position}");
        }
        // What is cut off at its end is taken as far as it is whole.
        follower.append_replicated(&whole.slice(..whole.len() - 1), None).unwrap();
        assert_eq!(bases(&follower), [0, 2, 4, 6, 8, 10]);
    }
}
