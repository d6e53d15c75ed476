//! Elections that are asked for: preferred and unclean; and preferred ones from time to time.
//!
//! All others happen by themselves where a partition is settled.

use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::{BrokerId, PartitionId, TopicId, TopicPartition};

use super::draft::Draft;
use super::partitions::Wanted;
use super::requests::{ControllerAnswer, ElectionKind, Refusal};
use crate::metadata::{Image, PartitionState};

type Key = (TopicId, PartitionId);

pub(super) fn elect_leaders(
    draft: &mut Draft<'_>,
    kind: ElectionKind,
    partitions: Option<&[TopicPartition]>,
) -> ControllerAnswer {
    let outcomes = match partitions {
        Some(named) => named.iter().map(|one| (one.clone(), elect(draft, kind, one))).collect(),
        None => {
            let mut outcomes = Vec::new();
            for one in all(draft.image()) {
                match elect(draft, kind, &one) {
                    Err(refusal) if refusal.code == ErrorCode::ElectionNotNeeded => {}
                    outcome => outcomes.push((one, outcome)),
                }
            }
            outcomes
        }
    };
    ControllerAnswer::Elected(outcomes)
}

/// Gives each partition back to its preferred leader where that is in sync.
pub(super) fn rebalance(draft: &mut Draft<'_>) {
    for one in all(draft.image()) {
        // Most have it already, some cannot have it now: the next time they may.
        if elect(draft, ElectionKind::Preferred, &one).is_ok() {
            tracing::info!(partition = %one, "given back to its preferred leader");
        }
    }
}

fn all(image: &Image) -> Vec<TopicPartition> {
    image
        .partitions()
        .map(|(_, topic, number, _)| TopicPartition::new(topic.name.clone(), number))
        .collect()
}

/// The partition that a client means.
pub(super) fn find<'a>(
    image: &'a Image,
    named: &TopicPartition,
) -> Result<(Key, &'a PartitionState), Refusal> {
    image
        .topic_by_name(&named.topic)
        .and_then(|(id, topic)| {
            Some(((id, named.partition), topic.partitions.get(&named.partition)?))
        })
        .ok_or_else(|| {
            let message = format!("there is no partition {named}");
            Refusal::new(ErrorCode::UnknownTopicOrPartition, message)
        })
}

fn elect(draft: &mut Draft<'_>, kind: ElectionKind, named: &TopicPartition) -> Result<(), Refusal> {
    let (key, state) = find(draft.image(), named)?;
    match kind {
        ElectionKind::Preferred => elect_preferred(draft, key, &state.clone()),
        ElectionKind::Unclean => {
            let elected = choose_unclean(draft.image(), named, state)?;
            tracing::warn!(
                partition = %named,
                leader = %elected,
                "unclean election: records that this replica lacks are lost"
            );
            // Of the others none is known to have the same.
            draft.settle(key.0, key.1, |state| Wanted {
                isr: vec![elected],
                lost: state.replicas.iter().copied().filter(|id| *id != elected).collect(),
                ..Wanted::as_it_is(state)
            });
            Ok(())
        }
    }
}

fn elect_preferred(
    draft: &mut Draft<'_>,
    (topic, partition): Key,
    state: &PartitionState,
) -> Result<(), Refusal> {
    let preferred = state.replicas.first().copied();
    if preferred == state.leader && preferred.is_some() {
        return Err(not_needed("the preferred replica leads"));
    }
    let Some(preferred) =
        preferred.filter(|id| state.isr.contains(id) && draft.image().is_eligible(*id))
    else {
        return Err(Refusal::new(
            ErrorCode::PreferredLeaderNotAvailable,
            "the preferred replica is not in sync",
        ));
    };
    draft.settle(topic, partition, |state| Wanted {
        preferred: Some(preferred),
        ..Wanted::as_it_is(state)
    });
    Ok(())
}

/// Who leads if losing records is allowed: the last leader if it is there, else the first that is.
///
/// A partition that waits for a complete replica has none that is there: settling elects those.
fn choose_unclean(
    image: &Image,
    named: &TopicPartition,
    state: &PartitionState,
) -> Result<BrokerId, Refusal> {
    if state.leader.is_some() {
        return Err(not_needed("the partition has a leader"));
    }
    let is_there = |id: &BrokerId| image.is_eligible(*id) && !state.offline.contains(id);
    state
        .last_known_leader
        .filter(|id| state.replicas.contains(id) && is_there(id))
        .or_else(|| state.replicas.iter().copied().find(is_there))
        .ok_or_else(|| {
            let message = format!(
                "no replica of {named} is there that can be used: start one of its brokers, or \
                 repair its disk"
            );
            Refusal::new(ErrorCode::EligibleLeadersNotAvailable, message)
        })
}

fn not_needed(message: &str) -> Refusal {
    Refusal::new(ErrorCode::ElectionNotNeeded, message)
}
