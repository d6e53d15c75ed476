//! Copies that their nodes cannot use, in a cluster of three.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use tailwater_kafka::BrokerId;

use crate::cluster::{Cluster, ROUND, TOPIC, Writing, make_topic, values};
use crate::failing_disk::{FailingDisk, Handle};
use crate::support::until_so;

impl Cluster {
    /// Why the topic is offline on that node, if it is.
    fn offline(&self, id: BrokerId) -> Option<String> {
        let partitions = self.running[&id].log.partitions();
        partitions.into_iter().find(|one| one.topic == TOPIC)?.offline
    }

    /// Whether another node than `id` leads the topic.
    fn is_led_without(&self, id: BrokerId) -> bool {
        self.running.iter().any(|(other, running)| {
            let leads = |log: &tailwater_log::Log| {
                log.partitions().iter().any(|one| one.topic == TOPIC && one.leads.is_some())
            };
            *other != id && leads(&running.log)
        })
    }

    fn partition_folder(&self, id: BrokerId) -> PathBuf {
        crate::support::partition_folder(self.place(id).folder.path(), TOPIC)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_flush_fails_is_replaced_and_follows_after_a_restart() {
    let disks: BTreeMap<BrokerId, Arc<FailingDisk>> =
        (1..=3).map(|id| (BrokerId::new(id), Arc::default())).collect();
    let own = disks.clone();
    let mut cluster = Cluster::with(3, move |config| {
        config.disk = Arc::new(Handle(Arc::clone(&own[&config.node_id])));
    })
    .await;
    let client = cluster.client().await;
    make_topic(&client).await;
    cluster.until_in_sync().await;
    let mut writing = Writing::start(client.clone());
    writing.more(10).await;

    let leader = cluster.leader();
    FailingDisk::set(&disks[&leader].spares_metadata, true);
    FailingDisk::set(&disks[&leader].flush_fails, true);
    until_so("it is not offline", || cluster.offline(leader).is_some()).await;
    until_so("no other leads", || cluster.is_led_without(leader)).await;
    // Writes go on, though the node is there and its session lives.
    writing.more(3 * ROUND).await;
    assert!(cluster.running[&leader].log.is_in_service());
    assert_eq!(cluster.running[&leader].log.leaderless_partitions(), 0);

    FailingDisk::set(&disks[&leader].flush_fails, false);
    cluster.kill(leader).await;
    cluster.start_node(leader).await;
    cluster.until_in_sync_while_writing().await;
    let expected = writing.end().await;
    assert_eq!(values(&client).await, expected);
    cluster.until_in_sync().await;
    assert_eq!(cluster.offline(leader), None);
}

/// ```text
/// node   1 2 3: 0 1 2 … n       1 dies, a byte of its segment changes: it cannot be opened
/// node   2 3 lead, 1 sets its copy aside and makes an empty one
/// node   1 2 3: 0 1 2 … n       copied anew
/// ```
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_copy_is_copied_anew_from_the_others() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    make_topic(&client).await;
    let mut writing = Writing::start(client.clone());
    writing.more(50).await;
    let expected = writing.end().await;
    cluster.until_in_sync().await;

    let damaged = cluster.leader();
    let segment = cluster.partition_folder(damaged).join("00000000000000000000.log");
    cluster.kill(damaged).await;
    until_so("no other leads", || cluster.is_led_without(damaged)).await;
    let file = std::fs::File::options().write(true).read(true).open(&segment).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[!byte[0]], middle).unwrap();

    cluster.start_node(damaged).await;
    cluster.until_in_sync().await;
    assert_eq!(cluster.offline(damaged), None);
    let stray = cluster.place(damaged).folder.path().join("stray").join(format!("{TOPIC}-0.0"));
    assert!(stray.join("00000000000000000000.log").exists(), "the damaged copy is kept");

    // And it is whole: it may lead alone with another one.
    let other = cluster.leader();
    cluster.stop(other).await;
    let client = cluster.client().await;
    assert_eq!(values(&client).await, expected);
}
