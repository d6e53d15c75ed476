//! The things that metadata is about, and the numbers that order their states.

use std::fmt;

use serde::{Deserialize, Serialize};
use tailwater_kafka::{BrokerId, LeaderEpoch};
use uuid::Uuid;

/// The topic setting that says how many replicas must have a record before it is acknowledged.
pub(crate) const MIN_ISR_CONFIG: &str = "min.insync.replicas";

/// Which entry of the metadata log: the one last applied, the one a broker must have applied.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub(crate) struct MetadataIndex(u64);

impl MetadataIndex {
    /// Before the first entry.
    pub(crate) const ZERO: Self = Self(0);

    pub(crate) const fn new(index: u64) -> Self {
        Self(index)
    }

    pub(crate) const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MetadataIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Which registration of a broker; rises with each.
///
/// Requests that name an older one are refused: whoever sent them has been replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct BrokerEpoch(i64);

impl BrokerEpoch {
    /// The wire's "not known".
    pub(crate) const NONE: Self = Self(-1);

    pub(crate) const fn new(epoch: i64) -> Self {
        Self(epoch)
    }

    pub(crate) const fn get(self) -> i64 {
        self.0
    }

    /// The epoch of a registration that is decided on metadata as of `decided_on`.
    ///
    /// It stands in an entry above `decided_on`, and the next registration is decided on an image
    /// that has that entry: so no two registrations of a broker have one epoch.
    pub(crate) fn after(decided_on: MetadataIndex) -> Self {
        Self(i64::try_from(decided_on.get()).map_or(i64::MAX, |index| index.saturating_add(1)))
    }
}

impl fmt::Display for BrokerEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Which state of a partition; rises with each change of it.
///
/// A leader's proposal names the one it builds on and is refused if that is not the current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct PartitionEpoch(i32);

impl PartitionEpoch {
    /// A partition as it was made.
    pub(crate) const ZERO: Self = Self(0);

    pub(crate) const fn new(epoch: i32) -> Self {
        Self(epoch)
    }

    #[cfg(test)]
    pub(crate) const fn get(self) -> i32 {
        self.0
    }

    /// The epoch of the next state.
    ///
    /// # Panics
    /// After 2^31 changes of one partition: a second apart they take 68 years.
    pub(crate) fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("a partition does not change 2^31 times"))
    }
}

impl fmt::Display for PartitionEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What holds for the cluster as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterState {
    /// Its identity, for life.
    pub(crate) cluster_id: String,
    /// Which forms of records there may be; see [`LEVEL`](super::LEVEL).
    pub(crate) level: u32,
    /// `min.insync.replicas` of topics that do not say. It is kept here, and not in each node's
    /// configuration, because leaders and controller must agree on it: the controller takes
    /// replicas for complete because no leader commits with fewer.
    pub(crate) min_insync_replicas: u32,
}

/// A broker, as it registered and as the controller sees it since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BrokerState {
    /// Which registration this is.
    pub(crate) epoch: BrokerEpoch,
    /// Which start of the process.
    pub(crate) incarnation: Uuid,
    /// Which data folder: another one has none of the records that the former had.
    pub(crate) directory: Uuid,
    /// Where clients and followers reach it.
    pub(crate) host: String,
    /// The port to that host.
    pub(crate) port: u16,
    /// Where it stands: replicas of a partition are spread over racks.
    pub(crate) rack: Option<String>,
    /// Not to be relied on: it leads nothing and is in no ISR.
    pub(crate) fenced: bool,
    /// About to stop: it takes on nothing new.
    pub(crate) stopping: bool,
}

impl BrokerState {
    /// Where clients and followers reach it, `host:port`.
    pub(crate) fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Whether it may take on replicas, leaderships and a place in an ISR.
    pub(crate) fn is_eligible(&self) -> bool {
        !self.fenced && !self.stopping
    }
}

/// A partition: who has it, who has all of it, who leads.
///
/// Invariants, kept by the controller: `isr` and `elr` are parts of `replicas` and have no member
/// in common; `leader` is in `isr`; `offline` is a part of `replicas` and has no member in common with
/// `isr`; all lists are without repetition, `isr`, `elr` and `offline` in the order of `replicas`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartitionState {
    /// Who has a copy or is making one; the first is the preferred leader.
    pub(crate) replicas: Vec<BrokerId>,
    /// The in-sync replicas: each has every record that was acknowledged to a producer. Empty where
    /// the last one was lost.
    pub(crate) isr: Vec<BrokerId>,
    /// Eligible leader replicas (KIP-966): not in sync, but since they were nothing has been
    /// committed, for the ISR is smaller than `min.insync.replicas`. So they too have every record
    /// below the high watermark.
    pub(crate) elr: Vec<BrokerId>,
    /// Those of `replicas` that a reassignment adds.
    pub(crate) adding: Vec<BrokerId>,
    /// Those of `replicas` that a reassignment will remove.
    pub(crate) removing: Vec<BrokerId>,
    /// Those of `replicas` whose broker is there but cannot use its copy: a flush failed, damage was
    /// found. None of them is in the ISR.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) offline: Vec<BrokerId>,
    /// Who leads; nobody while no replica that may is there.
    pub(crate) leader: Option<BrokerId>,
    /// Who led last: the first choice of an unclean election.
    pub(crate) last_known_leader: Option<BrokerId>,
    /// Rises whenever the leader changes, also to and from none, and when a copy is usable again: what
    /// its broker has said of it before counts no more.
    pub(crate) leader_epoch: LeaderEpoch,
    /// Rises with every change.
    pub(crate) partition_epoch: PartitionEpoch,
}

impl PartitionState {
    /// Whether replicas are being moved.
    pub(crate) fn is_reassigning(&self) -> bool {
        !self.adding.is_empty() || !self.removing.is_empty()
    }

    /// The replicas without those that a reassignment adds.
    pub(crate) fn original_replicas(&self) -> Vec<BrokerId> {
        without(&self.replicas, &self.adding)
    }

    /// The replicas without those that a reassignment will remove.
    pub(crate) fn target_replicas(&self) -> Vec<BrokerId> {
        without(&self.replicas, &self.removing)
    }

    /// Whether `broker` has, as far as metadata knows, all that was committed.
    pub(crate) fn is_complete_on(&self, broker: BrokerId) -> bool {
        self.isr.contains(&broker) || self.elr.contains(&broker)
    }
}

fn without(all: &[BrokerId], removed: &[BrokerId]) -> Vec<BrokerId> {
    all.iter().copied().filter(|id| !removed.contains(id)).collect()
}

/// Who may or may not do what on what, with the numbers of Kafka's `AclBinding`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AclBinding {
    /// Kafka's `ResourceType`.
    pub(crate) resource_type: i8,
    /// The resource, or the beginning of its name.
    pub(crate) resource_name: String,
    /// Kafka's `PatternType`.
    pub(crate) pattern_type: i8,
    /// Who, such as `User:alice`.
    pub(crate) principal: String,
    /// From where; `*` for everywhere.
    pub(crate) host: String,
    /// Kafka's `AclOperation`.
    pub(crate) operation: i8,
    /// Kafka's `AclPermissionType`.
    pub(crate) permission_type: i8,
}
