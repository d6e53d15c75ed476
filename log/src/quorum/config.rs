//! What a member of the metadata quorum is told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::SnapshotPolicy;
use tailwater_kafka::BrokerId;

use super::types::raft_id;
use crate::Error;
use crate::storage::Disk;

/// The settings of a member.
#[derive(Debug, Clone)]
pub(crate) struct QuorumConfig {
    /// This node.
    pub(crate) node: BrokerId,
    /// Where its controller listener is reached: `host:port`.
    pub(crate) address: String,
    /// The folder with everything the member keeps: `<data_dir>/metadata`.
    pub(crate) directory: PathBuf,
    /// All controllers of the cluster, this node among them, and where each is reached.
    pub(crate) controllers: BTreeMap<BrokerId, String>,
    /// Where the entries are written.
    pub(crate) disk: Arc<dyn Disk>,
    /// How long members wait for each other.
    pub(crate) timeouts: QuorumTimeouts,
    /// Entries after which the image is written as a snapshot, for which entries are then dropped.
    pub(crate) snapshot_after: u64,
    /// Bytes of a snapshot in one message; a larger one goes in parts.
    pub(crate) snapshot_part_bytes: usize,
}

/// How long members wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QuorumTimeouts {
    /// A member that hears nothing of a leader for at least so long stands for election; one that
    /// heard of a leader within this time votes for nobody else.
    pub(crate) election_least: Duration,
    /// Each member draws its own time up to this one, anew each time. A leader that a majority has
    /// not answered for so long gives up.
    pub(crate) election_most: Duration,
    /// How often a leader tells that it is there.
    pub(crate) heartbeat: Duration,
}

impl Default for QuorumTimeouts {
    fn default() -> Self {
        Self {
            // A disk may take half a second for a flush; a broker without a controller can do
            // without for as long as its session lasts.
            election_least: Duration::from_millis(1000),
            election_most: Duration::from_millis(1500),
            heartbeat: Duration::from_millis(250),
        }
    }
}

/// Entries before a snapshot is made, unless something else is said. An entry is some hundred bytes,
/// and the image is written in milliseconds.
pub(crate) const SNAPSHOT_AFTER: u64 = 2000;

impl QuorumConfig {
    /// The controllers other than this one.
    pub(crate) fn others(&self) -> impl Iterator<Item = (BrokerId, &String)> {
        let others = self.controllers.iter().filter(|(id, _)| **id != self.node);
        others.map(|(id, address)| (*id, address))
    }

    /// Where the configuration says that members are.
    pub(crate) fn addresses(&self) -> BTreeMap<u64, String> {
        self.controllers.iter().map(|(id, at)| (raft_id(*id), at.clone())).collect()
    }

    /// The settings as openraft has them.
    ///
    /// # Errors
    /// [`Error::Config`] with every problem found.
    pub(crate) fn raft(&self) -> Result<openraft::Config, Error> {
        let mut problems = Vec::new();
        if !self.controllers.contains_key(&self.node) {
            problems.push(format!("controllers must name node {}, which is to be one", self.node));
        }
        let QuorumTimeouts { election_least, election_most, heartbeat } = self.timeouts;
        if heartbeat * 2 > election_least || election_least >= election_most {
            problems.push(format!(
                "controllers wait {election_least:?} to {election_most:?} for a leader that is \
                 there every {heartbeat:?}: the first must be less than the second, and at least \
                 twice the third"
            ));
        }
        let config = openraft::Config {
            cluster_name: "metadata".to_owned(),
            // Members stand for election as `elections` decides. What openraft still does with
            // these: a vote is waited for as long as the first, and none is given for as long as
            // the second after a leader was heard.
            enable_elect: false,
            election_timeout_min: millis(election_least) / 2,
            election_timeout_max: millis(election_least),
            // It looks at its clock every one and a half of these.
            heartbeat_interval: millis(heartbeat) * 2 / 3,
            install_snapshot_timeout: 10_000,
            max_payload_entries: 256,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_after),
            max_in_snapshot_log_to_keep: self.snapshot_after / 2,
            // More than is ever kept: who finds its entries gets those, else the snapshot.
            replication_lag_threshold: 4 * self.snapshot_after,
            ..openraft::Config::default()
        };
        let config = config.validate().map_err(|error| problems.push(error.to_string()));
        match config {
            Ok(config) if problems.is_empty() => Ok(config),
            _ => Err(Error::Config { problems }),
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
