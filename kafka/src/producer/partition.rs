//! One partition's half of the ledger: its open batch, its queue, and when a batch may go.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::RecordNumber;
use crate::{
    batch::{BatchBuilder, HEADER_BYTES},
    client::Backoff,
    error::{Disposition, Error, is_fenced},
    ids::{Offset, Sequence, TopicPartition},
    wire::ErrorCode,
};

/// Silence after which a broker may have forgotten a producer. Kafka's default is a day, in the
/// oldest versions the retention of the topic.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct Partition {
    pub(super) name: TopicPartition,
    pub(super) open: Option<Open>,
    pub(super) queue: VecDeque<Batch>,
    /// The sequence of the next batch to be sealed.
    pub(super) next_sequence: Sequence,
    /// The last acknowledgement, unless an attempt has failed since.
    pub(super) proven_at: Option<Instant>,
    /// The offset after the newest batch that all older ones are acknowledged with.
    pub(super) log_end: Offset,
    /// Set by a failed attempt, until everything in flight is answered and the pause is over.
    pub(super) recovery: Option<Recovery>,
    /// Pause after the next failed attempt.
    pub(super) next_pause: Duration,
    /// What the last failed attempt said.
    pub(super) last_error: Option<Arc<Error>>,
}

#[derive(Debug)]
pub(super) struct Open {
    pub(super) builder: BatchBuilder,
    pub(super) first: RecordNumber,
    /// Sealed from then on, as soon as nothing is before it.
    pub(super) seal_at: Instant,
}

#[derive(Debug)]
pub(super) struct Batch {
    pub(super) first: RecordNumber,
    pub(super) bytes: usize,
    pub(super) record_count: u32,
    pub(super) base_sequence: Sequence,
    pub(super) sealed_at: Instant,
    pub(super) body: Body,
    pub(super) status: Status,
}

/// Encoded when it is first sent, outside of the lock.
#[derive(Debug)]
pub(super) enum Body {
    Records(BatchBuilder),
    Taken,
    Encoded(Bytes),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Waiting,
    InFlight,
    /// Where it starts in the log, unless the broker knows no more than that it is there.
    Acknowledged(Option<Offset>),
}

#[derive(Debug)]
pub(super) struct Recovery {
    pub(super) resume_at: Instant,
}

pub(super) enum Judgement {
    Retry(Arc<Error>),
    Fail(Arc<Error>),
}

impl Partition {
    pub(super) fn new(name: TopicPartition) -> Self {
        Self {
            name,
            open: None,
            queue: VecDeque::new(),
            next_sequence: Sequence::ZERO,
            proven_at: None,
            log_end: Offset::ZERO,
            recovery: None,
            next_pause: Backoff::FIRST,
            last_error: None,
        }
    }

    /// Seals the open batch if it is due and nothing is before it. Behind a batch that is still
    /// on its way it grows instead: it would wait for the same flush of the log in any case, and
    /// one large batch costs the log and every reader less than many small ones. Only what is full
    /// goes out beside others.
    pub(super) fn seal_if_due(&mut self, now: Instant) {
        let due = self.open.as_ref().is_some_and(|open| open.seal_at <= now);
        if due && self.queue.is_empty() {
            self.seal(now);
        }
    }

    pub(super) fn seal(&mut self, now: Instant) {
        let Some(Open { builder, first, .. }) = self.open.take() else {
            return;
        };
        let base_sequence = self.next_sequence;
        self.next_sequence = base_sequence.advance(builder.record_count());
        self.queue.push_back(Batch {
            first,
            bytes: builder.size() - HEADER_BYTES,
            record_count: builder.record_count(),
            base_sequence,
            sealed_at: now,
            body: Body::Records(builder),
            status: Status::Waiting,
        });
    }

    /// Which batch of the queue may be sent now.
    pub(super) fn next_to_send(&self, now: Instant, max_in_flight: usize) -> Option<usize> {
        let in_flight = self.queue.iter().any(|batch| batch.status == Status::InFlight);
        match &self.recovery {
            Some(recovery) if in_flight || recovery.resume_at > now => return None,
            Some(_) | None => {}
        }
        let proven = self.proven_at.is_some_and(|at| now < at + FORGOTTEN_AFTER);
        let window = self.queue.iter().take(if proven { max_in_flight } else { 1 });
        window.into_iter().position(|batch| batch.status == Status::Waiting)
    }

    pub(super) fn is_oldest(&self, base_sequence: Sequence) -> bool {
        self.queue.front().is_some_and(|batch| batch.base_sequence == base_sequence)
    }

    pub(super) fn batch(&mut self, base_sequence: Sequence) -> Option<&mut Batch> {
        self.queue.iter_mut().find(|batch| batch.base_sequence == base_sequence)
    }

    /// Drops what is acknowledged with all that is older.
    ///
    /// # Errors
    /// If a batch stands in the log before an older one: the log is another one, or has lost what
    /// it had acknowledged.
    pub(super) fn drop_acknowledged(&mut self) -> Result<(), Error> {
        while let Some(Batch { status: Status::Acknowledged(at), record_count, .. }) =
            self.queue.front()
        {
            if let Some(at) = at {
                if *at < self.log_end {
                    let (partition, expected) = (self.name.clone(), self.log_end);
                    return Err(Error::LogShrunk { partition, expected, actual: *at });
                }
                let end = at.checked_add(i64::from(*record_count));
                self.log_end = end.unwrap_or(self.log_end);
            }
            self.queue.pop_front();
        }
        Ok(())
    }

    pub(super) fn recover(&mut self, now: Instant, error: Arc<Error>) {
        self.last_error = Some(error);
        self.proven_at = None;
        // One pause for all batches that were in flight together.
        if self.recovery.is_none() {
            self.recovery = Some(Recovery { resume_at: now + self.next_pause });
            self.next_pause = (self.next_pause * 2).min(Backoff::LONGEST);
        }
    }

    pub(super) fn judge(
        &self,
        code: ErrorCode,
        message: Option<String>,
        is_oldest: bool,
    ) -> Judgement {
        let partition = self.name.clone();
        if is_fenced(code) {
            let partition = partition.to_string();
            return Judgement::Fail(Arc::new(Error::Fenced { partition, code }));
        }
        if matches!(code, ErrorCode::OutOfOrderSequenceNumber | ErrorCode::UnknownProducerId) {
            let error = Arc::new(Error::SequenceLost { partition, code });
            return if is_oldest { Judgement::Fail(error) } else { Judgement::Retry(error) };
        }
        let operation = format!("produce to {partition}");
        let error = Arc::new(Error::Broker { operation, code, message });
        if error.disposition() == Disposition::Retry {
            Judgement::Retry(error)
        } else {
            Judgement::Fail(error)
        }
    }
}
