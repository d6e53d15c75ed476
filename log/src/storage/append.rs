//! Taking a batch: its turn, its offsets, its place in the queue. No IO.

use std::time::Duration;

use bytes::BytesMut;
use tailwater_kafka::{Offset, RecordBatch, place};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::producers::{ProducerBatch, Refusal, Verdict};
use crate::replica::NotNow;
use crate::storage::partition::{
    Acknowledgement, Acks, AwaitedAck, Online, Partition, Pending, Stopped,
};

/// How long after an election requests may come that were sent before it.
const NEWLY: Duration = Duration::from_secs(5);

/// A batch that is taken, or was taken before.
#[derive(Debug)]
pub(crate) struct Taken {
    /// The offset of its first record.
    pub(crate) base: Offset,
    /// The first offset that the partition keeps.
    pub(crate) start: Offset,
    /// Told when it is kept as its producer wants it.
    pub(crate) acknowledgement: Acknowledgement,
    /// Whether the partition must now be handed to a flush thread.
    pub(crate) schedule: bool,
}

/// Why a batch is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotTaken {
    /// The partition serves nobody.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// It does not lead, or too few replicas are in sync.
    #[error(transparent)]
    NotNow(#[from] NotNow),
    /// It is not the producer's turn.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There are no more offsets.
    #[error("the partition has used up its offsets")]
    Full,
}

impl Partition {
    /// Takes a batch that was found valid; `room` is its part of the memory for waiting batches.
    ///
    /// A repetition is acknowledged like the first time: when the *first* is kept.
    ///
    /// # Errors
    /// If it is not taken; then nothing has changed.
    pub(crate) fn append(
        &self,
        batch: &RecordBatch,
        room: Option<OwnedSemaphorePermit>,
        acks: Acks,
    ) -> Result<Taken, NotTaken> {
        let tail_share = self.shared.tail_share();
        // Copied, since others share its buffer (the request, a producer that may repeat it), and
        // here, where nobody has to wait for that.
        let copy = BytesMut::from(&batch.bytes()[..]);
        let mut state = self.lock_state();
        state.online()?;
        state.replica.may_append(acks == Acks::All)?;
        let alone = state.replica.followers().next().is_none();
        let online = state.online()?;
        let producer = ProducerBatch::of(batch.header());
        let verdict = match &producer {
            Some(producer) if !alone && online.leads_newly(producer) => {
                return Err(NotNow::NotLeader.into());
            }
            Some(producer) => online.producers.check(producer)?,
            None => Verdict::Append,
        };
        let (base, last) = match verdict {
            Verdict::Duplicate { base, last } => (base, last),
            Verdict::Append => {
                let placed = place_at_end(copy, batch, online).ok_or(NotTaken::Full)?;
                let (base, last) = (placed.base_offset(), placed.last_offset());
                if let Some(producer) = &producer {
                    online.producers.record(
                        producer,
                        base,
                        last,
                        self.shared.config.clock.now_ms(),
                    );
                }
                online.end = placed.next_offset();
                online.tail.push(placed.clone(), tail_share);
                online.pending.push_back(Pending { batch: placed, _room: room });
                (base, last)
            }
        };
        let acknowledgement = online.acknowledge(last, acks);
        let schedule = online.schedule();
        Ok(Taken { base, start: online.start, acknowledgement, schedule })
    }
}

impl Online {
    /// Whether this replica leads for so short a time that the batches before this one may be on
    /// their way still. The first of several requests in flight is refused by a broker that does
    /// not lead yet, and the second one meets it when it does: both are to come again, in their
    /// order. Told that a batch is missing, a producer may give up for good; and taken, it would
    /// stand before the first.
    fn leads_newly(&self, batch: &ProducerBatch) -> bool {
        let began = self.epochs.entries().last().map_or(Offset::ZERO, |(_, began)| began);
        self.leads_since.is_some_and(|since| since.elapsed() < NEWLY)
            && self.producers.may_follow_others(batch, began)
    }

    /// A receiver that is told when `last` is kept as `acks` says.
    fn acknowledge(&mut self, last: Offset, acks: Acks) -> Acknowledgement {
        let (tell, told) = oneshot::channel();
        if last < self.kept_end(acks) {
            // The receiver is in this function: it cannot be gone.
            drop(tell.send(Ok(())));
        } else {
            self.acknowledgements.push(AwaitedAck { last, acks, tell });
        }
        told
    }

    /// Whether there is something for a flush thread.
    pub(super) fn has_work(&self) -> bool {
        !self.pending.is_empty() || self.beginning.is_some()
    }

    /// Whether the partition must now be handed to a flush thread; then it counts as handed.
    pub(super) fn schedule(&mut self) -> bool {
        let schedule = self.has_work() && !self.scheduled;
        self.scheduled |= schedule;
        schedule
    }
}

/// The batch with its offset and leader epoch set in `bytes`, a copy of it that is ours alone.
fn place_at_end(mut bytes: BytesMut, batch: &RecordBatch, online: &Online) -> Option<RecordBatch> {
    online.end.checked_add(i64::from(batch.offset_count()))?;
    place(&mut bytes, online.end, online.epochs.current()).ok()?;
    RecordBatch::parse(bytes.freeze()).ok()?.map(|(placed, _)| placed)
}
