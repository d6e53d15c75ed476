//! What a replica is told.

use std::collections::BTreeMap;

use tailwater_kafka::{BrokerId, LeaderEpoch, Offset};

use super::Fetched;
use crate::metadata::{BrokerEpoch, BrokerState, PartitionEpoch, PartitionState};

/// A partition as the controller has it, and those of its brokers that may take part.
#[derive(Debug, Clone)]
pub(crate) struct Assignment {
    pub(crate) leader: Option<BrokerId>,
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) partition_epoch: PartitionEpoch,
    pub(crate) replicas: Vec<BrokerId>,
    pub(crate) isr: Vec<BrokerId>,
    /// The replicas whose brokers are neither fenced nor stopping, and can use their copy; and which
    /// incarnation of them.
    pub(crate) live: BTreeMap<BrokerId, BrokerEpoch>,
    /// Without so many in the ISR nothing more is committed; capped at the number of replicas.
    pub(crate) min_insync: usize,
}

impl Assignment {
    /// A partition's state, and those of the cluster's brokers that have to do with it.
    pub(crate) fn of(
        state: &PartitionState,
        brokers: &BTreeMap<BrokerId, BrokerState>,
        min_insync: usize,
    ) -> Self {
        let takes_part = |id: &BrokerId| {
            let broker = brokers.get(id).filter(|broker| broker.is_eligible())?;
            (!state.offline.contains(id)).then_some((*id, broker.epoch))
        };
        Self {
            leader: state.leader,
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
            replicas: state.replicas.clone(),
            isr: state.isr.clone(),
            live: state.replicas.iter().filter_map(takes_part).collect(),
            min_insync,
        }
    }
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
    /// [`super::Command::ProposeIsr`] was refused. One that was taken is not told: it comes as
    /// [`Event::Assigned`], after everything that the controller knew when it took it. Ahead of
    /// that, a leader could commit by an ISR and an older, smaller `min_insync`, and lose it with an
    /// eligible leader replica (KIP-966) that the controller kept for the greater one.
    IsrRefused {
        /// In which it was asked.
        leader_epoch: LeaderEpoch,
        refused: IsrRefused,
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

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_unfenced_replicas_that_stay_take_part() {
        let broker = |epoch, fenced, stopping| BrokerState {
            epoch: BrokerEpoch::new(epoch),
            incarnation: Uuid::nil(),
            directory: Uuid::nil(),
            host: "h".to_owned(),
            port: 9092,
            rack: None,
            fenced,
            stopping,
        };
        let ids: Vec<_> = (1..=4).map(BrokerId::new).collect();
        let brokers = BTreeMap::from([
            (ids[0], broker(10, false, false)),
            (ids[1], broker(20, true, false)),
            (ids[2], broker(30, false, true)),
            (ids[3], broker(40, false, false)),
        ]);
        let state = PartitionState {
            replicas: ids[..3].to_vec(),
            isr: ids[..1].to_vec(),
            elr: Vec::new(),
            adding: Vec::new(),
            removing: Vec::new(),
            offline: Vec::new(),
            leader: Some(ids[0]),
            last_known_leader: None,
            leader_epoch: LeaderEpoch::new(5),
            partition_epoch: PartitionEpoch::new(7),
        };
        let assignment = Assignment::of(&state, &brokers, 2);
        assert_eq!(assignment.live, BTreeMap::from([(ids[0], BrokerEpoch::new(10))]));
        let offline = PartitionState { offline: ids[..1].to_vec(), ..state.clone() };
        assert_eq!(Assignment::of(&offline, &brokers, 2).live, BTreeMap::new());
        assert_eq!((assignment.replicas, assignment.isr), (state.replicas, state.isr));
    }
}
