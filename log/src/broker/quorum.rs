//! DescribeQuorum and RemoveRaftVoter: who the controllers are.
//!
//! Kafka's clients know the metadata quorum as partition 0 of the topic `__cluster_metadata`, and
//! an entry of it as a record: what is named an offset here is the number of an entry, and its end
//! the number of the next one.

use tailwater_kafka::BrokerId;
use tailwater_kafka::wire::describe_quorum_request::DescribeQuorumRequestData;
use tailwater_kafka::wire::describe_quorum_response::{
    DescribeQuorumResponseData, Listener, Node, PartitionData, ReplicaState, TopicData,
};
use tailwater_kafka::wire::remove_raft_voter_request::RemoveRaftVoterRequestData;
use tailwater_kafka::wire::remove_raft_voter_response::RemoveRaftVoterResponseData;
use tailwater_kafka::wire::{ErrorCode, KafkaString, KafkaUuid};

use super::{Refused, code};
use crate::log::Log;
use crate::quorum::{QuorumAnswer, QuorumDescription, QuorumMessage, RemoveAnswer};

/// The metadata, as Kafka calls it.
const METADATA_TOPIC: &str = "__cluster_metadata";

/// How Kafka calls the listener for controllers.
const LISTENER: KafkaString = KafkaString::from_static("CONTROLLER");

/// From these versions of DescribeQuorum on there is more to say.
const WITH_TIMES: i16 = 1;
const WITH_NODES: i16 = 2;

impl Log {
    pub(super) async fn describe_quorum(
        &self,
        request: DescribeQuorumRequestData,
        version: i16,
    ) -> DescribeQuorumResponseData {
        let response = DescribeQuorumResponseData::default();
        let described = match self.link.ask_quorum(QuorumMessage::Describe).await {
            Ok(QuorumAnswer::Described(described)) => Ok(described),
            Ok(_) => Err(Refused::from(ErrorCode::UnknownServerError)),
            Err(refusal) => Err(refusal.into()),
        };
        let described = match described {
            Ok(described) => described,
            Err(refused) => {
                let text = refused.text().filter(|_| version >= WITH_NODES);
                return response.with_error_code(refused.code()).with_error_message(text);
            }
        };
        let topics = request.topics.into_iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|partition| {
                let number = partition.partition_index;
                if topic.topic_name.as_str() == METADATA_TOPIC && number == 0 {
                    self.metadata_partition(&described, version)
                } else {
                    PartitionData::default()
                        .with_partition_index(number)
                        .with_error_code(ErrorCode::UnknownTopicOrPartition.into())
                        .with_leader_id(-1)
                }
            });
            let partitions = partitions.collect();
            TopicData::default()
                .with_topic_name(topic.topic_name.clone())
                .with_partitions(partitions)
        });
        let nodes = if version >= WITH_NODES { nodes(&described) } else { Vec::new() };
        response.with_topics(topics.collect()).with_nodes(nodes)
    }

    fn metadata_partition(&self, described: &QuorumDescription, version: i16) -> PartitionData {
        let now = self.shared.config.clock.now_ms();
        let states = |votes: bool| {
            let members = described.members.iter().filter(|member| member.votes == votes);
            let states = members.map(|member| {
                let heard = member.silent_ms.and_then(|ms| i64::try_from(ms).ok());
                let heard_at = heard.map_or(-1, |ms| now.saturating_sub(ms));
                let has_all = member.last.is_some_and(|last| last >= described.committed);
                let state = ReplicaState::default()
                    .with_replica_id(member.node.get())
                    .with_log_end_offset(member.last.map_or(-1, end));
                if version < WITH_TIMES {
                    return state;
                }
                let state = state
                    .with_last_fetch_timestamp(heard_at)
                    .with_last_caught_up_timestamp(if has_all { heard_at } else { -1 });
                if version < WITH_NODES {
                    return state;
                }
                state.with_replica_directory_id(KafkaUuid::from_uuid(member.directory))
            });
            states.collect::<Vec<_>>()
        };
        PartitionData::default()
            .with_partition_index(0)
            .with_leader_id(described.leader.get())
            .with_leader_epoch(i32::try_from(described.term).unwrap_or(i32::MAX))
            .with_high_watermark(end(described.committed))
            .with_current_voters(states(true))
            .with_observers(states(false))
    }

    pub(super) async fn remove_raft_voter(
        &self,
        request: RemoveRaftVoterRequestData,
    ) -> RemoveRaftVoterResponseData {
        let outcome = self.remove_voter(&request).await;
        RemoveRaftVoterResponseData::default()
            .with_error_code(code(&outcome))
            .with_error_message(outcome.err().and_then(|refused| refused.text()))
    }

    async fn remove_voter(&self, request: &RemoveRaftVoterRequestData) -> Result<(), Refused> {
        let own = self.cluster_id();
        if let Some(meant) = &request.cluster_id
            && meant.as_str() != own
        {
            let message = format!("this is cluster {own}, not {}", meant.as_str());
            return Err(Refused::new(ErrorCode::InconsistentClusterId, message));
        }
        let node = BrokerId::new(request.voter_id);
        let id = request.voter_directory_id;
        let directory = (!id.is_nil()).then(|| *id.inner());
        match self.link.ask_quorum(QuorumMessage::Remove { node, directory }).await? {
            QuorumAnswer::Removed(RemoveAnswer::Done) => Ok(()),
            QuorumAnswer::Removed(RemoveAnswer::NotFound) => Err(Refused::new(
                ErrorCode::VoterNotFound,
                format!("node {node} is no controller, or has another disk by now"),
            )),
            QuorumAnswer::Removed(RemoveAnswer::Refused { reason }) => {
                Err(Refused::new(ErrorCode::InvalidRequest, reason))
            }
            _ => Err(ErrorCode::UnknownServerError.into()),
        }
    }
}

/// The end of a log whose last entry this is.
fn end(last: u64) -> i64 {
    i64::try_from(last).unwrap_or(i64::MAX).saturating_add(1)
}

fn nodes(described: &QuorumDescription) -> Vec<Node> {
    let listeners = |address: &str| {
        let parsed = address
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
        let listener = |(host, port): (String, u16)| {
            Listener::default().with_name(LISTENER).with_host(host.into()).with_port(port)
        };
        parsed.map(listener).into_iter().collect()
    };
    let node = |member: &crate::quorum::MemberDescription| {
        Node::default().with_node_id(member.node.get()).with_listeners(listeners(&member.address))
    };
    described.members.iter().map(node).collect()
}
