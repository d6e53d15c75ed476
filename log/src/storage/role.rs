//! What the replica decides, carried out on its partition; what reaches beyond it, noted down.

use std::sync::{Arc, Mutex, PoisonError};

use tailwater_kafka::{BrokerId, LeaderEpoch};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metadata::{BrokerEpoch, PartitionEpoch};
use crate::partitions::PartitionKey;
use crate::replica::{Command, Event, FollowerStatus, LogView, NotNow, WrongEpoch};
use crate::storage::partition::{Acks, Condition, NotKept, Online, Partition, State, Stopped};

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
        let key = of.name.key();
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
    /// The epoch in which this replica leads.
    pub(crate) fn leads(&self) -> Option<LeaderEpoch> {
        let mut state = self.lock_state();
        state.online().ok()?;
        state.replica.leads()
    }

    /// Whether this copy is there and cannot be used.
    pub(crate) fn is_offline(&self) -> bool {
        self.lock_state().online().is_err_and(|why| why.is_offline())
    }

    /// Whether this copy is not what was written.
    pub(crate) fn is_damaged(&self) -> bool {
        matches!(self.lock_state().online(), Err(Stopped::Damaged(_)))
    }

    /// Whether this replica leads, but is cut off from those that it leads.
    pub(crate) fn is_stranded(&self) -> bool {
        self.lock_state().replica.is_stranded()
    }

    /// Waits until this replica leads in that epoch, or cannot any more.
    pub(crate) async fn leading(&self, leader_epoch: LeaderEpoch) {
        let woken = Arc::new(Notify::new());
        loop {
            {
                let mut state = self.lock_state();
                let waits = state.online().is_ok() && state.replica.starts() == Some(leader_epoch);
                if !waits {
                    return;
                }
                state.waiting.push(Arc::clone(&woken));
            }
            woken.notified().await;
        }
    }

    /// Whether a request that names a leader epoch means the present one, and this replica leads in
    /// it; [`LeaderEpoch::NONE`] means any.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check_leader(&self, asked: LeaderEpoch) -> Result<(), WrongEpoch> {
        self.lock_state().replica.check_leader(asked)
    }

    /// As [`Partition::check_leader`], for what followers serve too.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check_epoch(&self, asked: LeaderEpoch) -> Result<(), WrongEpoch> {
        self.lock_state().replica.check_epoch(asked)
    }

    /// Whether everything is known to be readable that an earlier leader has shown.
    pub(crate) fn readable_from_leader_start(&self) -> bool {
        self.lock_state().replica.readable_from_leader_start()
    }

    /// What each follower has, as far as this leader knows.
    pub(crate) fn followers(&self) -> Vec<FollowerStatus> {
        self.lock_state().replica.followers().collect()
    }

    /// Whether a producer may write now; nothing is promised for later.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn may_append(&self, acks: Acks) -> Result<(), NotNow> {
        self.lock_state().replica.may_append(acks == Acks::All)
    }

    /// Has `fetcher` notified whenever something is flushed; `None`: nobody.
    pub(crate) fn notify_flushed(&self, fetcher: Option<&Arc<Notify>>) {
        self.lock_state().fetcher = fetcher.cloned();
    }

    /// Whether this is a follower with something that is not flushed yet.
    pub(crate) fn is_flushing(&self) -> bool {
        let mut state = self.lock_state();
        state.replica.follows().is_some()
            && state.online().is_ok_and(|online| online.durable_end < online.end)
    }

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
        if begun.is_some() {
            online.leads_since = Some(Instant::now());
        }
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
                Command::Stranded => {
                    tracing::warn!(
                        topic = %partition.name.topic,
                        partition = %partition.name.partition,
                        "no follower is heard of; another broker may lead by now"
                    );
                    online.refuse_from(online.start, &NotKept::NotLeader);
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
