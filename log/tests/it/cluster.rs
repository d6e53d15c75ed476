//! Three nodes in one process, over real sockets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tailwater_kafka::{
    BrokerId, Client, ClientConfig, Limits, Offset, OffsetAt, PartitionId, ProducerConfig,
    ReaderConfig, TopicPartition, TopicSpec, Transport,
};
use tailwater_log::{Config, Log, PartitionStatus};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::support::until;

pub(crate) const TOPIC: &str = "t";

/// Records that are on their way together.
pub(crate) const ROUND: usize = 20;

/// A node's place: it may be started there again.
pub(crate) struct Place {
    pub(crate) id: BrokerId,
    pub(crate) folder: TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) controller_address: SocketAddr,
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
    /// What is different in it.
    adjust: Box<dyn Fn(&mut Config) + Send + Sync>,
}

impl Cluster {
    pub(crate) async fn start(count: i32) -> Self {
        Self::with(count, |_| {}).await
    }

    /// With other settings.
    pub(crate) async fn with(
        count: i32,
        adjust: impl Fn(&mut Config) + Send + Sync + 'static,
    ) -> Self {
        Self::of(count, count, adjust).await
    }

    /// The first `controllers` of `count` nodes carry a controller.
    pub(crate) async fn of(
        count: i32,
        controllers: i32,
        adjust: impl Fn(&mut Config) + Send + Sync + 'static,
    ) -> Self {
        let mut cluster = Self::empty(adjust);
        for _ in 0..count {
            cluster.add_place().await;
        }
        let named: Vec<BrokerId> = (1..=controllers).map(BrokerId::new).collect();
        for place in &mut cluster.places {
            place.controllers = Some(named.clone());
        }
        for id in 1..=count {
            cluster.start_node(BrokerId::new(id)).await;
        }
        for running in cluster.running.values() {
            running.log.serving().await;
        }
        cluster
    }

    /// Without a place yet.
    pub(crate) fn empty(adjust: impl Fn(&mut Config) + Send + Sync + 'static) -> Self {
        Self { places: Vec::new(), running: BTreeMap::new(), adjust: Box::new(adjust) }
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

    pub(crate) fn place(&self, id: BrokerId) -> &Place {
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
            let mut config = Config {
                node_id: id,
                advertised_port: place.address.port(),
                controllers: BTreeMap::clone(&controllers),
                replication_factor: 3,
                min_insync_replicas: 2,
                reserve_bytes: 0,
                ..Config::new(place.folder.path())
            };
            (self.adjust)(&mut config);
            match Log::open(config).await {
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
        if log.is_broker() {
            serving.spawn(Arc::clone(&log).serve(listener, stop.clone()));
        }
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

    pub(crate) fn leader(&self) -> BrokerId {
        let leads = |log: &Log| {
            log.partitions().iter().any(|one| one.topic == TOPIC && one.leads.is_some())
        };
        *self.running.iter().find(|(_, running)| leads(&running.log)).expect("a leader").0
    }

    /// The topic's replicas on the nodes that run.
    fn replicas(&self) -> Vec<PartitionStatus> {
        let all = self.running.values().flat_map(|running| running.log.partitions());
        all.filter(|one| one.topic == TOPIC).collect()
    }

    /// Waits until every node has everything, on every in-sync replica.
    pub(crate) async fn until_in_sync(&self) {
        until(
            async || self.replicas(),
            |replicas| {
                replicas.len() == self.places.len()
                    && leads_all(replicas)
                    && replicas.iter().all(|one| {
                        one.end_offset == replicas[0].end_offset
                            && one.high_watermark == one.end_offset
                    })
            },
        )
        .await;
    }

    /// Waits until the leader has every replica in its ISR.
    pub(crate) async fn until_in_sync_while_writing(&self) {
        until(async || self.replicas(), |replicas| leads_all(replicas)).await;
    }
}

/// Whether there is one leader, and every replica in its ISR.
fn leads_all(replicas: &[PartitionStatus]) -> bool {
    let mut leaders = replicas.iter().filter(|one| one.leads.is_some());
    leaders.next().is_some_and(|leader| leader.missing_replicas == 0) && leaders.next().is_none()
}

async fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

pub(crate) fn partition() -> TopicPartition {
    TopicPartition::new(TOPIC, PartitionId::new(0))
}

pub(crate) async fn make_topic(client: &Client) {
    let spec = TopicSpec::new(TOPIC, 1, 3);
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

/// Numbers that are written, one after the other, until that is enough.
pub(crate) struct Writing {
    task: JoinHandle<usize>,
    acknowledged: watch::Receiver<usize>,
    stop: CancellationToken,
}

impl Writing {
    pub(crate) fn start(client: Client) -> Self {
        let (count, acknowledged) = watch::channel(0);
        let stop = CancellationToken::new();
        let task = tokio::spawn(write_numbers(client, stop.clone(), count));
        Self { task, acknowledged, stop }
    }

    /// Waits until so many more are acknowledged.
    pub(crate) async fn more(&mut self, count: usize) {
        let wanted = *self.acknowledged.borrow() + count;
        let written = self.acknowledged.wait_for(|acknowledged| *acknowledged >= wanted);
        let written = tokio::time::timeout(Duration::from_secs(60), written).await;
        assert!(written.is_ok(), "no writes any more");
    }

    /// All that were acknowledged.
    pub(crate) async fn end(self) -> Vec<String> {
        self.stop.cancel();
        (0..self.task.await.unwrap()).map(|number| number.to_string()).collect()
    }
}

async fn write_numbers(
    client: Client,
    stop: CancellationToken,
    acknowledged: watch::Sender<usize>,
) -> usize {
    let config =
        ProducerConfig { transactional_id: Some("writer".to_owned()), ..ProducerConfig::default() };
    let mut producer = client.producer(config).await.unwrap();
    let handle = producer.register(&partition());
    let mut count = 0;
    while !stop.is_cancelled() {
        for _ in 0..ROUND {
            producer.ready().await.unwrap();
            producer.append(handle, None, &[count.to_string().as_bytes()], 1000).unwrap();
            count += 1;
        }
        producer.drain().await.unwrap();
        acknowledged.send_replace(count);
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_on_every_node() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    make_topic(&client).await;
    let mut writing = Writing::start(client.clone());
    writing.more(10 * ROUND).await;
    let expected = writing.end().await;
    cluster.until_in_sync().await;
    client.commit_offsets("g", &[(partition(), Offset::new(7))]).await.unwrap();

    // Each of them can go, and the others have it all.
    for id in [1, 2, 3].map(BrokerId::new) {
        cluster.stop(id).await;
        let client = cluster.client().await;
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
    let mut writing = Writing::start(client.clone());
    for _ in 0..3 {
        writing.more(3 * ROUND).await;
        let leader = cluster.leader();
        cluster.kill(leader).await;
        // Writes go on without it; what was on its way then may be acknowledged still.
        writing.more(3 * ROUND).await;
        cluster.start_node(leader).await;
        cluster.until_in_sync_while_writing().await;
    }
    let expected = writing.end().await;
    assert_eq!(values(&client).await, expected);
    cluster.until_in_sync().await;
}

pub(crate) async fn end_of(client: &Client) -> Offset {
    client.list_offsets(TOPIC, PartitionId::new(0), OffsetAt::Latest).await.unwrap()
}
