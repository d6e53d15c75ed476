//! A broker that the controller which decides does not hear, and others do.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::{BrokerId, Client, ClientConfig, TopicSpec, Transport};
use tailwater_log::{Config, ControllerNetwork, ControllerWire, Log};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{Writer, init_producer, produce, until, until_so, values};

const TOPIC: &str = "t";

/// How controllers reach each other.
#[derive(Debug, Default)]
struct Links {
    /// By the address of the controller.
    logs: Mutex<BTreeMap<String, (BrokerId, Arc<Log>)>>,
    /// Whose calls to whom come to nothing.
    cut: Mutex<BTreeSet<(BrokerId, BrokerId)>>,
}

/// A node's end of the links.
#[derive(Debug)]
struct Wire {
    from: BrokerId,
    links: Arc<Links>,
}

#[async_trait]
impl ControllerWire for Wire {
    async fn call(&self, address: &str, request: Bytes) -> io::Result<Bytes> {
        let found = self.links.logs.lock().unwrap().get(address).cloned();
        let (to, log) = found.ok_or(io::ErrorKind::ConnectionRefused)?;
        if self.links.cut.lock().unwrap().contains(&(self.from, to)) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(log.answer_controller(request).await)
    }
}

/// Three nodes.
struct Nodes {
    links: Arc<Links>,
    logs: BTreeMap<BrokerId, Arc<Log>>,
    addresses: Vec<String>,
    folders: Vec<TempDir>,
    serving: JoinSet<()>,
}

impl Nodes {
    async fn start() -> Self {
        let ids = [1, 2, 3].map(BrokerId::new);
        let controllers: BTreeMap<_, _> = ids.map(|id| (id, format!("controller-{id}"))).into();
        let mut nodes = Self {
            links: Arc::default(),
            logs: BTreeMap::new(),
            addresses: Vec::new(),
            folders: Vec::new(),
            serving: JoinSet::new(),
        };
        for id in ids {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let wire = Wire { from: id, links: Arc::clone(&nodes.links) };
            let config = Config {
                node_id: id,
                advertised_port: address.port(),
                controllers: controllers.clone(),
                controller_network: ControllerNetwork::Wire(Arc::new(wire)),
                replication_factor: 3,
                min_insync_replicas: 2,
                reserve_bytes: 0,
                ..Config::new(folder.path())
            };
            let log = Log::open(config).await.unwrap();
            nodes.serving.spawn(Arc::clone(&log).serve(listener, CancellationToken::new()));
            let (at, named) = (controllers[&id].clone(), (id, Arc::clone(&log)));
            nodes.links.logs.lock().unwrap().insert(at, named);
            nodes.logs.insert(id, log);
            nodes.addresses.push(address.to_string());
            nodes.folders.push(folder);
        }
        for log in nodes.logs.values() {
            log.serving().await;
        }
        nodes
    }

    fn leads(&self, id: BrokerId) -> bool {
        self.logs[&id].partitions().iter().any(|one| one.topic == TOPIC && one.leads.is_some())
    }

    async fn make_topic(&self, partitions: i32) {
        let brokers = Transport::tcp(self.addresses.clone());
        let client = Client::connect(ClientConfig::default(), brokers).await.unwrap();
        client.create_topic(&TopicSpec::new(TOPIC, partitions, 3)).await.unwrap();
    }

    /// Neither the other controllers hear it, nor it them.
    fn cut_off(&self, id: BrokerId) {
        let others = self.logs.keys().filter(|other| **other != id);
        let mut cut = self.links.cut.lock().unwrap();
        cut.extend(others.flat_map(|other| [(id, *other), (*other, id)]));
    }
}

/// The controller fences it and has others lead; that it does so no more it can only hear from those
/// others. Until then its clients, which reach it, would be told that it leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_learns_from_any_controller_that_another_leads() {
    let nodes = Nodes::start().await;
    // A partition for each to lead.
    nodes.make_topic(3).await;
    let ids: Vec<BrokerId> = nodes.logs.keys().copied().collect();
    until_so("not all lead", || ids.iter().all(|id| nodes.leads(*id))).await;

    let decides = *ids.iter().find(|id| nodes.logs[id].is_active_controller()).unwrap();
    let other = *ids.iter().find(|id| **id != decides).unwrap();
    nodes.links.cut.lock().unwrap().extend([(decides, other), (other, decides)]);
    until_so("it leads still", || !nodes.leads(other)).await;
    assert!(nodes.logs[&decides].is_active_controller());
    until_so("it is in service still", || !nodes.logs[&other].is_in_service()).await;

    // Heard again, it is relied on again.
    nodes.links.cut.lock().unwrap().clear();
    until_so("it is out of service still", || nodes.logs[&other].is_in_service()).await;
}

/// Writes go on with the next leader, and a producer whose metadata is old comes back to the former
/// one, which misses what was written meanwhile and does not know why. Told so, librdkafka gives up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_not_sure_to_lead_does_not_say_that_a_batch_is_missing() {
    let nodes = Nodes::start().await;
    nodes.make_topic(1).await;
    let ids: Vec<BrokerId> = nodes.logs.keys().copied().collect();
    let leader = || ids.iter().copied().find(|id| nodes.leads(*id));
    until_so("nobody leads", || leader().is_some()).await;
    let former = leader().unwrap();
    let log = &nodes.logs[&former];
    let writer = init_producer(log, None).await;
    let at = |sequence| values(&["a"], Writer { sequence, ..writer });
    assert_eq!(produce(log, TOPIC, at(0)).await, Ok(0));

    // Once it leads for a while it says so, since the controller hears it.
    let refused = until(
        async || produce(log, TOPIC, at(5)).await.unwrap_err(),
        |code| *code != ErrorCode::NotLeaderOrFollower,
    );
    assert_eq!(refused.await, ErrorCode::OutOfOrderSequenceNumber);

    nodes.cut_off(former);
    until_so("nobody else leads", || ids.iter().any(|id| *id != former && nodes.leads(*id))).await;
    assert!(nodes.leads(former), "it has heard of it");
    assert_eq!(produce(log, TOPIC, at(5)).await, Err(ErrorCode::NotLeaderOrFollower));
}
