//! What a controller can be asked, and what it answers.
//!
//! Brokers send these over the controller's listener, as JSON; a node that is broker and controller
//! hands them over as they are. A client's request (CreateTopics, …) becomes one of these at the
//! broker that took it, which has checked its form and the client's rights.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::{BrokerId, LeaderEpoch, PartitionId, ProducerId, TopicId, TopicPartition};
use uuid::Uuid;

use crate::metadata::{BrokerEpoch, MetadataIndex, PartitionEpoch, PartitionState};

/// A request to the controller that leads.
///
/// All may be repeated when their answer is lost, also at another controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ControllerRequest {
    /// A broker starts.
    Register(Registration),
    /// A broker is there.
    Heartbeat(Heartbeat),
    /// A leader proposes other ISRs.
    AlterPartitions(AlterPartitions),
    /// Topics are to be made.
    CreateTopics { topics: Vec<NewTopic>, validate_only: bool },
    /// Topics are to go, with all their records.
    DeleteTopics { topics: Vec<TopicRef> },
    /// Topics are to have more partitions.
    CreatePartitions { topics: Vec<MorePartitions>, validate_only: bool },
    /// Topics are to have other settings.
    SetTopicConfigs { topics: Vec<TopicConfigs>, validate_only: bool },
    /// Partitions are to have a leader, or another; `None` for all that need it.
    ElectLeaders { kind: ElectionKind, partitions: Option<Vec<TopicPartition>> },
    /// Partitions are to move to these brokers, the preferred leader first; `None` takes back a
    /// move that is not complete.
    Reassign { partitions: Vec<(TopicPartition, Option<Vec<BrokerId>>)> },
    /// A broker needs producer ids to give out.
    AllocateProducerIds { id: BrokerId, epoch: BrokerEpoch },
    /// A broker that is gone will not come back.
    UnregisterBroker { id: BrokerId },
}

/// A broker as it describes itself at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registration {
    /// Its id.
    pub(crate) id: BrokerId,
    /// Which start of the process; chosen anew at each.
    pub(crate) incarnation: Uuid,
    /// Which data folder; chosen when the folder was made.
    pub(crate) directory: Uuid,
    /// Where clients and followers reach it.
    pub(crate) host: String,
    /// The port to that host.
    pub(crate) port: u16,
    /// Where it stands.
    pub(crate) rack: Option<String>,
    /// The epoch it had when it stopped with everything flushed; `None` if it did not get that far.
    pub(crate) previous_epoch: Option<BrokerEpoch>,
    /// Whether it acknowledges what is not flushed yet: then it may lack records after a crash.
    pub(crate) keeps_unflushed: bool,
}

/// A sign of life, a few times per session time-out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Heartbeat {
    /// Whose.
    pub(crate) id: BrokerId,
    /// As its registration was answered.
    pub(crate) epoch: BrokerEpoch,
    /// The metadata it has applied.
    pub(crate) applied: MetadataIndex,
    /// Whether it wants to stop.
    pub(crate) stopping: bool,
    /// Its copies that are not as the metadata it has applied says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) copies: Vec<CopyReport>,
}

/// What a broker says of its copy of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CopyReport {
    /// The topic.
    pub(crate) topic: TopicId,
    /// The partition.
    pub(crate) partition: PartitionId,
    /// Whether it cannot use it.
    pub(crate) offline: bool,
}

/// What a leader has found out about its followers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AlterPartitions {
    /// The leader.
    pub(crate) id: BrokerId,
    /// Its registration.
    pub(crate) epoch: BrokerEpoch,
    /// One for each partition.
    pub(crate) changes: Vec<IsrChange>,
}

/// The ISR of a partition that its leader proposes; counts only if the partition still is in the
/// state that the leader knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IsrChange {
    /// The topic.
    pub(crate) topic: TopicId,
    /// The partition.
    pub(crate) partition: PartitionId,
    /// Of this leader.
    pub(crate) leader_epoch: LeaderEpoch,
    /// Of the state this builds on.
    pub(crate) partition_epoch: PartitionEpoch,
    /// The members, with the leader, each with the registration under which it caught up: one that
    /// has restarted since may have lost what it had.
    pub(crate) isr: Vec<(BrokerId, BrokerEpoch)>,
}

/// A topic to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewTopic {
    /// Its name.
    pub(crate) name: String,
    /// Its identity, chosen by who asks: asking again after a lost answer makes no second topic.
    pub(crate) id: TopicId,
    /// How many partitions; -1 for the default.
    pub(crate) partitions: i32,
    /// How many replicas of each; -1 for the default.
    pub(crate) replication_factor: i16,
    /// The replicas of each partition, in the place of the two numbers; empty to leave it to the
    /// controller.
    pub(crate) assignments: Vec<Vec<BrokerId>>,
    /// Its settings.
    pub(crate) configs: BTreeMap<String, String>,
}

/// A topic, however the client names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TopicRef {
    /// The one that has the name now.
    Name(String),
    /// This one and no later one of its name.
    Id(TopicId),
}

/// A topic that is to grow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MorePartitions {
    /// Its name.
    pub(crate) name: String,
    /// How many partitions it is to have, the present ones included.
    pub(crate) count: i32,
    /// The replicas of each new one; empty to leave it to the controller.
    pub(crate) assignments: Vec<Vec<BrokerId>>,
}

/// Changes of a topic's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TopicConfigs {
    /// Its name.
    pub(crate) name: String,
    /// What becomes of each setting that is named.
    pub(crate) changes: BTreeMap<String, ConfigChange>,
    /// Whether settings that are not named go back to their defaults.
    pub(crate) replaces_all: bool,
}

/// What becomes of a setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ConfigChange {
    /// It has this value.
    Set(String),
    /// It has its default.
    Delete,
    /// A list has these too, separated by commas.
    Append(String),
    /// A list has these no more.
    Subtract(String),
}

/// Which elections are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ElectionKind {
    /// The first replica, where it is in sync.
    Preferred,
    /// Any replica that is there, where no complete one is: records that it lacks are lost.
    Unclean,
}

/// The answer to the request of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ControllerAnswer {
    /// To Register: the broker is known, and fenced until it has applied its registration.
    Registered { epoch: BrokerEpoch },
    /// To Heartbeat.
    Heartbeat(HeartbeatAnswer),
    /// To AlterPartitions, in the order of the request: what each partition now is, which may be
    /// more than was proposed.
    ///
    /// This says only that the proposal is decided. The leader takes the state from the metadata
    /// log, in its order: taken from here it could come before a change of `min.insync.replicas`
    /// on which it relies.
    Partitions(Vec<Result<PartitionState, Refusal>>),
    /// To CreateTopics, in the order of the request.
    Created(Vec<Result<CreatedTopic, Refusal>>),
    /// To DeleteTopics, in the order of the request: identity and name of what went.
    Deleted(Vec<Result<(TopicId, String), Refusal>>),
    /// To ElectLeaders: each partition that was named, or else each that needed an election.
    Elected(Vec<(TopicPartition, Result<(), Refusal>)>),
    /// To CreatePartitions, SetTopicConfigs and Reassign, in the order of the request.
    Done(Vec<Result<(), Refusal>>),
    /// To AllocateProducerIds: ids that nobody else has or will have.
    ProducerIds { first: ProducerId, count: i64 },
    /// To UnregisterBroker.
    Unregistered,
}

/// How the controller sees a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeartbeatAnswer {
    /// It leads nothing and is in no ISR.
    pub(crate) fenced: bool,
    /// It leads nothing that another could lead, and all others know.
    pub(crate) may_stop: bool,
}

/// A topic as it was made, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CreatedTopic {
    /// Its identity.
    pub(crate) id: TopicId,
    /// The replicas of each partition, the preferred leader first.
    pub(crate) replicas: Vec<Vec<BrokerId>>,
}

/// A request, or a part of one, that is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    /// What the client is told.
    #[serde(with = "code_as_number")]
    pub(crate) code: ErrorCode,
    /// In words, with the remedy where there is one.
    pub(crate) message: String,
}

impl Refusal {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// This node does not lead, or no longer; whether the request was done is not known.
    pub(crate) fn not_controller() -> Self {
        Self::new(ErrorCode::NotController, "this node does not lead the metadata quorum")
    }
}

/// Kafka's number of the code.
mod code_as_number {
    use serde::{Deserialize, Deserializer, Serializer};
    use tailwater_kafka::wire::ErrorCode;

    pub(super) fn serialize<S: Serializer>(code: &ErrorCode, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_i16(code.code())
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<ErrorCode, D::Error> {
        i16::deserialize(from).map(ErrorCode::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_travel_as_json() {
        let request = ControllerRequest::AlterPartitions(AlterPartitions {
            id: BrokerId::new(1),
            epoch: BrokerEpoch::new(7),
            changes: vec![IsrChange {
                topic: TopicId::new(Uuid::from_u128(1)),
                partition: PartitionId::new(0),
                leader_epoch: LeaderEpoch::new(3),
                partition_epoch: PartitionEpoch::new(4),
                isr: vec![(BrokerId::new(1), BrokerEpoch::new(7))],
            }],
        });
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<ControllerRequest>(&json).unwrap(), request);

        let refusal = Refusal::new(ErrorCode::StaleBrokerEpoch, "replaced");
        let answer = ControllerAnswer::Partitions(vec![Err(refusal)]);
        let json = serde_json::to_string(&answer).unwrap();
        assert_eq!(json, r#"{"partitions":[{"Err":{"code":77,"message":"replaced"}}]}"#);
        assert_eq!(serde_json::from_str::<ControllerAnswer>(&json).unwrap(), answer);
    }
}
