//! Which leader wrote which part of a partition.
//!
//! On a node alone the leader epoch rises at every start that was not preceded by a clean stop. A
//! reader that remembers the epoch of what it read last can then ask where that epoch ended
//! (OffsetForLeaderEpoch), and learns if a power cut took away something that was not yet flushed.

use tailwater_kafka::{LeaderEpoch, Offset};

/// Leader epochs and the offset at which each began, both rising.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EpochHistory {
    entries: Vec<(LeaderEpoch, Offset)>,
}

impl EpochHistory {
    /// `None` if the entries do not rise.
    pub(crate) fn from_entries(
        entries: impl Iterator<Item = (LeaderEpoch, Offset)>,
    ) -> Option<Self> {
        let entries: Vec<_> = entries.collect();
        entries
            .windows(2)
            .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1)
            .then_some(Self { entries })
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (LeaderEpoch, Offset)> + '_ {
        self.entries.iter().copied()
    }

    /// The epoch in which is written now.
    pub(crate) fn current(&self) -> LeaderEpoch {
        self.entries.last().map_or(LeaderEpoch::new(0), |(epoch, _)| *epoch)
    }

    /// Begins a new epoch at `start`, the log's end. Epochs that wrote nothing leave no entry.
    pub(crate) fn begin(&mut self, start: Offset) {
        let next = self
            .entries
            .last()
            .map_or(LeaderEpoch::new(0), |(epoch, _)| LeaderEpoch::new(epoch.get() + 1));
        self.entries.retain(|(_, began)| *began < start);
        self.entries.push((next, start));
    }

    /// Learns that `epoch` began at `start`: from the leader's records. Nothing if it is known.
    pub(crate) fn note(&mut self, epoch: LeaderEpoch, start: Offset) {
        if self.entries.last().is_none_or(|(known, _)| *known < epoch) {
            self.entries.retain(|(_, began)| *began < start);
            self.entries.push((epoch, start));
        }
    }

    /// Forgets epochs that began at or after `end`, which is the log's end now.
    pub(crate) fn truncate(&mut self, end: Offset) {
        self.entries.retain(|(_, began)| *began < end);
    }

    /// Forgets what was wholly before `start`, the first offset that is kept.
    pub(crate) fn forget_before(&mut self, start: Offset) {
        let before = self.entries.partition_point(|(_, began)| *began <= start);
        if before > 1 {
            self.entries.drain(..before - 1);
        }
    }

    /// The epoch in which `offset` was written.
    pub(crate) fn epoch_of(&self, offset: Offset) -> Option<LeaderEpoch> {
        let count = self.entries.partition_point(|(_, began)| *began <= offset);
        count.checked_sub(1).map(|last| self.entries[last].0)
    }

    /// The greatest epoch that is at most `epoch`, and where it ended; `end` is the log's.
    ///
    /// `None` if nothing is known of such an early epoch, or `epoch` is in the future.
    pub(crate) fn end_of(&self, epoch: LeaderEpoch, end: Offset) -> Option<(LeaderEpoch, Offset)> {
        if epoch > self.current() {
            return None;
        }
        let count = self.entries.partition_point(|(known, _)| *known <= epoch);
        let last = count.checked_sub(1)?;
        Some((self.entries[last].0, self.entries.get(count).map_or(end, |(_, began)| *began)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> EpochHistory {
        let mut history = EpochHistory::default();
        for start in [0, 10, 10, 20] {
            history.begin(Offset::new(start));
        }
        history
    }

    #[test]
    fn an_epoch_that_wrote_nothing_leaves_no_entry() {
        let entries: Vec<_> = history().entries().map(|(e, o)| (e.get(), o.get())).collect();
        assert_eq!(entries, [(0, 0), (2, 10), (3, 20)]);
    }

    #[test]
    fn an_epoch_ends_where_the_next_begins() {
        let history = history();
        let end_of = |epoch| {
            history
                .end_of(LeaderEpoch::new(epoch), Offset::new(25))
                .map(|(epoch, end)| (epoch.get(), end.get()))
        };
        assert_eq!(end_of(0), Some((0, 10)));
        assert_eq!(end_of(1), Some((0, 10)));
        assert_eq!(end_of(2), Some((2, 20)));
        assert_eq!(end_of(3), Some((3, 25)));
        assert_eq!(end_of(4), None);
        assert_eq!(end_of(-1), None);
    }

    #[test]
    fn what_is_no_longer_kept_is_forgotten() {
        let mut history = history();
        history.forget_before(Offset::new(15));
        assert_eq!(history.epoch_of(Offset::new(15)), Some(LeaderEpoch::new(2)));
        assert_eq!(history.epoch_of(Offset::new(5)), None);
        assert_eq!(history.current(), LeaderEpoch::new(3));
    }
}
