//! A replica of a partition: what it may append, what is committed, whom it follows.
//!
//! A state machine without IO, one per partition of a broker, inside the partition's lock: the
//! storage tells it what has become durable, the broker what the controller assigned and what
//! followers fetched, and it answers with [`Command`]s and queries. It reads no clock, and the calls
//! of every batch ([`Event::Durable`], [`Event::Fetched`], [`Event::LeaderSaid`]) allocate nothing.
//!
//! ```text
//!                        Assigned: we lead                    EpochBegun
//!             ┌───────────────────────────────► starting ────────────────► leading
//!  unassigned │   BeginEpoch                       │                          │ ProposeIsr,
//!  leaderless ┤                                    │   a later leader epoch   │ HighWatermark
//!             │   Follow                           ▼        StopLeading       ▼
//!             └───────────────────────────────► following ◄───────────────────┘
//!                        Assigned: another leads            (or leaderless, unassigned)
//! ```
//!
//! # What is promised
//!
//! A record below the high watermark of any leader is in the log of every later leader, at the same
//! offset. It holds because
//!
//! 1. a leader's high watermark is at most what every member of its **maximal ISR** has flushed,
//!    itself included. The maximal ISR is what the controller committed and all that was proposed
//!    since, answered or not ([`leading`]); so it holds whatever ISR the controller has;
//! 2. the controller elects from the ISR, and a replica enters it only with everything below the
//!    high watermark and from before the leader's epoch. Or from the eligible leader replicas
//!    (KIP-966): nothing is committed while fewer than `min.insync.replicas` are in the ISR;
//! 3. a replica's position counts only when it was told in this leader epoch, by the incarnation of
//!    the broker that the controller knows, after [`divergence`] found its log to be a prefix of the
//!    leader's;
//! 4. a follower cuts its log only where the epochs say that it parts from the leader's
//!    ([`truncation`]), never by a high watermark, which is always a little old.
//!
//! A follower's high watermark is the least of the leader's and of its own flushed end; so it is
//! never above what is committed. It never falls, in no role, but for an election that was told to
//! lose data: then [`Truncation::BelowHighWatermark`] says so.
//!
//! # What the caller does
//!
//! - tells it nothing that the broker knew before it registered: what was led before a restart is
//!   not led after it, without a new leader epoch;
//! - serves followers nothing that it could still take back (not above what is written), and calls
//!   [`Event::Fetched`] only after [`Replica::check_leader`] and [`divergence`] found nothing;
//! - as a follower fetches from its log's end, everything below flushed, and appends or cuts only
//!   what [`Replica::follows`] said at the time of asking *and* says now, under one lock;
//! - after a crash forgets epochs that began at or after the log's end.

mod assignment;
mod commands;
mod leading;
#[cfg(test)]
mod model;
#[cfg(test)]
mod rules;
mod truncation;

use std::time::Duration;

use tailwater_kafka::{BrokerId, LeaderEpoch, Offset};

use crate::metadata::PartitionEpoch;
pub(crate) use assignment::{Assignment, Event, IsrRefused, LogView};
pub(crate) use commands::{Command, Commands};
use leading::Leading;
pub(crate) use leading::{Fetched, FollowerStatus};
pub(crate) use truncation::{EpochEnd, OwnLog, Truncation, divergence, truncation_point};

/// How patient a replica is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// A follower that has not been at the leader's end for so long leaves the ISR.
    pub(crate) lag_max: Duration,
    /// A follower that has not asked for so long leaves it, too. An idle one asks several times in a
    /// second.
    pub(crate) silence_max: Duration,
    /// After a refused proposal, the next one waits so long.
    pub(crate) propose_again: Duration,
    /// A proposal of which nothing is known after so long is made again; it counts on until the
    /// partition epoch says what became of it.
    pub(crate) answer_wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // Kafka's replica.lag.time.max.ms.
            lag_max: Duration::from_secs(30),
            // Longer than a broker's session: one that died is the controller's to take out, of all
            // partitions at once. Short enough that writes go on within five seconds.
            silence_max: Duration::from_secs(3),
            propose_again: Duration::from_millis(500),
            answer_wait: Duration::from_secs(5),
        }
    }
}

/// Why a record is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotNow {
    /// Another broker leads, or nobody, or this one is about to.
    #[error("this broker does not lead the partition")]
    NotLeader,
    /// Too few in-sync replicas for a producer that wants all.
    #[error("fewer replicas are in sync than min.insync.replicas")]
    NotEnoughReplicas,
}

/// Why a request with a leader epoch is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WrongEpoch {
    /// Older than ours: the asker missed an election.
    Fenced,
    /// Newer than ours: we missed an election.
    Unknown,
    /// The right one, but another broker leads in it.
    NotLeader,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Replica {
    me: BrokerId,
    settings: Settings,
    /// The newest assignment that was taken; [`LeaderEpoch::NONE`] before the first.
    leader_epoch: LeaderEpoch,
    partition_epoch: PartitionEpoch,
    role: Role,
    /// Everything below is committed, and flushed here.
    high_watermark: Offset,
}

#[derive(Debug)]
enum Role {
    Unassigned,
    Leaderless,
    /// Leads as soon as the epoch is on disk.
    Starting(Leading),
    Leading(Leading),
    Following {
        leader: BrokerId,
        /// The leader's, as of the last answer that was taken in this epoch.
        high_watermark: Option<Offset>,
    },
}

impl Replica {
    /// A replica on broker `me` that has no part yet.
    ///
    /// `high_watermark`: one that was known before, or where the log starts; never above what is
    /// flushed.
    pub(crate) fn new(me: BrokerId, settings: Settings, high_watermark: Offset) -> Self {
        Self {
            me,
            settings,
            leader_epoch: LeaderEpoch::NONE,
            partition_epoch: PartitionEpoch::new(-1),
            role: Role::Unassigned,
            high_watermark,
        }
    }

    /// Takes note of `event`, that happened at `now` (since some start, never backwards) to a log
    /// that now is `log`.
    pub(crate) fn handle(&mut self, now: Duration, event: Event, log: LogView) -> Commands {
        let mut commands = Commands::default();
        // Above the flushed end only after `Truncation::BelowHighWatermark`; before the start when
        // the leader's retention was ahead, and retention only takes what is committed.
        self.high_watermark = self.high_watermark.min(log.durable_end).max(log.start);
        match event {
            Event::Assigned(assignment) => self.assigned(now, assignment, &mut commands),
            Event::Unassigned => self.take_role(Role::Unassigned, &mut commands),
            Event::EpochBegun { leader_epoch } => self.begin(now, leader_epoch, log),
            Event::IsrRefused { leader_epoch, refused } => {
                self.isr_refused(now, leader_epoch, refused);
            }
            Event::LeaderSaid { leader_epoch, high_watermark, log_start } => {
                self.leader_said(leader_epoch, high_watermark);
                self.advance(now, log, &mut commands);
                self.follow_start(leader_epoch, log_start, log, &mut commands);
                return commands;
            }
            Event::Fetched(fetched) => {
                let Role::Leading(leading) = &mut self.role else { return commands };
                if !leading.fetched(now, fetched, log.end) {
                    return commands;
                }
                self.advance(now, log, &mut commands);
                self.admit(now, fetched.replica, log, &mut commands);
                return commands;
            }
            Event::Tick => {
                self.strand(now, &mut commands);
                self.advance(now, log, &mut commands);
                self.revise(now, log, &mut commands);
                return commands;
            }
            Event::Durable => {}
        }
        self.advance(now, log, &mut commands);
        commands
    }

    /// Whether a producer's batch may be appended now.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn may_append(&self, acks_all: bool) -> Result<(), NotNow> {
        match &self.role {
            Role::Leading(leading) if acks_all && leading.is_stranded() => Err(NotNow::NotLeader),
            Role::Leading(leading) if acks_all && !leading.has_min_isr() => {
                Err(NotNow::NotEnoughReplicas)
            }
            Role::Leading(_) => Ok(()),
            Role::Unassigned | Role::Leaderless | Role::Starting(_) | Role::Following { .. } => {
                Err(NotNow::NotLeader)
            }
        }
    }

    /// The epoch in which this replica leads.
    pub(crate) fn leads(&self) -> Option<LeaderEpoch> {
        matches!(self.role, Role::Leading(_)).then_some(self.leader_epoch)
    }

    /// Whether this replica leads, but is cut off from those that it leads: likely others lead now.
    pub(crate) fn is_stranded(&self) -> bool {
        matches!(&self.role, Role::Leading(leading) if leading.is_stranded())
    }

    /// The epoch for which [`Command::BeginEpoch`] is still to be carried out; nothing is written
    /// for any other.
    pub(crate) fn starts(&self) -> Option<LeaderEpoch> {
        matches!(self.role, Role::Starting(_)).then_some(self.leader_epoch)
    }

    /// The leader to fetch from, and its epoch.
    pub(crate) fn follows(&self) -> Option<(BrokerId, LeaderEpoch)> {
        match self.role {
            Role::Following { leader, .. } => Some((leader, self.leader_epoch)),
            Role::Unassigned | Role::Leaderless | Role::Starting(_) | Role::Leading(_) => None,
        }
    }

    /// The first offset that is not known to be committed.
    pub(crate) fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Whether the high watermark has reached what the leader found at its election: before, it
    /// may be below what an earlier leader has shown (OFFSET_NOT_AVAILABLE).
    pub(crate) fn readable_from_leader_start(&self) -> bool {
        match &self.role {
            Role::Leading(leading) => self.high_watermark >= leading.epoch_start(),
            Role::Unassigned | Role::Leaderless | Role::Starting(_) | Role::Following { .. } => {
                false
            }
        }
    }

    /// Whether a request that names a leader epoch means the present one; [`LeaderEpoch::NONE`]
    /// means any.
    ///
    /// # Errors
    /// Why not; never [`WrongEpoch::NotLeader`].
    pub(crate) fn check_epoch(&self, asked: LeaderEpoch) -> Result<(), WrongEpoch> {
        if asked == LeaderEpoch::NONE || asked == self.leader_epoch {
            Ok(())
        } else if asked < self.leader_epoch {
            Err(WrongEpoch::Fenced)
        } else {
            Err(WrongEpoch::Unknown)
        }
    }

    /// As [`Replica::check_epoch`], for what only the leader serves.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check_leader(&self, asked: LeaderEpoch) -> Result<(), WrongEpoch> {
        self.check_epoch(asked)?;
        self.leads().map(drop).ok_or(WrongEpoch::NotLeader)
    }

    /// The ISR as the controller committed it, if this replica leads: it first.
    #[cfg(test)]
    pub(crate) fn isr(&self) -> Vec<BrokerId> {
        let Role::Leading(leading) = &self.role else { return Vec::new() };
        let members = leading.followers().filter(|follower| follower.in_sync);
        std::iter::once(self.me).chain(members.map(|follower| follower.replica)).collect()
    }

    /// What is known of the followers, if this replica leads.
    pub(crate) fn followers(&self) -> impl Iterator<Item = FollowerStatus> + '_ {
        let leading = match &self.role {
            Role::Leading(leading) => Some(leading),
            Role::Unassigned | Role::Leaderless | Role::Starting(_) | Role::Following { .. } => {
                None
            }
        };
        leading.into_iter().flat_map(Leading::followers)
    }

    fn assigned(&mut self, now: Duration, assignment: Assignment, commands: &mut Commands) {
        if assignment.partition_epoch < self.partition_epoch {
            return;
        }
        let goes_on =
            assignment.leader_epoch == self.leader_epoch && !matches!(self.role, Role::Unassigned);
        let rose = assignment.partition_epoch > self.partition_epoch;
        self.leader_epoch = assignment.leader_epoch;
        self.partition_epoch = assignment.partition_epoch;
        if goes_on {
            if let Role::Starting(leading) | Role::Leading(leading) = &mut self.role {
                leading.reassign(now, &assignment);
                if rose {
                    leading.commit(now, &assignment.isr);
                }
            }
            return;
        }
        let leader_epoch = assignment.leader_epoch;
        match assignment.leader {
            None => self.take_role(Role::Leaderless, commands),
            Some(leader) if leader == self.me => {
                let leading = Leading::new(now, self.me, &assignment);
                self.take_role(Role::Starting(leading), commands);
                commands.push(Command::BeginEpoch { leader_epoch });
            }
            Some(leader) => {
                self.take_role(Role::Following { leader, high_watermark: None }, commands);
                commands.push(Command::Follow { leader, leader_epoch });
            }
        }
    }

    fn take_role(&mut self, role: Role, commands: &mut Commands) {
        let before = std::mem::replace(&mut self.role, role);
        match before {
            // Also one that was starting: whoever waits for it to lead waits no longer.
            Role::Starting(_) | Role::Leading(_) => commands.push(Command::StopLeading),
            Role::Following { .. } if !matches!(self.role, Role::Following { .. }) => {
                commands.push(Command::StopFollowing);
            }
            Role::Following { .. } | Role::Unassigned | Role::Leaderless => {}
        }
    }

    fn begin(&mut self, now: Duration, leader_epoch: LeaderEpoch, log: LogView) {
        if leader_epoch != self.leader_epoch {
            return;
        }
        match std::mem::replace(&mut self.role, Role::Leaderless) {
            Role::Starting(mut leading) => {
                leading.begin(now, log.end);
                self.role = Role::Leading(leading);
            }
            other => self.role = other,
        }
    }

    fn isr_refused(&mut self, now: Duration, leader_epoch: LeaderEpoch, refused: IsrRefused) {
        if let Role::Leading(leading) = &mut self.role
            && leader_epoch == self.leader_epoch
        {
            leading.propose_not_before(match refused {
                IsrRefused::Outdated => now + self.settings.answer_wait,
                IsrRefused::Other => now + self.settings.propose_again,
            });
        }
    }

    fn leader_said(&mut self, epoch: LeaderEpoch, said: Offset) {
        if epoch == self.leader_epoch
            && let Role::Following { high_watermark, .. } = &mut self.role
        {
            *high_watermark = Some(said);
        }
    }

    /// Retention is the leader's; but what is not known to be committed stays.
    fn follow_start(
        &self,
        leader_epoch: LeaderEpoch,
        leader_start: Offset,
        log: LogView,
        commands: &mut Commands,
    ) {
        let start = leader_start.min(self.high_watermark);
        if leader_epoch == self.leader_epoch && self.follows().is_some() && start > log.start {
            commands.push(Command::StartOffset(start));
        }
    }

    fn advance(&mut self, now: Duration, log: LogView, commands: &mut Commands) {
        let reached = match &self.role {
            Role::Leading(leading) => leading.committed_end(self.patience(now), log),
            Role::Following { high_watermark, .. } => {
                high_watermark.map(|leaders| leaders.min(log.durable_end))
            }
            Role::Unassigned | Role::Leaderless | Role::Starting(_) => None,
        };
        if let Some(reached) = reached
            && reached > self.high_watermark
        {
            self.high_watermark = reached;
            commands.push(Command::HighWatermark(reached));
        }
    }

    fn patience(&self, now: Duration) -> leading::Patience {
        leading::Patience { now, settings: self.settings }
    }

    /// Whoever waits is told once that it waits in vain.
    fn strand(&mut self, now: Duration, commands: &mut Commands) {
        let patience = self.patience(now);
        if let Role::Leading(leading) = &mut self.role
            && leading.strand(patience)
        {
            commands.push(Command::Stranded);
        }
    }

    /// Proposes `replica` for the ISR if it belongs there.
    fn admit(&mut self, now: Duration, replica: BrokerId, log: LogView, commands: &mut Commands) {
        if let Role::Leading(leading) = &self.role
            && leading.may_join(self.patience(now), replica, self.high_watermark)
        {
            self.revise(now, log, commands);
        }
    }

    /// Proposes the ISR as it should be, unless it is that.
    fn revise(&mut self, now: Duration, log: LogView, commands: &mut Commands) {
        let patience = self.patience(now);
        let Role::Leading(leading) = &mut self.role else { return };
        if let Some(isr) = leading.propose(patience, self.high_watermark, log.end) {
            let (leader_epoch, partition_epoch) = (self.leader_epoch, self.partition_epoch);
            commands.push(Command::ProposeIsr { leader_epoch, partition_epoch, isr });
        }
    }
}
