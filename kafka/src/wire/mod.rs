//! Typed requests and responses, and their frames.
//!
//! ```text
//! request    length i32 | api key i16 | version i16 | correlation id i32 | client id | [tags] | body
//! response   length i32 | correlation id i32 | [tags] | body
//! ```
//!
//! The message structs are `kacrab-protocol`'s, generated from Kafka's own schemas; they are re-
//! exported by module (`wire::fetch_request::FetchPartition`). Everything around them is ours:
//! which frames are read at all ([`frame_limit`]), the two messages that carry record batches
//! (Produce requests and Fetch responses: batches stay slices, frames leave as a list of slices),
//! and the list of what exists. No bytes panic here and no length is believed before it is checked.

mod fetch;
mod frame;
mod produce;
mod versions;

pub use frame::{
    CONTROL_FRAME_BYTES, DATA_FRAME_BYTES, Decoded, RequestHeader, decode_request, decode_response,
    encode_request, encode_response, frame_limit,
};
pub(crate) use frame::{check_request_length, check_response_length};
pub use kacrab_protocol::{
    KafkaString, KafkaUuid,
    generated::{
        ApiKey, ErrorCode, add_offsets_to_txn_request, add_offsets_to_txn_response,
        add_partitions_to_txn_request, add_partitions_to_txn_response, alter_configs_request,
        alter_configs_response, alter_partition_reassignments_request,
        alter_partition_reassignments_response, api_versions_request, api_versions_response,
        create_partitions_request, create_partitions_response, create_topics_request,
        create_topics_response, delete_groups_request, delete_groups_response,
        delete_records_request, delete_records_response, delete_topics_request,
        delete_topics_response, describe_cluster_request, describe_cluster_response,
        describe_configs_request, describe_configs_response, describe_groups_request,
        describe_groups_response, describe_log_dirs_request, describe_log_dirs_response,
        describe_producers_request, describe_producers_response, describe_quorum_request,
        describe_quorum_response, describe_topic_partitions_request,
        describe_topic_partitions_response, describe_transactions_request,
        describe_transactions_response, elect_leaders_request, elect_leaders_response,
        end_txn_request, end_txn_response, fetch_request, fetch_response, find_coordinator_request,
        find_coordinator_response, heartbeat_request, heartbeat_response,
        incremental_alter_configs_request, incremental_alter_configs_response,
        init_producer_id_request, init_producer_id_response, join_group_request,
        join_group_response, leave_group_request, leave_group_response, list_groups_request,
        list_groups_response, list_offsets_request, list_offsets_response,
        list_partition_reassignments_request, list_partition_reassignments_response,
        list_transactions_request, list_transactions_response, metadata_request, metadata_response,
        offset_commit_request, offset_commit_response, offset_delete_request,
        offset_delete_response, offset_fetch_request, offset_fetch_response,
        offset_for_leader_epoch_request, offset_for_leader_epoch_response, produce_request,
        produce_response, remove_raft_voter_request, remove_raft_voter_response,
        sasl_authenticate_request, sasl_authenticate_response, sasl_handshake_request,
        sasl_handshake_response, sync_group_request, sync_group_response,
        txn_offset_commit_request, txn_offset_commit_response, unregister_broker_request,
        unregister_broker_response, write_txn_markers_request, write_txn_markers_response,
    },
};
pub use versions::{ApiRange, advertised, supports, unsupported_api_versions};

use bytes::{Bytes, BytesMut};

/// Why bytes are not a message, or a message has no bytes.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A length that no peer of good will sends.
    #[error("frame of {length} bytes for {api}, at most {limit} are taken")]
    FrameTooLarge {
        /// What the frame says.
        length: i64,
        /// What is taken.
        limit: usize,
        /// The API's key, or "response".
        api: String,
    },
    /// The frame ends before its message does.
    #[error("{what} is cut off")]
    CutOff {
        /// What was being read.
        what: &'static str,
    },
    /// A message names more parts than any real one does.
    #[error("request names more than {limit} partitions")]
    TooManyPartitions {
        /// The limit.
        limit: usize,
    },
    /// An API that does not exist here.
    #[error("api key {0} is unknown")]
    UnknownApi(i16),
    /// A version of an API that this code cannot read or write.
    #[error("{api:?} version {version} is not supported")]
    UnsupportedVersion {
        /// The API.
        api: ApiKey,
        /// The version asked for.
        version: i16,
    },
    /// The response belongs to another request: the connection is out of step.
    #[error("response has correlation id {actual}, request {expected} was to be answered")]
    OutOfStep {
        /// What the oldest unanswered request has.
        expected: i32,
        /// What came.
        actual: i32,
    },
    /// The message does not follow its schema.
    #[error("{direction} of {api:?} version {version}")]
    Message {
        /// "decode request" and the like.
        direction: &'static str,
        /// The API.
        api: ApiKey,
        /// Its version.
        version: i16,
        /// What is wrong with it.
        #[source]
        source: kacrab_protocol::ProtocolError,
    },
}

macro_rules! apis {
    ($($name:ident: $request:ident / $request_data:ident, $response:ident / $response_data:ident;)*) => {
        /// A request, decoded.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Request {
            $(
                #[doc = concat!("A ", stringify!($name), " request.")]
                $name($request::$request_data),
            )*
        }

        /// A response, decoded.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Response {
            $(
                #[doc = concat!("The response to a ", stringify!($name), " request.")]
                $name($response::$response_data),
            )*
        }

        impl Request {
            /// Which API this is.
            #[must_use]
            pub const fn api(&self) -> ApiKey {
                match self {
                    $(Self::$name(_) => ApiKey::$name,)*
                }
            }

            fn read(
                api: ApiKey,
                buf: &mut Bytes,
                version: i16,
            ) -> Result<Option<Self>, kacrab_protocol::ProtocolError> {
                Ok(Some(match api {
                    $(ApiKey::$name => Self::$name($request::$request_data::read(buf, version)?),)*
                    _ => return Ok(None),
                }))
            }

            fn write(
                &self,
                buf: &mut BytesMut,
                version: i16,
            ) -> Result<(), kacrab_protocol::ProtocolError> {
                match self {
                    $(Self::$name(message) => message.write(buf, version),)*
                }
            }
        }

        impl Response {
            /// Which API this is.
            #[must_use]
            pub const fn api(&self) -> ApiKey {
                match self {
                    $(Self::$name(_) => ApiKey::$name,)*
                }
            }

            fn read(
                api: ApiKey,
                buf: &mut Bytes,
                version: i16,
            ) -> Result<Option<Self>, kacrab_protocol::ProtocolError> {
                Ok(Some(match api {
                    $(ApiKey::$name => Self::$name($response::$response_data::read(buf, version)?),)*
                    _ => return Ok(None),
                }))
            }

            fn write(
                &self,
                buf: &mut BytesMut,
                version: i16,
            ) -> Result<(), kacrab_protocol::ProtocolError> {
                match self {
                    $(Self::$name(message) => message.write(buf, version),)*
                }
            }
        }

        $(
            impl From<$request::$request_data> for Request {
                fn from(message: $request::$request_data) -> Self {
                    Self::$name(message)
                }
            }

            impl From<$response::$response_data> for Response {
                fn from(message: $response::$response_data) -> Self {
                    Self::$name(message)
                }
            }

            impl TryFrom<Response> for $response::$response_data {
                type Error = ApiKey;

                /// The API that answered instead.
                fn try_from(response: Response) -> Result<Self, ApiKey> {
                    match response {
                        Response::$name(message) => Ok(message),
                        other => Err(other.api()),
                    }
                }
            }
        )*
    };
}

apis! {
    Produce: produce_request / ProduceRequestData, produce_response / ProduceResponseData;
    Fetch: fetch_request / FetchRequestData, fetch_response / FetchResponseData;
    ListOffsets: list_offsets_request / ListOffsetsRequestData, list_offsets_response / ListOffsetsResponseData;
    Metadata: metadata_request / MetadataRequestData, metadata_response / MetadataResponseData;
    OffsetCommit: offset_commit_request / OffsetCommitRequestData, offset_commit_response / OffsetCommitResponseData;
    OffsetFetch: offset_fetch_request / OffsetFetchRequestData, offset_fetch_response / OffsetFetchResponseData;
    FindCoordinator: find_coordinator_request / FindCoordinatorRequestData, find_coordinator_response / FindCoordinatorResponseData;
    JoinGroup: join_group_request / JoinGroupRequestData, join_group_response / JoinGroupResponseData;
    Heartbeat: heartbeat_request / HeartbeatRequestData, heartbeat_response / HeartbeatResponseData;
    LeaveGroup: leave_group_request / LeaveGroupRequestData, leave_group_response / LeaveGroupResponseData;
    SyncGroup: sync_group_request / SyncGroupRequestData, sync_group_response / SyncGroupResponseData;
    DescribeGroups: describe_groups_request / DescribeGroupsRequestData, describe_groups_response / DescribeGroupsResponseData;
    ListGroups: list_groups_request / ListGroupsRequestData, list_groups_response / ListGroupsResponseData;
    SaslHandshake: sasl_handshake_request / SaslHandshakeRequestData, sasl_handshake_response / SaslHandshakeResponseData;
    ApiVersions: api_versions_request / ApiVersionsRequestData, api_versions_response / ApiVersionsResponseData;
    CreateTopics: create_topics_request / CreateTopicsRequestData, create_topics_response / CreateTopicsResponseData;
    DeleteTopics: delete_topics_request / DeleteTopicsRequestData, delete_topics_response / DeleteTopicsResponseData;
    DeleteRecords: delete_records_request / DeleteRecordsRequestData, delete_records_response / DeleteRecordsResponseData;
    InitProducerId: init_producer_id_request / InitProducerIdRequestData, init_producer_id_response / InitProducerIdResponseData;
    OffsetForLeaderEpoch: offset_for_leader_epoch_request / OffsetForLeaderEpochRequestData, offset_for_leader_epoch_response / OffsetForLeaderEpochResponseData;
    AddPartitionsToTxn: add_partitions_to_txn_request / AddPartitionsToTxnRequestData, add_partitions_to_txn_response / AddPartitionsToTxnResponseData;
    AddOffsetsToTxn: add_offsets_to_txn_request / AddOffsetsToTxnRequestData, add_offsets_to_txn_response / AddOffsetsToTxnResponseData;
    EndTxn: end_txn_request / EndTxnRequestData, end_txn_response / EndTxnResponseData;
    WriteTxnMarkers: write_txn_markers_request / WriteTxnMarkersRequestData, write_txn_markers_response / WriteTxnMarkersResponseData;
    TxnOffsetCommit: txn_offset_commit_request / TxnOffsetCommitRequestData, txn_offset_commit_response / TxnOffsetCommitResponseData;
    DescribeConfigs: describe_configs_request / DescribeConfigsRequestData, describe_configs_response / DescribeConfigsResponseData;
    AlterConfigs: alter_configs_request / AlterConfigsRequestData, alter_configs_response / AlterConfigsResponseData;
    DescribeLogDirs: describe_log_dirs_request / DescribeLogDirsRequestData, describe_log_dirs_response / DescribeLogDirsResponseData;
    SaslAuthenticate: sasl_authenticate_request / SaslAuthenticateRequestData, sasl_authenticate_response / SaslAuthenticateResponseData;
    CreatePartitions: create_partitions_request / CreatePartitionsRequestData, create_partitions_response / CreatePartitionsResponseData;
    DeleteGroups: delete_groups_request / DeleteGroupsRequestData, delete_groups_response / DeleteGroupsResponseData;
    IncrementalAlterConfigs: incremental_alter_configs_request / IncrementalAlterConfigsRequestData, incremental_alter_configs_response / IncrementalAlterConfigsResponseData;
    OffsetDelete: offset_delete_request / OffsetDeleteRequestData, offset_delete_response / OffsetDeleteResponseData;
    DescribeCluster: describe_cluster_request / DescribeClusterRequestData, describe_cluster_response / DescribeClusterResponseData;
    DescribeProducers: describe_producers_request / DescribeProducersRequestData, describe_producers_response / DescribeProducersResponseData;
    DescribeTransactions: describe_transactions_request / DescribeTransactionsRequestData, describe_transactions_response / DescribeTransactionsResponseData;
    ListTransactions: list_transactions_request / ListTransactionsRequestData, list_transactions_response / ListTransactionsResponseData;
    DescribeTopicPartitions: describe_topic_partitions_request / DescribeTopicPartitionsRequestData, describe_topic_partitions_response / DescribeTopicPartitionsResponseData;
    ElectLeaders: elect_leaders_request / ElectLeadersRequestData, elect_leaders_response / ElectLeadersResponseData;
    AlterPartitionReassignments: alter_partition_reassignments_request / AlterPartitionReassignmentsRequestData, alter_partition_reassignments_response / AlterPartitionReassignmentsResponseData;
    ListPartitionReassignments: list_partition_reassignments_request / ListPartitionReassignmentsRequestData, list_partition_reassignments_response / ListPartitionReassignmentsResponseData;
    DescribeQuorum: describe_quorum_request / DescribeQuorumRequestData, describe_quorum_response / DescribeQuorumResponseData;
    UnregisterBroker: unregister_broker_request / UnregisterBrokerRequestData, unregister_broker_response / UnregisterBrokerResponseData;
    RemoveRaftVoter: remove_raft_voter_request / RemoveRaftVoterRequestData, remove_raft_voter_response / RemoveRaftVoterResponseData;
}
