//! Controllers and brokers in processes of their own.

use tailwater_kafka::{BrokerId, Offset};

use crate::cluster::{Cluster, ROUND, TOPIC, Writing, make_topic, partition, values};
use crate::support::until;

const CONTROLLERS: i32 = 3;

impl Cluster {
    async fn active_controller(&self) -> BrokerId {
        let active = async || {
            let mut active = self.running.iter().filter(|(_, one)| one.log.is_active_controller());
            active.next().map(|(id, _)| *id)
        };
        until(active, Option::is_some).await.unwrap()
    }
}

/// ```text
/// 1 2 3   controllers, without partitions       one dies, the active one
/// 4 5 6   brokers, without a controller         one dies, the leader
/// ```
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_controllers_beside_three_brokers_lose_one_of_each() {
    let mut cluster = Cluster::of(6, CONTROLLERS, |config| {
        config.broker = config.node_id.get() > CONTROLLERS;
    })
    .await;
    let client = cluster.client().await;
    make_topic(&client).await;
    client.commit_offsets("g", &[(partition(), Offset::ZERO)]).await.unwrap();
    for id in 1..=CONTROLLERS {
        let log = &cluster.running[&BrokerId::new(id)].log;
        assert!(log.partitions().is_empty() && !log.is_in_service());
        assert_eq!(log.leaderless_partitions(), 0);
    }
    let mut writing = Writing::start(client.clone());
    writing.more(10).await;

    let controller = cluster.active_controller().await;
    assert!(controller.get() <= CONTROLLERS);
    cluster.kill(controller).await;
    let leader = cluster.leader();
    cluster.kill(leader).await;
    writing.more(3 * ROUND).await;

    cluster.start_node(controller).await;
    cluster.start_node(leader).await;
    cluster.until_in_sync_while_writing().await;
    let expected = writing.end().await;
    assert_eq!(values(&client).await, expected);
    // In order as well.
    cluster.stop(controller).await;
    let on_brokers = cluster.running.values().flat_map(|one| one.log.partitions());
    assert_eq!(on_brokers.filter(|one| one.topic == TOPIC).count(), 3);
}
