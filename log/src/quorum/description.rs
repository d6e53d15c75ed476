//! What the leader tells people about its quorum, and how they take a member out of it.

use std::collections::BTreeSet;

use openraft::ServerState;
use tailwater_kafka::BrokerId;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::messages::{MemberDescription, QuorumAnswer, QuorumDescription, RemoveAnswer};
use super::types::{StoredMembership, broker_id, raft_id};
use super::{Quorum, QuorumError, members};

impl Quorum {
    /// Describes the quorum, where this member leads it.
    ///
    /// Who is about to get a vote, or to lose it, is described as before: until that is committed the
    /// quorum cannot do without those that it had.
    pub(super) async fn answer_describe(&self) -> QuorumAnswer {
        let committed = self
            .shared
            .raft
            .with_raft_state(|state| state.membership_state.committed().membership().clone())
            .await;
        let Ok(committed) = committed else { return self.not_leader() };
        let metrics = self.shared.raft.metrics().borrow().clone();
        if metrics.state != ServerState::Leader || !self.status.borrow().is_active() {
            return self.not_leader();
        }
        let own = raft_id(self.shared.config.node);
        let stored = &metrics.membership_config;
        let configs = committed.get_joint_config();
        let voters = configs.first().cloned().unwrap_or_default();
        let last_of = |id: u64| match &metrics.replication {
            _ if id == own => metrics.last_log_index,
            Some(progress) => progress.get(&id).copied().flatten().map(|last| last.index),
            None => None,
        };
        let members = stored.membership().nodes().map(|(id, member)| MemberDescription {
            node: broker_id(*id),
            directory: member.directory,
            address: self.shared.peers.address(*id, member),
            votes: voters.contains(id),
            last: last_of(*id),
            silent_ms: self.silent_ms(*id),
        });
        QuorumAnswer::Described(QuorumDescription {
            leader: self.shared.config.node,
            term: metrics.current_term,
            committed: metrics.last_applied.map_or(0, |last| last.index),
            members: members.collect(),
        })
    }

    /// Takes a member out, where this member leads.
    ///
    /// Refused where too few of those that stay are there: they could not agree on it, and with the
    /// change begun no more on anything else.
    pub(super) async fn answer_remove(
        &self,
        node: BrokerId,
        directory: Option<Uuid>,
    ) -> QuorumAnswer {
        if !self.status.borrow().is_active() {
            return self.not_leader();
        }
        let id = raft_id_of(node);
        let stored = members::effective(&self.shared.raft);
        let known = id.and_then(|id| stored.membership().get_node(&id));
        let is_it = known
            .is_some_and(|member| directory.is_none_or(|directory| directory == member.directory));
        if !is_it {
            return QuorumAnswer::Removed(RemoveAnswer::NotFound);
        }
        if let Some(reason) = self.obstacle(node, &stored).await {
            return QuorumAnswer::Removed(RemoveAnswer::Refused { reason });
        }
        match self.remove_voter(node).await {
            Ok(()) => QuorumAnswer::Removed(RemoveAnswer::Done),
            Err(QuorumError::NotLeader { leader }) => {
                QuorumAnswer::NotLeader { leader: leader.map(|(_, address)| address) }
            }
            Err(error) => {
                QuorumAnswer::Removed(RemoveAnswer::Refused { reason: error.to_string() })
            }
        }
    }

    async fn obstacle(&self, node: BrokerId, stored: &StoredMembership) -> Option<String> {
        let staying: BTreeSet<u64> =
            stored.voter_ids().filter(|voter| broker_id(*voter) != node).collect();
        if staying.is_empty() {
            return Some(format!("controller {node} is the only one: add another one first"));
        }
        let there = self.count_there(&staying, stored).await;
        if 2 * there > staying.len() {
            return None;
        }
        let ids: Vec<String> = staying.iter().map(|id| broker_id(*id).to_string()).collect();
        Some(format!(
            "without controller {node} those that stay are {}, and only {there} of them answer: \
             start a majority of them first",
            ids.join(", ")
        ))
    }

    /// How many of `ids` answer now: one that died a moment ago does not.
    async fn count_there(&self, ids: &BTreeSet<u64>, stored: &StoredMembership) -> usize {
        let patience = self.shared.config.timeouts.election_most;
        let mut questions = JoinSet::new();
        for (id, member) in stored.membership().nodes().filter(|(id, _)| ids.contains(id)) {
            let (id, member, peers) = (*id, member.clone(), self.shared.peers.clone());
            let is_own = id == raft_id(self.shared.config.node);
            let question = async move { is_own || peers.is_there(id, &member).await };
            questions.spawn(async move {
                tokio::time::timeout(patience, question).await.unwrap_or(false)
            });
        }
        questions.join_all().await.into_iter().filter(|is_there| *is_there).count()
    }

    fn silent_ms(&self, id: u64) -> Option<u64> {
        if id == raft_id(self.shared.config.node) {
            return Some(0);
        }
        let silence = self.shared.peers.heard.silence(id)?;
        Some(u64::try_from(silence.as_millis()).unwrap_or(u64::MAX))
    }

    fn not_leader(&self) -> QuorumAnswer {
        QuorumAnswer::NotLeader { leader: self.leader_address() }
    }

    /// Where the member that leads is reached, as far as this one knows: `host:port`.
    pub(crate) fn leader_address(&self) -> Option<String> {
        let leader = raft_id_of(self.status.borrow().leader?)?;
        let stored = members::effective(&self.shared.raft);
        let member = stored.membership().get_node(&leader)?;
        Some(self.shared.peers.address(leader, member))
    }
}

/// The id under which Raft knows a node, if it can be one.
fn raft_id_of(node: BrokerId) -> Option<u64> {
    u64::try_from(node.get()).ok()
}
