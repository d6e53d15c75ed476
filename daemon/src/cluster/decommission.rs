//! `tailwater cluster decommission`: a node leaves for good.
//!
//! ```text
//! its replicas go elsewhere ─► its vote is taken away ─► it is stopped ─► the cluster forgets it
//!        ▲                                                  │ by whoever runs it
//!        └────────── new topics may have come to it ────────┘
//! ```
//!
//! Each round looks at what there is, so it does not matter where an earlier run was interrupted, or
//! whether the node is dead already.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use tailwater_kafka::BrokerId;
use tailwater_kafka::wire::ErrorCode;
use tokio::time::Instant;

use super::admin::Admin;
use super::view::View;
use super::{LOOK_AGAIN, NOT_WELL, count, list, reassign};
use crate::text::{complain, say};

/// What comes next.
enum Step {
    /// Replicas have to go elsewhere.
    Empty,
    /// It has a vote.
    TakeVote,
    /// It runs.
    WaitForStop,
    /// It is known.
    Forget,
    /// Nothing.
    Done,
}

/// Takes a node out of the cluster.
///
/// # Errors
/// It cannot be, and why; or no node answers.
pub(super) async fn decommission(
    admin: &Admin,
    node: i32,
    timeout: Duration,
) -> anyhow::Result<ExitCode> {
    let node = BrokerId::new(node);
    let deadline = Instant::now() + timeout;
    let (mut told_to_stop, mut did_anything) = (false, false);
    loop {
        let view = reassign::patiently(admin).await?;
        match next(&view, node)? {
            Step::Done if did_anything => {
                say(&format!("node {node} is no longer part of the cluster"));
                return Ok(ExitCode::SUCCESS);
            }
            Step::Done => {
                say(&format!("there is no node {node} in the cluster: nothing is left to do"));
                return Ok(ExitCode::SUCCESS);
            }
            Step::Empty => {
                if !empty(admin, &view, node, deadline).await? {
                    return Ok(ExitCode::from(NOT_WELL));
                }
            }
            Step::TakeVote => take_vote(admin, &view, node).await?,
            Step::WaitForStop => {
                if !told_to_stop {
                    say(&format!(
                        "node {node} has nothing any more: stop it now (SIGTERM); waiting"
                    ));
                    told_to_stop = true;
                }
                if Instant::now() >= deadline {
                    complain(&format!("node {node} still runs: stop it, and run this again"));
                    return Ok(ExitCode::from(NOT_WELL));
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Step::Forget => forget(admin, node).await?,
        }
        did_anything = true;
    }
}

fn next(view: &View, node: BrokerId) -> anyhow::Result<Step> {
    let quorum = view.quorum.as_ref();
    let quorum = quorum.map_err(|why| anyhow::anyhow!("no controller decides: {why}"))?;
    if view.partitions.values().any(|state| state.replicas.contains(&node)) {
        return Ok(Step::Empty);
    }
    if quorum.members.get(&node).is_some_and(|member| member.votes) {
        return Ok(Step::TakeVote);
    }
    Ok(match view.nodes.get(&node) {
        Some(known) if known.in_service => Step::WaitForStop,
        Some(_) => Step::Forget,
        None => Step::Done,
    })
}

/// Moves its replicas to others; whether that was in time.
async fn empty(
    admin: &Admin,
    view: &View,
    node: BrokerId,
    deadline: Instant,
) -> anyhow::Result<bool> {
    check_leaders(view, node)?;
    let moves = view.layout().without(node).map_err(|too_few| {
        let topic = too_few.partition.topic.clone();
        let remedy = format!(
            "start another node first, or give the topic fewer replicas: `tailwater cluster \
             reassign {topic} --replication-factor {} --wait`",
            too_few.wanted.saturating_sub(1).max(1)
        );
        anyhow::Error::new(too_few).context(remedy)
    });
    let mut moves = moves.with_context(|| format!("node {node} cannot leave"))?;
    let begun: Vec<_> = view
        .partitions
        .iter()
        .filter(|(_, state)| state.removing.contains(&node))
        .map(|(one, state)| tailwater_log::Move {
            partition: one.clone(),
            from: state.replicas.clone(),
            to: state.target(),
        })
        .collect();
    if !moves.is_empty() {
        say(&format!("moving {} off node {node}", count(moves.len(), "partition")));
        if !reassign::carry_out(admin, &moves).await? {
            bail!("not all partitions of node {node} could be moved");
        }
    }
    moves.extend(begun);
    reassign::wait(admin, &moves, deadline).await
}

/// Nothing can be copied of a partition that nobody leads.
fn check_leaders(view: &View, node: BrokerId) -> anyhow::Result<()> {
    let concerned = view.partitions.iter().filter(|(_, state)| state.replicas.contains(&node));
    let mut leaderless = concerned.filter(|(_, state)| state.leader.is_none());
    let Some((one, state)) = leaderless.next() else { return Ok(()) };
    bail!(
        "node {node} cannot leave: {one} has no leader, so nothing can be copied of it. Start a \
         node that has it ({}), or delete the topic if its records are not needed",
        list(&state.replicas)
    );
}

async fn take_vote(admin: &Admin, view: &View, node: BrokerId) -> anyhow::Result<()> {
    let Ok(quorum) = &view.quorum else { return Ok(()) };
    let Some(member) = quorum.members.get(&node) else { return Ok(()) };
    let stay = quorum.members.values().filter(|member| member.votes).count().saturating_sub(1);
    match admin.remove_voter(&view.cluster_id, node, member.directory).await? {
        None => {
            say(&format!(
                "node {node} is no controller any more, {} left",
                count(stay, "controller")
            ));
            if stay == 2 {
                say("two controllers can decide only together: name a third one in `controllers` \
                     of every node");
            }
            Ok(())
        }
        // It was lost that this had been done before, or another disk is there now.
        Some(refused) if refused.code == ErrorCode::VoterNotFound => Ok(()),
        Some(refused) if refused.code == ErrorCode::NotController => Ok(()),
        Some(refused) => {
            bail!("the vote of node {node} cannot be taken away: {}", refused.message)
        }
    }
}

async fn forget(admin: &Admin, node: BrokerId) -> anyhow::Result<()> {
    match admin.unregister(node).await? {
        None => Ok(()),
        Some(refused) if refused.code == ErrorCode::BrokerIdNotRegistered => Ok(()),
        // It is back, or has got something: the next look says which.
        Some(refused) if refused.code == ErrorCode::InvalidRequest => {
            tokio::time::sleep(LOOK_AGAIN).await;
            Ok(())
        }
        Some(refused) if refused.code == ErrorCode::NotController => Ok(()),
        Some(refused) => bail!("node {node} cannot be forgotten: {}", refused.message),
    }
}
