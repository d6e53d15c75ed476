//! Three nodes in one process, over real sockets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tailwater_kafka::{
    BrokerId, Client, ClientConfig, Limits, Offset, OffsetAt, PartitionId, ProducerConfig,
    ReaderConfig, TopicPartition, TopicSpec, Transport,
};
use tailwater_log::{Config, Log};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) const TOPIC: &str = "t";

/// A node's place: it may be started there again.
pub(crate) struct Place {
    pub(crate) id: BrokerId,
    folder: TempDir,
    pub(crate) address: SocketAddr,
    controller_address: SocketAddr,
    /// Which nodes its configuration names as controllers; all where none stands here.
    pub(crate) controllers: Option<Vec<BrokerId>>,
}

/// A node that runs.
pub(crate) struct Running {
    pub(crate) log: Arc<Log>,
    stop: CancellationToken,
    serving: JoinSet<()>,
}

pub(crate) struct Cluster {
    pub(crate) places: Vec<Place>,
    pub(crate) running: BTreeMap<BrokerId, Running>,
}

impl Cluster {
    pub(crate) async fn start(count: i32) -> Self {
        let mut cluster = Self { places: Vec::new(), running: BTreeMap::new() };
        for _ in 0..count {
            cluster.add_place().await;
        }
        for id in 1..=count {
            cluster.start_node(BrokerId::new(id)).await;
        }
        for running in cluster.running.values() {
            running.log.serving().await;
        }
        cluster
    }

    /// A place for one more node; its id.
    pub(crate) async fn add_place(&mut self) -> BrokerId {
        let id = BrokerId::new(i32::try_from(self.places.len()).unwrap() + 1);
        self.places.push(Place {
            id,
            folder: tempfile::tempdir().unwrap(),
            address: free().await,
            controller_address: free().await,
            controllers: None,
        });
        id
    }

    /// An empty disk in the place of what a node had.
    pub(crate) fn lose_disk(&mut self, id: BrokerId) {
        let place = self.places.iter_mut().find(|place| place.id == id).unwrap();
        place.folder = tempfile::tempdir().unwrap();
    }

    fn place(&self, id: BrokerId) -> &Place {
        self.places.iter().find(|place| place.id == id).unwrap()
    }

    pub(crate) async fn start_node(&mut self, id: BrokerId) {
        let place = self.place(id);
        let named = |it: &&Place| place.controllers.as_ref().is_none_or(|ids| ids.contains(&it.id));
        let controllers = self.places.iter().filter(named);
        let controllers =
            controllers.map(|it| (it.id, it.controller_address.to_string())).collect();
        let listener = TcpListener::bind(place.address).await.unwrap();
        let controller_listener = TcpListener::bind(place.controller_address).await.unwrap();
        let log = loop {
            let opened = Log::open(Config {
                node_id: id,
                advertised_port: place.address.port(),
                controllers: BTreeMap::clone(&controllers),
                replication_factor: 3,
                min_insync_replicas: 2,
                reserve_bytes: 0,
                ..Config::new(place.folder.path())
            });
            match opened.await {
                Ok(log) => break log,
                // A node that was dropped lets go of its folder when its last task has seen that.
                Err(tailwater_log::Error::Locked { .. }) => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        let stop = CancellationToken::new();
        let mut serving = JoinSet::new();
        serving.spawn(Arc::clone(&log).serve(listener, stop.clone()));
        serving.spawn(Arc::clone(&log).serve_controller(controller_listener, stop.clone()));
        self.running.insert(id, Running { log, stop, serving });
    }

    /// Ends a node as if its process had died.
    pub(crate) async fn kill(&mut self, id: BrokerId) {
        let mut running = self.running.remove(&id).unwrap();
        running.serving.shutdown().await;
    }

    /// Ends a node in order.
    pub(crate) async fn stop(&mut self, id: BrokerId) {
        let mut running = self.running.remove(&id).unwrap();
        running.log.leave().await;
        running.stop.cancel();
        while running.serving.join_next().await.is_some() {}
        running.log.close().await.unwrap();
    }

    pub(crate) async fn client(&self) -> Client {
        let addresses = self.places.iter().map(|place| place.address.to_string()).collect();
        let config = ClientConfig { call_timeout: Duration::from_secs(60), ..Default::default() };
        Client::connect(config, Transport::tcp(addresses)).await.unwrap()
    }

    fn leader(&self) -> BrokerId {
        let leads = |log: &Log| {
            log.partitions().iter().any(|one| one.topic == TOPIC && one.leads.is_some())
        };
        *self.running.iter().find(|(_, running)| leads(&running.log)).expect("a leader").0
    }

    /// Waits until every node has everything, on every in-sync replica.
    pub(crate) async fn until_in_sync(&self) {
        let limit = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let of_topic: Vec<_> = self
                .running
                .values()
                .flat_map(|running| running.log.partitions())
                .filter(|one| one.topic == TOPIC)
                .collect();
            let leaders = of_topic.iter().filter(|one| one.leads.is_some());
            let all_there = leaders.clone().count() == 1
                && leaders.clone().all(|one| one.missing_replicas == 0)
                && of_topic.iter().all(|one| {
                    one.end_offset == of_topic[0].end_offset && one.high_watermark == one.end_offset
                });
            if all_there && of_topic.len() == self.places.len() {
                return;
            }
            assert!(std::time::Instant::now() < limit, "{of_topic:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

pub(crate) fn partition() -> TopicPartition {
    TopicPartition::new(TOPIC, PartitionId::new(0))
}

pub(crate) async fn make_topic(client: &Client) {
    let spec = TopicSpec {
        name: TOPIC.to_owned(),
        partitions: 1,
        replication_factor: 3,
        configs: Vec::new(),
    };
    client.create_topic(&spec).await.unwrap();
}

/// Every value of the topic, in order.
pub(crate) async fn values(client: &Client) -> Vec<String> {
    let end = client.list_offsets(TOPIC, PartitionId::new(0), OffsetAt::Latest).await.unwrap();
    let mut reader = client.reader(ReaderConfig::new(partition(), Offset::ZERO));
    let mut values = Vec::new();
    while reader.position() < end {
        for batch in reader.next().await.unwrap() {
            for record in batch.records(Limits::default()).unwrap() {
                values.push(String::from_utf8(record.unwrap().value.unwrap().to_vec()).unwrap());
            }
        }
    }
    values
}

/// Writes numbers until told to stop; how many were acknowledged, all of them.
pub(crate) async fn write_numbers(client: Client, stop: CancellationToken) -> usize {
    let config =
        ProducerConfig { transactional_id: Some("writer".to_owned()), ..ProducerConfig::default() };
    let mut producer = client.producer(config).await.unwrap();
    let handle = producer.register(&partition());
    let mut count = 0;
    while !stop.is_cancelled() {
        producer.ready().await.unwrap();
        producer.append(handle, None, &[count.to_string().as_bytes()], 1000).unwrap();
        count += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    producer.drain().await.unwrap();
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_on_every_node() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    make_topic(&client).await;
    let stop = CancellationToken::new();
    let writing = tokio::spawn(write_numbers(client.clone(), stop.clone()));
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.cancel();
    let count = writing.await.unwrap();
    cluster.until_in_sync().await;
    client.commit_offsets("g", &[(partition(), Offset::new(7))]).await.unwrap();

    // Each of them can go, and the others have it all.
    for id in [1, 2, 3].map(BrokerId::new) {
        cluster.stop(id).await;
        let client = cluster.client().await;
        let expected: Vec<String> = (0..count).map(|number| number.to_string()).collect();
        assert_eq!(values(&client).await, expected, "without {id}");
        let committed = client.fetch_offsets("g", &[partition()]).await.unwrap();
        assert_eq!(committed, [Some(Offset::new(7))], "without {id}");
        cluster.start_node(id).await;
        cluster.until_in_sync().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_die_and_nothing_acknowledged_is_lost_doubled_or_out_of_order() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    make_topic(&client).await;
    cluster.until_in_sync().await;
    let stop = CancellationToken::new();
    let writing = tokio::spawn(write_numbers(client.clone(), stop.clone()));
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let leader = cluster.leader();
        cluster.kill(leader).await;
        let before = end_of(&client).await;
        // Writes go on without it.
        let limit = std::time::Instant::now() + Duration::from_secs(60);
        while end_of(&client).await <= before {
            assert!(std::time::Instant::now() < limit, "no writes without {leader}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        cluster.start_node(leader).await;
        cluster.until_in_sync_while_writing().await;
    }
    stop.cancel();
    let count = writing.await.unwrap();
    let expected: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    assert_eq!(values(&client).await, expected);
    cluster.until_in_sync().await;
}

pub(crate) async fn end_of(client: &Client) -> Offset {
    client.list_offsets(TOPIC, PartitionId::new(0), OffsetAt::Latest).await.unwrap()
}

impl Cluster {
    /// Waits until the leader has every replica in its ISR.
    pub(crate) async fn until_in_sync_while_writing(&self) {
        let limit = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let all: Vec<_> =
                self.running.values().flat_map(|running| running.log.partitions()).collect();
            let mut leaders = all.iter().filter(|one| one.topic == TOPIC && one.leads.is_some());
            if leaders.next().is_some_and(|leader| leader.missing_replicas == 0) {
                return;
            }
            assert!(std::time::Instant::now() < limit, "{all:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
