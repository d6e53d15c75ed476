//! Readers that read from a follower in their own rack.

use std::process::Command;
use std::time::Duration;

use tailwater_kafka::{
    BrokerId, Client, ClientConfig, Limits, Offset, PartitionReader, ReaderConfig, Transport,
};

use crate::cluster::{Cluster, TOPIC, Writing, end_of, make_topic, partition};

const LIMIT: Duration = Duration::from_secs(60);

/// Node 1 stands in rack-1, and so on.
async fn in_racks() -> Cluster {
    Cluster::with(3, |config| config.rack = Some(rack(config.node_id))).await
}

fn rack(id: BrokerId) -> String {
    format!("rack-{id}")
}

impl Cluster {
    fn addresses(&self) -> Vec<String> {
        self.places.iter().map(|place| place.address.to_string()).collect()
    }

    async fn client_in(&self, rack: String) -> Client {
        let config = ClientConfig { rack: Some(rack), ..ClientConfig::default() };
        Client::connect(config, Transport::tcp(self.addresses())).await.unwrap()
    }

    fn some_follower(&self) -> BrokerId {
        let leader = self.leader();
        *self.running.keys().find(|id| **id != leader).unwrap()
    }

    fn read_from_follower(&self, id: BrokerId) -> u64 {
        self.running[&id].log.follower_read_bytes()
    }
}

/// The values up to `end`.
async fn read(reader: &mut PartitionReader, end: Offset) -> Vec<String> {
    let mut values = Vec::new();
    while reader.position() < end {
        for batch in tokio::time::timeout(LIMIT, reader.next()).await.unwrap().unwrap() {
            for record in batch.records(Limits::default()).unwrap() {
                values.push(String::from_utf8(record.unwrap().value.unwrap().to_vec()).unwrap());
            }
        }
    }
    values
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_reads_from_its_own_rack_and_goes_on_when_that_node_stops() {
    let mut cluster = in_racks().await;
    let client = cluster.client().await;
    make_topic(&client).await;
    cluster.until_in_sync().await;
    let writing = Writing::start(client.clone());

    let near = cluster.some_follower();
    let nearby = cluster.client_in(rack(near)).await;
    let mut reader = nearby.reader(ReaderConfig::new(partition(), Offset::ZERO));
    let mut values = Vec::new();
    while cluster.read_from_follower(near) < 1000 {
        let next = reader.position().checked_add(1).unwrap();
        values.extend(read(&mut reader, next).await);
    }
    let others = cluster.running.keys().filter(|id| **id != near);
    assert_eq!(others.map(|id| cluster.read_from_follower(*id)).sum::<u64>(), 0);

    cluster.kill(near).await;
    let before = end_of(&client).await;
    values.extend(read(&mut reader, before.checked_add(100).unwrap()).await);
    let expected = writing.end().await;
    values.extend(read(&mut reader, Offset::new(i64::try_from(expected.len()).unwrap())).await);
    assert_eq!(values, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_in_the_leaders_rack_or_in_none_reads_from_the_leader() {
    let cluster = in_racks().await;
    let client = cluster.client().await;
    make_topic(&client).await;
    cluster.until_in_sync().await;
    let mut writing = Writing::start(client.clone());
    writing.more(20).await;
    let expected = writing.end().await;
    let end = Offset::new(i64::try_from(expected.len()).unwrap());
    for rack in [rack(cluster.leader()), "elsewhere".to_owned(), String::new()] {
        let client = cluster.client_in(rack).await;
        let mut reader = client.reader(ReaderConfig::new(partition(), Offset::ZERO));
        assert_eq!(read(&mut reader, end).await, expected);
    }
    assert_eq!(cluster.running.keys().map(|id| cluster.read_from_follower(*id)).sum::<u64>(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kcat_reads_from_its_own_rack() {
    let cluster = in_racks().await;
    let client = cluster.client().await;
    make_topic(&client).await;
    cluster.until_in_sync().await;
    let mut writing = Writing::start(client.clone());
    writing.more(100).await;
    let expected = writing.end().await;
    cluster.until_in_sync().await;

    let near = cluster.some_follower();
    let mut kcat = Command::new("/usr/bin/kcat");
    kcat.args(["-b", &cluster.addresses().join(","), "-C", "-t", TOPIC, "-e", "-q"]);
    kcat.args(["-o", "beginning", "-X", &format!("client.rack={}", rack(near))]);
    let output = tokio::task::spawn_blocking(move || kcat.output().unwrap()).await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kcat: {errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), expected, "{errors}");
    assert!(cluster.read_from_follower(near) > 0, "{errors}");
}
