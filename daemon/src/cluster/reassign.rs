//! `tailwater cluster reassign`: other replicas, by name, by number or evenly.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::{BrokerId, TopicPartition};
use tailwater_log::Move;
use tokio::time::Instant;

use super::admin::Admin;
use super::view::View;
use super::{LOOK_AGAIN, NOT_WELL, complain_about, count, list, selection};
use crate::cli::Reassign;
use crate::text::{complain, say};

/// How long nobody may answer while a command waits: an election, a node that restarts.
const PATIENCE: Duration = Duration::from_secs(60);

/// Plans, prints the plan, has it carried out, and waits for it.
///
/// # Errors
/// What is asked cannot be, or no node answers.
pub(super) async fn reassign(admin: &Admin, asked: &Reassign) -> anyhow::Result<ExitCode> {
    let view = View::of(admin).await?;
    if asked.goal.cancel {
        return cancel(admin, &view, asked).await;
    }
    let moves = plan(&view, asked)?;
    if moves.is_empty() {
        say("nothing has to move");
        return Ok(ExitCode::SUCCESS);
    }
    for one in &moves {
        say(&format!("{}: {} -> {}", one.partition, list(&one.from), list(&one.to)));
    }
    if asked.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    let is_whole = carry_out(admin, &moves).await?;
    if !asked.wait {
        say(&format!(
            "{} being moved: `tailwater cluster status` shows how far",
            count(moves.len(), "partition")
        ));
        return Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::from(NOT_WELL) });
    }
    let is_done = is_whole && wait(admin, &moves, Instant::now() + asked.timeout).await?;
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::from(NOT_WELL) })
}

fn plan(view: &View, asked: &Reassign) -> anyhow::Result<Vec<Move>> {
    let layout = view.layout();
    let all = || view.partitions.keys().map(|one| one.topic.clone()).collect::<BTreeSet<_>>();
    if let Some(factor) = asked.goal.replication_factor {
        if factor == 0 {
            bail!("a partition has at least one replica");
        }
        let topics = if asked.all { all() } else { selection::topics(view, &asked.what)? };
        if topics.is_empty() {
            bail!("name the topics, or say --all");
        }
        return layout.with_replicas(&topics, factor).context(
            "more replicas than nodes cannot be: start more nodes, or ask for fewer replicas",
        );
    }
    let named = selection::partitions(view, &asked.what)?;
    if asked.goal.balance {
        let is_wanted = |one: &TopicPartition| named.is_empty() || named.contains(one);
        let moves = layout.balanced().into_iter();
        return Ok(moves.filter(|one| is_wanted(&one.partition)).collect());
    }
    if asked.all || named.is_empty() {
        bail!("name the topics or partitions that are to go to these nodes");
    }
    let to: Vec<BrokerId> = asked.goal.to.iter().flatten().copied().map(BrokerId::new).collect();
    let moves = named.into_iter().map(|partition| {
        let from = layout.partitions.get(&partition).cloned().unwrap_or_default();
        Move { partition, from, to: to.clone() }
    });
    Ok(moves.filter(|one| one.from != one.to).collect())
}

async fn cancel(admin: &Admin, view: &View, asked: &Reassign) -> anyhow::Result<ExitCode> {
    let named = selection::partitions(view, &asked.what)?;
    if named.is_empty() && !asked.all {
        bail!("name the topics or partitions of which moves are taken back, or say --all");
    }
    let moving = view.partitions.iter().filter(|(_, state)| state.is_moving());
    let taken: Vec<_> = moving
        .map(|(one, _)| (one.clone(), None))
        .filter(|(one, _)| asked.all || named.contains(one))
        .collect();
    let mut refused = admin.reassign(&taken).await?;
    // Complete meanwhile.
    refused.retain(|(_, why)| why.code != ErrorCode::NoReassignmentInProgress);
    complain_about(&refused);
    say(&format!("{} taken back", count(taken.len() - refused.len(), "move")));
    Ok(if refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(NOT_WELL) })
}

/// Has the moves begun; whether all could be.
///
/// # Errors
/// No node answers.
pub(super) async fn carry_out(admin: &Admin, moves: &[Move]) -> anyhow::Result<bool> {
    let targets: Vec<_> =
        moves.iter().map(|one| (one.partition.clone(), Some(one.to.clone()))).collect();
    let refused = admin.reassign(&targets).await?;
    complain_about(&refused);
    Ok(refused.is_empty())
}

/// Waits until every partition is where it is to be; whether that was in time.
///
/// # Errors
/// No node answers for a while.
pub(super) async fn wait(admin: &Admin, moves: &[Move], deadline: Instant) -> anyhow::Result<bool> {
    let mut said = None;
    loop {
        let view = patiently(admin).await?;
        let (mut done, mut other) = (0, Vec::new());
        for one in moves {
            match view.partitions.get(&one.partition) {
                // The topic was deleted.
                None => done += 1,
                Some(state) if state.target() == one.to => done += usize::from(!state.is_moving()),
                // The node that was asked has not heard of it yet.
                Some(state) if state.target() == one.from => {}
                Some(_) => other.push(&one.partition),
            }
        }
        if let Some(one) = other.first() {
            complain(&format!("{one} was given another target meanwhile"));
            return Ok(false);
        }
        if said != Some(done) {
            say(&format!("{done} of {} complete", count(moves.len(), "partition")));
            said = Some(done);
        }
        if done == moves.len() {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            complain("not complete in time; it goes on: `tailwater cluster status` shows how far");
            return Ok(false);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Looks at the cluster, which may have no node to ask for a moment.
///
/// # Errors
/// None answers for a while.
pub(super) async fn patiently(admin: &Admin) -> anyhow::Result<View> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match View::of(admin).await {
            Err(_) if Instant::now() < deadline => tokio::time::sleep(LOOK_AGAIN).await,
            outcome => return outcome,
        }
    }
}
