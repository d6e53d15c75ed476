//! Where a follower's log parts from its leader's: by epochs, as KIP-101, KIP-279 and KIP-595 have it.
//!
//! In one epoch one leader writes, so two logs with the same epoch at an offset are the same up to
//! there. The follower says with each fetch how far its log goes and the epoch of its last record;
//! [`divergence`] on the leader's side finds out whether the leader's log goes on from there, and
//! tells its own end of that epoch, or of the greatest before it, if not. The follower cuts there
//! ([`truncation_point`]) and asks again: if it does not know the epoch that the leader named, there
//! may be more to cut.
//!
//! ```text
//! offset      0         10        20        30        40
//! leader      |  epoch 1          |  epoch 3          |
//! follower    |  epoch 1                |  epoch 2    |   (26, 40)
//!
//! from 40, last fetched epoch 2   ──►   the leader's greatest epoch up to 2 is 1: (1, 20)
//! cut to min(own end of 1 = 26, 20) = 20; from 20, last fetched epoch 1  ──►  records of epoch 3
//! ```
//!
//! High watermarks play no part in this. A follower's is old by a fetch, and cutting there loses what
//! was acknowledged when the follower leads next.

use tailwater_kafka::{LeaderEpoch, Offset};

use crate::storage::epochs::EpochHistory;

/// An epoch and its end in some log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EpochEnd {
    pub(crate) epoch: LeaderEpoch,
    pub(crate) end: Offset,
}

/// Where the leader's log, that ends at `end` (the log end offset, not the high watermark), parts
/// from one that ends at `from` with a record of `last_fetched`; `None` if it goes on from there.
///
/// A log without records ([`LeaderEpoch::NONE`]) cannot differ; but `from` may then be outside of
/// the leader's log, which is the caller's to check.
pub(crate) fn divergence(
    epochs: &EpochHistory,
    end: Offset,
    last_fetched: LeaderEpoch,
    from: Offset,
) -> Option<EpochEnd> {
    if last_fetched == LeaderEpoch::NONE {
        return None;
    }
    let ours = match epochs.floor(last_fetched, end) {
        Some((epoch, end)) => EpochEnd { epoch, end },
        // Forgotten, with the records. All that is known is that it ended before the first epoch
        // that is not.
        None => EpochEnd { epoch: last_fetched, end: epochs.first_start().unwrap_or(end) },
    };
    (ours.epoch < last_fetched || ours.end < from).then_some(ours)
}

/// What a follower has to do before it fetches again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Truncation {
    /// Cut the log to this end.
    To(Offset),
    /// The same; but what was committed goes with it. Only an unclean election brings this about.
    BelowHighWatermark(Offset),
    /// The logs part before this one's start, where everything was committed: nothing of it can
    /// stay, it has to begin anew where the leader's begins. Unclean as well.
    All,
}

/// A follower's own log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnLog<'a> {
    pub(crate) epochs: &'a EpochHistory,
    pub(crate) start: Offset,
    pub(crate) end: Offset,
    pub(crate) high_watermark: Offset,
}

/// What a follower cuts when the leader found its log to part from its own at `said`.
///
/// Always less than the log's end, so that asking and cutting comes to an end; `None` if `said` does
/// not contradict the log, because it answers an older question.
pub(crate) fn truncation_point(own: OwnLog<'_>, said: EpochEnd) -> Option<Truncation> {
    // Records of a later epoch than `said.epoch` are not in the leader's log: it has no epoch
    // between that one and the last that was fetched.
    let kept = own.epochs.floor(said.epoch, own.end).map_or(own.start, |(_, end)| end);
    let to = kept.min(said.end);
    if to >= own.end {
        return None;
    }
    Some(if to < own.start {
        Truncation::All
    } else if to < own.high_watermark {
        Truncation::BelowHighWatermark(to)
    } else {
        Truncation::To(to)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(entries: &[(i32, i64)]) -> EpochHistory {
        let entries =
            entries.iter().map(|(epoch, at)| (LeaderEpoch::new(*epoch), Offset::new(*at)));
        EpochHistory::from_entries(entries).unwrap()
    }

    /// What the leader says to a fetch.
    fn said(leader: &[(i32, i64)], end: i64, last_fetched: i32, from: i64) -> Option<(i32, i64)> {
        let (end, from) = (Offset::new(end), Offset::new(from));
        divergence(&history(leader), end, LeaderEpoch::new(last_fetched), from)
            .map(|said| (said.epoch.get(), said.end.get()))
    }

    /// What a follower with everything from `start` to `end` does about it.
    fn cut(
        own: &[(i32, i64)],
        (start, high_watermark, end): (i64, i64, i64),
        said: (i32, i64),
    ) -> Option<Truncation> {
        let own = OwnLog {
            epochs: &history(own),
            start: Offset::new(start),
            end: Offset::new(end),
            high_watermark: Offset::new(high_watermark),
        };
        truncation_point(
            own,
            EpochEnd { epoch: LeaderEpoch::new(said.0), end: Offset::new(said.1) },
        )
    }

    fn to(offset: i64) -> Option<Truncation> {
        Some(Truncation::To(Offset::new(offset)))
    }

    #[test]
    fn a_prefix_does_not_part() {
        let leader = [(1, 0), (3, 20), (5, 40)];
        assert_eq!(said(&leader, 40, 3, 40), None);
        assert_eq!(said(&leader, 40, 3, 30), None);
        assert_eq!(said(&leader, 40, 1, 20), None);
        // An empty log has nothing that could part.
        assert_eq!(said(&leader, 40, -1, 0), None);
    }

    #[test]
    fn a_tail_that_the_leader_lacks_is_cut_at_the_end_of_its_epoch() {
        // In the same epoch, also above the leader's high watermark.
        assert_eq!(said(&[(1, 0)], 30, 1, 35), Some((1, 30)));
        assert_eq!(cut(&[(1, 0)], (0, 28, 35), (1, 30)), to(30));
        // The drawing of the module.
        assert_eq!(said(&[(1, 0), (3, 20)], 40, 2, 40), Some((1, 20)));
        assert_eq!(cut(&[(1, 0), (2, 26)], (0, 20, 40), (1, 20)), to(20));
        // More of an epoch than the leader has of it, and the leader went on.
        assert_eq!(said(&[(1, 0), (3, 20)], 40, 1, 26), Some((1, 20)));
    }

    #[test]
    fn an_epoch_that_nobody_wrote_in_plays_no_part() {
        // The leader's own epoch, just begun.
        assert_eq!(said(&[(1, 0), (4, 20)], 20, 1, 20), None);
        assert_eq!(said(&[(1, 0), (4, 20)], 20, 3, 30), Some((1, 20)));
        // The follower led epoch 2 without a record.
        assert_eq!(cut(&[(1, 0), (2, 30)], (0, 10, 30), (1, 20)), to(20));
    }

    /// KIP-279: both sides have epochs that the other does not know.
    ///
    /// ```text
    /// offset      0      10     20     30     40
    /// leader      | 1    | 2           | 6    |
    /// follower    | 1    | 2    | 4    | 5    |
    /// ```
    #[test]
    fn unknown_epochs_on_both_sides_are_cut_one_after_the_other() {
        let (leader, follower) = ([(1, 0), (2, 10), (6, 30)], [(1, 0), (2, 10), (4, 20), (5, 30)]);
        assert_eq!(said(&leader, 40, 5, 40), Some((2, 30)));
        assert_eq!(cut(&follower, (0, 15, 40), (2, 30)), to(20));
        assert_eq!(said(&leader, 40, 2, 20), None);

        // The leader names an epoch that the follower skips.
        assert_eq!(cut(&[(1, 0), (4, 20), (5, 30)], (0, 15, 40), (3, 25)), to(20));
        assert_eq!(said(&[(1, 0), (3, 15), (6, 25)], 40, 1, 20), Some((1, 15)));
        assert_eq!(cut(&[(1, 0)], (0, 15, 20), (1, 15)), to(15));
    }

    #[test]
    fn what_the_leader_has_forgotten_is_cut_at_its_first_epoch() {
        assert_eq!(said(&[(5, 90)], 120, 2, 95), Some((2, 90)));
        assert_eq!(cut(&[(2, 0)], (0, 80, 95), (2, 90)), to(90));
        assert_eq!(said(&[(5, 90)], 120, 2, 85), None);
        assert_eq!(said(&[], 7, 2, 8), Some((2, 7)));
    }

    #[test]
    fn a_log_whose_epochs_are_all_later_is_cut_to_its_start() {
        assert_eq!(cut(&[(5, 50)], (50, 50, 60), (4, 55)), to(50));
        assert_eq!(cut(&[(5, 0)], (0, 0, 60), (4, 55)), to(0));
    }

    #[test]
    fn losing_what_was_committed_is_said_aloud() {
        let below = Truncation::BelowHighWatermark(Offset::new(20));
        assert_eq!(cut(&[(1, 0), (2, 26)], (0, 21, 40), (1, 20)), Some(below));
        assert_eq!(cut(&[(1, 0), (2, 26)], (22, 24, 40), (1, 20)), Some(Truncation::All));
    }

    #[test]
    fn an_answer_to_an_older_question_cuts_nothing() {
        assert_eq!(cut(&[(1, 0)], (0, 10, 20), (1, 20)), None);
        assert_eq!(cut(&[(1, 0)], (0, 10, 20), (1, 30)), None);
    }

    /// Whatever two logs look like that share some prefix: after a few rounds the follower's is the
    /// longest prefix of the leader's that it had, and each round cut something.
    #[test]
    fn rounds_end_at_the_longest_common_prefix() {
        use rand::rngs::SmallRng;
        use rand::{Rng, SeedableRng};

        for seed in 0..2000 {
            let random = &mut SmallRng::seed_from_u64(seed);
            let shared = runs(random, &[], 0..=3, 1);
            let leader = runs(random, &shared, 0..=4, 2);
            // It may have got more of the last shared epoch than the leader did.
            let more = shared.last().map_or(0, |_| random.random_range(0..=3));
            let own = [shared.clone(), vec![shared.last().copied().unwrap_or(0); more]].concat();
            let mut follower = runs(random, &own, 0..=4, 1);
            let last =
                leader.last().copied().unwrap_or(0).max(follower.last().copied().unwrap_or(0));
            let mut leader_epochs = history(&starts(&leader));
            let leader_end = Offset::new(i64::try_from(leader.len()).unwrap());
            leader_epochs.begin(LeaderEpoch::new(last + 1), leader_end).unwrap();

            let common = leader.iter().zip(&follower).take_while(|(a, b)| a == b).count();
            let high_watermark = random.random_range(0..=common);
            for round in 0.. {
                assert!(round < 20, "seed {seed}");
                let epochs = history(&starts(&follower));
                let end = Offset::new(i64::try_from(follower.len()).unwrap());
                let asked = epochs.last_written(end);
                let Some(said) = divergence(&leader_epochs, leader_end, asked, end) else { break };
                let high_watermark = Offset::new(i64::try_from(high_watermark).unwrap());
                let own = OwnLog { epochs: &epochs, start: Offset::ZERO, end, high_watermark };
                let Some(Truncation::To(to)) = truncation_point(own, said) else {
                    panic!("seed {seed}: {said:?} to {follower:?}, leader {leader:?}")
                };
                assert!(to < end, "seed {seed}");
                follower.truncate(usize::try_from(to.get()).unwrap());
            }
            assert_eq!(follower, leader[..common], "seed {seed}");
        }
    }

    /// A log, as the epoch of each record: `onto` and some runs of later epochs. Epochs of different
    /// `parity` differ, as no two leaders have the same.
    fn runs(
        random: &mut rand::rngs::SmallRng,
        onto: &[i32],
        count: std::ops::RangeInclusive<i32>,
        parity: i32,
    ) -> Vec<i32> {
        use rand::Rng;
        let (mut log, mut epoch) = (onto.to_vec(), onto.last().map_or(0, |last| last / 2));
        for _ in 0..random.random_range(count) {
            epoch += random.random_range(1..=2);
            let length = random.random_range(1..=4);
            log.extend(std::iter::repeat_n(2 * epoch + parity, length));
        }
        log
    }

    fn starts(log: &[i32]) -> Vec<(i32, i64)> {
        let mut starts: Vec<(i32, i64)> = Vec::new();
        for (at, epoch) in (0_i64..).zip(log) {
            if starts.last().is_none_or(|(last, _)| last != epoch) {
                starts.push((*epoch, at));
            }
        }
        starts
    }
}
