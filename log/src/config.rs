//! What a log node can be told, and the only home of the defaults.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tailwater_kafka::BrokerId;

use crate::Error;
use crate::clock::{Clock, SystemClock};
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
    /// How patient leaders are with their followers.
    pub(crate) replica: crate::replica::Settings,
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
            replica: crate::replica::Settings::default(),
            clock: Arc::new(SystemClock),
            disk: Arc::new(FileSystem),
            workers: Workers::default(),
        }
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
