//! The node's answers to Kafka's requests: one file per API.
//!
//! A request that came over a socket and one from the capture loop next door take the same way.
//! Nothing here keeps state: it reads requests, looks at the metadata, calls `storage`, `coordinator`
//! and the controller, and writes down what they say in Kafka's words and error codes.

mod alter_configs;
mod create_partitions;
mod create_topics;
mod delete_groups;
mod delete_topics;
mod describe_cluster;
mod describe_configs;
mod elect_leaders;
mod fetch;
mod find_coordinator;
mod holds;
mod init_producer_id;
mod list_groups;
mod list_offsets;
mod metadata;
mod offset_commit;
mod offset_delete;
mod offset_fetch;
mod offset_for_leader_epoch;
mod produce;
mod quorum;
mod read_replica;
mod reassignments;
mod unregister_broker;
mod view;

use async_trait::async_trait;
use tailwater_kafka::wire::{
    ApiKey, ApiRange, ErrorCode, KafkaString, Request, RequestHeader, Response, advertised,
};
use tailwater_kafka::{BrokerId, Node, RequestContext};

use crate::Error;
use crate::controller::Refusal;
use crate::coordinator::NotChanged;
use crate::log::Log;
use crate::replica::{NotNow, WrongEpoch};
use crate::storage::partition::Stopped;
use crate::storage::read::NotRead;

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
    ApiRange::new(ApiKey::AlterConfigs, 0, 2),
    ApiRange::new(ApiKey::CreatePartitions, 0, 3),
    ApiRange::new(ApiKey::DeleteGroups, 0, 2),
    ApiRange::new(ApiKey::ElectLeaders, 0, 2),
    ApiRange::new(ApiKey::IncrementalAlterConfigs, 0, 1),
    ApiRange::new(ApiKey::AlterPartitionReassignments, 0, 1),
    ApiRange::new(ApiKey::ListPartitionReassignments, 0, 0),
    ApiRange::new(ApiKey::OffsetDelete, 0, 0),
    ApiRange::new(ApiKey::DescribeQuorum, 0, 2),
    ApiRange::new(ApiKey::DescribeCluster, 0, 2),
    ApiRange::new(ApiKey::UnregisterBroker, 0, 0),
    ApiRange::new(ApiKey::RemoveRaftVoter, 0, 0),
    ApiRange::new(ApiKey::ListGroups, 0, 5),
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
            Request::OffsetFetch(request) => self.offset_fetch(request, version).await.into(),
            Request::FindCoordinator(request) => {
                self.find_coordinator(request, version).await.into()
            }
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
            Request::ListGroups(request) => self.list_groups(&request).into(),
            Request::AlterConfigs(request) => self.alter_configs(request).await.into(),
            Request::IncrementalAlterConfigs(request) => {
                self.incremental_alter_configs(request).await.into()
            }
            Request::CreatePartitions(request) => self.create_partitions(request).await.into(),
            Request::ElectLeaders(request) => self.elect_leaders(request).await.into(),
            Request::AlterPartitionReassignments(request) => {
                self.alter_partition_reassignments(request).await.into()
            }
            Request::ListPartitionReassignments(request) => {
                self.list_partition_reassignments(&request).into()
            }
            Request::DescribeQuorum(request) => self.describe_quorum(request, version).await.into(),
            Request::UnregisterBroker(request) => self.unregister_broker(request).await.into(),
            Request::RemoveRaftVoter(request) => self.remove_raft_voter(request).await.into(),
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

    /// In words.
    fn reason(&self) -> String {
        self.message.clone().unwrap_or_else(|| format!("{:?}", self.code))
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
            Stopped::Offline(_) | Stopped::Damaged(_) => ErrorCode::KafkaStorageError,
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
            Error::Unavailable { .. } => ErrorCode::CoordinatorNotAvailable,
        };
        Self::new(code, error.full_text())
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code, refusal.message)
    }
}

impl From<NotChanged> for Refused {
    fn from(not_changed: NotChanged) -> Self {
        // Retriable for every client, as nothing has changed, or only the new coordinator knows.
        let code = match &not_changed {
            NotChanged::NotCoordinator => ErrorCode::NotCoordinator,
            NotChanged::Loading => ErrorCode::CoordinatorLoadInProgress,
            NotChanged::Unavailable(_) => ErrorCode::CoordinatorNotAvailable,
        };
        Self::new(code, not_changed.to_string())
    }
}

impl From<NotNow> for Refused {
    fn from(not_now: NotNow) -> Self {
        match not_now {
            NotNow::NotLeader => ErrorCode::NotLeaderOrFollower.into(),
            NotNow::NotEnoughReplicas => {
                Self::new(ErrorCode::NotEnoughReplicas, not_now.to_string())
            }
        }
    }
}

impl From<WrongEpoch> for Refused {
    fn from(wrong: WrongEpoch) -> Self {
        match wrong {
            WrongEpoch::Fenced => ErrorCode::FencedLeaderEpoch.into(),
            WrongEpoch::Unknown => ErrorCode::UnknownLeaderEpoch.into(),
            WrongEpoch::NotLeader => ErrorCode::NotLeaderOrFollower.into(),
        }
    }
}

/// The error code of an outcome.
fn code<T>(outcome: &Result<T, Refused>) -> i16 {
    outcome.as_ref().err().map_or(0, Refused::code)
}
