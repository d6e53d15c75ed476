//! What a replica is told.

use std::collections::BTreeMap;

use tailwater_kafka::{BrokerId, LeaderEpoch, Offset};

use super::{BrokerEpoch, Fetched, PartitionEpoch};

/// A partition as the controller has it, and those of its brokers that may take part.
#[derive(Debug, Clone)]
pub(crate) struct Assignment {
    pub(crate) leader: Option<BrokerId>,
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) partition_epoch: PartitionEpoch,
    pub(crate) replicas: Vec<BrokerId>,
    pub(crate) isr: Vec<BrokerId>,
    /// The replicas that are neither fenced nor stopping, and which incarnation of them.
    pub(crate) live: BTreeMap<BrokerId, BrokerEpoch>,
    /// Without so many in the ISR nothing more is committed; capped at the number of replicas.
    pub(crate) min_insync: usize,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// The controller's word. An older one than is known changes nothing, the same again is
    /// harmless; one with the same partition epoch may bring other `live` and `min_insync`.
    Assigned(Assignment),
    /// This broker has no replica any more.
    Unassigned,
    /// [`super::Command::BeginEpoch`] is carried out.
    EpochBegun { leader_epoch: LeaderEpoch },
    /// The log's flushed end has moved.
    Durable,
    /// A follower asked.
    Fetched(Fetched),
    /// What became of [`super::Command::ProposeIsr`]: the ISR as the controller has it now.
    IsrAnswered {
        /// In which it was asked.
        leader_epoch: LeaderEpoch,
        result: Result<(Vec<BrokerId>, PartitionEpoch), IsrRefused>,
    },
    /// A fetch answer was taken, all of it: our log was a prefix of the leader's.
    LeaderSaid { leader_epoch: LeaderEpoch, high_watermark: Offset, log_start: Offset },
    /// Time has passed; about twice a second.
    Tick,
}

/// Why a proposed ISR was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IsrRefused {
    /// The controller has another state of the partition (INVALID_UPDATE_VERSION,
    /// FENCED_LEADER_EPOCH): it is on its way to us, unless that controller was itself behind.
    Outdated,
    /// Not a member that may be (INELIGIBLE_REPLICA), no controller, no answer.
    Other,
}

/// The log at the time of an event.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogView {
    /// The first offset that is kept.
    pub(crate) start: Offset,
    /// The log end offset: in memory.
    pub(crate) end: Offset,
    /// Everything below is as durable as the flush policy wants it.
    pub(crate) durable_end: Offset,
}
