//! The nodes of the log, as a command asks them.

use std::time::Duration;

use anyhow::{Context, bail};
use tailwater_kafka::wire::alter_partition_reassignments_request::{
    AlterPartitionReassignmentsRequestData, ReassignablePartition, ReassignableTopic,
};
use tailwater_kafka::wire::alter_partition_reassignments_response::AlterPartitionReassignmentsResponseData;
use tailwater_kafka::wire::describe_cluster_request::DescribeClusterRequestData;
use tailwater_kafka::wire::describe_cluster_response::DescribeClusterResponseData;
use tailwater_kafka::wire::elect_leaders_request::{ElectLeadersRequestData, TopicPartitions};
use tailwater_kafka::wire::elect_leaders_response::ElectLeadersResponseData;
use tailwater_kafka::wire::remove_raft_voter_request::RemoveRaftVoterRequestData;
use tailwater_kafka::wire::remove_raft_voter_response::RemoveRaftVoterResponseData;
use tailwater_kafka::wire::unregister_broker_request::UnregisterBrokerRequestData;
use tailwater_kafka::wire::unregister_broker_response::UnregisterBrokerResponseData;
use tailwater_kafka::wire::{ErrorCode, KafkaString, KafkaUuid, Request, Response};
use tailwater_kafka::{BrokerId, Client, ClientConfig, PartitionId, TopicPartition, Transport};

/// Partitions of one request: a few tens of kilobytes.
const PARTITIONS_PER_REQUEST: usize = 500;

/// Asking for brokers, not for controllers.
const BROKERS: i8 = 1;

/// The nodes of the log.
#[derive(Debug)]
pub(crate) struct Admin {
    client: Client,
}

/// Something that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
}

impl Refused {
    /// What a response says; `None` if it refuses nothing.
    pub(super) fn of(code: i16, message: Option<&KafkaString>) -> Option<Self> {
        let code = ErrorCode::from(code);
        let words = || message.map_or_else(|| format!("{code:?}"), |text| text.as_str().to_owned());
        (code != ErrorCode::None).then(|| Self { code, message: words() })
    }
}

impl Admin {
    /// Reaches the log through any of `addresses`, and from then on through any of its nodes.
    ///
    /// # Errors
    /// Nobody answers.
    pub(crate) async fn connect(addresses: Vec<String>) -> anyhow::Result<Self> {
        let first = Self { client: client(addresses.clone()).await? };
        let mut all = addresses;
        for broker in first.describe_cluster().await?.brokers {
            let address = format!("{}:{}", broker.host, broker.port);
            if !all.contains(&address) {
                all.push(address);
            }
        }
        Ok(Self { client: client(all).await? })
    }

    /// Asks any node.
    ///
    /// # Errors
    /// None answers.
    pub(crate) async fn ask<R>(&self, request: impl Into<Request>) -> anyhow::Result<R>
    where
        R: TryFrom<Response>,
    {
        Ok(self.client.ask(request).await?)
    }

    /// Which nodes there are.
    ///
    /// # Errors
    /// None answers.
    pub(crate) async fn describe_cluster(&self) -> anyhow::Result<DescribeClusterResponseData> {
        let request = DescribeClusterRequestData::default()
            .with_endpoint_type(BROKERS)
            .with_include_fenced_brokers(true);
        let described: DescribeClusterResponseData = self.ask(request).await?;
        match Refused::of(described.error_code, described.error_message.as_ref()) {
            None => Ok(described),
            Some(refused) => bail!("ask for the nodes: {}", refused.message),
        }
    }

    /// Has partitions move to other replicas; `None` takes a move back. What is refused, and why.
    ///
    /// # Errors
    /// No node answers; what was asked may have been done.
    pub(crate) async fn reassign(
        &self,
        targets: &[(TopicPartition, Option<Vec<BrokerId>>)],
    ) -> anyhow::Result<Vec<(TopicPartition, Refused)>> {
        let mut refused = Vec::new();
        for some in targets.chunks(PARTITIONS_PER_REQUEST) {
            let mut topics: Vec<ReassignableTopic> = Vec::new();
            for (one, target) in some {
                let replicas = target.as_ref().map(|ids| ids.iter().map(|id| id.get()).collect());
                let partition = ReassignablePartition::default()
                    .with_partition_index(one.partition.get())
                    .with_replicas(replicas);
                match topics.last_mut() {
                    Some(topic) if topic.name.as_str() == one.topic => {
                        topic.partitions.push(partition);
                    }
                    _ => topics.push(
                        ReassignableTopic::default()
                            .with_name(one.topic.clone().into())
                            .with_partitions(vec![partition]),
                    ),
                }
            }
            let request = AlterPartitionReassignmentsRequestData::default().with_topics(topics);
            let response: AlterPartitionReassignmentsResponseData = self.ask(request).await?;
            if let Some(refused) = Refused::of(response.error_code, response.error_message.as_ref())
            {
                bail!("move partitions: {}", refused.message);
            }
            for topic in &response.responses {
                let of_topic = topic.partitions.iter().filter_map(|partition| {
                    let refused =
                        Refused::of(partition.error_code, partition.error_message.as_ref())?;
                    let number = PartitionId::new(partition.partition_index);
                    Some((TopicPartition::new(topic.name.as_str(), number), refused))
                });
                refused.extend(of_topic);
            }
        }
        Ok(refused)
    }

    /// Has leaders elected: preferred ones, or unclean ones. Each partition that was named, or else
    /// each that needed it, and why not.
    ///
    /// # Errors
    /// No node answers; what was asked may have been done.
    pub(crate) async fn elect(
        &self,
        unclean: bool,
        partitions: Option<&[TopicPartition]>,
    ) -> anyhow::Result<Vec<(TopicPartition, Option<Refused>)>> {
        let topics = partitions.map(|partitions| {
            let one = |one: &TopicPartition| {
                TopicPartitions::default()
                    .with_topic(one.topic.clone().into())
                    .with_partitions(vec![one.partition.get()])
            };
            partitions.iter().map(one).collect()
        });
        let request = ElectLeadersRequestData::default()
            .with_election_type(i8::from(unclean))
            .with_topic_partitions(topics);
        let response: ElectLeadersResponseData = self.ask(request).await?;
        if let Some(refused) = Refused::of(response.error_code, None) {
            bail!("elect leaders: {}", refused.message);
        }
        let results = response.replica_election_results.iter().flat_map(|topic| {
            topic.partition_result.iter().map(|result| {
                let number = PartitionId::new(result.partition_id);
                let refused = Refused::of(result.error_code, result.error_message.as_ref());
                (TopicPartition::new(topic.topic.as_str(), number), refused)
            })
        });
        Ok(results.collect())
    }

    /// Takes away a controller's vote.
    ///
    /// # Errors
    /// No node answers.
    pub(crate) async fn remove_voter(
        &self,
        cluster_id: &str,
        node: BrokerId,
        directory: KafkaUuid,
    ) -> anyhow::Result<Option<Refused>> {
        let request = RemoveRaftVoterRequestData::default()
            .with_cluster_id(Some(cluster_id.to_owned().into()))
            .with_voter_id(node.get())
            .with_voter_directory_id(directory);
        let response: RemoveRaftVoterResponseData = self.ask(request).await?;
        Ok(Refused::of(response.error_code, response.error_message.as_ref()))
    }

    /// Has the cluster forget a node that is stopped.
    ///
    /// # Errors
    /// No node answers.
    pub(crate) async fn unregister(&self, node: BrokerId) -> anyhow::Result<Option<Refused>> {
        let request = UnregisterBrokerRequestData::default().with_broker_id(node.get());
        let response: UnregisterBrokerResponseData = self.ask(request).await?;
        Ok(Refused::of(response.error_code, response.error_message.as_ref()))
    }
}

async fn client(addresses: Vec<String>) -> anyhow::Result<Client> {
    let config = ClientConfig {
        client_id: "tailwater-cluster".to_owned(),
        connect_timeout: Duration::from_secs(3),
        // A node looks for the controller for ten seconds.
        request_timeout: Duration::from_secs(20),
        call_timeout: Duration::from_secs(30),
        rack: None,
    };
    Client::connect(config, Transport::tcp(addresses)).await.context("reach the log")
}
