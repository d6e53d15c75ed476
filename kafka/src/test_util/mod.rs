//! A broker in memory, for tests: one node, no disk, Kafka's rules.
//!
//! It keeps what clients rely on (idempotent sequences, fencing by transactional id, offsets by
//! batch, long polls, committed offsets) and can be told to fail ([`ProduceFault`]). It is not
//! a log: nothing is kept, nothing expires.

mod partition;

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use partition::Partition;
use tokio::sync::Notify;

use crate::{
    ids::{BrokerId, Offset, TopicPartition},
    node::{Node, RequestContext},
    wire::{
        ApiKey, ApiRange, ErrorCode, KafkaString, KafkaUuid, Request, RequestHeader, Response,
        advertised,
        create_topics_request::CreateTopicsRequestData,
        create_topics_response::{CreatableTopicResult, CreateTopicsResponseData},
        delete_topics_request::DeleteTopicsRequestData,
        delete_topics_response::{DeletableTopicResult, DeleteTopicsResponseData},
        fetch_request::FetchRequestData,
        fetch_response::{FetchResponseData, FetchableTopicResponse, PartitionData},
        find_coordinator_request::FindCoordinatorRequestData,
        find_coordinator_response::FindCoordinatorResponseData,
        init_producer_id_request::InitProducerIdRequestData,
        init_producer_id_response::InitProducerIdResponseData,
        list_offsets_request::ListOffsetsRequestData,
        list_offsets_response::{
            ListOffsetsPartitionResponse, ListOffsetsResponseData, ListOffsetsTopicResponse,
        },
        metadata_request::MetadataRequestData,
        metadata_response::{
            MetadataResponseBroker, MetadataResponseData, MetadataResponsePartition,
            MetadataResponseTopic,
        },
        offset_commit_request::OffsetCommitRequestData,
        offset_commit_response::{
            OffsetCommitResponseData, OffsetCommitResponsePartition, OffsetCommitResponseTopic,
        },
        offset_fetch_request::OffsetFetchRequestData,
        offset_fetch_response::{
            OffsetFetchResponseData, OffsetFetchResponsePartition, OffsetFetchResponseTopic,
        },
        produce_request::ProduceRequestData,
        produce_response::{PartitionProduceResponse, ProduceResponseData, TopicProduceResponse},
    },
};

/// What happens to a batch that is produced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProduceFault {
    /// It is appended and acknowledged.
    None,
    /// It is not appended and refused with this code.
    Refuse(ErrorCode),
    /// It is appended, and the answer is this code all the same.
    AppendThenSay(ErrorCode),
}

/// Chooses a fault for each batch.
pub type Faults = Box<dyn FnMut(&TopicPartition) -> ProduceFault + Send>;

/// A broker in memory.
pub struct MemoryNode {
    state: Mutex<State>,
    appended: Notify,
    apis: Vec<ApiRange>,
}

struct State {
    advertised: (String, u16),
    topics: BTreeMap<String, Topic>,
    transactional_ids: HashMap<String, (i64, i16)>,
    next_producer_id: i64,
    committed: HashMap<(String, TopicPartition), i64>,
    faults: Faults,
    produce_requests: u64,
    fetch_requests: u64,
    metadata_requests: u64,
}

struct Topic {
    id: KafkaUuid,
    partitions: Vec<Partition>,
}

/// The cluster id it answers with.
pub const CLUSTER_ID: &str = "memory-cluster";

const NODE_ID: BrokerId = BrokerId::new(1);

impl std::fmt::Debug for MemoryNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryNode").finish_non_exhaustive()
    }
}

impl Default for MemoryNode {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryNode {
    /// An empty broker that answers what Kafka 4.x does of our APIs.
    #[must_use]
    pub fn new() -> Self {
        Self::with_apis(vec![
            ApiRange::new(ApiKey::Produce, 3, 12),
            ApiRange::new(ApiKey::Fetch, 4, 12),
            ApiRange::new(ApiKey::ListOffsets, 1, 10),
            ApiRange::new(ApiKey::Metadata, 0, 13),
            ApiRange::new(ApiKey::OffsetCommit, 2, 9),
            ApiRange::new(ApiKey::OffsetFetch, 1, 7),
            ApiRange::new(ApiKey::FindCoordinator, 0, 3),
            ApiRange::new(ApiKey::ApiVersions, 0, 4),
            ApiRange::new(ApiKey::CreateTopics, 2, 7),
            ApiRange::new(ApiKey::DeleteTopics, 1, 5),
            ApiRange::new(ApiKey::InitProducerId, 0, 5),
        ])
    }

    /// An empty broker that answers `apis`, to play an older one.
    #[must_use]
    pub fn with_apis(apis: Vec<ApiRange>) -> Self {
        let state = State {
            advertised: ("127.0.0.1".to_owned(), 0),
            topics: BTreeMap::new(),
            transactional_ids: HashMap::new(),
            next_producer_id: 1000,
            committed: HashMap::new(),
            faults: Box::new(|_| ProduceFault::None),
            produce_requests: 0,
            fetch_requests: 0,
            metadata_requests: 0,
        };
        Self { state: Mutex::new(state), appended: Notify::new(), apis }
    }

    /// Where Metadata says that this node listens.
    pub fn advertise(&self, host: &str, port: u16) {
        self.state().advertised = (host.to_owned(), port);
    }

    /// Has `faults` asked about every batch from now on.
    pub fn fail_produce(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Has every append from now on ignore sequences: what a broken broker does.
    pub fn forget_producers(&self) {
        for topic in self.state().topics.values_mut() {
            for partition in &mut topic.partitions {
                partition.forgetful = true;
            }
        }
    }

    /// Produce requests so far.
    #[must_use]
    pub fn produce_requests(&self) -> u64 {
        self.state().produce_requests
    }

    /// Fetch requests so far.
    #[must_use]
    pub fn fetch_requests(&self) -> u64 {
        self.state().fetch_requests
    }

    /// Metadata requests so far.
    #[must_use]
    pub fn metadata_requests(&self) -> u64 {
        self.state().metadata_requests
    }

    /// Forgets the records below `offset`, as retention does.
    pub fn expire(&self, of: &TopicPartition, offset: Offset) {
        if let Some(partition) = self.state().partition(&of.topic, of.partition.get()) {
            partition.expire(offset.get());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the state")
    }

    async fn fetch(&self, request: FetchRequestData) -> FetchResponseData {
        self.state().fetch_requests += 1;
        let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let appended = self.appended.notified();
            tokio::pin!(appended);
            // Before the look: an append right after it is noticed.
            appended.as_mut().enable();
            let (response, ready) = self.state().fetch(&request);
            if ready || tokio::time::timeout_at(deadline, appended).await.is_err() {
                return response;
            }
        }
    }
}

#[async_trait]
impl Node for MemoryNode {
    fn node_id(&self) -> BrokerId {
        NODE_ID
    }

    fn supported_apis(&self) -> &[ApiRange] {
        &self.apis
    }

    async fn handle(
        &self,
        _context: &RequestContext,
        header: &RequestHeader,
        request: Request,
    ) -> Response {
        match request {
            Request::Produce(request) => {
                let response = self.state().produce(request);
                self.appended.notify_waiters();
                response.into()
            }
            Request::Fetch(request) => self.fetch(request).await.into(),
            Request::ListOffsets(request) => self.state().list_offsets(&request).into(),
            Request::Metadata(request) => self.state().metadata(&request, header.version).into(),
            Request::OffsetCommit(request) => self.state().commit(request).into(),
            Request::OffsetFetch(request) => self.state().committed(request).into(),
            Request::FindCoordinator(request) => self.state().coordinator(&request).into(),
            Request::ApiVersions(_) => advertised(&self.apis).into(),
            Request::CreateTopics(request) => {
                self.state().create_topics(&request, header.version).into()
            }
            Request::DeleteTopics(request) => {
                let response = self.state().delete_topics(&request);
                self.appended.notify_waiters();
                response.into()
            }
            Request::InitProducerId(request) => self.state().init_producer_id(&request).into(),
            other => unreachable!("the memory node does not advertise {:?}", other.api()),
        }
    }
}

impl State {
    fn partition(&mut self, topic: &str, index: i32) -> Option<&mut Partition> {
        let index = usize::try_from(index).ok()?;
        self.topics.get_mut(topic)?.partitions.get_mut(index)
    }

    fn produce(&mut self, request: ProduceRequestData) -> ProduceResponseData {
        self.produce_requests += 1;
        let mut response = ProduceResponseData::default();
        for topic in request.topic_data {
            let mut answers = Vec::new();
            for data in topic.partition_data {
                let of = TopicPartition::new(
                    topic.name.as_str(),
                    crate::ids::PartitionId::new(data.index),
                );
                let fault = (self.faults)(&of);
                let (code, base_offset) = match (fault, self.partition(&of.topic, data.index)) {
                    (_, None) => (ErrorCode::UnknownTopicOrPartition, -1),
                    (ProduceFault::Refuse(code), Some(_)) => (code, -1),
                    (ProduceFault::None, Some(it)) => it.append(data.records.as_ref()),
                    (ProduceFault::AppendThenSay(code), Some(it)) => {
                        it.append(data.records.as_ref());
                        (code, -1)
                    }
                };
                answers.push(
                    PartitionProduceResponse::default()
                        .with_index(data.index)
                        .with_error_code(code.into())
                        .with_base_offset(base_offset)
                        .with_log_append_time_ms(-1),
                );
            }
            response.responses.push(
                TopicProduceResponse::default()
                    .with_name(topic.name)
                    .with_partition_responses(answers),
            );
        }
        response
    }

    /// The response, and whether it is worth sending now.
    fn fetch(&mut self, request: &FetchRequestData) -> (FetchResponseData, bool) {
        let mut response = FetchResponseData::default();
        let mut ready = false;
        for topic in &request.topics {
            let mut answers = Vec::new();
            for wanted in &topic.partitions {
                let answer = PartitionData::default().with_partition_index(wanted.partition);
                let answer = match self.partition(topic.topic.as_str(), wanted.partition) {
                    None => answer.with_error_code(ErrorCode::UnknownTopicOrPartition.into()),
                    Some(partition) => partition.fetch(answer, wanted),
                };
                ready |= answer.error_code != 0
                    || answer.records.as_ref().is_some_and(|records| !records.is_empty());
                answers.push(answer);
            }
            response.responses.push(
                FetchableTopicResponse::default()
                    .with_topic(topic.topic.clone())
                    .with_partitions(answers),
            );
        }
        (response, ready)
    }

    fn list_offsets(&mut self, request: &ListOffsetsRequestData) -> ListOffsetsResponseData {
        let mut response = ListOffsetsResponseData::default();
        for topic in &request.topics {
            let mut answers = Vec::new();
            for wanted in &topic.partitions {
                let answer = ListOffsetsPartitionResponse::default()
                    .with_partition_index(wanted.partition_index);
                answers.push(match self.partition(topic.name.as_str(), wanted.partition_index) {
                    None => answer.with_error_code(ErrorCode::UnknownTopicOrPartition.into()),
                    Some(partition) => answer.with_offset(partition.offset_at(wanted.timestamp)),
                });
            }
            response.topics.push(
                ListOffsetsTopicResponse::default()
                    .with_name(topic.name.clone())
                    .with_partitions(answers),
            );
        }
        response
    }

    fn metadata(&mut self, request: &MetadataRequestData, version: i16) -> MetadataResponseData {
        self.metadata_requests += 1;
        let (host, port) = &self.advertised;
        let broker = MetadataResponseBroker::default()
            .with_node_id(NODE_ID.get())
            .with_host(KafkaString::from(host.clone()))
            .with_port(i32::from(*port));
        let names: Vec<String> = match &request.topics {
            None => self.topics.keys().cloned().collect(),
            Some(topics) => topics
                .iter()
                .filter_map(|topic| topic.name.as_ref().map(|name| name.as_str().to_owned()))
                .collect(),
        };
        let topics = names.iter().map(|name| self.describe(name, version)).collect();
        MetadataResponseData::default()
            .with_brokers(vec![broker])
            .with_cluster_id(Some(KafkaString::from_static(CLUSTER_ID)))
            .with_controller_id(NODE_ID.get())
            .with_topics(topics)
    }

    fn describe(&self, name: &str, version: i16) -> MetadataResponseTopic {
        let described =
            MetadataResponseTopic::default().with_name(Some(KafkaString::from(name.to_owned())));
        let Some(topic) = self.topics.get(name) else {
            return described.with_error_code(ErrorCode::UnknownTopicOrPartition.into());
        };
        let partitions = (0..topic.partitions.len()).map(|index| {
            let partition = MetadataResponsePartition::default()
                .with_partition_index(i32::try_from(index).unwrap_or(i32::MAX))
                .with_leader_id(NODE_ID.get())
                .with_replica_nodes(vec![NODE_ID.get()])
                .with_isr_nodes(vec![NODE_ID.get()]);
            if version >= 7 { partition.with_leader_epoch(0) } else { partition }
        });
        let described = described.with_partitions(partitions.collect());
        if version >= 10 { described.with_topic_id(topic.id) } else { described }
    }

    fn commit(&mut self, request: OffsetCommitRequestData) -> OffsetCommitResponseData {
        let mut response = OffsetCommitResponseData::default();
        for topic in request.topics {
            let mut answers = Vec::new();
            for partition in topic.partitions {
                let index = partition.partition_index;
                let of =
                    TopicPartition::new(topic.name.as_str(), crate::ids::PartitionId::new(index));
                let key = (request.group_id.as_str().to_owned(), of);
                self.committed.insert(key, partition.committed_offset);
                answers.push(OffsetCommitResponsePartition::default().with_partition_index(index));
            }
            response.topics.push(
                OffsetCommitResponseTopic::default().with_name(topic.name).with_partitions(answers),
            );
        }
        response
    }

    fn committed(&self, request: OffsetFetchRequestData) -> OffsetFetchResponseData {
        let mut response = OffsetFetchResponseData::default();
        for topic in request.topics.unwrap_or_default() {
            let answers = topic.partition_indexes.iter().map(|index| {
                let of =
                    TopicPartition::new(topic.name.as_str(), crate::ids::PartitionId::new(*index));
                let key = (request.group_id.as_str().to_owned(), of);
                OffsetFetchResponsePartition::default()
                    .with_partition_index(*index)
                    .with_committed_offset(self.committed.get(&key).copied().unwrap_or(-1))
                    .with_metadata(Some(KafkaString::default()))
            });
            response.topics.push(
                OffsetFetchResponseTopic::default()
                    .with_partitions(answers.collect())
                    .with_name(topic.name),
            );
        }
        response
    }

    fn coordinator(&self, _request: &FindCoordinatorRequestData) -> FindCoordinatorResponseData {
        let (host, port) = &self.advertised;
        FindCoordinatorResponseData::default()
            .with_node_id(NODE_ID.get())
            .with_host(KafkaString::from(host.clone()))
            .with_port(i32::from(*port))
    }

    fn create_topics(
        &mut self,
        request: &CreateTopicsRequestData,
        version: i16,
    ) -> CreateTopicsResponseData {
        let mut response = CreateTopicsResponseData::default();
        for topic in &request.topics {
            let result = CreatableTopicResult::default()
                .with_name(topic.name.clone())
                .with_configs(Some(Vec::new()));
            let partitions = usize::try_from(topic.num_partitions).unwrap_or(0);
            let code = match self.topics.entry(topic.name.as_str().to_owned()) {
                Entry::Occupied(_) => ErrorCode::TopicAlreadyExists,
                Entry::Vacant(_) if partitions == 0 => ErrorCode::InvalidPartitions,
                Entry::Vacant(entry) => {
                    let id = KafkaUuid::from_uuid(uuid::Uuid::new_v4());
                    let empty = std::iter::repeat_with(Partition::default);
                    let partitions = empty.take(partitions).collect();
                    entry.insert(Topic { id, partitions });
                    ErrorCode::None
                }
            };
            let result = result.with_error_code(code.into());
            response.topics.push(if version < 5 { result.with_configs(None) } else { result });
        }
        response
    }

    fn delete_topics(&mut self, request: &DeleteTopicsRequestData) -> DeleteTopicsResponseData {
        let results = request.topic_names.iter().map(|name| {
            let code = match self.topics.remove(name.as_str()) {
                Some(_) => ErrorCode::None,
                None => ErrorCode::UnknownTopicOrPartition,
            };
            DeletableTopicResult::default()
                .with_name(Some(name.clone()))
                .with_error_code(code.into())
        });
        DeleteTopicsResponseData::default().with_responses(results.collect())
    }

    fn init_producer_id(
        &mut self,
        request: &InitProducerIdRequestData,
    ) -> InitProducerIdResponseData {
        let given = InitProducerIdResponseData::default();
        let fresh = self.next_producer_id;
        let (id, epoch) = match &request.transactional_id {
            None => (fresh, 0),
            Some(name) => {
                let known = self.transactional_ids.entry(name.as_str().to_owned());
                *known.and_modify(|(_, epoch)| *epoch += 1).or_insert((fresh, 0))
            }
        };
        if id == fresh {
            self.next_producer_id += 1;
        }
        given.with_producer_id(id).with_producer_epoch(epoch)
    }
}

/// Serves `node` on a free port of 127.0.0.1 and advertises it; the server ends with the token.
///
/// # Errors
/// If no port can be had.
pub async fn serve_on_loopback(
    node: &Arc<MemoryNode>,
    shutdown: tokio_util::sync::CancellationToken,
) -> std::io::Result<(u16, tokio::task::JoinHandle<()>)> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    node.advertise("127.0.0.1", port);
    let node: Arc<dyn Node> = Arc::clone(node) as Arc<dyn Node>;
    let config = crate::server::ServerConfig::default();
    Ok((port, tokio::spawn(crate::server::serve(node, listener, config, shutdown))))
}
