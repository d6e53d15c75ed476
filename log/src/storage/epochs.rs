//! Which leader wrote which part of a partition.
//!
//! A leader notes where its epoch begins before it appends anything; a follower notes the epoch of
//! each batch that it copies. Whoever remembers the epoch of what it read last can then ask where
//! that epoch ended (OffsetForLeaderEpoch), and learns where its own copy parts from the leader's.
//!
//! ```text
//! offset   0         10        20    25
//!          |  epoch 0 |  epoch 2 |  3 |        entries: (0, 0) (2, 10) (3, 20)
//! ```
//!
//! The last entry may be of an epoch in which nothing has been written yet. It goes with
//! [`EpochHistory::truncate`] also where no record goes: kept on one side only, it had followers ask
//! for ever (KAFKA-10706).

use tailwater_kafka::{LeaderEpoch, Offset};

/// An epoch that is not above the one of the records before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("leader epoch {asked} at offset {at} follows leader epoch {known}")]
pub(crate) struct EpochFalls {
    known: LeaderEpoch,
    asked: LeaderEpoch,
    at: Offset,
}

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

    /// Begins `epoch` at `start`, the log's end. Epochs that wrote nothing leave no entry.
    ///
    /// # Errors
    /// If the records before `start` are of a later epoch; nothing is changed then.
    pub(crate) fn begin(&mut self, epoch: LeaderEpoch, start: Offset) -> Result<(), EpochFalls> {
        let before = self.entries.partition_point(|(_, began)| *began < start);
        if let Some(&(known, _)) = self.entries[..before].last() {
            if epoch < known {
                return Err(EpochFalls { known, asked: epoch, at: start });
            }
            if epoch == known {
                self.entries.truncate(before);
                return Ok(());
            }
        }
        self.entries.truncate(before);
        self.entries.push((epoch, start));
        Ok(())
    }

    /// The epoch after the current one: a node that nobody else gives its epochs counts them itself.
    #[cfg(test)]
    pub(crate) fn next(&self) -> LeaderEpoch {
        LeaderEpoch::new(self.entries.last().map_or(0, |(epoch, _)| epoch.get() + 1))
    }

    /// A batch that `epoch`'s leader wrote is copied to `at`, the log's end.
    ///
    /// # Errors
    /// If the records before it are of a later epoch: no leader writes such a log. Nothing is
    /// changed then.
    pub(crate) fn note(&mut self, epoch: LeaderEpoch, at: Offset) -> Result<(), EpochFalls> {
        // Most batches go on in the epoch of the one before.
        if self.entries.last().is_some_and(|&(known, began)| known == epoch && began < at) {
            return Ok(());
        }
        self.begin(epoch, at)
    }

    /// Forgets what began at `end` or later: there are no such records any more, or never were.
    pub(crate) fn truncate(&mut self, end: Offset) {
        self.entries.retain(|(_, began)| *began < end);
    }

    /// The epoch of the last record of a log that ends at `end`; [`LeaderEpoch::NONE`] if nothing is
    /// known of it. An epoch in which nothing was written does not count.
    pub(crate) fn last_written(&self, end: Offset) -> LeaderEpoch {
        let count = self.entries.partition_point(|(_, began)| *began < end);
        count.checked_sub(1).map_or(LeaderEpoch::NONE, |last| self.entries[last].0)
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
        if epoch > self.current() { None } else { self.floor(epoch, end) }
    }

    /// The greatest known epoch that is at most `epoch`, and where it ended; `end` is the log's.
    pub(crate) fn floor(&self, epoch: LeaderEpoch, end: Offset) -> Option<(LeaderEpoch, Offset)> {
        let count = self.entries.partition_point(|(known, _)| *known <= epoch);
        let last = count.checked_sub(1)?;
        Some((self.entries[last].0, self.entries.get(count).map_or(end, |(_, began)| *began)))
    }

    /// Where the earliest epoch that is still known began.
    pub(crate) fn first_start(&self) -> Option<Offset> {
        self.entries.first().map(|(_, began)| *began)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> EpochHistory {
        let mut history = EpochHistory::default();
        for start in [0, 10, 10, 20] {
            history.begin(history.next(), Offset::new(start)).unwrap();
        }
        history
    }

    fn listed(history: &EpochHistory) -> Vec<(i32, i64)> {
        history.entries().map(|(epoch, began)| (epoch.get(), began.get())).collect()
    }

    #[test]
    fn an_epoch_that_wrote_nothing_leaves_no_entry() {
        assert_eq!(listed(&history()), [(0, 0), (2, 10), (3, 20)]);
    }

    #[test]
    fn an_epoch_begins_once_and_never_after_a_later_one() {
        let mut history = history();
        history.begin(LeaderEpoch::new(7), Offset::new(25)).unwrap();
        history.begin(LeaderEpoch::new(7), Offset::new(25)).unwrap();
        assert_eq!(listed(&history), [(0, 0), (2, 10), (3, 20), (7, 25)]);
        let falls = history.begin(LeaderEpoch::new(2), Offset::new(25)).unwrap_err();
        assert_eq!(falls.to_string(), "leader epoch 2 at offset 25 follows leader epoch 3");
        assert_eq!(listed(&history), [(0, 0), (2, 10), (3, 20), (7, 25)]);
    }

    #[test]
    fn a_copied_batch_of_a_new_epoch_begins_it() {
        let mut history = history();
        history.note(LeaderEpoch::new(3), Offset::new(25)).unwrap();
        history.note(LeaderEpoch::new(6), Offset::new(30)).unwrap();
        history.note(LeaderEpoch::new(6), Offset::new(31)).unwrap();
        assert_eq!(listed(&history), [(0, 0), (2, 10), (3, 20), (6, 30)]);
        history.note(LeaderEpoch::new(5), Offset::new(32)).unwrap_err();
        assert_eq!(listed(&history), [(0, 0), (2, 10), (3, 20), (6, 30)]);
    }

    /// Led epoch 4 without a record, and now copies what epoch 3 wrote there.
    #[test]
    fn a_copied_batch_takes_the_place_of_an_empty_epoch() {
        let mut history = history();
        history.begin(LeaderEpoch::new(4), Offset::new(25)).unwrap();
        history.note(LeaderEpoch::new(3), Offset::new(25)).unwrap();
        assert_eq!(listed(&history), [(0, 0), (2, 10), (3, 20)]);
    }

    #[test]
    fn truncation_takes_the_epochs_of_what_goes_and_empty_ones_always() {
        let mut history = history();
        history.begin(LeaderEpoch::new(4), Offset::new(25)).unwrap();
        assert_eq!(history.last_written(Offset::new(25)), LeaderEpoch::new(3));
        // The log ends at 25: no record goes.
        history.truncate(Offset::new(25));
        assert_eq!(listed(&history), [(0, 0), (2, 10), (3, 20)]);
        history.truncate(Offset::new(20));
        assert_eq!(listed(&history), [(0, 0), (2, 10)]);
        history.truncate(Offset::ZERO);
        assert_eq!(history, EpochHistory::default());
        assert_eq!(history.last_written(Offset::ZERO), LeaderEpoch::NONE);
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
