//! A leader's view of its followers: what is committed, and who is in sync.
//!
//! ```text
//!                      0        10        20        30
//! leader     flushed   ──────────────────────────►|        (30)
//! follower 2 in ISR    ────────────────►|                   fetches from 20: everything below is flushed
//! follower 3 proposed  ───────────────────►|                counts as well from the proposal on
//! follower 4 behind    ───►|                                does not count
//!                                       ▲
//!                             high watermark: the least of those that count
//! ```
//!
//! **Maximal ISR.** A proposal may be taken by the controller long after we gave up waiting for the
//! answer, or although we were told that it was refused (a copy of the message that came later). So
//! whoever was proposed counts until the partition epoch rises: the controller compares it, and
//! nothing that was proposed at an older one is ever taken. A proposal whose additions are not
//! wanted any more is therefore followed by another one, if need be of the ISR as it is, to raise it.
//!
//! **Caught up** is Kafka's rule: a follower that asks from where the leader's end was when it asked
//! before was, at that time, at the end. A follower that is caught up but not in the ISR holds the
//! high watermark back until it has joined: under steady load it would never reach it otherwise.
//!
//! **Silent** is a follower that does not ask at all. One that lags asks all the time and is given
//! long to catch up; from one that is silent nothing will come, and the controller, which may hear
//! of it all the while, knows nothing of a link that is cut between the two of us.
//!
//! **Stranded** is a leader whose in-sync followers are all silent, and that was not told by the
//! controller to go on without them. It is likely that others lead by now.

use std::time::Duration;

use tailwater_kafka::{BrokerId, Offset};

use super::{Assignment, LogView, Settings};
use crate::metadata::BrokerEpoch;

/// A follower asks from `from`: everything below is flushed there and is a prefix of our log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fetched {
    pub(crate) replica: BrokerId,
    pub(crate) broker_epoch: BrokerEpoch,
    pub(crate) from: Offset,
}

/// A follower, for metrics and descriptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FollowerStatus {
    pub(crate) replica: BrokerId,
    /// What it has flushed; `None` if it has not asked since the election.
    pub(crate) end: Option<Offset>,
    /// In the ISR as the controller committed it.
    pub(crate) in_sync: bool,
}

/// The time, and what it means.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) now: Duration,
    pub(super) settings: Settings,
}

/// The state of a reign.
#[derive(Debug)]
pub(super) struct Leading {
    me: BrokerId,
    my_epoch: Option<BrokerEpoch>,
    /// The log's end when the epoch began.
    epoch_start: Offset,
    /// All other replicas.
    followers: Vec<Follower>,
    /// Members of the committed ISR, this replica included.
    isr_count: usize,
    min_insync: usize,
    propose_not_before: Duration,
    stranded: bool,
}

#[derive(Debug)]
struct Follower {
    id: BrokerId,
    /// The incarnation that may fetch; `None` if fenced, stopping or not a replica.
    live: Option<BrokerEpoch>,
    /// Everything below is flushed there; unknown until it asks.
    position: Option<Offset>,
    asked_at: Duration,
    /// The leader's end at `asked_at`.
    end_when_asked: Offset,
    /// When it asked last, or its time to do so began.
    heard_at: Duration,
    /// When it was at the leader's end, last.
    caught_up_at: Option<Duration>,
    /// In the ISR as the controller committed it.
    in_isr: bool,
    /// Proposed for the ISR since the partition epoch last rose.
    proposed: bool,
}

impl Leading {
    pub(super) fn new(now: Duration, me: BrokerId, assignment: &Assignment) -> Self {
        let mut leading = Self {
            me,
            my_epoch: None,
            epoch_start: Offset::ZERO,
            followers: Vec::new(),
            isr_count: 1,
            min_insync: 1,
            propose_not_before: Duration::ZERO,
            stranded: false,
        };
        leading.reassign(now, assignment);
        leading.commit(now, &assignment.isr);
        leading
    }

    /// The log is ours from `end` on.
    pub(super) fn begin(&mut self, now: Duration, end: Offset) {
        self.epoch_start = end;
        // Nobody could ask before: in-sync replicas are given their time from now.
        for follower in self.followers.iter_mut().filter(|follower| follower.in_isr) {
            follower.caught_up_at = Some(now);
            follower.heard_at = now;
        }
    }

    /// The controller's word on who takes part; the ISR comes with [`Leading::commit`].
    pub(super) fn reassign(&mut self, now: Duration, assignment: &Assignment) {
        self.my_epoch = assignment.live.get(&self.me).copied();
        let members = assignment.replicas.iter().chain(&assignment.isr);
        self.followers.retain(|known| members.clone().any(|id| *id == known.id));
        for id in members.filter(|id| **id != self.me) {
            if self.followers.iter().all(|known| known.id != *id) {
                self.followers.push(Follower::new(*id));
            }
        }
        for follower in &mut self.followers {
            let is_replica = assignment.replicas.contains(&follower.id);
            let live = assignment.live.get(&follower.id).filter(|_| is_replica);
            follower.set_live(now, live.copied());
        }
        self.min_insync = assignment.min_insync.min(assignment.replicas.len()).max(1);
    }

    /// The ISR as the controller has it since the partition epoch rose.
    pub(super) fn commit(&mut self, now: Duration, isr: &[BrokerId]) {
        for follower in &mut self.followers {
            let in_isr = isr.contains(&follower.id);
            if in_isr && !follower.in_isr {
                // Time to catch up, or a slow one would be out again at once.
                follower.caught_up_at = follower.caught_up_at.max(Some(now));
                follower.heard_at = now;
            }
            (follower.in_isr, follower.proposed) = (in_isr, false);
        }
        self.isr_count = 1 + self.followers.iter().filter(|follower| follower.in_isr).count();
        self.propose_not_before = Duration::ZERO;
        self.stranded = false;
    }

    pub(super) fn propose_not_before(&mut self, time: Duration) {
        self.propose_not_before = time;
    }

    pub(super) fn epoch_start(&self) -> Offset {
        self.epoch_start
    }

    pub(super) fn has_min_isr(&self) -> bool {
        self.isr_count >= self.min_insync
    }

    /// See the module.
    pub(super) fn is_stranded(&self) -> bool {
        self.stranded
    }

    /// Looks whether this leader is stranded; whether it has become so.
    pub(super) fn strand(&mut self, patience: Patience) -> bool {
        let mut members = self.followers.iter().filter(|follower| follower.in_isr).peekable();
        let before = self.stranded;
        self.stranded = members.peek().is_some() && members.all(|one| one.is_silent(patience));
        self.stranded && !before
    }

    pub(super) fn followers(&self) -> impl Iterator<Item = FollowerStatus> + '_ {
        self.followers.iter().map(|follower| FollowerStatus {
            replica: follower.id,
            end: follower.position,
            in_sync: follower.in_isr,
        })
    }

    /// Whether the fetch counts.
    pub(super) fn fetched(&mut self, now: Duration, fetched: Fetched, end: Offset) -> bool {
        let found = self.followers.iter_mut().find(|follower| {
            follower.id == fetched.replica && follower.live == Some(fetched.broker_epoch)
        });
        let Some(follower) = found else { return false };
        follower.fetched(now, fetched.from, end);
        self.stranded &= !follower.in_isr;
        true
    }

    /// What everybody who counts has flushed; `None` if someone has not told, or too few are in sync.
    pub(super) fn committed_end(&self, patience: Patience, log: LogView) -> Option<Offset> {
        if !self.has_min_isr() {
            return None;
        }
        let mut committed = log.durable_end;
        for follower in &self.followers {
            if follower.counts() {
                committed = committed.min(follower.position?);
            } else if let Some(position) = follower.position
                && follower.live.is_some()
                && follower.is_caught_up(patience, log.end)
            {
                committed = committed.min(position);
            }
        }
        Some(committed)
    }

    /// Whether `replica` has what a member of the ISR must have, and is none.
    pub(super) fn may_join(
        &self,
        patience: Patience,
        replica: BrokerId,
        high_watermark: Offset,
    ) -> bool {
        let needed = high_watermark.max(self.epoch_start);
        let found = self.followers.iter().find(|follower| follower.id == replica);
        found.is_some_and(|follower| !follower.counts() && follower.may_join(patience, needed))
    }

    /// The ISR as it should be, if the controller is to be asked for it now.
    pub(super) fn propose(
        &mut self,
        patience: Patience,
        high_watermark: Offset,
        end: Offset,
    ) -> Option<Vec<(BrokerId, BrokerEpoch)>> {
        if patience.now < self.propose_not_before {
            return None;
        }
        let needed = high_watermark.max(self.epoch_start);
        let mut isr = vec![(self.me, self.my_epoch?)];
        let mut differs = false;
        for follower in &self.followers {
            let stays = if follower.in_isr {
                follower.stays(patience, end, high_watermark)
            } else {
                follower.may_join(patience, needed)
            };
            differs |= stays != follower.in_isr || (follower.proposed && !follower.in_isr);
            isr.extend(follower.live.filter(|_| stays).map(|epoch| (follower.id, epoch)));
        }
        if !differs {
            return None;
        }
        for follower in &mut self.followers {
            follower.proposed |= isr.iter().any(|(id, _)| *id == follower.id);
        }
        self.propose_not_before = patience.now + patience.settings.answer_wait;
        Some(isr)
    }
}

impl Follower {
    fn new(id: BrokerId) -> Self {
        Self {
            id,
            live: None,
            position: None,
            asked_at: Duration::ZERO,
            end_when_asked: Offset::ZERO,
            heard_at: Duration::ZERO,
            caught_up_at: None,
            in_isr: false,
            proposed: false,
        }
    }

    /// Another incarnation may have lost what this one had: it has to ask first.
    fn set_live(&mut self, now: Duration, live: Option<BrokerEpoch>) {
        if live != self.live {
            self.live = live;
            self.position = None;
            self.caught_up_at = self.in_isr.then_some(now);
            self.heard_at = now;
        }
    }

    fn fetched(&mut self, now: Duration, from: Offset, end: Offset) {
        if from >= end {
            self.caught_up_at = Some(now);
        } else if self.position.is_some() && from >= self.end_when_asked {
            self.caught_up_at = self.caught_up_at.max(Some(self.asked_at));
        }
        (self.asked_at, self.end_when_asked) = (now, end);
        self.heard_at = now;
        // Also backwards: it may have lost what it had.
        self.position = Some(from);
    }

    fn counts(&self) -> bool {
        self.in_isr || self.proposed
    }

    fn is_silent(&self, patience: Patience) -> bool {
        patience.now.saturating_sub(self.heard_at) > patience.settings.silence_max
    }

    fn is_caught_up(&self, patience: Patience, end: Offset) -> bool {
        let lags_since = self.caught_up_at.map(|at| patience.now.saturating_sub(at));
        !self.is_silent(patience)
            && (self.position.is_some_and(|position| position >= end)
                || lags_since.is_some_and(|since| since <= patience.settings.lag_max))
    }

    fn may_join(&self, patience: Patience, needed: Offset) -> bool {
        self.live.is_some()
            && !self.is_silent(patience)
            && self.position.is_some_and(|position| position >= needed)
    }

    /// A member below the high watermark has lost what it acknowledged.
    fn stays(&self, patience: Patience, end: Offset, high_watermark: Offset) -> bool {
        self.live.is_some()
            && self.is_caught_up(patience, end)
            && self.position.is_none_or(|position| position >= high_watermark)
    }
}
