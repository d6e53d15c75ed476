//! A cluster as its nodes describe it, at one moment.

use std::collections::BTreeMap;
use std::time::Duration;

use tailwater_kafka::wire::KafkaUuid;
use tailwater_kafka::wire::describe_quorum_request::{self, DescribeQuorumRequestData};
use tailwater_kafka::wire::describe_quorum_response::{
    DescribeQuorumResponseData, PartitionData, ReplicaState,
};
use tailwater_kafka::wire::list_partition_reassignments_request::ListPartitionReassignmentsRequestData;
use tailwater_kafka::wire::list_partition_reassignments_response::ListPartitionReassignmentsResponseData;
use tailwater_kafka::wire::metadata_request::MetadataRequestData;
use tailwater_kafka::wire::metadata_response::{MetadataResponseData, MetadataResponsePartition};
use tailwater_kafka::{BrokerId, PartitionId, TopicPartition};
use tailwater_log::Layout;

use super::admin::{Admin, Refused};
use super::list;

/// A controller that its leader has not heard of for so long is not there: several heartbeats.
const SILENT: Duration = Duration::from_secs(3);

/// Entries that a controller may lack and count as one that has them all: they are on their way.
const NEARLY: i64 = 100;

/// Partitions that a text names one by one; JSON has them all.
const NAMED: usize = 20;

/// A cluster.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) cluster_id: String,
    /// Those that are registered, by id.
    pub(crate) nodes: BTreeMap<BrokerId, Node>,
    /// Or why nobody could say.
    pub(crate) quorum: Result<Quorum, String>,
    /// Of every topic.
    pub(crate) partitions: BTreeMap<TopicPartition, Partition>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// `host:port` for clients.
    pub(crate) address: String,
    pub(crate) rack: Option<String>,
    /// The controller relies on it.
    pub(crate) in_service: bool,
}

/// The controllers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Quorum {
    /// The one that is active.
    pub(crate) leader: BrokerId,
    /// Which election that was.
    pub(crate) term: i32,
    pub(crate) members: BTreeMap<BrokerId, Member>,
}

/// A controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) directory: KafkaUuid,
    pub(crate) votes: bool,
    /// Entries that it lacks, as far as the leader knows.
    pub(crate) behind: Option<i64>,
    /// Since the leader heard of it; `None` if it never did.
    pub(crate) silent: Option<Duration>,
}

/// A partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) leader: Option<BrokerId>,
    pub(crate) replicas: Vec<BrokerId>,
    pub(crate) in_sync: Vec<BrokerId>,
    /// Those of `replicas` that are being copied to.
    pub(crate) adding: Vec<BrokerId>,
    /// Those of `replicas` that go when these are.
    pub(crate) removing: Vec<BrokerId>,
}

impl Member {
    /// What is wrong with it, in words.
    pub(crate) fn problem(&self) -> Option<String> {
        match (self.silent, self.behind) {
            (None, _) => Some("has not answered since the last election".to_owned()),
            (Some(silent), _) if silent >= SILENT => {
                Some(format!("has not answered for {} s", silent.as_secs()))
            }
            (_, Some(behind)) if behind <= NEARLY => None,
            (_, Some(behind)) => Some(format!("lacks {behind} entries of the metadata")),
            (_, None) => Some("lacks all of the metadata".to_owned()),
        }
    }
}

impl Partition {
    /// The replicas that it is to have when nothing moves any more.
    pub(crate) fn target(&self) -> Vec<BrokerId> {
        self.replicas.iter().copied().filter(|id| !self.removing.contains(id)).collect()
    }

    /// Whether it is being moved.
    pub(crate) fn is_moving(&self) -> bool {
        !self.adding.is_empty() || !self.removing.is_empty()
    }

    /// Replicas that should be in sync and are not; not those that are still being made.
    pub(crate) fn missing(&self) -> Vec<BrokerId> {
        let expected = self.replicas.iter().filter(|id| !self.adding.contains(id));
        expected.copied().filter(|id| !self.in_sync.contains(id)).collect()
    }
}

impl View {
    /// Asks.
    ///
    /// # Errors
    /// No node answers.
    pub(crate) async fn of(admin: &Admin) -> anyhow::Result<Self> {
        let described = admin.describe_cluster().await?;
        let all = MetadataRequestData::default().with_topics(None);
        let metadata: MetadataResponseData = admin.ask(all).await?;
        let moving = ListPartitionReassignmentsRequestData::default().with_topics(None);
        let moving: ListPartitionReassignmentsResponseData = admin.ask(moving).await?;
        let nodes = described.brokers.iter().map(|broker| {
            let node = Node {
                address: format!("{}:{}", broker.host, broker.port),
                rack: broker.rack.as_ref().map(|rack| rack.as_str().to_owned()),
                in_service: !broker.is_fenced,
            };
            (BrokerId::new(broker.broker_id), node)
        });
        Ok(Self {
            cluster_id: described.cluster_id.as_str().to_owned(),
            nodes: nodes.collect(),
            quorum: quorum(admin).await,
            partitions: partitions(&metadata, &moving),
        })
    }

    /// What a plan is made from.
    pub(crate) fn layout(&self) -> Layout {
        let in_service = self.nodes.iter().filter(|(_, node)| node.in_service);
        let partitions = self.partitions.iter();
        Layout {
            nodes: in_service.map(|(id, node)| (*id, node.rack.clone())).collect(),
            partitions: partitions.map(|(one, state)| (one.clone(), state.target())).collect(),
        }
    }

    /// Everything that is not well, in words.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (id, node) in self.nodes.iter().filter(|(_, node)| !node.in_service) {
            problems.push(format!(
                "node {id} at {} is not in service: start it, or give it up with `tailwater cluster \
                 decommission {id}`",
                node.address
            ));
        }
        match &self.quorum {
            Err(why) => problems.push(format!("no controller decides: {why}")),
            Ok(quorum) => {
                let voters = quorum.members.iter().filter(|(_, member)| member.votes);
                let bad = voters.filter_map(|(id, it)| Some((id, it.problem()?)));
                problems.extend(bad.map(|(id, problem)| format!("controller {id} {problem}")));
            }
        }
        let leaderless = self.partitions.iter().filter(|(_, state)| state.leader.is_none());
        problems.extend(some(leaderless, |one, state| {
            format!("{one} has no leader: it waits for a replica of {}", list(&state.replicas))
        }));
        let led = self.partitions.iter().filter(|(_, state)| state.leader.is_some());
        let incomplete = led.filter(|(_, state)| !state.missing().is_empty());
        problems.extend(some(incomplete, |one, state| {
            format!(
                "{one} is not in sync on {} (in sync: {})",
                list(&state.missing()),
                list(&state.in_sync)
            )
        }));
        problems
    }
}

/// The first of many, and how many more there are.
fn some<'a>(
    partitions: impl Iterator<Item = (&'a TopicPartition, &'a Partition)>,
    text: impl Fn(&TopicPartition, &Partition) -> String,
) -> Vec<String> {
    let mut texts = Vec::new();
    let mut more = 0;
    for (one, state) in partitions {
        if texts.len() < NAMED {
            texts.push(text(one, state));
        } else {
            more += 1;
        }
    }
    if more > 0 {
        texts.push(format!("and {more} more partitions (--json names them all)"));
    }
    texts
}

async fn quorum(admin: &Admin) -> Result<Quorum, String> {
    let partition = describe_quorum_request::PartitionData::default().with_partition_index(0);
    let topic = describe_quorum_request::TopicData::default()
        .with_topic_name("__cluster_metadata".to_owned().into())
        .with_partitions(vec![partition]);
    let request = DescribeQuorumRequestData::default().with_topics(vec![topic]);
    let response: DescribeQuorumResponseData =
        admin.ask(request).await.map_err(|error| format!("{error:#}"))?;
    if let Some(refused) = Refused::of(response.error_code, response.error_message.as_ref()) {
        return Err(refused.message);
    }
    let mut partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
    let found = partitions.next().ok_or("the node does not say")?;
    match Refused::of(found.error_code, found.error_message.as_ref()) {
        None => Ok(quorum_of(found)),
        Some(refused) => Err(refused.message),
    }
}

fn quorum_of(found: &PartitionData) -> Quorum {
    let voters = found.current_voters.iter().map(|state| (true, state));
    let observers = found.observers.iter().map(|state| (false, state));
    let leader = found.current_voters.iter().find(|state| state.replica_id == found.leader_id);
    // All times are the leader's own: this machine's clock may be another.
    let now = leader.map_or(-1, |state| state.last_fetch_timestamp);
    let end = leader.map_or(found.high_watermark, |state| state.log_end_offset);
    let member = |(votes, state): (bool, &ReplicaState)| {
        let silent = u64::try_from(now.saturating_sub(state.last_fetch_timestamp)).unwrap_or(0);
        let is_leader = state.replica_id == found.leader_id;
        let member = Member {
            directory: state.replica_directory_id,
            votes,
            behind: (state.log_end_offset >= 0).then(|| (end - state.log_end_offset).max(0)),
            silent: (state.last_fetch_timestamp >= 0 || is_leader)
                .then(|| Duration::from_millis(silent)),
        };
        (BrokerId::new(state.replica_id), member)
    };
    Quorum {
        leader: BrokerId::new(found.leader_id),
        term: found.leader_epoch,
        members: voters.chain(observers).map(member).collect(),
    }
}

fn partitions(
    metadata: &MetadataResponseData,
    moving: &ListPartitionReassignmentsResponseData,
) -> BTreeMap<TopicPartition, Partition> {
    let ids = |ids: &[i32]| ids.iter().copied().map(BrokerId::new).collect::<Vec<_>>();
    let state = |partition: &MetadataResponsePartition| Partition {
        leader: (partition.leader_id >= 0).then(|| BrokerId::new(partition.leader_id)),
        replicas: ids(&partition.replica_nodes),
        in_sync: ids(&partition.isr_nodes),
        ..Partition::default()
    };
    let mut partitions = BTreeMap::new();
    for topic in &metadata.topics {
        let name = topic.name.as_ref().map_or("", |name| name.as_str());
        partitions.extend(topic.partitions.iter().map(|partition| {
            let number = PartitionId::new(partition.partition_index);
            (TopicPartition::new(name, number), state(partition))
        }));
    }
    for topic in &moving.topics {
        for moved in &topic.partitions {
            let number = PartitionId::new(moved.partition_index);
            let one = TopicPartition::new(topic.name.as_str(), number);
            if let Some(state) = partitions.get_mut(&one) {
                // The list may be a moment newer than the metadata.
                state.replicas = ids(&moved.replicas);
                state.adding = ids(&moved.adding_replicas);
                state.removing = ids(&moved.removing_replicas);
            }
        }
    }
    partitions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[i32]) -> Vec<BrokerId> {
        ids.iter().copied().map(BrokerId::new).collect()
    }

    #[test]
    fn what_is_being_copied_to_is_not_missing() {
        let state = Partition {
            leader: Some(BrokerId::new(1)),
            replicas: ids(&[1, 2, 3]),
            in_sync: ids(&[1]),
            adding: ids(&[3]),
            removing: ids(&[1]),
        };
        assert_eq!(state.missing(), ids(&[2]));
        assert_eq!(state.target(), ids(&[2, 3]));
        assert!(state.is_moving());
    }

    #[test]
    fn controllers_are_judged_by_their_leaders_clock() {
        let state = |id: i32, end: i64, heard_at: i64| {
            ReplicaState::default()
                .with_replica_id(id)
                .with_log_end_offset(end)
                .with_last_fetch_timestamp(heard_at)
        };
        let found = PartitionData::default().with_leader_id(1).with_current_voters(vec![
            state(1, 500, 90_000),
            state(2, 499, 89_900),
            state(3, 500, 60_000),
            state(4, 100, 90_000),
            state(5, -1, -1),
        ]);
        let quorum = quorum_of(&found);
        let problem = |id: i32| quorum.members[&BrokerId::new(id)].problem();
        assert_eq!((problem(1), problem(2)), (None, None));
        assert_eq!(problem(3).unwrap(), "has not answered for 30 s");
        assert_eq!(problem(4).unwrap(), "lacks 400 entries of the metadata");
        assert_eq!(problem(5).unwrap(), "has not answered since the last election");
    }
}
