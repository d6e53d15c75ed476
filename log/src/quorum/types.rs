//! What Raft is about here: members, proposals, and openraft's types with ours filled in.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tailwater_kafka::BrokerId;
use uuid::Uuid;

use crate::metadata::{Image, MetadataIndex, Record};

openraft::declare_raft_types!(
    /// openraft's parameters.
    pub(crate) TypeConfig:
        D = Proposal,
        R = MetadataIndex,
        NodeId = u64,
        Node = Member,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Arc<Image>,
        Responder = openraft::impls::OneshotResponder<TypeConfig>,
        AsyncRuntime = openraft::TokioRuntime,
);

pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type Metrics = openraft::RaftMetrics<u64, Member>;
pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Snapshot = openraft::Snapshot<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, Member>;
pub(crate) type StorageError = openraft::StorageError<u64>;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, Member>;

/// Where a member is reached, and which disk it votes with.
///
/// The same id with another directory has lost its disk, and with it its vote: what is meant for
/// the one is never taken by the other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Member {
    /// `host:port` of its controller listener.
    pub(crate) address: String,
    /// Which metadata folder it has.
    pub(crate) directory: Uuid,
}

/// Records that count together.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Proposal(pub(crate) Arc<[Record]>);

/// Records may be thousands: how many is enough in a trace.
impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} records)", self.0.len())
    }
}

/// The id under which Raft knows a node.
pub(crate) fn raft_id(node: BrokerId) -> u64 {
    u64::try_from(node.get()).expect("a configuration with a negative node id is refused")
}

/// The node that Raft knows under `id`.
pub(crate) fn broker_id(id: u64) -> BrokerId {
    BrokerId::new(i32::try_from(id).unwrap_or(i32::MAX))
}
