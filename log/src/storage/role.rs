//! What the replica decides, carried out on its partition; what reaches beyond it, noted down.

use std::sync::{Mutex, PoisonError};

use tailwater_kafka::{BrokerId, LeaderEpoch};
use tokio::sync::Notify;

use crate::metadata::{BrokerEpoch, PartitionEpoch};
use crate::partitions::PartitionKey;
use crate::replica::{Command, Event, LogView};
use crate::storage::partition::{Condition, NotKept, Online, Partition, State};

/// What a replica wants done that is not its partition's own business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Errand {
    /// Ask the controller for this ISR.
    ProposeIsr {
        leader_epoch: LeaderEpoch,
        partition_epoch: PartitionEpoch,
        isr: Vec<(BrokerId, BrokerEpoch)>,
    },
    /// Fetch from this leader, and from no other.
    Follow { leader: BrokerId },
    /// Fetch from nobody.
    StopFollowing,
    /// It leads: whoever keeps something in it may load that.
    Lead { leader_epoch: LeaderEpoch },
    /// It leads no more.
    Resign,
}

/// Errands of all partitions, until somebody takes them.
///
/// As many as there are assignments, and one proposal of each partition that leads.
#[derive(Debug, Default)]
pub(crate) struct Errands {
    waiting: Mutex<Vec<(PartitionKey, Errand)>>,
    changed: Notify,
}

impl Errands {
    fn push(&self, of: &Partition, errand: Errand) {
        let key = (of.name.topic_id, of.name.partition);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push((key, errand));
        self.changed.notify_one();
    }

    /// All that wait, in their order.
    pub(crate) fn take(&self) -> Vec<(PartitionKey, Errand)> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until there may be some. Cancel-safe.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Partition {
    /// Tells the replica what happened. Returns whether the partition must now be handed to a
    /// flush thread.
    pub(crate) fn tell(&self, event: Event) -> bool {
        let mut state = self.lock_state();
        state.tell(self, event);
        state.online().is_ok_and(Online::schedule)
    }
}

impl State {
    /// Tells the replica what happened, and carries out what it says.
    pub(super) fn tell(&mut self, partition: &Partition, event: Event) {
        let Condition::Online(online) = &mut self.condition else { return };
        let begun = match &event {
            Event::EpochBegun { leader_epoch } => Some(*leader_epoch),
            _ => None,
        };
        let errands = &partition.shared.errands;
        let commands = self.replica.handle(partition.shared.now(), event, online.view());
        let mut wake = false;
        for command in commands {
            match command {
                Command::HighWatermark(to) => wake |= online.advance_high_watermark(to),
                Command::BeginEpoch { leader_epoch } => online.beginning = Some(leader_epoch),
                Command::StopLeading => {
                    online.beginning = None;
                    online.refuse_from(online.start, &NotKept::NotLeader);
                    errands.push(partition, Errand::Resign);
                    wake = true;
                }
                Command::ProposeIsr { leader_epoch, partition_epoch, isr } => {
                    errands
                        .push(partition, Errand::ProposeIsr { leader_epoch, partition_epoch, isr });
                }
                Command::Follow { leader, .. } => {
                    errands.push(partition, Errand::Follow { leader });
                    wake = true;
                }
                Command::StopFollowing => errands.push(partition, Errand::StopFollowing),
                Command::StartOffset(start) => online.leader_start = start,
            }
        }
        if let Some(leader_epoch) = begun
            && self.replica.leads() == Some(leader_epoch)
        {
            errands.push(partition, Errand::Lead { leader_epoch });
            wake = true;
        }
        if wake {
            self.wake();
        }
    }
}

impl Online {
    fn view(&self) -> LogView {
        LogView { start: self.start, end: self.end, durable_end: self.durable_end }
    }
}
