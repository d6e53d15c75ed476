//! What a member knows about its quorum, and when it may decide.
//!
//! A leader is **active** once an empty entry of its own, written after it became leader, has been
//! applied: then it has applied everything that any leader before it has committed, and everything
//! that it proposed itself in an earlier activity. It stops being active when a majority has not
//! answered it for an election timeout: the others may have another leader by then, and it gives up
//! ([`super::elections`]). One that did not notice, since it waited for its own disk, writes another
//! empty entry first.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use openraft::error::Fatal;
use tailwater_kafka::BrokerId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::members::Members;
use super::types::{LogId, Metrics, Proposal, Raft, broker_id};
use crate::metadata::MetadataIndex;

/// What a member knows about its quorum.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct QuorumStatus {
    /// Who leads, as far as this member knows.
    pub(crate) leader: Option<BrokerId>,
    /// This member leads and has applied everything before this entry. Each activity has its own.
    pub(crate) active_since: Option<MetadataIndex>,
    /// Rises with each election.
    pub(crate) term: u64,
    /// The last entry that is committed and applied here.
    pub(crate) committed: MetadataIndex,
    /// The members with a vote.
    pub(crate) voters: BTreeSet<BrokerId>,
    /// Why this node is in no cluster yet.
    pub(crate) waiting_for: Option<String>,
    /// Why this member does nothing any more until the node is started again.
    pub(crate) stopped: Option<String>,
}

impl QuorumStatus {
    /// Whether this member may decide.
    pub(crate) fn is_active(&self) -> bool {
        self.active_since.is_some()
    }
}

type Barrier = Pin<Box<dyn Future<Output = Option<LogId>> + Send>>;

/// Follows a member and tells its status.
pub(crate) struct Watcher {
    pub(crate) raft: Raft,
    pub(crate) members: Arc<Members>,
    pub(crate) status: watch::Sender<QuorumStatus>,
    /// How long a majority may be silent.
    pub(crate) lapse: Duration,
    pub(crate) tasks: TaskTracker,
    pub(crate) stopping: CancellationToken,
}

impl Watcher {
    /// Follows until the member ends.
    pub(crate) async fn run(self) {
        let mut metrics = self.raft.metrics();
        let mut active: Option<LogId> = None;
        let mut barrier: Option<Barrier> = None;
        // One that failed is not tried again before something has changed.
        let mut refused = false;
        // A core that tells nothing for so long may be waiting for its disk.
        let mut silent = false;
        loop {
            let seen = metrics.borrow_and_update().clone();
            let leads = !silent && self.leads(&seen);
            active = active.filter(|since| leads && since.leader_id == *seen.vote.leader_id());
            self.publish(&seen, active);
            if leads && active.is_none() && barrier.is_none() && !refused {
                barrier = Some(Box::pin(write_barrier(self.raft.clone())));
            }
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                written = async { barrier.as_mut().expect("checked").await }, if barrier.is_some() => {
                    barrier = None;
                    refused = written.is_none();
                    active = written;
                    self.settle(&seen);
                }
                changed = metrics.changed() => {
                    (silent, refused) = (false, false);
                    if changed.is_err() {
                        return self.publish_end(&seen);
                    }
                }
                () = tokio::time::sleep(self.lapse) => silent = true,
            }
        }
    }

    /// Whether this member leads, and a majority has answered it lately.
    fn leads(&self, seen: &Metrics) -> bool {
        let lapse = self.lapse.as_millis();
        let answered = |millis: u64| u128::from(millis) <= lapse;
        seen.state == ServerState::Leader && seen.millis_since_quorum_ack.is_some_and(answered)
    }

    fn publish(&self, seen: &Metrics, active: Option<LogId>) {
        let stopped = seen.running_state.as_ref().err().map(ToString::to_string);
        self.status.send_if_modified(|status| {
            let new = QuorumStatus {
                leader: seen.current_leader.map(broker_id),
                active_since: active.map(|since| MetadataIndex::new(since.index)),
                term: seen.current_term,
                committed: index(seen.last_applied),
                voters: seen.membership_config.voter_ids().map(broker_id).collect(),
                waiting_for: status.waiting_for.clone(),
                stopped: stopped.or_else(|| status.stopped.clone()),
            };
            let changed = *status != new;
            *status = new;
            changed
        });
    }

    fn publish_end(&self, seen: &Metrics) {
        let reason = match &seen.running_state {
            Err(Fatal::Stopped) | Ok(()) => "it was closed".to_owned(),
            Err(fatal) => fatal.to_string(),
        };
        self.status.send_modify(|status| {
            status.active_since = None;
            status.leader = None;
            status.stopped = Some(reason);
        });
    }

    /// Finishes a change of the members that an earlier leader began.
    fn settle(&self, seen: &Metrics) {
        if seen.membership_config.membership().get_joint_config().len() < 2 {
            return;
        }
        let (members, stopping) = (Arc::clone(&self.members), self.stopping.clone());
        self.tasks.spawn(async move {
            if let Some(Err(error)) = stopping.run_until_cancelled(members.settle()).await {
                tracing::debug!(%error, "change of the controllers not finished by this leader");
            }
        });
    }
}

async fn write_barrier(raft: Raft) -> Option<LogId> {
    let written = raft.client_write(Proposal(Arc::new([]))).await;
    written.ok().map(|written| written.log_id)
}

fn index(applied: Option<LogId>) -> MetadataIndex {
    applied.map_or(MetadataIndex::ZERO, |applied| MetadataIndex::new(applied.index))
}
