//! What operators do to a cluster that is in use: it grows, nodes leave, lose their disks, are
//! restarted; asked of any node, and none that writes is refused or loses a record.

use std::collections::BTreeSet;
use std::time::Duration;

use tailwater_kafka::wire::{
    ErrorCode, KafkaUuid, alter_partition_reassignments_request as ar,
    alter_partition_reassignments_response::AlterPartitionReassignmentsResponseData,
    describe_quorum_request as dq,
    describe_quorum_response::{DescribeQuorumResponseData, PartitionData},
    elect_leaders_request as el,
    elect_leaders_response::ElectLeadersResponseData,
    list_partition_reassignments_request::ListPartitionReassignmentsRequestData,
    list_partition_reassignments_response::ListPartitionReassignmentsResponseData,
    metadata_request::MetadataRequestData,
    metadata_response::{MetadataResponseData, MetadataResponsePartition},
    remove_raft_voter_request::RemoveRaftVoterRequestData,
    remove_raft_voter_response::RemoveRaftVoterResponseData,
    unregister_broker_request::UnregisterBrokerRequestData,
    unregister_broker_response::UnregisterBrokerResponseData,
};
use tailwater_kafka::{
    BrokerId, Client, ClientConfig, Offset, PartitionId, TopicPartition, TopicSpec, Transport,
};
use tailwater_log::Layout;

use crate::cluster::{Cluster, ROUND, TOPIC, Writing, make_topic, partition, values};
use crate::support::name;

const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again until it holds.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, looking).await;
    found.unwrap_or_else(|_| panic!("not {what} in time"))
}

async fn partitions(client: &Client) -> Vec<(TopicPartition, MetadataResponsePartition)> {
    let all = MetadataRequestData::default().with_topics(None);
    let metadata: MetadataResponseData = client.ask(all).await.unwrap();
    let mut partitions = Vec::new();
    for topic in metadata.topics {
        let topic_name = topic.name.unwrap().as_str().to_owned();
        partitions.extend(topic.partitions.into_iter().map(|state| {
            let number = PartitionId::new(state.partition_index);
            (TopicPartition::new(topic_name.clone(), number), state)
        }));
    }
    partitions
}

/// What there is, for plans that may use these nodes.
async fn layout(client: &Client, nodes: &[BrokerId]) -> Layout {
    let partitions = partitions(client).await.into_iter().map(|(one, state)| {
        (one, state.replica_nodes.iter().copied().map(BrokerId::new).collect())
    });
    Layout { nodes: nodes.iter().map(|id| (*id, None)).collect(), partitions: partitions.collect() }
}

/// Moves a partition; the code of the answer.
async fn reassign(
    client: &Client,
    one: &TopicPartition,
    to: Option<Vec<i32>>,
    may_change_count: bool,
) -> ErrorCode {
    let partition = ar::ReassignablePartition::default()
        .with_partition_index(one.partition.get())
        .with_replicas(to);
    let topic = ar::ReassignableTopic::default()
        .with_name(name(&one.topic))
        .with_partitions(vec![partition]);
    let request = ar::AlterPartitionReassignmentsRequestData::default()
        .with_allow_replication_factor_change(may_change_count)
        .with_topics(vec![topic]);
    let response: AlterPartitionReassignmentsResponseData = client.ask(request).await.unwrap();
    assert_eq!(response.error_code, 0);
    response.responses[0].partitions[0].error_code.into()
}

/// Carries out a plan to its end.
async fn carry_out(client: &Client, moves: &[tailwater_log::Move]) {
    for one in moves {
        let to = one.to.iter().map(|id| id.get()).collect();
        let code = reassign(client, &one.partition, Some(to), true).await;
        assert_eq!(code, ErrorCode::None, "{one:?}");
    }
    until("moved", async || {
        let all = partitions(client).await;
        let is_there = |one: &tailwater_log::Move| {
            let (_, state) = all.iter().find(|(named, _)| *named == one.partition)?;
            let to: Vec<i32> = one.to.iter().map(|id| id.get()).collect();
            (state.replica_nodes == to && state.isr_nodes.len() == to.len()).then_some(())
        };
        moves.iter().try_for_each(is_there)
    })
    .await;
    assert!(moving(client).await.is_empty());
}

async fn moving(client: &Client) -> Vec<String> {
    let request = ListPartitionReassignmentsRequestData::default().with_topics(None);
    let listed: ListPartitionReassignmentsResponseData = client.ask(request).await.unwrap();
    assert_eq!(listed.error_code, 0);
    listed.topics.iter().map(|topic| topic.name.as_str().to_owned()).collect()
}

async fn quorum(client: &Client) -> Option<PartitionData> {
    let topic = dq::TopicData::default()
        .with_topic_name(name("__cluster_metadata"))
        .with_partitions(vec![dq::PartitionData::default()]);
    let request = dq::DescribeQuorumRequestData::default().with_topics(vec![topic]);
    let described: DescribeQuorumResponseData = client.ask(request).await.unwrap();
    let partition = described.topics.first()?.partitions.first()?.clone();
    (described.error_code == 0 && partition.error_code == 0).then_some(partition)
}

async fn voters(client: &Client) -> BTreeSet<i32> {
    let described = until("a quorum", async || quorum(client).await).await;
    described.current_voters.iter().map(|voter| voter.replica_id).collect()
}

async fn remove_voter(client: &Client, node: i32, directory: KafkaUuid) -> (ErrorCode, String) {
    let request = RemoveRaftVoterRequestData::default()
        .with_voter_id(node)
        .with_voter_directory_id(directory);
    let removed: RemoveRaftVoterResponseData = client.ask(request).await.unwrap();
    let text = removed.error_message.map(|text| text.as_str().to_owned());
    (removed.error_code.into(), text.unwrap_or_default())
}

async fn unregister(client: &Client, node: i32) -> ErrorCode {
    let request = UnregisterBrokerRequestData::default().with_broker_id(node);
    let response: UnregisterBrokerResponseData = client.ask(request).await.unwrap();
    response.error_code.into()
}

fn id(number: i32) -> BrokerId {
    BrokerId::new(number)
}

impl Cluster {
    /// A client that asks this node.
    async fn client_of(&self, node: BrokerId) -> Client {
        let place = self.places.iter().find(|place| place.id == node).unwrap();
        let transport = Transport::tcp(vec![place.address.to_string()]);
        Client::connect(ClientConfig::default(), transport).await.unwrap()
    }

    /// The node whose controller decides.
    async fn active(&self) -> BrokerId {
        until("a controller", async || {
            let mut running = self.running.iter();
            running.find(|(_, it)| it.log.is_active_controller()).map(|(id, _)| *id)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_becomes_three_and_the_first_can_go() {
    let mut cluster = Cluster::empty(|_| {});
    let first = cluster.add_place().await;
    cluster.places[0].controllers = Some(Vec::new());
    cluster.start_node(first).await;
    let client = cluster.client().await;
    let spec = TopicSpec::new(TOPIC, 1, 1);
    client.create_topic(&spec).await.unwrap();
    let mut writing = Writing::start(client.clone());
    client.commit_offsets("g", &[(partition(), Offset::new(7))]).await.unwrap();
    writing.more(20).await;

    // The same node, now one of three; its writer waits for it meanwhile.
    cluster.stop(first).await;
    cluster.places[0].controllers = None;
    let others = [cluster.add_place().await, cluster.add_place().await];
    cluster.start_node(first).await;
    for node in others {
        cluster.start_node(node).await;
    }
    for running in cluster.running.values() {
        running.log.serving().await;
    }
    let client = cluster.client().await;
    until("three voters", async || (voters(&client).await == [1, 2, 3].into()).then_some(())).await;

    let layout = layout(&client, &[id(1), id(2), id(3)]).await;
    let topics: BTreeSet<String> = layout.partitions.keys().map(|one| one.topic.clone()).collect();
    assert!(topics.contains("__consumer_offsets") && topics.contains("__transaction_state"));
    let moves = layout.with_replicas(&topics, 3).unwrap();
    assert_eq!(moves.len(), layout.partitions.len());
    carry_out(&client, &moves).await;

    cluster.kill(first).await;
    let client = cluster.client().await;
    writing.more(3 * ROUND).await;
    let expected = writing.end().await;
    assert_eq!(values(&client).await, expected);
    let committed = client.fetch_offsets("g", &[partition()]).await.unwrap();
    assert_eq!(committed, [Some(Offset::new(7))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_leaves_while_clients_write() {
    let mut cluster = Cluster::start(4).await;
    let client = cluster.client().await;
    make_topic(&client).await;
    client.commit_offsets("g", &[(partition(), Offset::new(7))]).await.unwrap();
    let mut writing = Writing::start(client.clone());

    // One that leads what is written, and the controller if it can be.
    let leaves = until("a leader", async || {
        let all = partitions(&client).await;
        all.iter().find(|(one, _)| *one == partition()).map(|(_, state)| id(state.leader_id))
    })
    .await;
    let moves = layout(&client, &[1, 2, 3, 4].map(id)).await.without(leaves).unwrap();
    assert!(!moves.is_empty());
    assert_eq!(unregister(&client, leaves.get()).await, ErrorCode::InvalidRequest, "alive");
    carry_out(&client, &moves).await;

    let described = until("a quorum", async || quorum(&client).await).await;
    let mut known = described.current_voters.iter();
    let own = known.find(|voter| voter.replica_id == leaves.get()).unwrap();
    let other_disk = KafkaUuid::from_parts(7, 7);
    let (code, _) = remove_voter(&client, leaves.get(), other_disk).await;
    assert_eq!(code, ErrorCode::VoterNotFound);
    let (code, text) = remove_voter(&client, leaves.get(), own.replica_directory_id).await;
    assert_eq!(code, ErrorCode::None, "{text}");
    let (code, _) = remove_voter(&client, leaves.get(), own.replica_directory_id).await;
    assert_eq!(code, ErrorCode::VoterNotFound, "it is none any more");
    assert_eq!(voters(&client).await.len(), 3);

    cluster.stop(leaves).await;
    let client = cluster.client().await;
    until("forgotten", async || {
        match unregister(&client, leaves.get()).await {
            ErrorCode::None => Some(()),
            // Its session has not run out.
            ErrorCode::InvalidRequest => None,
            other => panic!("{other:?}"),
        }
    })
    .await;
    assert_eq!(unregister(&client, leaves.get()).await, ErrorCode::BrokerIdNotRegistered);
    writing.more(3 * ROUND).await;
    let expected = writing.end().await;
    assert_eq!(values(&client).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_does_what_an_operator_asks() {
    let mut cluster = Cluster::start(3).await;
    make_topic(&cluster.client().await).await;
    cluster.until_in_sync().await;
    let one = partition();
    for node in [1, 2, 3].map(id) {
        let client = cluster.client_of(node).await;
        assert_eq!(voters(&client).await, [1, 2, 3].into());
        let described = quorum(&client).await.unwrap();
        assert_eq!(id(described.leader_id), cluster.active().await);
        assert!(described.current_voters.iter().all(|voter| voter.last_fetch_timestamp > 0));

        let none = ErrorCode::None;
        assert_eq!(
            reassign(&client, &one, Some(vec![1, 2]), false).await,
            ErrorCode::InvalidReplicationFactor
        );
        assert_eq!(
            reassign(&client, &one, Some(vec![1, 9]), true).await,
            ErrorCode::InvalidReplicaAssignment
        );
        assert_eq!(reassign(&client, &one, None, true).await, ErrorCode::NoReassignmentInProgress);
        let nowhere = TopicPartition::new("nowhere", PartitionId::new(-3));
        assert_eq!(
            reassign(&client, &nowhere, Some(vec![1]), true).await,
            ErrorCode::UnknownTopicOrPartition
        );

        // This one is to lead, and does.
        let others = [1, 2, 3].into_iter().filter(|other| *other != node.get());
        let order: Vec<i32> = [node.get()].into_iter().chain(others).collect();
        assert_eq!(reassign(&client, &one, Some(order), false).await, none);
        let request = el::ElectLeadersRequestData::default().with_topic_partitions(None);
        let elected: ElectLeadersResponseData = client.ask(request.clone()).await.unwrap();
        assert_eq!(elected.error_code, 0);
        until("led by it", async || {
            let all = partitions(&client).await;
            let (_, state) = all.into_iter().find(|(named, _)| *named == one)?;
            (state.leader_id == node.get()).then_some(())
        })
        .await;
        let again: ElectLeadersResponseData = client.ask(request).await.unwrap();
        assert!(again.replica_election_results.is_empty(), "{again:?}");
        let named =
            el::TopicPartitions::default().with_topic(name(TOPIC)).with_partitions(vec![0, 5]);
        let request =
            el::ElectLeadersRequestData::default().with_topic_partitions(Some(vec![named]));
        let refused: ElectLeadersResponseData = client.ask(request.clone()).await.unwrap();
        let results = &refused.replica_election_results[0].partition_result;
        let codes: Vec<ErrorCode> = results.iter().map(|one| one.error_code.into()).collect();
        assert_eq!(codes, [ErrorCode::ElectionNotNeeded, ErrorCode::UnknownTopicOrPartition]);
        let wrong: ElectLeadersResponseData =
            client.ask(request.with_election_type(4)).await.unwrap();
        assert_eq!(ErrorCode::from(wrong.error_code), ErrorCode::InvalidRequest);
    }

    // With one of three gone, the vote of another cannot go too: nobody could decide any more.
    let gone = [1, 2, 3].map(id).into_iter().find(|node| *node != id(1)).unwrap();
    cluster.kill(gone).await;
    let client = cluster.client_of(id(1)).await;
    // The others are asked at that moment: nobody has to know yet that it is gone.
    let (code, text) = remove_voter(&client, 1, KafkaUuid::ZERO).await;
    assert_eq!(code, ErrorCode::InvalidRequest, "{text}");
    assert!(text.contains("only 1 of them answer"), "{text}");
    assert_eq!(voters(&client).await, [1, 2, 3].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_is_taken_back() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    make_topic(&client).await;
    cluster.until_in_sync().await;
    let one = partition();
    assert_eq!(reassign(&client, &one, Some(vec![1]), true).await, ErrorCode::None);
    until("on one", async || {
        let all = partitions(&client).await;
        let (_, state) = all.into_iter().find(|(named, _)| *named == one)?;
        (state.replica_nodes == [1]).then_some(())
    })
    .await;
    // A target that is about to die, so that the move cannot be complete.
    cluster.stop(id(3)).await;
    cluster.start_node(id(3)).await;
    cluster.running[&id(3)].log.serving().await;
    assert_eq!(reassign(&client, &one, Some(vec![3, 1]), true).await, ErrorCode::None);
    cluster.kill(id(3)).await;
    // Or it was faster than that; then there is nothing to take back.
    let code = reassign(&client, &one, None, true).await;
    assert!([ErrorCode::None, ErrorCode::NoReassignmentInProgress].contains(&code), "{code:?}");
    if code == ErrorCode::None {
        until("taken back", async || moving(&client).await.is_empty().then_some(())).await;
        let all = partitions(&client).await;
        let (_, state) = all.into_iter().find(|(named, _)| *named == one).unwrap();
        assert_eq!(state.replica_nodes, [1]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_is_replaced_by_one_with_an_empty_disk() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    make_topic(&client).await;
    let mut writing = Writing::start(client.clone());
    writing.more(20).await;
    let dies = cluster.active().await;
    cluster.kill(dies).await;
    cluster.lose_disk(dies);
    writing.more(3 * ROUND).await;
    cluster.start_node(dies).await;
    cluster.until_in_sync_while_writing().await;
    until("a voter again", async || (voters(&client).await.len() == 3).then_some(())).await;
    let expected = writing.end().await;
    cluster.until_in_sync().await;

    // The new copy is as good as any: it alone has to do.
    for other in [1, 2, 3].map(id).into_iter().filter(|node| *node != dies) {
        cluster.stop(other).await;
        cluster.start_node(other).await;
        cluster.until_in_sync().await;
    }
    assert_eq!(values(&cluster.client().await).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_is_found_that_the_configuration_does_not_name_yet() {
    let mut cluster = Cluster::empty(|_| {});
    let old = cluster.add_place().await;
    let others = [cluster.add_place().await, cluster.add_place().await];
    cluster.places[0].controllers = Some(vec![old]);
    cluster.start_node(old).await;
    for node in others {
        cluster.start_node(node).await;
        cluster.running[&node].log.serving().await;
    }
    let client = cluster.client_of(others[0]).await;
    until("three voters", async || (voters(&client).await.len() == 3).then_some(())).await;
    cluster.kill(old).await;
    assert!(others.contains(&cluster.active().await));
    cluster.start_node(old).await;
    cluster.running[&old].log.serving().await;
    let client = cluster.client_of(old).await;
    let spec = TopicSpec::new(TOPIC, 2, 2);
    client.create_topic(&spec).await.unwrap();
    assert_eq!(voters(&client).await, [1, 2, 3].into());
}
