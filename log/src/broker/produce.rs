//! Produce: batches come in, and are acknowledged when they are flushed.
//!
//! Checks in the order of Kafka's leader (each step of which has a bug report behind it): the
//! request, the partition, each batch by itself, then, one request at a time, the turn and the
//! append. The answer waits for the flush of all of them together, and where it would be that a batch
//! is missing, until it is certain that this broker led.

use std::sync::Arc;
use std::time::Duration;

use tailwater_kafka::wire::produce_request::{PartitionProduceData, ProduceRequestData};
use tailwater_kafka::wire::produce_response::{
    BatchIndexAndErrorMessage, PartitionProduceResponse, ProduceResponseData, TopicProduceResponse,
};
use tailwater_kafka::wire::{ErrorCode, KafkaString, KafkaUuid};
use tailwater_kafka::{
    BatchError, Compression, LeaderEpoch, Limits, ProducerId, Record, RecordBatch, RequestContext,
};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use super::Refused;
use crate::log::Log;
use crate::producers::Refusal;
use crate::storage::append::{NotTaken, Taken};
use crate::storage::partition::{Acks, NotKept, Partition};
use crate::topic_config::TopicConfig;

/// How far a record's time may be ahead of the node's clock: Kafka's
/// `log.message.timestamp.after.max.ms`.
const MAX_AHEAD_MS: i64 = 60 * 60 * 1000;

/// How long it may take until the controller has confirmed what this broker leads: it answers a
/// heartbeat after 400 ms at the latest, and one may be under way.
const CONFIRMATION: Duration = Duration::from_secs(2);

/// The part of the answer about one partition, as far as it is known.
struct Part {
    index: i32,
    outcome: Result<Accepted, Refused>,
    /// Records that are refused by themselves, by number.
    record_errors: Vec<i32>,
}

/// What is checked, and against what.
#[derive(Debug, Clone, Copy)]
struct Checks {
    acks: Acks,
    /// The latest time that a record may have, ms.
    newest_ms: i64,
    /// Whether to see that the records of uncompressed batches are numbered one by one.
    numbers: bool,
}

enum Accepted {
    /// Found valid, not yet appended.
    Checked {
        partition: Arc<Partition>,
        batch: RecordBatch,
    },
    Taken(Taken),
    /// A batch seems to be missing before it.
    Gap(Gap),
}

/// A batch that does not follow on what its producer has written here.
struct Gap {
    partition: Arc<Partition>,
    leader_epoch: LeaderEpoch,
    came: Instant,
    refused: Refused,
}

struct TopicPart {
    name: KafkaString,
    id: KafkaUuid,
    parts: Vec<Part>,
}

impl Log {
    pub(super) async fn produce(
        &self,
        context: &RequestContext,
        request: ProduceRequestData,
    ) -> ProduceResponseData {
        let deadline = deadline(request.timeout_ms);
        let mut topics = self.check(context, &request);
        self.take(&mut topics, acks(request.acks)).await;
        let mut response = ProduceResponseData::default();
        for topic in topics {
            let mut answered =
                TopicProduceResponse::default().with_name(topic.name).with_topic_id(topic.id);
            for part in topic.parts {
                let answer = part.answer(request.acks, deadline, &self.confirmed).await;
                answered.partition_responses.push(answer);
            }
            response.responses.push(answered);
        }
        response
    }

    /// Everything that can be checked without a turn.
    fn check(&self, context: &RequestContext, request: &ProduceRequestData) -> Vec<TopicPart> {
        let whole = check_acks(request.acks);
        let acks = acks(request.acks);
        let checks = Checks {
            acks,
            newest_ms: self.shared.config.clock.now_ms().saturating_add(MAX_AHEAD_MS),
            // What our own builder numbered in this process is not walked through once more.
            numbers: context.peer.is_some(),
        };
        request
            .topic_data
            .iter()
            .map(|data| {
                let topic = whole.clone().and_then(|()| self.find_topic(&data.name, data.topic_id));
                let parts = data
                    .partition_data
                    .iter()
                    .map(|part| {
                        let topic = topic.as_ref().map_err(Refused::clone);
                        let found = topic.and_then(|topic| self.find_partition(topic, part.index));
                        Part::check(part, found, checks)
                    })
                    .collect();
                TopicPart { name: data.name.clone(), id: data.topic_id, parts }
            })
            .collect()
    }

    /// Appends what was found valid, in the order in which requests came.
    async fn take(&self, topics: &mut [TopicPart], acks: Acks) {
        let bytes: usize = topics
            .iter()
            .flat_map(|topic| &topic.parts)
            .filter_map(|part| match &part.outcome {
                Ok(Accepted::Checked { batch, .. }) => Some(batch.bytes().len()),
                _ => None,
            })
            .sum();
        if bytes == 0 {
            return;
        }
        // Both wait first come first served, so no request overtakes another one.
        let _turn = self.intake.lock().await;
        let mut room = self.room_for(bytes).await;
        for part in topics.iter_mut().flat_map(|topic| &mut topic.parts) {
            let Ok(Accepted::Checked { partition, batch }) = &part.outcome else { continue };
            let own = room.as_mut().and_then(|room| room.split(batch.bytes().len()));
            part.outcome = match self.append(partition, batch, own, acks) {
                Ok(taken) => Ok(Accepted::Taken(taken)),
                Err(refused) => match Gap::of(partition, &refused) {
                    Some(gap) => Ok(Accepted::Gap(gap)),
                    None => Err(refused),
                },
            };
        }
    }

    /// Room for so many bytes; for all there is if they are more than that.
    async fn room_for(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let most = self.shared.config.pending_bytes;
        let wanted = u32::try_from(bytes.min(most)).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        Arc::clone(&self.room).acquire_many_owned(wanted).await.ok()
    }

    fn append(
        &self,
        partition: &Arc<Partition>,
        batch: &RecordBatch,
        room: Option<OwnedSemaphorePermit>,
        acks: Acks,
    ) -> Result<Taken, Refused> {
        let taken = partition.append(batch, room, acks)?;
        if taken.schedule {
            self.flusher.schedule(partition);
        }
        Ok(taken)
    }
}

impl Part {
    fn check(
        data: &PartitionProduceData,
        found: Result<Arc<Partition>, Refused>,
        checks: Checks,
    ) -> Self {
        let mut record_errors = Vec::new();
        let outcome = found.and_then(|partition| {
            let topic = partition.topic_config();
            partition.offsets()?;
            partition.may_append(checks.acks)?;
            let batch = check_batch(data, &topic)?;
            check_time(&batch, checks.newest_ms)?;
            if topic.compact {
                record_errors = records_without_key(&batch)?;
                if !record_errors.is_empty() {
                    return Err(Refused::new(
                        ErrorCode::InvalidRecord,
                        "a compacted topic takes only records with a key",
                    ));
                }
            } else if checks.numbers && batch.compression() == Compression::None {
                check_numbers(&batch)?;
            }
            Ok(Accepted::Checked { partition, batch })
        });
        Self { index: data.index, outcome, record_errors }
    }

    async fn answer(
        self,
        acks: i16,
        deadline: Instant,
        confirmed: &watch::Receiver<Option<Instant>>,
    ) -> PartitionProduceResponse {
        let mut answer = PartitionProduceResponse::default()
            .with_index(self.index)
            .with_base_offset(-1)
            .with_log_append_time_ms(-1)
            .with_log_start_offset(-1);
        let refused = match self.outcome {
            Ok(Accepted::Taken(taken)) => {
                answer.log_start_offset = taken.start.get();
                answer.base_offset = taken.base.get();
                if acks == 0 { None } else { flushed(taken, deadline).await.err() }
            }
            // Nobody is told.
            Ok(Accepted::Gap(gap)) if acks == 0 => Some(gap.refused),
            Ok(Accepted::Gap(gap)) => Some(gap.verdict(confirmed.clone(), deadline).await),
            Ok(Accepted::Checked { .. }) => Some(ErrorCode::UnknownServerError.into()),
            Err(refused) => Some(refused),
        };
        if let Some(refused) = refused {
            answer.base_offset = -1;
            answer.error_code = refused.code();
            answer.error_message = refused.text();
            answer.record_errors = self.record_errors.into_iter().map(record_error).collect();
        }
        answer
    }
}

impl Gap {
    /// `None` if there is no doubt: it was refused for something else, or nobody else can lead.
    fn of(partition: &Arc<Partition>, refused: &Refused) -> Option<Self> {
        if refused.code != ErrorCode::OutOfOrderSequenceNumber || partition.followers().is_empty() {
            return None;
        }
        let (partition, refused) = (Arc::clone(partition), refused.clone());
        Some(Self { leader_epoch: partition.leads()?, partition, came: Instant::now(), refused })
    }

    /// Told that a batch is missing, a producer may give up for good. A leader that has been replaced
    /// and does not know it misses whatever was written to the next one; so it is said only by one
    /// that is known to have led when the batch came.
    async fn verdict(
        self,
        mut confirmed: watch::Receiver<Option<Instant>>,
        deadline: Instant,
    ) -> Refused {
        let until = deadline.min(self.came + CONFIRMATION);
        let confirmation = confirmed.wait_for(|sent| sent.is_some_and(|sent| sent >= self.came));
        let is_confirmed = tokio::time::timeout_at(until, confirmation).await;
        let leads = self.partition.leads() == Some(self.leader_epoch);
        if matches!(is_confirmed, Ok(Ok(_))) && leads {
            self.refused
        } else {
            ErrorCode::NotLeaderOrFollower.into()
        }
    }
}

/// Waits until a batch is flushed. In the log it stays even if the time is up.
async fn flushed(taken: Taken, deadline: Instant) -> Result<(), Refused> {
    match tokio::time::timeout_at(deadline, taken.acknowledgement).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(NotKept::NoSpace(text)))) => {
            Err(Refused::new(ErrorCode::KafkaStorageError, text))
        }
        Ok(Ok(Err(NotKept::Stopped(stopped)))) => Err(stopped.into()),
        Ok(Ok(Err(NotKept::NotLeader)) | Err(_)) => Err(ErrorCode::NotLeaderOrFollower.into()),
        Err(_) => Err(ErrorCode::RequestTimedOut.into()),
    }
}

fn check_batch(data: &PartitionProduceData, topic: &TopicConfig) -> Result<RecordBatch, Refused> {
    let bytes = data.records.clone().unwrap_or_default();
    let size = bytes.len();
    if size > topic.max_message_bytes {
        return Err(Refused::new(
            ErrorCode::MessageTooLarge,
            format!(
                "a batch of {size} bytes, max.message.bytes of the topic is {}",
                topic.max_message_bytes
            ),
        ));
    }
    let (batch, rest) = RecordBatch::parse(bytes)?
        .ok_or_else(|| Refused::new(ErrorCode::CorruptMessage, "the batch is cut off"))?;
    if !rest.is_empty() {
        return Err(Refused::new(
            ErrorCode::InvalidRecord,
            "more than one batch for a partition in one request",
        ));
    }
    batch.verify_crc()?;
    if batch.is_control() {
        return Err(Refused::new(ErrorCode::InvalidRecord, "control batches are the broker's"));
    }
    if batch.is_transactional() {
        return Err(Refused::new(
            ErrorCode::InvalidTxnState,
            "this log has no transactions; write without them",
        ));
    }
    if batch.is_log_append_time() {
        return Err(Refused::new(ErrorCode::InvalidTimestamp, "the producer sets the timestamps"));
    }
    if batch.record_count() == 0 || batch.record_count() != batch.offset_count() {
        return Err(Refused::new(
            ErrorCode::InvalidRecord,
            "record count and offsets of the batch do not agree",
        ));
    }
    if batch.producer_id() != ProducerId::NONE
        && (batch.producer_epoch().get() < 0 || batch.base_sequence().get() < 0)
    {
        return Err(Refused::new(
            ErrorCode::InvalidRecord,
            "a producer id without epoch or sequence",
        ));
    }
    Ok(batch)
}

/// A record from the future would be the newest of its partition for whoever looks by time, until
/// that time has come.
fn check_time(batch: &RecordBatch, newest_ms: i64) -> Result<(), Refused> {
    if batch.max_timestamp() <= newest_ms {
        return Ok(());
    }
    Err(Refused::new(
        ErrorCode::InvalidTimestamp,
        format!(
            "a record has the time {} ms, more than an hour after this node's clock: set the \
             writer's clock",
            batch.max_timestamp()
        ),
    ))
}

/// The numbers of the records without a key; reads the whole batch, and checks all else in it.
fn records_without_key(batch: &RecordBatch) -> Result<Vec<i32>, Refused> {
    let mut numbers = Vec::new();
    for numbered in numbered(batch)? {
        let (number, record) = numbered?;
        if record.key.is_none() {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

fn check_numbers(batch: &RecordBatch) -> Result<(), Refused> {
    numbered(batch)?.try_for_each(|numbered| numbered.map(drop))
}

/// The records with their numbers in the batch, each checked.
fn numbered(
    batch: &RecordBatch,
) -> Result<impl Iterator<Item = Result<(i32, Record), Refused>>, Refused> {
    Ok((0..).zip(batch.records(Limits::default())?).map(|(number, record)| {
        let record = record?;
        check_number(batch, number, &record)?;
        Ok((number, record))
    }))
}

/// Each record takes the offset after the one before it: no reader expects anything else.
fn check_number(batch: &RecordBatch, number: i32, record: &Record) -> Result<(), Refused> {
    if batch.base_offset().checked_add(i64::from(number)) == Some(record.offset) {
        return Ok(());
    }
    Err(Refused::new(
        ErrorCode::InvalidRecord,
        format!("the records are not numbered one by one: record {number} has another number"),
    ))
}

fn record_error(number: i32) -> BatchIndexAndErrorMessage {
    BatchIndexAndErrorMessage::default()
        .with_batch_index(number)
        .with_batch_index_error_message(Some("the record has no key".to_owned().into()))
}

fn check_acks(acks: i16) -> Result<(), Refused> {
    if (-1..=1).contains(&acks) { Ok(()) } else { Err(ErrorCode::InvalidRequiredAcks.into()) }
}

/// What is waited for. With acks=0 nobody is told, and what is not told costs nothing.
fn acks(asked: i16) -> Acks {
    if asked == -1 { Acks::All } else { Acks::Leader }
}

fn deadline(timeout_ms: i32) -> Instant {
    let timeout = u64::try_from(timeout_ms).unwrap_or(0);
    Instant::now() + Duration::from_millis(timeout)
}

impl From<BatchError> for Refused {
    fn from(error: BatchError) -> Self {
        let code = match &error {
            BatchError::Magic(_) => ErrorCode::UnsupportedForMessageFormat,
            BatchError::UnknownCodec(_) => ErrorCode::UnsupportedCompressionType,
            BatchError::TooLarge { .. } => ErrorCode::MessageTooLarge,
            BatchError::Header(_)
            | BatchError::Checksum { .. }
            | BatchError::Decompress(_)
            | BatchError::Compress(_)
            | BatchError::Record { .. } => ErrorCode::CorruptMessage,
        };
        Self::new(code, error.to_string())
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::StaleEpoch { .. } => ErrorCode::InvalidProducerEpoch,
            Refusal::OutOfOrder { .. } => ErrorCode::OutOfOrderSequenceNumber,
        };
        Self::new(code, refusal.to_string())
    }
}

impl From<NotTaken> for Refused {
    fn from(not_taken: NotTaken) -> Self {
        match not_taken {
            NotTaken::Stopped(stopped) => stopped.into(),
            NotTaken::NotNow(not_now) => not_now.into(),
            NotTaken::Refused(refusal) => refusal.into(),
            NotTaken::Full => Self::new(ErrorCode::KafkaStorageError, not_taken.to_string()),
        }
    }
}
