//! Controllers and brokers in processes of their own.

use std::time::Duration;

use tailwater_kafka::BrokerId;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, TOPIC, end_of, make_topic, values, write_numbers};

const CONTROLLERS: i32 = 3;

impl Cluster {
    fn active_controller(&self) -> Option<BrokerId> {
        let mut active = self.running.iter().filter(|(_, one)| one.log.is_active_controller());
        active.next().map(|(id, _)| *id)
    }
}

/// Waits until something has become so.
async fn until(so: impl Fn() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap();
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
    client
        .commit_offsets("g", &[(crate::cluster::partition(), end_of(&client).await)])
        .await
        .unwrap();
    for id in 1..=CONTROLLERS {
        let log = &cluster.running[&BrokerId::new(id)].log;
        assert!(log.partitions().is_empty() && !log.is_in_service());
        assert_eq!(log.leaderless_partitions(), 0);
    }
    let stop = CancellationToken::new();
    let writing = tokio::spawn(write_numbers(client.clone(), stop.clone()));
    while end_of(&client).await.get() < 10 {}

    until(|| cluster.active_controller().is_some()).await;
    let controller = cluster.active_controller().unwrap();
    assert!(controller.get() <= CONTROLLERS);
    cluster.kill(controller).await;
    let leader = cluster.leader();
    cluster.kill(leader).await;
    let before = end_of(&client).await;
    while end_of(&client).await.get() < before.get() + 10 {}

    cluster.start_node(controller).await;
    cluster.start_node(leader).await;
    cluster.until_in_sync_while_writing().await;
    stop.cancel();
    let count = writing.await.unwrap();
    let expected: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    assert_eq!(values(&client).await, expected);
    // In order as well.
    cluster.stop(controller).await;
    let on_brokers = cluster.running.values().flat_map(|one| one.log.partitions());
    assert_eq!(on_brokers.filter(|one| one.topic == TOPIC).count(), 3);
}
