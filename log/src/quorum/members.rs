//! Changing who the members are, one change at a time.
//!
//! A new member first gets what the others have, without a vote; then it votes. A node that comes
//! back without its disk is first removed: its old vote is gone with the disk, and it must not
//! vote again in what it has voted in before.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::error::{ClientWriteError, RaftError};
use tokio::sync::{Mutex, MutexGuard};

use super::QuorumError;
use super::peers::Peers;
use super::types::{LogId, Member, Metrics, Raft, StoredMembership, broker_id};

/// How long a new member may take until it has what the others have, before it has to ask again.
const CATCH_UP: Duration = Duration::from_secs(10);

/// Entries that a member may lack and still count as one that has what the others have.
const NEARLY: u64 = 100;

/// The members, as their leader changes them.
pub(crate) struct Members {
    raft: Raft,
    peers: Peers,
    changing: Mutex<()>,
}

type WriteError = RaftError<u64, ClientWriteError<u64, Member>>;

impl Members {
    pub(crate) fn new(raft: Raft, peers: Peers) -> Self {
        Self { raft, peers, changing: Mutex::new(()) }
    }

    /// Makes `member` one with a vote. One that is already is left alone.
    ///
    /// # Errors
    /// [`QuorumError`]; it may be tried again, and goes on where it was.
    pub(crate) async fn add(&self, id: u64, member: Member) -> Result<(), QuorumError> {
        let _changing = self.one_at_a_time()?;
        let (known, votes) = self.known(id);
        match known {
            Some(known) if known.directory == member.directory && votes => return Ok(()),
            Some(known) if known.directory == member.directory => {}
            Some(_) => {
                self.drop_member(id, votes).await?;
                self.add_learner(id, member).await?;
            }
            None => self.add_learner(id, member).await?,
        }
        self.caught_up(id).await?;
        self.change(ChangeMembers::AddVoterIds([id].into()), true).await
    }

    /// Makes a member one no more. One that is not is left alone.
    ///
    /// # Errors
    /// [`QuorumError`]; the last member cannot be removed.
    pub(crate) async fn remove(&self, id: u64) -> Result<(), QuorumError> {
        let _changing = self.one_at_a_time()?;
        match self.known(id) {
            (Some(_), votes) => self.drop_member(id, votes).await,
            (None, _) => Ok(()),
        }
    }

    /// Finishes a change that an earlier leader began.
    ///
    /// # Errors
    /// [`QuorumError`]; the next leader tries again.
    pub(crate) async fn settle(&self) -> Result<(), QuorumError> {
        let _changing = self.one_at_a_time()?;
        let members = effective(&self.raft);
        match members.membership().get_joint_config().as_slice() {
            [_, .., last] => {
                self.change(ChangeMembers::ReplaceAllVoters(last.clone()), false).await
            }
            _ => Ok(()),
        }
    }

    fn one_at_a_time(&self) -> Result<MutexGuard<'_, ()>, QuorumError> {
        self.changing.try_lock().map_err(|_| QuorumError::Refused {
            reason: "another change of the controllers is under way: try again".to_owned(),
        })
    }

    fn known(&self, id: u64) -> (Option<Member>, bool) {
        let members = effective(&self.raft);
        let votes = members.membership().voter_ids().any(|voter| voter == id);
        (members.membership().get_node(&id).cloned(), votes)
    }

    async fn drop_member(&self, id: u64, votes: bool) -> Result<(), QuorumError> {
        let ids = BTreeSet::from([id]);
        let change =
            if votes { ChangeMembers::RemoveVoters(ids) } else { ChangeMembers::RemoveNodes(ids) };
        self.change(change, false).await
    }

    async fn add_learner(&self, id: u64, member: Member) -> Result<(), QuorumError> {
        let added = self.raft.add_learner(id, member, false).await;
        added.map(drop).map_err(|error| self.refused(error))
    }

    async fn change(
        &self,
        change: ChangeMembers<u64, Member>,
        retain: bool,
    ) -> Result<(), QuorumError> {
        let changed = self.raft.change_membership(change, retain).await;
        changed.map(drop).map_err(|error| self.refused(error))
    }

    /// Waits until `id` has nearly all that this leader has.
    async fn caught_up(&self, id: u64) -> Result<(), QuorumError> {
        let reached = |metrics: &Metrics| match &metrics.replication {
            Some(progress) => has_nearly_all(progress.get(&id), metrics.last_log_index),
            // Not the leader any more: the change that follows says so.
            None => true,
        };
        let waited = self.raft.wait(Some(CATCH_UP)).metrics(reached, "new member").await;
        waited.map(drop).map_err(|error| {
            let node = broker_id(id);
            let reason = format!("controller {node} has not yet what the others have: {error}");
            QuorumError::Refused { reason }
        })
    }

    fn refused(&self, error: WriteError) -> QuorumError {
        QuorumError::from_write(error, &self.peers)
    }
}

/// The members as of the last entry, be it committed or not: those that Raft goes by.
pub(crate) fn effective(raft: &Raft) -> Arc<StoredMembership> {
    Arc::clone(&raft.metrics().borrow().membership_config)
}

fn has_nearly_all(matched: Option<&Option<LogId>>, last: Option<u64>) -> bool {
    let matched = matched.copied().flatten().map(|matched| matched.index);
    matched.is_some_and(|matched| matched + NEARLY >= last.unwrap_or(0))
}
