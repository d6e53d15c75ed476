//! The node's answers to Kafka's requests: one file per API.
//!
//! A request that came over a socket and one from the capture loop next door take the same way.
//! Nothing here keeps state: it reads requests, calls `storage`, `topics`, `producers` and `groups`,
//! and writes down what they say in Kafka's words and error codes.

mod create_topics;
mod delete_groups;
mod delete_topics;
mod describe_cluster;
mod describe_configs;
mod fetch;
mod find_coordinator;
mod init_producer_id;
mod list_offsets;
mod metadata;
mod offset_commit;
mod offset_delete;
mod offset_fetch;
mod offset_for_leader_epoch;
mod produce;

use std::sync::Arc;

use async_trait::async_trait;
use tailwater_kafka::wire::{
    ApiKey, ApiRange, ErrorCode, KafkaString, KafkaUuid, Request, RequestHeader, Response,
    advertised,
};
use tailwater_kafka::{BrokerId, LeaderEpoch, Node, RequestContext, TopicId};

use crate::Error;
use crate::log::Log;
use crate::storage::partition::{Partition, Stopped};
use crate::storage::read::NotRead;
use crate::topics::{Topic, Topics};

/// What this node answers. The newest versions are those of Kafka 4.3.
const APIS: &[ApiRange] = &[
    ApiRange::new(ApiKey::Produce, 3, 13),
    ApiRange::new(ApiKey::Fetch, 4, 18),
    ApiRange::new(ApiKey::ListOffsets, 1, 10),
    ApiRange::new(ApiKey::Metadata, 0, 13),
    ApiRange::new(ApiKey::OffsetCommit, 2, 10),
    ApiRange::new(ApiKey::OffsetFetch, 1, 10),
    ApiRange::new(ApiKey::FindCoordinator, 0, 6),
    ApiRange::new(ApiKey::ApiVersions, 0, 4),
    ApiRange::new(ApiKey::CreateTopics, 2, 7),
    ApiRange::new(ApiKey::DeleteTopics, 1, 6),
    ApiRange::new(ApiKey::InitProducerId, 0, 5),
    ApiRange::new(ApiKey::OffsetForLeaderEpoch, 2, 4),
    ApiRange::new(ApiKey::DescribeConfigs, 1, 4),
    ApiRange::new(ApiKey::DeleteGroups, 0, 2),
    ApiRange::new(ApiKey::OffsetDelete, 0, 0),
    ApiRange::new(ApiKey::DescribeCluster, 0, 2),
];

#[async_trait]
impl Node for Log {
    fn node_id(&self) -> BrokerId {
        self.shared.config.node_id
    }

    fn supported_apis(&self) -> &[ApiRange] {
        APIS
    }

    async fn handle(
        &self,
        context: &RequestContext,
        header: &RequestHeader,
        request: Request,
    ) -> Response {
        let version = header.version;
        match request {
            Request::Produce(request) => self.produce(context, request).await.into(),
            Request::Fetch(request) => self.fetch(request, version).await.into(),
            Request::ListOffsets(request) => self.list_offsets(request, version).await.into(),
            Request::Metadata(request) => self.metadata(request, version).await.into(),
            Request::OffsetCommit(request) => self.offset_commit(request, version).await.into(),
            Request::OffsetFetch(request) => self.offset_fetch(request, version).into(),
            Request::FindCoordinator(request) => self.find_coordinator(request, version).into(),
            Request::ApiVersions(_) => advertised(APIS).into(),
            Request::CreateTopics(request) => self.create_topics(request).await.into(),
            Request::DeleteTopics(request) => self.delete_topics(request, version).await.into(),
            Request::InitProducerId(request) => {
                self.init_producer_id(request, version).await.into()
            }
            Request::OffsetForLeaderEpoch(request) => self.offset_for_leader_epoch(request).into(),
            Request::DescribeConfigs(request) => self.describe_configs(request).into(),
            Request::DeleteGroups(request) => self.delete_groups(request).await.into(),
            Request::OffsetDelete(request) => self.offset_delete(request).await.into(),
            Request::DescribeCluster(request) => self.describe_cluster(request).into(),
            #[expect(
                clippy::panic,
                reason = "callers answer what is not in APIS themselves: our own mistake otherwise"
            )]
            other => panic!("{:?} is not advertised and was passed on all the same", other.api()),
        }
    }
}

/// Why something is refused: Kafka's code, and a text for the versions that carry one.
#[derive(Debug, Clone)]
struct Refused {
    code: ErrorCode,
    message: Option<String>,
}

impl Refused {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: Some(message.into()) }
    }

    fn code(&self) -> i16 {
        self.code.into()
    }

    fn text(&self) -> Option<KafkaString> {
        self.message.clone().map(KafkaString::from)
    }
}

impl From<ErrorCode> for Refused {
    fn from(code: ErrorCode) -> Self {
        Self { code, message: None }
    }
}

impl From<Stopped> for Refused {
    fn from(stopped: Stopped) -> Self {
        let code = match &stopped {
            Stopped::Offline(_) => ErrorCode::KafkaStorageError,
            Stopped::Deleted => ErrorCode::UnknownTopicOrPartition,
            Stopped::Closed => ErrorCode::NotLeaderOrFollower,
        };
        Self::new(code, stopped.to_string())
    }
}

impl From<NotRead> for Refused {
    fn from(not_read: NotRead) -> Self {
        match not_read {
            NotRead::Stopped(stopped) => stopped.into(),
            NotRead::OutOfRange(_) => Self::new(ErrorCode::OffsetOutOfRange, not_read.to_string()),
            // Retriable for every client.
            NotRead::Failed(_) => Self::new(ErrorCode::KafkaStorageError, not_read.to_string()),
        }
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Closed => ErrorCode::CoordinatorNotAvailable,
            Error::Io { .. }
            | Error::NoSpace { .. }
            | Error::Exhausted { .. }
            | Error::Corrupt { .. } => ErrorCode::KafkaStorageError,
            Error::FormatVersion { .. }
            | Error::Locked { .. }
            | Error::OtherNode { .. }
            | Error::Config { .. }
            | Error::TaskFailed => ErrorCode::UnknownServerError,
        };
        Self::new(code, error.full_text())
    }
}

/// The error code of an outcome.
fn code<T>(outcome: &Result<T, Refused>) -> i16 {
    outcome.as_ref().err().map_or(0, Refused::code)
}

impl Log {
    /// A topic as a request names it.
    fn find_topic(&self, name: &KafkaString, id: KafkaUuid) -> Result<Arc<Topic>, Refused> {
        find_topic(&self.topics, name, id)
    }

    /// Does what has several steps to its end, also when the connection that asked for it ends in
    /// between and its future is dropped.
    async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Refused>> + Send + 'static,
    ) -> Result<T, Refused> {
        let working = self.requests.spawn(work);
        working.await.unwrap_or_else(|_| Err(ErrorCode::UnknownServerError.into()))
    }
}

/// A topic by id as newer versions name it, by name in older ones.
fn find_topic(topics: &Topics, name: &KafkaString, id: KafkaUuid) -> Result<Arc<Topic>, Refused> {
    if id.is_nil() {
        let unknown = || ErrorCode::UnknownTopicOrPartition.into();
        return topics.by_name(name.as_str()).ok_or_else(unknown);
    }
    topics.by_id(TopicId::new(*id.inner())).ok_or_else(|| ErrorCode::UnknownTopicId.into())
}

fn find_partition(topic: &Topic, number: i32) -> Result<&Arc<Partition>, Refused> {
    topic.partition(number).ok_or_else(|| ErrorCode::UnknownTopicOrPartition.into())
}

/// Refuses a reader that knows another leader epoch than the current one (KIP-320).
fn check_leader_epoch(partition: &Partition, known: i32) -> Result<(), Refused> {
    if LeaderEpoch::new(known) == LeaderEpoch::NONE {
        return Ok(());
    }
    let current = partition.epochs()?.current().get();
    match known.cmp(&current) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => Err(ErrorCode::FencedLeaderEpoch.into()),
        std::cmp::Ordering::Greater => Err(ErrorCode::UnknownLeaderEpoch.into()),
    }
}
