//! `tailwater cluster elect`: preferred leaders, and the last resort.

use std::process::ExitCode;

use anyhow::bail;
use tailwater_kafka::TopicPartition;
use tailwater_kafka::wire::ErrorCode;

use super::admin::{Admin, Refused};
use super::view::View;
use super::{NOT_WELL, complain_about, count, list, selection};
use crate::text::say;

/// Gives partitions back to their preferred leaders; all that need it where none is named.
///
/// # Errors
/// There is no such partition, or no node answers.
pub(super) async fn preferred(admin: &Admin, what: &[String]) -> anyhow::Result<ExitCode> {
    let named = match what {
        [] => None,
        what => {
            let view = View::of(admin).await?;
            Some(selection::partitions(&view, what)?.into_iter().collect::<Vec<_>>())
        }
    };
    let outcomes = admin.elect(false, named.as_deref()).await?;
    let (done, refused) = sorted(outcomes);
    say(&format!("{} given back to the preferred leader", count(done.len(), "partition")));
    Ok(answer(&refused))
}

/// Has an incomplete replica lead where no complete one is left.
///
/// # Errors
/// It was not said that records may be lost, it is not needed, or no node answers.
pub(super) async fn unclean(
    admin: &Admin,
    what: &[String],
    accept_lost_records: bool,
) -> anyhow::Result<ExitCode> {
    let view = View::of(admin).await?;
    let named: Vec<TopicPartition> = selection::partitions(&view, what)?.into_iter().collect();
    let leaderless: Vec<_> = named
        .into_iter()
        .filter(|one| view.partitions.get(one).is_some_and(|state| state.leader.is_none()))
        .collect();
    if leaderless.is_empty() {
        bail!("each of these partitions has a leader: an unclean election would only lose records");
    }
    if !accept_lost_records {
        for one in &leaderless {
            let Some(state) = view.partitions.get(one) else { continue };
            let is_there = |id: &&_| view.nodes.get(id).is_some_and(|node| node.in_service);
            let there: Vec<_> = state.replicas.iter().filter(is_there).collect();
            say(&format!(
                "{one}: replicas {}, of which {} in service, and none of these is known to have \
                 all records that were acknowledged",
                list(&state.replicas),
                if there.is_empty() { "none is".to_owned() } else { list(&there) }
            ));
        }
        bail!(
            "an unclean election loses every record that the new leader lacks, acknowledged ones \
             too, and a pipeline that has read further stops. Bring a node back that was in sync, \
             or give this command again with --accept-lost-records"
        );
    }
    let outcomes = admin.elect(true, Some(&leaderless)).await?;
    let (done, refused) = sorted(outcomes);
    for one in &done {
        say(&format!("{one} has a leader: what that one lacked is lost"));
    }
    Ok(answer(&refused))
}

/// What was done, and what was refused; what was not needed is neither.
fn sorted(
    outcomes: Vec<(TopicPartition, Option<Refused>)>,
) -> (Vec<TopicPartition>, Vec<(TopicPartition, Refused)>) {
    let (mut done, mut refused) = (Vec::new(), Vec::new());
    for (one, outcome) in outcomes {
        match outcome {
            None => done.push(one),
            Some(why) if why.code == ErrorCode::ElectionNotNeeded => {}
            Some(why) => refused.push((one, why)),
        }
    }
    (done, refused)
}

fn answer(refused: &[(TopicPartition, Refused)]) -> ExitCode {
    complain_about(refused);
    if refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(NOT_WELL) }
}
