//! What the controller is told once, at the start.

use std::time::Duration;

/// How this controller decides. Controllers of one cluster should have the same settings.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The cluster's identity, if it is this controller that begins it.
    pub(crate) cluster_id: String,
    /// A broker that has been silent for this long is fenced.
    pub(crate) session_timeout: Duration,
    /// How often leaderships go back to the preferred leaders; `None` for never.
    pub(crate) rebalance_interval: Option<Duration>,
    /// Partitions of a topic that does not say.
    pub(crate) default_partitions: i32,
    /// The most partitions that a topic may have.
    pub(crate) max_partitions: i32,
    /// Replicas of a topic that does not say.
    pub(crate) default_replication_factor: i16,
    /// `min.insync.replicas` of topics that do not say.
    pub(crate) min_insync_replicas: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster_id: String::new(),
            // Long enough for a broker that waits for its disk, short enough that writes go on
            // within five seconds of a loss, the time of the election included.
            session_timeout: Duration::from_secs(2),
            rebalance_interval: Some(Duration::from_mins(5)),
            default_partitions: 1,
            max_partitions: crate::config::MAX_PARTITIONS,
            default_replication_factor: 1,
            min_insync_replicas: 1,
        }
    }
}
