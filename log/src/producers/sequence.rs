//! Whether a batch of an idempotent producer is new, a repetition, or out of turn.
//!
//! Each partition remembers of each producer its epoch and its last batches. A producer numbers its
//! records per partition; the log takes a batch only if it continues the numbers, answers a
//! repetition with the offsets of the first time, and refuses all else: so a retry after a lost
//! answer neither doubles nor loses a batch. It does no IO and reads no clock.
//!
//! The state is rebuilt after a restart from a snapshot file and the batch headers behind it.
//!
//! | field | bytes | |
//! |---|---|---|
//! | magic | 4 | `TWPS` |
//! | version | 2 | 1 |
//! | reserved | 2 | 0 |
//! | checksum | 4 | CRC-32C of all that follows |
//! | producer count | 4 | |
//! | per producer | | id i64, epoch i16, next sequence i32, last seen i64, batch count u8 |
//! | per batch | 24 | first sequence i32, last sequence i32, base offset i64, last offset i64 |
//!
//! All numbers are big-endian. The file's name is the offset it stands for: everything below it is
//! in the snapshot.

use std::collections::{HashMap, VecDeque};

use bytes::{Buf, BufMut};
use tailwater_kafka::BatchHeader;
use tailwater_kafka::{Offset, ProducerEpoch, ProducerId, Sequence};

/// How many batches a repetition may be old: clients keep at most five in flight.
pub(crate) const REMEMBERED_BATCHES: usize = 5;

const MAGIC: &[u8; 4] = b"TWPS";
const VERSION: u16 = 1;
const CHECKED_FROM: usize = 12;

/// What the header of a batch says about its producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProducerBatch {
    pub(crate) producer: ProducerId,
    pub(crate) epoch: ProducerEpoch,
    pub(crate) first_sequence: Sequence,
    /// Offsets taken up, at least 1: compaction may have removed records, never numbers.
    pub(crate) offset_count: u32,
}

impl ProducerBatch {
    /// The producer's side of a header; `None` for a producer without idempotence, and for control
    /// batches, which have no sequence.
    pub(crate) fn of(header: &BatchHeader) -> Option<Self> {
        (header.producer_id() != ProducerId::NONE && header.base_sequence() != Sequence::NONE).then(
            || Self {
                producer: header.producer_id(),
                epoch: header.producer_epoch(),
                first_sequence: header.base_sequence(),
                offset_count: header.offset_count(),
            },
        )
    }

    fn last_sequence(&self) -> Sequence {
        self.first_sequence.advance(self.offset_count - 1)
    }
}

/// What to do with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the next: append it.
    Append,
    /// It is in the log already, at these offsets (both inclusive).
    Duplicate { base: Offset, last: Offset },
}

/// Why a batch is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// A newer incarnation of the producer has taken over.
    #[error("producer {producer} has epoch {current} here, the batch has {found}")]
    StaleEpoch { producer: ProducerId, current: ProducerEpoch, found: ProducerEpoch },
    /// A batch before this one is missing.
    #[error("producer {producer} must go on with sequence {expected}, the batch begins at {found}")]
    OutOfOrder { producer: ProducerId, expected: Sequence, found: Sequence },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RememberedBatch {
    first_sequence: Sequence,
    last_sequence: Sequence,
    base: Offset,
    last: Offset,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Producer {
    epoch: ProducerEpoch,
    next_sequence: Sequence,
    last_seen_ms: i64,
    batches: VecDeque<RememberedBatch>,
}

/// The producers of one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ProducerStates {
    producers: HashMap<ProducerId, Producer>,
}

impl ProducerStates {
    /// Judges a batch without taking it.
    pub(crate) fn check(&self, batch: &ProducerBatch) -> Result<Verdict, Refusal> {
        // Nothing known: forgotten after a day of silence or with its data. Any number is as
        // good as another (KIP-360).
        let Some(known) = self.producers.get(&batch.producer) else { return Ok(Verdict::Append) };
        if batch.epoch == known.epoch
            && let Some(earlier) = known.batches.iter().find(|earlier| {
                earlier.first_sequence == batch.first_sequence
                    && earlier.last_sequence == batch.last_sequence()
            })
        {
            return Ok(Verdict::Duplicate { base: earlier.base, last: earlier.last });
        }
        if batch.epoch < known.epoch {
            return Err(Refusal::StaleEpoch {
                producer: batch.producer,
                current: known.epoch,
                found: batch.epoch,
            });
        }
        let expected = if batch.epoch > known.epoch { Sequence::ZERO } else { known.next_sequence };
        if batch.first_sequence == expected {
            Ok(Verdict::Append)
        } else {
            Err(Refusal::OutOfOrder {
                producer: batch.producer,
                expected,
                found: batch.first_sequence,
            })
        }
    }

    /// Whether batches before this one may be on their way still, sent when another broker led: it
    /// is not what comes next, and its producer has written nothing since `began`, where the
    /// present leader's epoch began.
    pub(crate) fn may_follow_others(&self, batch: &ProducerBatch, began: Offset) -> bool {
        match self.producers.get(&batch.producer) {
            None => began > Offset::ZERO && batch.first_sequence != Sequence::ZERO,
            Some(known) => {
                matches!(self.check(batch), Err(Refusal::OutOfOrder { .. }))
                    && known.batches.back().is_none_or(|newest| newest.last < began)
            }
        }
    }

    /// Takes a batch that stands in the log at `base` to `last`, both inclusive, since `now_ms`.
    ///
    /// Whatever its numbers: what is in the log is a fact, at recovery too. The time is the node's
    /// and not the records', which may be as old as what they tell of.
    pub(crate) fn record(
        &mut self,
        batch: &ProducerBatch,
        base: Offset,
        last: Offset,
        now_ms: i64,
    ) {
        let known = self.producers.entry(batch.producer).or_insert_with(|| Producer {
            epoch: batch.epoch,
            next_sequence: batch.first_sequence,
            last_seen_ms: now_ms,
            batches: VecDeque::with_capacity(REMEMBERED_BATCHES),
        });
        if known.epoch != batch.epoch {
            known.epoch = batch.epoch;
            known.batches.clear();
        }
        if known.batches.len() == REMEMBERED_BATCHES {
            known.batches.pop_front();
        }
        known.next_sequence = batch.last_sequence().advance(1);
        known.last_seen_ms = known.last_seen_ms.max(now_ms);
        known.batches.push_back(RememberedBatch {
            first_sequence: batch.first_sequence,
            last_sequence: batch.last_sequence(),
            base,
            last,
        });
    }

    /// Makes a producer begin again at a batch that had been taken and could not be kept.
    ///
    /// Without this, a later batch that is already on its way would find nothing known, be taken,
    /// and stand before the repetition of this one.
    pub(crate) fn expect_again(&mut self, batch: &ProducerBatch, now_ms: i64) {
        self.producers.entry(batch.producer).or_insert_with(|| Producer {
            epoch: batch.epoch,
            next_sequence: batch.first_sequence,
            last_seen_ms: now_ms,
            batches: VecDeque::new(),
        });
    }

    /// Forgets producers that have been silent since before `before_ms`.
    pub(crate) fn expire(&mut self, before_ms: i64) {
        self.producers.retain(|_, producer| producer.last_seen_ms >= before_ms);
    }

    /// Whether a producer's newest batch here ends with `last`: compaction must keep its numbers.
    pub(crate) fn is_newest_batch(&self, producer: ProducerId, last: Offset) -> bool {
        self.producers
            .get(&producer)
            .and_then(|known| known.batches.back())
            .is_some_and(|newest| newest.last == last)
    }

    /// The bytes of a snapshot file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut checked = Vec::with_capacity(64 + self.producers.len() * 160);
        checked.put_u32(u32::try_from(self.producers.len()).unwrap_or(u32::MAX));
        for (id, producer) in &self.producers {
            checked.put_i64(id.get());
            checked.put_i16(producer.epoch.get());
            checked.put_i32(producer.next_sequence.get());
            checked.put_i64(producer.last_seen_ms);
            checked.put_u8(u8::try_from(producer.batches.len()).unwrap_or(u8::MAX));
            for batch in &producer.batches {
                checked.put_i32(batch.first_sequence.get());
                checked.put_i32(batch.last_sequence.get());
                checked.put_i64(batch.base.get());
                checked.put_i64(batch.last.get());
            }
        }
        let mut file = Vec::with_capacity(CHECKED_FROM + checked.len());
        file.put_slice(MAGIC);
        file.put_u16(VERSION);
        file.put_u16(0);
        file.put_u32(crc32c::crc32c(&checked));
        file.put_slice(&checked);
        file
    }

    /// Reads a snapshot file; `None` if it is not a whole one. An older one then serves.
    pub(crate) fn decode(contents: &[u8]) -> Option<Self> {
        let (head, checked) = contents.split_at_checked(CHECKED_FROM)?;
        let (mut numbers, mut body) = (head.strip_prefix(MAGIC)?, checked);
        let (version, _reserved) = (numbers.get_u16(), numbers.get_u16());
        if version != VERSION || numbers.get_u32() != crc32c::crc32c(checked) {
            return None;
        }
        let count = body.try_get_u32().ok()?;
        let mut producers = HashMap::new();
        for _ in 0..count {
            let id = ProducerId::new(body.try_get_i64().ok()?);
            producers.insert(id, decode_producer(&mut body)?);
        }
        body.is_empty().then_some(Self { producers })
    }
}

fn decode_producer(body: &mut &[u8]) -> Option<Producer> {
    let epoch = ProducerEpoch::new(body.try_get_i16().ok()?);
    let next_sequence = Sequence::new(body.try_get_i32().ok()?);
    let last_seen_ms = body.try_get_i64().ok()?;
    let batch_count = usize::from(body.try_get_u8().ok()?);
    let mut batches = VecDeque::with_capacity(REMEMBERED_BATCHES);
    for _ in 0..batch_count {
        batches.push_back(RememberedBatch {
            first_sequence: Sequence::new(body.try_get_i32().ok()?),
            last_sequence: Sequence::new(body.try_get_i32().ok()?),
            base: Offset::new(body.try_get_i64().ok()?),
            last: Offset::new(body.try_get_i64().ok()?),
        });
    }
    (batch_count <= REMEMBERED_BATCHES).then_some(Producer {
        epoch,
        next_sequence,
        last_seen_ms,
        batches,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(epoch: i16, first: i32, count: u32) -> ProducerBatch {
        ProducerBatch {
            producer: ProducerId::new(7),
            epoch: ProducerEpoch::new(epoch),
            first_sequence: Sequence::new(first),
            offset_count: count,
        }
    }

    fn take(states: &mut ProducerStates, batch: &ProducerBatch, base: i64) {
        let last = base + i64::from(batch.offset_count) - 1;
        states.record(batch, Offset::new(base), Offset::new(last), 1000);
    }

    #[test]
    fn a_batch_in_turn_is_appended_and_a_repetition_gets_its_first_offsets() {
        let mut states = ProducerStates::default();
        for number in 0..7 {
            let next = batch(0, number * 10, 10);
            assert_eq!(states.check(&next), Ok(Verdict::Append));
            take(&mut states, &next, i64::from(number) * 10);
        }
        assert_eq!(
            states.check(&batch(0, 20, 10)),
            Ok(Verdict::Duplicate { base: Offset::new(20), last: Offset::new(29) })
        );
        // The sixth last is forgotten.
        assert!(matches!(states.check(&batch(0, 10, 10)), Err(Refusal::OutOfOrder { .. })));
        // The same beginning and another end is no repetition.
        assert!(matches!(states.check(&batch(0, 60, 9)), Err(Refusal::OutOfOrder { .. })));
    }

    #[test]
    fn a_gap_is_refused() {
        let mut states = ProducerStates::default();
        take(&mut states, &batch(0, 0, 10), 0);
        assert_eq!(
            states.check(&batch(0, 11, 1)),
            Err(Refusal::OutOfOrder {
                producer: ProducerId::new(7),
                expected: Sequence::new(10),
                found: Sequence::new(11)
            })
        );
    }

    #[test]
    fn a_newer_epoch_begins_at_zero_and_an_older_one_is_fenced() {
        let mut states = ProducerStates::default();
        take(&mut states, &batch(3, 0, 10), 0);
        assert!(matches!(states.check(&batch(2, 10, 1)), Err(Refusal::StaleEpoch { .. })));
        assert!(matches!(states.check(&batch(4, 10, 1)), Err(Refusal::OutOfOrder { .. })));
        assert_eq!(states.check(&batch(4, 0, 10)), Ok(Verdict::Append));
        take(&mut states, &batch(4, 0, 10), 10);
        // The numbers of the older epoch are no repetition of the newer one's.
        assert!(matches!(states.check(&batch(3, 0, 10)), Err(Refusal::StaleEpoch { .. })));
    }

    #[test]
    fn sequences_wrap_to_zero() {
        let mut states = ProducerStates::default();
        take(&mut states, &batch(0, i32::MAX - 1, 2), 0);
        assert_eq!(states.check(&batch(0, 0, 1)), Ok(Verdict::Append));
        let mut states = ProducerStates::default();
        take(&mut states, &batch(0, i32::MAX, 3), 0);
        assert_eq!(states.check(&batch(0, 2, 1)), Ok(Verdict::Append));
    }

    #[test]
    fn an_unknown_producer_may_begin_anywhere_unless_its_first_batch_was_taken_back() {
        let mut states = ProducerStates::default();
        assert_eq!(states.check(&batch(0, 50, 1)), Ok(Verdict::Append));
        states.expect_again(&batch(0, 0, 50), 1000);
        assert!(matches!(states.check(&batch(0, 50, 1)), Err(Refusal::OutOfOrder { .. })));
        assert_eq!(states.check(&batch(0, 0, 50)), Ok(Verdict::Append));
    }

    #[test]
    fn silent_producers_are_forgotten() {
        let mut states = ProducerStates::default();
        take(&mut states, &batch(0, 0, 1), 0);
        states.expire(1000);
        assert_ne!(states, ProducerStates::default());
        states.expire(1001);
        assert_eq!(states, ProducerStates::default());
    }

    #[test]
    fn snapshot_round_trips_and_damage_is_seen() {
        let mut states = ProducerStates::default();
        for number in 0..9 {
            take(&mut states, &batch(1, number * 3, 3), i64::from(number) * 3);
        }
        states
            .expect_again(&ProducerBatch { producer: ProducerId::new(8), ..batch(0, 5, 1) }, 1000);
        let whole = states.encode();
        assert_eq!(ProducerStates::decode(&whole), Some(states));
        for length in 0..whole.len() {
            assert_eq!(ProducerStates::decode(&whole[..length]), None);
        }
        for position in (0..6).chain(8..whole.len()) {
            let mut damaged = whole.clone();
            damaged[position] ^= 1;
            assert_eq!(ProducerStates::decode(&damaged), None, "byte {position}");
        }
    }
}
