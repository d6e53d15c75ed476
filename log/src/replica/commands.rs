//! What a replica wants done.

use tailwater_kafka::{BrokerId, LeaderEpoch, Offset};

use crate::metadata::{BrokerEpoch, PartitionEpoch};

/// To be done by the caller, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Everything below is committed: acknowledge it, wake its readers.
    HighWatermark(Offset),
    /// Flush what waits, note durably that the epoch begins at the log's end, and answer with
    /// [`super::Event::EpochBegun`]. Nothing is appended until then.
    BeginEpoch { leader_epoch: LeaderEpoch },
    /// Whoever waits for an acknowledgement or for records learns that another leads now.
    StopLeading,
    /// Whoever waits for an acknowledgement asks who leads now: no follower has been heard of for
    /// long. What was written stays, and may yet be committed.
    Stranded,
    /// Ask the controller for this ISR; [`super::Event::IsrRefused`] if it says no. The controller
    /// takes it only at this leader epoch and partition epoch, with each member
    /// unfenced in this incarnation; and raises the partition epoch also when the ISR is the same.
    ProposeIsr {
        leader_epoch: LeaderEpoch,
        partition_epoch: PartitionEpoch,
        isr: Vec<(BrokerId, BrokerEpoch)>,
    },
    /// Fetch from this leader, and from no other any more.
    Follow { leader: BrokerId, leader_epoch: LeaderEpoch },
    /// Fetch from nobody.
    StopFollowing,
    /// The leader keeps nothing below: neither need this replica.
    StartOffset(Offset),
}

/// The commands of one event, without allocation.
#[derive(Debug, Default)]
pub(crate) struct Commands([Option<Command>; Self::MOST]);

impl Commands {
    /// No event has more: strand, move the watermark, propose.
    const MOST: usize = 3;

    pub(super) fn push(&mut self, command: Command) {
        let free = self.0.iter_mut().find(|place| place.is_none());
        *free.expect("an event ends a role and takes one, or moves the watermark and two things") =
            Some(command);
    }
}

impl IntoIterator for Commands {
    type Item = Command;
    type IntoIter = std::iter::Flatten<std::array::IntoIter<Option<Command>, { Self::MOST }>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter().flatten()
    }
}
