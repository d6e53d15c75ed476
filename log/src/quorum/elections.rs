//! When a member stands for election, and when a leader gives up.
//!
//! ```text
//! heard a leader, or voted ─── a drawn time ───► would a majority vote for this one?
//!                                                │ no: ask again  ▲     │ yes
//!                                                └─ a heartbeat ──┘     └──► stand, by openraft
//! leads ─── a majority silent for the longest election timeout ───► gives up
//! ```
//!
//! openraft's own elections are switched off. It draws its timeout once for the life of a process
//! and looks at it only at its ticks, so members that heard the same last heartbeat stand together,
//! time and again, and one that was cut off makes a sound leader stand anew when it comes back.
//! Here each silence has a time drawn for it, and nobody stands (which raises the term, and so ends
//! whoever leads) before a majority has said that it misses a leader too and lacks no entry that
//! the candidate has not. That is a question, not a vote: the vote that follows is Raft's, and all
//! safety is in that.
//!
//! A leader that hears no majority, but is heard, would keep the others from electing one that
//! can commit: so it gives up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ServerState;
use openraft::error::Fatal;
use openraft::raft::VoteRequest;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::config::QuorumTimeouts;
use super::peers::Peers;
use super::types::{LogId, Member, Raft, Vote};

/// What a member is in an election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It leads, and a majority has answered it last at this time.
    Leader { answered_at: Instant },
    /// It may stand.
    Voter,
    /// It may not.
    Onlooker,
}

/// What a member knows at one moment.
#[derive(Debug, Clone, Copy)]
struct Seen {
    now: Instant,
    role: Role,
    /// When it last heard a leader or gave its vote, be it to itself.
    heard_at: Instant,
}

/// What a member does next about elections.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nothing before this time.
    Wait(Instant),
    /// Ask whether a majority would vote for it, and stand if so.
    Stand,
    /// Lead no longer.
    GiveUp,
}

/// Decides when; knows no clock, and is given its random numbers.
#[derive(Debug)]
struct Elections {
    timeouts: QuorumTimeouts,
    planned: Option<Planned>,
}

#[derive(Debug, Clone, Copy)]
struct Planned {
    /// What the time was drawn for: another one is drawn when something is heard again.
    heard_at: Instant,
    stand_at: Instant,
}

impl Elections {
    fn new(timeouts: QuorumTimeouts) -> Self {
        Self { timeouts, planned: None }
    }

    fn next(&mut self, seen: Seen, random: u32) -> Step {
        let QuorumTimeouts { election_least, election_most, heartbeat } = self.timeouts;
        // What is heard during a wait moves a deadline to at least this time after it: so a member
        // that looks so often is late for none.
        let look_again = seen.now + election_least;
        match seen.role {
            Role::Leader { answered_at } => {
                let until = answered_at.max(seen.heard_at) + election_most;
                if seen.now < until { Step::Wait(until.min(look_again)) } else { Step::GiveUp }
            }
            Role::Onlooker => Step::Wait(look_again),
            Role::Voter => {
                let heard_at = seen.heard_at;
                let planned = self.planned.filter(|planned| planned.heard_at == heard_at);
                let stand_at = planned.map_or_else(
                    || heard_at + between(election_least, election_most, random),
                    |planned| planned.stand_at,
                );
                let (stand_at, step) = if seen.now < stand_at {
                    (stand_at, Step::Wait(stand_at.min(look_again)))
                } else {
                    // If the others do not want it, they may a moment later.
                    (seen.now + between(heartbeat / 2, heartbeat, random), Step::Stand)
                };
                self.planned = Some(Planned { heard_at, stand_at });
                step
            }
        }
    }
}

/// From `least` to `most`, as `random` goes from zero to its end.
fn between(least: Duration, most: Duration, random: u32) -> Duration {
    least + most.saturating_sub(least).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Whether a member would vote for a candidate whose last entry is `candidate`, where its own is
/// `last`. Stricter than its vote will be: openraft's lease of a leader is `least` too.
fn would_vote(seen: Seen, last: Option<LogId>, candidate: Option<LogId>, least: Duration) -> bool {
    let silence = seen.now.saturating_duration_since(seen.heard_at);
    !matches!(seen.role, Role::Leader { .. }) && silence > least && candidate >= last
}

/// Whether `yes` is a majority, of each of both sets while the members change.
pub(super) fn is_majority(configs: &[BTreeSet<u64>], yes: &BTreeSet<u64>) -> bool {
    configs.iter().all(|voters| 2 * voters.intersection(yes).count() > voters.len())
}

/// What the core of a member says.
struct View {
    seen: Seen,
    term: u64,
    last: Option<LogId>,
    /// The voters, twice while they change.
    configs: Vec<BTreeSet<u64>>,
    members: BTreeMap<u64, Member>,
}

/// Asks the core: one that waits for its disk says nothing, and so its member neither stands nor
/// promises a vote.
async fn look(raft: &Raft) -> Result<View, Fatal<u64>> {
    let (state, term, heard_at, members) = raft
        .with_raft_state(|state| {
            let members = state.membership_state.effective().membership().clone();
            let vote = state.vote_ref();
            (state.server_state, vote.leader_id().term, state.vote_last_modified(), members)
        })
        .await?;
    let now = Instant::now();
    let heard_at = heard_at.unwrap_or(now);
    let role = match state {
        ServerState::Leader => {
            let silent = raft.metrics().borrow().millis_since_quorum_ack;
            let answered_at = silent.and_then(|ms| now.checked_sub(Duration::from_millis(ms)));
            Role::Leader { answered_at: answered_at.unwrap_or(heard_at) }
        }
        ServerState::Follower | ServerState::Candidate => Role::Voter,
        ServerState::Learner | ServerState::Shutdown => Role::Onlooker,
    };
    Ok(View {
        seen: Seen { now, role, heard_at },
        term,
        last: raft.data_metrics().borrow().last_log,
        configs: members.get_joint_config().clone(),
        members: members.nodes().map(|(id, member)| (*id, member.clone())).collect(),
    })
}

/// Answers a member that asks whether this one would vote for it.
///
/// # Errors
/// This member does nothing any more.
pub(crate) async fn answer(
    raft: &Raft,
    timeouts: QuorumTimeouts,
    candidate: Option<LogId>,
) -> Result<bool, Fatal<u64>> {
    let view = look(raft).await?;
    Ok(would_vote(view.seen, view.last, candidate, timeouts.election_least))
}

/// Carries out what [`Elections`] decides.
pub(crate) struct Elector {
    pub(crate) id: u64,
    pub(crate) raft: Raft,
    pub(crate) peers: Peers,
    pub(crate) timeouts: QuorumTimeouts,
    pub(crate) stopping: CancellationToken,
}

impl Elector {
    /// Goes on until the member ends.
    pub(crate) async fn run(self) {
        if let Some(Err(fatal)) = self.stopping.run_until_cancelled(self.follow()).await {
            tracing::debug!(error = %fatal, "no more elections by this member");
        }
    }

    async fn follow(&self) -> Result<(), Fatal<u64>> {
        let mut elections = Elections::new(self.timeouts);
        loop {
            let view = look(&self.raft).await?;
            match elections.next(view.seen, random()) {
                Step::Wait(until) => tokio::time::sleep_until(until).await,
                Step::Stand => self.stand(view).await?,
                Step::GiveUp => self.give_up(view).await?,
            }
        }
    }

    async fn stand(&self, view: View) -> Result<(), Fatal<u64>> {
        let heard_at = view.seen.heard_at;
        if !self.would_win(view).await {
            return Ok(());
        }
        // While it asked, another one may have been elected, or have got its vote.
        if look(&self.raft).await?.seen.heard_at == heard_at {
            tracing::debug!(id = self.id, "stands for election");
            self.raft.trigger().elect().await?;
        }
        Ok(())
    }

    /// Whether a majority would vote for this member.
    async fn would_win(&self, mut view: View) -> bool {
        let mut yes = BTreeSet::from([self.id]);
        let mut questions = JoinSet::new();
        let voters: BTreeSet<u64> = view.configs.iter().flatten().copied().collect();
        for id in voters.into_iter().filter(|id| *id != self.id) {
            let Some(member) = view.members.remove(&id) else { continue };
            let (peers, last) = (self.peers.clone(), view.last);
            questions.spawn(async move { (id, peers.would_vote(id, member, last).await) });
        }
        let counting = async {
            while !is_majority(&view.configs, &yes) {
                match questions.join_next().await {
                    Some(Ok((id, Ok(true)))) => {
                        yes.insert(id);
                    }
                    Some(_) => {}
                    None => return false,
                }
            }
            true
        };
        let patience = self.timeouts.election_least / 2;
        tokio::time::timeout(patience, counting).await.unwrap_or(false)
    }

    /// Makes this member a follower, by a vote in the next term for another one: for the least, so
    /// that whoever stands in that term can still have it. Such a vote binds to nothing else.
    async fn give_up(&self, view: View) -> Result<(), Fatal<u64>> {
        let other = view.configs.iter().flatten().copied().filter(|id| *id != self.id).min();
        if let Some(other) = other {
            tracing::info!("leads the metadata quorum no longer: a majority does not answer");
            let request = VoteRequest::new(Vote::new(view.term + 1, other), view.last);
            if let Err(error) = self.raft.vote(request).await {
                tracing::debug!(%error, "not given up");
            }
        }
        tokio::time::sleep(self.timeouts.heartbeat).await;
        Ok(())
    }
}

/// From the system, as the UUIDs that the rest of this crate draws.
fn random() -> u32 {
    let [.., a, b, c, d] = Uuid::new_v4().into_bytes();
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;

    fn timeouts() -> QuorumTimeouts {
        QuorumTimeouts {
            election_least: Duration::from_millis(1000),
            election_most: Duration::from_millis(1500),
            heartbeat: Duration::from_millis(200),
        }
    }

    /// One member, told what it sees in milliseconds since a start.
    struct Voter {
        start: Instant,
        elections: Elections,
    }

    impl Voter {
        fn new() -> Self {
            Self { start: Instant::now(), elections: Elections::new(timeouts()) }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn next(&mut self, now: u64, role: Role, heard_at: u64, random: u32) -> String {
            let seen = Seen { now: self.at(now), role, heard_at: self.at(heard_at) };
            match self.elections.next(seen, random) {
                Step::Wait(until) => format!("wait {}", (until - self.start).as_millis()),
                Step::Stand => "stand".to_owned(),
                Step::GiveUp => "give up".to_owned(),
            }
        }
    }

    #[test]
    fn each_silence_has_a_time_of_its_own() {
        let mut member = Voter::new();
        assert_eq!(member.next(0, Role::Voter, 0, u32::MAX), "wait 1000");
        // Drawn for this silence; what is drawn while it lasts does not count.
        assert_eq!(member.next(1000, Role::Voter, 0, 0), "wait 1500");
        assert_eq!(member.next(1499, Role::Voter, 0, 0), "wait 1500");
        assert_eq!(member.next(1499, Role::Voter, 1400, 0), "wait 2400");
        assert_eq!(member.next(2399, Role::Voter, 1400, u32::MAX), "wait 2400");
        assert_eq!(member.next(2400, Role::Voter, 1400, 0), "stand");
    }

    #[test]
    fn who_is_not_wanted_asks_again_soon() {
        let mut member = Voter::new();
        assert_eq!(member.next(0, Role::Voter, 0, 0), "wait 1000");
        assert_eq!(member.next(1000, Role::Voter, 0, 0), "stand");
        assert_eq!(member.next(1003, Role::Voter, 0, 7), "wait 1100");
        assert_eq!(member.next(1100, Role::Voter, 0, u32::MAX), "stand");
        assert_eq!(member.next(1103, Role::Voter, 0, 7), "wait 1300");
        // It stood, and its own vote is the last that it heard.
        assert_eq!(member.next(1305, Role::Voter, 1304, u32::MAX), "wait 2305");
    }

    #[test]
    fn a_leader_gives_up_when_a_majority_is_silent_for_long() {
        let mut member = Voter::new();
        let answered_at = member.at(500);
        assert_eq!(member.next(500, Role::Leader { answered_at }, 100, 0), "wait 1500");
        assert_eq!(member.next(1500, Role::Leader { answered_at }, 100, 0), "wait 2000");
        assert_eq!(member.next(2000, Role::Leader { answered_at }, 100, 0), "give up");
        // One that was just elected has not been answered yet.
        assert_eq!(member.next(2000, Role::Leader { answered_at }, 1900, 0), "wait 3000");
    }

    #[test]
    fn who_has_no_vote_does_not_stand() {
        assert_eq!(Voter::new().next(9000, Role::Onlooker, 0, 0), "wait 10000");
    }

    #[test]
    fn a_vote_is_promised_to_who_has_all_when_no_leader_is_heard() {
        let least = Duration::from_secs(1);
        let now = Instant::now() + Duration::from_secs(60);
        let after = |role, silence: u64| Seen {
            now,
            role,
            heard_at: now.checked_sub(Duration::from_millis(silence)).unwrap(),
        };
        let entry = |term, index| Some(LogId::new(CommittedLeaderId::new(term, 1), index));
        let (own, older_term) = (entry(2, 7), entry(1, 9));
        let silent = after(Role::Voter, 1001);
        assert!(would_vote(silent, own, own, least));
        assert!(would_vote(silent, own, entry(3, 3), least));
        assert!(would_vote(after(Role::Onlooker, 1001), None, None, least));
        assert!(!would_vote(silent, own, entry(2, 6), least));
        assert!(!would_vote(silent, own, older_term, least));
        assert!(!would_vote(silent, own, None, least));
        assert!(!would_vote(after(Role::Voter, 1000), own, own, least), "the lease is not over");
        assert!(!would_vote(after(Role::Leader { answered_at: now }, 9000), own, own, least));
    }

    #[test]
    fn a_majority_is_one_of_each_set() {
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        assert!(is_majority(&[set(&[1])], &set(&[1])));
        assert!(!is_majority(&[set(&[1, 2])], &set(&[1])));
        assert!(is_majority(&[set(&[1, 2, 3])], &set(&[1, 3])));
        assert!(!is_majority(&[set(&[1, 2, 3])], &set(&[1, 4, 5])));
        assert!(!is_majority(&[set(&[1, 2, 3]), set(&[1, 4, 5])], &set(&[1, 2])));
        assert!(is_majority(&[set(&[1, 2, 3]), set(&[1, 4, 5])], &set(&[1, 2, 4])));
    }
}
