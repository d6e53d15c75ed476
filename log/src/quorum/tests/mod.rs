//! Members in one process, on a network whose links can be cut, in tokio's paused time.

mod durability;
mod elections;
mod formation;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tailwater_kafka::BrokerId;
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::storage::FileSystem;

/// No condition takes longer, unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// On its way, one direction.
const DELAY: Duration = Duration::from_millis(1);

/// Nodes by number, and which of them do not hear each other.
#[derive(Debug, Default)]
struct Net {
    nodes: Mutex<BTreeMap<i32, Quorum>>,
    cut: Mutex<BTreeSet<(i32, i32)>>,
    /// Parts of snapshots that were sent; every third is lost.
    parts: Mutex<usize>,
}

impl Net {
    fn is_cut(&self, from: i32, to: i32) -> bool {
        lock(&self.cut).contains(&(from, to))
    }
}

/// The network as one node sees it.
#[derive(Debug)]
struct Link {
    from: i32,
    net: Arc<Net>,
}

#[async_trait]
impl QuorumNetwork for Link {
    async fn call(
        &self,
        address: &str,
        message: ControllerMessage,
    ) -> Result<ControllerReply, NetworkError> {
        let to: i32 = address.parse().unwrap();
        tokio::time::sleep(DELAY).await;
        if self.net.is_cut(self.from, to) {
            // A lost message has no answer.
            std::future::pending::<()>().await;
        }
        let node = lock(&self.net.nodes).get(&to).cloned();
        let node = node.ok_or_else(|| NetworkError::new(address, "nobody is there"))?;
        let ControllerMessage::Quorum(message) = message else { panic!("only the quorum talks") };
        if matches!(&message, QuorumMessage::Raft { message: RaftMessage::SnapshotPart(_), .. }) {
            let mut parts = lock(&self.net.parts);
            *parts += 1;
            if parts.is_multiple_of(3) {
                return Err(NetworkError::new(address, "lost"));
            }
        }
        let answer = node.handle(message).await;
        tokio::time::sleep(DELAY).await;
        if self.net.is_cut(to, self.from) {
            std::future::pending::<()>().await;
        }
        Ok(ControllerReply::Quorum(answer))
    }
}

/// Nodes with their folders.
struct Cluster {
    net: Arc<Net>,
    folders: BTreeMap<i32, TempDir>,
    snapshot_after: u64,
    snapshot_part_bytes: usize,
}

impl Cluster {
    fn new() -> Self {
        Self {
            net: Arc::default(),
            folders: BTreeMap::new(),
            snapshot_after: SNAPSHOT_AFTER,
            snapshot_part_bytes: SNAPSHOT_PART_BYTES,
        }
    }

    /// Three nodes that have found each other.
    async fn of_three() -> Self {
        Self::of(&[1, 2, 3]).await
    }

    /// Nodes that have found each other.
    async fn of(nodes: &[i32]) -> Self {
        let mut cluster = Self::new();
        for node in nodes {
            cluster.start(*node, nodes).await;
        }
        for node in nodes {
            cluster.joined(*node).await;
        }
        cluster
    }

    fn config(&self, node: i32, controllers: &[i32]) -> QuorumConfig {
        let controllers =
            controllers.iter().map(|node| (BrokerId::new(*node), node.to_string())).collect();
        QuorumConfig {
            node: BrokerId::new(node),
            address: node.to_string(),
            directory: self.folders[&node].path().join("metadata"),
            controllers,
            disk: Arc::new(FileSystem),
            timeouts: QuorumTimeouts::default(),
            snapshot_after: self.snapshot_after,
            snapshot_part_bytes: self.snapshot_part_bytes,
        }
    }

    async fn start(&mut self, node: i32, controllers: &[i32]) {
        self.folders.entry(node).or_insert_with(|| tempfile::tempdir().unwrap());
        let link = Arc::new(Link { from: node, net: Arc::clone(&self.net) });
        let quorum = Quorum::open(self.config(node, controllers), link).await.unwrap();
        lock(&self.net.nodes).insert(node, quorum);
    }

    async fn stop(&self, node: i32) {
        let quorum = lock(&self.net.nodes).remove(&node).unwrap();
        quorum.close().await;
    }

    fn node(&self, node: i32) -> Quorum {
        lock(&self.net.nodes)[&node].clone()
    }

    fn nodes(&self) -> Vec<i32> {
        lock(&self.net.nodes).keys().copied().collect()
    }

    /// A new disk in place of the old one.
    fn lose_disk(&mut self, node: i32) {
        self.folders.insert(node, tempfile::tempdir().unwrap());
    }

    /// Nothing goes to or from `node`.
    fn isolate(&self, node: i32) {
        let mut cut = lock(&self.net.cut);
        for other in 1..=5 {
            cut.extend([(node, other), (other, node)]);
        }
    }

    fn heal(&self) {
        lock(&self.net.cut).clear();
    }

    async fn joined(&self, node: i32) {
        let quorum = self.node(node);
        until("joined", || quorum.shared.identity().joined()).await;
    }

    /// The one that leads all nodes but `except`, once there is one.
    async fn leader(&self, except: &[i32]) -> i32 {
        let active = || {
            self.nodes().into_iter().find(|node| {
                !except.contains(node) && self.node(*node).watch().borrow().is_active()
            })
        };
        until("led", || active().is_some()).await;
        active().unwrap()
    }

    /// Proposes until a leader takes it; which entry it is.
    async fn propose(&self, next: i64) -> MetadataIndex {
        loop {
            let leader = self.node(self.leader(&[]).await);
            let proposed = leader.propose(vec![Record::ProducerIds { next }]);
            match tokio::time::timeout(Duration::from_secs(5), proposed).await {
                Ok(Ok(index)) => return index,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Waits until `node` has applied what was proposed as `next`.
    async fn has(&self, node: i32, next: i64) {
        let caught_up = until("caught up", || self.value(node) == next);
        if tokio::time::timeout(PATIENCE - DELAY, caught_up).await.is_err() {
            panic!("node {node} has {}, not {next}\n{}", self.value(node), self.describe());
        }
    }

    /// For failed tests: what each node knows.
    fn describe(&self) -> String {
        let describe = |node: i32| {
            let quorum = self.node(node);
            let metrics = quorum.shared.raft.metrics().borrow().clone();
            format!("{node}: {:?}\n   {metrics}\n", quorum.watch().borrow().clone())
        };
        self.nodes().into_iter().map(describe).collect()
    }

    fn value(&self, node: i32) -> i64 {
        self.node(node).image().next_producer_id()
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not {what} after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn voters(quorum: &Quorum) -> Vec<i32> {
    quorum.watch().borrow().voters.iter().map(|voter| voter.get()).collect()
}
