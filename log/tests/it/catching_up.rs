//! Replicas that have everything to copy, beside some that are in sync.

use tailwater_kafka::{BrokerId, Client, PartitionId, ProducerConfig, TopicPartition, TopicSpec};

use crate::cluster::{Cluster, TOPIC, make_topic};
use crate::support::until;

/// Sorts and is asked for as any other.
const LARGE: &str = "large";

/// Of the large topic, and what may be copied of it each second: it takes minutes.
const LARGE_BYTES: usize = 5 << 20;
const THROTTLE: u64 = 32 << 10;

async fn write(client: &Client, topic: &str, count: usize, bytes: usize) {
    let mut producer = client.producer(ProducerConfig::default()).await.unwrap();
    let handle = producer.register(&TopicPartition::new(topic, PartitionId::new(0)));
    let value = vec![b'x'; bytes];
    for _ in 0..count {
        producer.ready().await.unwrap();
        producer.append(handle, None, &[&value], 1000).unwrap();
    }
    producer.drain().await.unwrap();
}

impl Cluster {
    /// How many replicas of a topic are not in sync, by its leader.
    fn missing(&self, topic: &str) -> Option<usize> {
        let all = self.running.values().flat_map(|running| running.log.partitions());
        let mut leaders = all.filter(|one| one.topic == topic && one.leads.is_some());
        leaders.next().map(|leader| leader.missing_replicas)
    }

    async fn until_missing(&self, topic: &str, count: usize) {
        until(async || self.missing(topic), |missing| *missing == Some(count)).await;
    }
}

/// ```text
/// node 1, 2   t: in sync    large: in sync, 5 MiB
/// node 3      t: in sync    large: empty, 32 KiB a second: held back after the first answer
/// ```
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_has_everything_to_copy_is_held_back_and_others_go_on() {
    let mut cluster = Cluster::with(3, |config| config.replication_throttle = Some(THROTTLE)).await;
    let client = cluster.client().await;
    make_topic(&client).await;
    let spec = TopicSpec::new(LARGE, 1, 3);
    client.create_topic(&spec).await.unwrap();
    // Whoever is in sync copies as fast as it goes.
    write(&client, LARGE, LARGE_BYTES / 1000, 1000).await;
    write(&client, TOPIC, 10, 10).await;
    cluster.until_missing(LARGE, 0).await;

    let behind = BrokerId::new(3);
    cluster.kill(behind).await;
    cluster.until_missing(LARGE, 1).await;
    cluster.until_missing(TOPIC, 1).await;
    let folder = crate::support::partition_folder(cluster.place(behind).folder.path(), LARGE);
    std::fs::remove_dir_all(folder).unwrap();
    cluster.start_node(behind).await;

    // What lacks little is in sync soon, and stays that, while the other one waits.
    cluster.until_missing(TOPIC, 0).await;
    for _ in 0..5 {
        write(&client, TOPIC, 10, 10).await;
        assert_eq!((cluster.missing(TOPIC), cluster.missing(LARGE)), (Some(0), Some(1)));
    }
    let copied = cluster.running[&behind].log.catch_up_bytes();
    assert!((1..4 << 20).contains(&copied), "{copied} bytes copied");
}
