//! What capture is told.

use crate::PartitionBy;

/// When a source is snapshotted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SnapshotMode {
    /// Once, before the first stream.
    #[default]
    Initial,
    /// Never: the stream begins now.
    Never,
    /// Once, and no stream after it.
    Only,
}

/// One source's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// The source's name: its topic, and what fences its writers.
    pub source: String,
    /// Whether and when to snapshot.
    pub snapshot: SnapshotMode,
    /// Partitions of the topic of changes, 1 or more: fixed as long as it has the topic.
    pub partitions: usize,
    /// Which of them a row goes to: fixed for an epoch.
    pub partition_by: PartitionBy,
    /// Replicas of the topics, if they must be created.
    pub replication_factor: i16,
    /// The largest record value, in bytes, that goes into the topic in one piece.
    pub max_record_bytes: usize,
    /// Bytes that may wait for the log's acknowledgement.
    pub in_flight_bytes: usize,
    /// Bytes that a connector may decode ahead of the log.
    pub decode_bytes: usize,
    /// What the tables filter was, to tell when it changed.
    pub filter: String,
    /// Wall-clock milliseconds since 1970, for the records' timestamps.
    pub clock: fn() -> i64,
}

impl Config {
    /// The topic of changes.
    pub fn topic(&self) -> String {
        self.source.clone()
    }

    /// The topic of what capture remembers.
    pub fn state_topic(&self) -> String {
        state_topic(&self.source)
    }

    /// Whose producer may write both.
    pub fn transactional_id(&self) -> String {
        format!("tailwater.{}", self.source)
    }
}

/// The topic of what capture of `source` remembers.
pub(crate) fn state_topic(source: &str) -> String {
    format!("{source}.state")
}
