//! What a log node can be told, and the only home of the defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tailwater_kafka::{BrokerId, Transport};

use crate::Error;
use crate::clock::{Clock, SystemClock};
use crate::node::wire::ControllerNetwork;
use crate::quorum::QuorumTimeouts;
use crate::storage::{Disk, FileSystem};
use crate::workers::Workers;

/// When what was written is flushed to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlushPolicy {
    /// Before it is acknowledged: nothing acknowledged is lost to a power cut. One flush serves
    /// everything that waits.
    #[default]
    Always,
    /// So long after it was written: a power cut may take the last interval, a crash of the
    /// process nothing.
    Interval(Duration),
    /// When the system sees fit, at the end of a segment, and at a clean stop.
    Never,
}

/// The settings of a log node.
#[derive(Debug, Clone)]
pub struct Config {
    /// The folder with everything the node keeps.
    pub data_dir: PathBuf,
    /// The node's id in its cluster.
    pub node_id: BrokerId,
    /// The host under which clients reach the node.
    pub advertised_host: String,
    /// The port under which clients reach the node.
    pub advertised_port: u16,
    /// The cluster's controllers and where their controller listeners are reached, `host:port`. A
    /// node that is named here carries one. By default the node is alone.
    pub controllers: BTreeMap<BrokerId, String>,
    /// Whether the node has copies of partitions and serves clients. One that does not is a controller
    /// and nothing else.
    pub broker: bool,
    /// Where the node stands: replicas of a partition are spread over racks.
    pub rack: Option<String>,
    /// Replicas of a topic that does not say how many.
    pub replication_factor: i16,
    /// How many in-sync replicas must have a record before it is acknowledged, of topics that do not
    /// say. What the controller that leads says holds for the cluster.
    pub min_insync_replicas: u32,
    /// A broker that has been silent for so long is not relied on any more.
    pub session_timeout: Duration,
    /// A controller that hears nothing of the one that leads for so long, or up to half of that
    /// longer, stands for election.
    pub election_timeout: Duration,
    /// A follower that has not been at its leader's end for so long leaves the ISR: Kafka's
    /// `replica.lag.time.max.ms`.
    pub replica_lag_max: Duration,
    /// How many bytes a second all replicas of this node that are not in sync may copy together;
    /// `None` for as fast as it goes. Replicas in sync are never held back.
    pub replication_throttle: Option<u64>,
    /// How this node reaches other brokers.
    pub peers: Transport,
    /// How this node reaches other controllers.
    pub controller_network: ControllerNetwork,
    /// Size in bytes at which a segment is closed and the next begun.
    pub segment_bytes: u64,
    /// When acknowledged data is on the disk.
    pub flush: FlushPolicy,
    /// Threads that write and flush: so many partitions are flushed side by side.
    pub flush_threads: usize,
    /// How long records are kept; `None` for ever. Topics may say otherwise.
    pub retention: Option<Duration>,
    /// How many bytes all partitions together may hold before attached pipelines that lag no longer
    /// hold back the retention; `None`: they always do.
    pub retention_limit: Option<u64>,
    /// How often the retention is looked after.
    pub retention_check: Duration,
    /// Partitions of a topic that does not say how many.
    pub default_partitions: i32,
    /// Whether asking for a topic that is not there makes it.
    pub auto_create_topics: bool,
    /// The largest record batch in bytes that is taken. Topics may say otherwise.
    pub max_message_bytes: u32,
    /// How many bytes may wait to be written before producers have to wait.
    pub pending_bytes: usize,
    /// How many bytes of recent batches are kept in memory for readers at the tail, all partitions
    /// together.
    pub tail_bytes: usize,
    /// Connections at a time. Each takes a file descriptor, as every partition does.
    pub max_connections: usize,
    /// How many bytes of large requests are read at a time, all connections together.
    pub request_bytes: usize,
    /// Disk space that is kept for getting out of a full disk: letting go of old segments, and
    /// noting that pipelines need them no more, takes some.
    pub reserve_bytes: u64,
    /// How long a producer that writes nothing is remembered, for its sequence numbers.
    pub producer_expiration: Duration,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Where segments are written.
    pub disk: Arc<dyn Disk>,
    /// Who does the work that blocks: threads, except in a simulation.
    pub workers: Workers,
}

impl Config {
    /// A node alone that keeps its data in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            node_id: BrokerId::new(1),
            advertised_host: "127.0.0.1".to_owned(),
            advertised_port: 9092,
            controllers: BTreeMap::new(),
            broker: true,
            rack: None,
            replication_factor: 1,
            min_insync_replicas: 1,
            // Long enough for a node that waits for its disk, short enough that writes go on within
            // five seconds of a loss, the controllers' election included.
            session_timeout: Duration::from_secs(2),
            election_timeout: QuorumTimeouts::default().election_least,
            replica_lag_max: crate::replica::Settings::default().lag_max,
            replication_throttle: None,
            peers: Transport::tcp(Vec::new()),
            controller_network: ControllerNetwork::default(),
            segment_bytes: 64 << 20,
            flush: FlushPolicy::Always,
            flush_threads: 8,
            retention: Some(Duration::from_hours(7 * 24)),
            retention_limit: None,
            retention_check: Duration::from_secs(30),
            default_partitions: 1,
            auto_create_topics: true,
            // Kafka's message.max.bytes: a mebibyte and the header of a batch.
            max_message_bytes: (1 << 20) + 12,
            pending_bytes: 32 << 20,
            tail_bytes: 32 << 20,
            max_connections: 4096,
            request_bytes: 128 << 20,
            reserve_bytes: 4 << 20,
            producer_expiration: Duration::from_hours(24),
            clock: Arc::new(SystemClock),
            disk: Arc::new(FileSystem),
            workers: Workers::default(),
        }
    }

    /// How patient leaders are with their followers.
    pub(crate) fn replica(&self) -> crate::replica::Settings {
        crate::replica::Settings { lag_max: self.replica_lag_max, ..Default::default() }
    }

    /// How long controllers wait for each other.
    pub(crate) fn quorum(&self) -> QuorumTimeouts {
        QuorumTimeouts {
            election_least: self.election_timeout,
            election_most: self.election_timeout * 3 / 2,
            heartbeat: self.election_timeout / 4,
        }
    }

    /// The controllers: those that are named, else this node alone.
    pub(crate) fn all_controllers(&self) -> BTreeMap<BrokerId, String> {
        if self.controllers.is_empty() {
            // Nobody ever calls it.
            return BTreeMap::from([(self.node_id, "alone".to_owned())]);
        }
        self.controllers.clone()
    }

    /// Checks that the settings can work together.
    ///
    /// # Errors
    /// [`Error::Config`] with every problem found.
    pub fn validate(&self) -> Result<(), Error> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        // Positions in an index are 32 bits wide, and a batch may stand behind the limit.
        require(
            (1 << 10..=1 << 30).contains(&self.segment_bytes),
            "segment_bytes must be between 1 KiB and 1 GiB",
        );
        require(self.node_id.get() >= 0, "node_id must not be negative");
        require(self.replication_factor >= 1, "replication_factor must be at least 1");
        require(self.min_insync_replicas >= 1, "min_insync_replicas must be at least 1");
        require(
            self.session_timeout >= Duration::from_millis(500),
            "session_timeout must be at least 500 ms: heartbeats come every 400 ms",
        );
        require(
            self.election_timeout >= Duration::from_millis(100),
            "election_timeout must be at least 100 ms",
        );
        require(
            self.replication_throttle.is_none_or(|rate| rate > 0),
            "replication_throttle must be greater than 0: leave it out for no limit",
        );
        require(
            self.broker || self.controllers.contains_key(&self.node_id),
            "a node without a broker must be one of the controllers",
        );
        require(!self.advertised_host.is_empty(), "advertised_host must not be empty");
        require(self.flush_threads > 0, "flush_threads must be at least 1");
        require(
            (1..=MAX_PARTITIONS).contains(&self.default_partitions),
            "default_partitions must be between 1 and 10000",
        );
        require(self.max_message_bytes >= 1024, "max_message_bytes must be at least 1 KiB");
        require(
            self.pending_bytes >= usize::try_from(self.max_message_bytes).unwrap_or(usize::MAX),
            "pending_bytes must be at least max_message_bytes",
        );
        require(
            u32::try_from(self.pending_bytes).is_ok_and(|bytes| bytes <= 1 << 30),
            "pending_bytes must be at most 1 GiB",
        );
        if let FlushPolicy::Interval(interval) = self.flush {
            require(!interval.is_zero(), "a flush interval must be longer than zero");
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Config { problems }) }
    }
}

/// More partitions than that in one topic is a mistake in a request: each takes open files.
pub(crate) const MAX_PARTITIONS: i32 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        Config::new("/tmp/x").validate().unwrap();
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let config = Config { segment_bytes: 1, flush_threads: 0, ..Config::new("/tmp/x") };
        let text = config.validate().unwrap_err().to_string();
        assert!(text.contains("segment_bytes") && text.contains("flush_threads"), "{text}");
    }
}
