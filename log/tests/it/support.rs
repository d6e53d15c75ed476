//! A node in a scratch folder, and requests in one line each.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tailwater_kafka::wire::{
    ApiKey, ErrorCode, KafkaString, Request, RequestHeader, Response, create_topics_request as ct,
    delete_topics_request as dt, fetch_request as f, fetch_response,
    init_producer_id_request as ip, list_offsets_request as lo, offset_commit_request as oc,
    produce_request as p, produce_response,
};
use tailwater_kafka::{
    BatchBuilder, BatchStamp, Node, ProducerEpoch, ProducerId, RecordBatch, RequestContext,
    Sequence,
};
use tailwater_log::{Config, Log, PartitionStatus};
use tempfile::TempDir;

/// A node and the folder it lives in.
pub(crate) struct Scratch {
    pub(crate) folder: TempDir,
    pub(crate) log: Arc<Log>,
}

/// A batch of a producer, or of nobody.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writer {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
    pub(crate) sequence: i32,
}

pub(crate) const NOBODY: Writer = Writer { id: -1, epoch: -1, sequence: -1 };

impl Scratch {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(adjust: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = open(folder.path(), adjust).await;
        Self { folder, log }
    }

    /// A clean stop and a start.
    pub(crate) async fn restart(self, adjust: impl FnOnce(&mut Config)) -> Self {
        self.log.close().await.unwrap();
        drop(self.log);
        let log = open(self.folder.path(), adjust).await;
        Self { folder: self.folder, log }
    }

    /// Leaves the folder as a process that died would have left it.
    pub(crate) fn die(self) -> TempDir {
        drop(self.log);
        self.folder
    }

    pub(crate) fn partition_folder(&self, topic: &str) -> PathBuf {
        partition_folder(self.folder.path(), topic)
    }

    pub(crate) fn status(&self, topic: &str) -> PartitionStatus {
        self.log.partitions().into_iter().find(|status| status.topic == topic).unwrap()
    }
}

pub(crate) fn partition_folder(data_dir: &Path, topic: &str) -> PathBuf {
    data_dir.join("topics").join(topic).join("0")
}

/// Looks until `condition` holds for what `seen` says; that.
pub(crate) async fn until<T: std::fmt::Debug>(
    mut seen: impl AsyncFnMut() -> T,
    condition: impl Fn(&T) -> bool,
) -> T {
    let mut last = None;
    let looking = async {
        loop {
            let now = seen().await;
            if condition(&now) {
                return now;
            }
            last = Some(now);
            // What a node does by itself wakes nobody here.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(60), looking).await;
    found.unwrap_or_else(|_| panic!("still {last:?}"))
}

/// Looks until something has become so; `yet` says what is wrong if it does not.
pub(crate) async fn until_so(yet: &str, so: impl Fn() -> bool) {
    until(async || if so() { "" } else { yet }, |problem| problem.is_empty()).await;
}

pub(crate) async fn open(folder: &Path, adjust: impl FnOnce(&mut Config)) -> Arc<Log> {
    let mut config = Config::new(folder);
    // Megabytes for each of hundreds of copies of a folder.
    config.reserve_bytes = 0;
    adjust(&mut config);
    // A node that was dropped lets go of its folder when its last task has seen that.
    for _ in 0..500 {
        match Log::open(config.clone()).await {
            Err(tailwater_log::Error::Locked { .. }) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            outcome => return outcome.unwrap(),
        }
    }
    panic!("the folder stays locked");
}

pub(crate) async fn ask(
    log: &Log,
    api: ApiKey,
    version: i16,
    request: impl Into<Request>,
) -> Response {
    let header = RequestHeader { api, version, correlation_id: 1, client_id: None };
    log.handle(&RequestContext::IN_PROCESS, &header, request.into()).await
}

pub(crate) fn name(text: &str) -> KafkaString {
    KafkaString::from(text.to_owned())
}

pub(crate) async fn create_topic(log: &Log, topic: &str, settings: &[(&str, &str)]) -> ErrorCode {
    create_topic_with(log, topic, 1, settings).await
}

pub(crate) async fn create_topic_with(
    log: &Log,
    topic: &str,
    partitions: i32,
    settings: &[(&str, &str)],
) -> ErrorCode {
    let configs = settings
        .iter()
        .map(|(key, value)| {
            ct::CreatableTopicConfig::default().with_name(name(key)).with_value(Some(name(value)))
        })
        .collect();
    let topic = ct::CreatableTopic::default()
        .with_name(name(topic))
        .with_num_partitions(partitions)
        .with_replication_factor(1)
        .with_configs(configs);
    let request = ct::CreateTopicsRequestData::default().with_topics(vec![topic]);
    let Response::CreateTopics(response) = ask(log, ApiKey::CreateTopics, 7, request).await else {
        panic!("another response");
    };
    response.topics[0].error_code.into()
}

pub(crate) async fn delete_topic(log: &Log, topic: &str) -> ErrorCode {
    let topic = dt::DeleteTopicState::default().with_name(Some(name(topic)));
    let request = dt::DeleteTopicsRequestData::default().with_topics(vec![topic]);
    let Response::DeleteTopics(response) = ask(log, ApiKey::DeleteTopics, 6, request).await else {
        panic!("another response");
    };
    response.responses[0].error_code.into()
}

/// A batch of records `(key, value, timestamp)`.
pub(crate) fn batch(records: &[(Option<&str>, &str, i64)], writer: Writer) -> Bytes {
    let mut builder = BatchBuilder::with_capacity(1024);
    for (key, value, timestamp) in records {
        builder.append(key.map(str::as_bytes), Some(&[value.as_bytes()]), *timestamp, &[]);
    }
    builder
        .finish(BatchStamp {
            producer_id: ProducerId::new(writer.id),
            producer_epoch: ProducerEpoch::new(writer.epoch),
            base_sequence: Sequence::new(writer.sequence),
            ..BatchStamp::default()
        })
        .unwrap()
}

pub(crate) fn values(texts: &[&str], writer: Writer) -> Bytes {
    let records: Vec<_> = texts.iter().map(|text| (Some("k"), *text, 1000)).collect();
    batch(&records, writer)
}

pub(crate) async fn produce_raw(
    log: &Log,
    topic: &str,
    records: Bytes,
) -> produce_response::PartitionProduceResponse {
    produce_to(log, topic, 0, records, -1).await
}

pub(crate) async fn produce_to(
    log: &Log,
    topic: &str,
    partition: i32,
    records: Bytes,
    acks: i16,
) -> produce_response::PartitionProduceResponse {
    let data = p::PartitionProduceData::default().with_index(partition).with_records(Some(records));
    let topic =
        p::TopicProduceData::default().with_name(name(topic)).with_partition_data(vec![data]);
    let request = p::ProduceRequestData::default()
        .with_acks(acks)
        .with_timeout_ms(30_000)
        .with_topic_data(vec![topic]);
    let Response::Produce(response) = ask(log, ApiKey::Produce, 9, request).await else {
        panic!("another response");
    };
    response.responses[0].partition_responses[0].clone()
}

/// The base offset, or the error.
pub(crate) async fn produce(log: &Log, topic: &str, records: Bytes) -> Result<i64, ErrorCode> {
    let answer = produce_raw(log, topic, records).await;
    if answer.error_code == 0 { Ok(answer.base_offset) } else { Err(answer.error_code.into()) }
}

pub(crate) async fn produce_values(log: &Log, topic: &str, texts: &[&str]) -> i64 {
    produce(log, topic, values(texts, NOBODY)).await.unwrap()
}

pub(crate) fn fetch_request(topic: &str, offset: i64) -> f::FetchRequestData {
    let partition = f::FetchPartition::default()
        .with_partition(0)
        .with_fetch_offset(offset)
        .with_partition_max_bytes(1 << 20)
        .with_current_leader_epoch(-1)
        .with_last_fetched_epoch(-1);
    let topic = f::FetchTopic::default().with_topic(name(topic)).with_partitions(vec![partition]);
    f::FetchRequestData::default()
        .with_max_wait_ms(0)
        .with_min_bytes(1)
        .with_max_bytes(1 << 20)
        .with_session_id(0)
        .with_session_epoch(-1)
        .with_topics(vec![topic])
}

pub(crate) async fn send_fetch(
    log: &Log,
    request: f::FetchRequestData,
) -> fetch_response::PartitionData {
    let Response::Fetch(response) = ask(log, ApiKey::Fetch, 12, request).await else {
        panic!("another response");
    };
    assert_eq!(response.error_code, 0);
    response.responses[0].partitions[0].clone()
}

pub(crate) async fn fetch(log: &Log, topic: &str, offset: i64) -> fetch_response::PartitionData {
    send_fetch(log, fetch_request(topic, offset)).await
}

/// The batches in fetched bytes.
pub(crate) fn batches(records: Option<Bytes>) -> Vec<RecordBatch> {
    let mut rest = records.unwrap_or_default();
    let mut batches = Vec::new();
    while let Some((batch, after)) = RecordBatch::parse(rest).unwrap() {
        batch.verify_crc().unwrap();
        batches.push(batch);
        rest = after;
    }
    batches
}

/// The values of fetched records, with their offsets.
pub(crate) fn texts(records: Option<Bytes>) -> Vec<(i64, String)> {
    let mut texts = Vec::new();
    for batch in batches(records) {
        for record in batch.records(tailwater_kafka::Limits::default()).unwrap() {
            let record = record.unwrap();
            let value = record.value.unwrap_or_default();
            texts.push((record.offset.get(), String::from_utf8(value.to_vec()).unwrap()));
        }
    }
    texts
}

/// Everything readable in a topic's partition 0.
pub(crate) async fn read_all(log: &Log, topic: &str) -> Vec<(i64, String)> {
    let mut all: Vec<(i64, String)> = Vec::new();
    let mut offset = list_offset(log, topic, -2).await.1;
    loop {
        let data = fetch(log, topic, offset).await;
        assert_eq!(ErrorCode::from(data.error_code), ErrorCode::None);
        let batches = batches(data.records.clone());
        let Some(last) = batches.last() else { return all };
        offset = last.next_offset().get();
        all.extend(texts(data.records));
    }
}

/// `(error, offset, timestamp)` for a time, or for -1 (end), -2 (start), -3 (greatest time).
pub(crate) async fn list_offset(log: &Log, topic: &str, time: i64) -> (ErrorCode, i64, i64) {
    let partition = lo::ListOffsetsPartition::default()
        .with_partition_index(0)
        .with_current_leader_epoch(-1)
        .with_timestamp(time);
    let topic =
        lo::ListOffsetsTopic::default().with_name(name(topic)).with_partitions(vec![partition]);
    let request =
        lo::ListOffsetsRequestData::default().with_replica_id(-1).with_topics(vec![topic]);
    let Response::ListOffsets(response) = ask(log, ApiKey::ListOffsets, 7, request).await else {
        panic!("another response");
    };
    let found = &response.topics[0].partitions[0];
    (found.error_code.into(), found.offset, found.timestamp)
}

/// A producer of a transactional id, or of none.
pub(crate) async fn init_producer(log: &Log, role: Option<&str>) -> Writer {
    let request = ip::InitProducerIdRequestData::default()
        .with_transactional_id(role.map(name))
        .with_transaction_timeout_ms(60_000)
        .with_producer_id(-1)
        .with_producer_epoch(-1);
    let Response::InitProducerId(response) = ask(log, ApiKey::InitProducerId, 4, request).await
    else {
        panic!("another response");
    };
    assert_eq!(ErrorCode::from(response.error_code), ErrorCode::None);
    Writer { id: response.producer_id, epoch: response.producer_epoch, sequence: 0 }
}

pub(crate) async fn commit(log: &Log, group: &str, topic: &str, offset: i64) -> ErrorCode {
    let partition = oc::OffsetCommitRequestPartition::default()
        .with_partition_index(0)
        .with_committed_offset(offset)
        .with_committed_leader_epoch(-1)
        .with_committed_metadata(Some(name("note")));
    let topic = oc::OffsetCommitRequestTopic::default()
        .with_name(name(topic))
        .with_partitions(vec![partition]);
    let request = oc::OffsetCommitRequestData::default()
        .with_group_id(name(group))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    let Response::OffsetCommit(response) = ask(log, ApiKey::OffsetCommit, 8, request).await else {
        panic!("another response");
    };
    response.topics[0].partitions[0].error_code.into()
}

/// Copies a folder, to look at one state of it many times.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}
