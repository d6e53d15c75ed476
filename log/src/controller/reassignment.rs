//! Partitions move to other brokers (KIP-455).
//!
//! ```text
//! 1 2 3 to 4 2 5      replicas 4 2 5 1 3   adding 4 5   removing 1 3     4 and 5 copy
//! 4, 2, 5 in sync     replicas 4 2 5       adding -     removing -       1 and 3 delete
//! taken back instead  replicas 2 1 3       adding -     removing -       4 and 5 delete
//! ```
//!
//! It is complete when its whole target is in sync, which `partitions::settle` sees; there may be
//! nothing to copy, then it is at once. Nothing is given up before: while the target copies, the
//! old replicas are replicas as ever. A new target replaces one that is not reached; what the
//! former one was adding goes unless the new one has it too.

use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::{BrokerId, TopicPartition};

use super::draft::Draft;
use super::elections::find;
use super::partitions::Wanted;
use super::requests::Refusal;
use super::topics::{check_eligible, check_replicas, wrong_assignment};
use crate::metadata::PartitionState;

pub(super) fn reassign(
    draft: &mut Draft<'_>,
    named: &TopicPartition,
    target: Option<&[BrokerId]>,
) -> Result<(), Refusal> {
    let (key, state) = find(draft.image(), named)?;
    let original = state.original_replicas();
    let target = match target {
        None if !state.is_reassigning() => {
            let message = format!("{named} is not being moved");
            return Err(Refusal::new(ErrorCode::NoReassignmentInProgress, message));
        }
        None => original.clone(),
        Some(target) => {
            check_replicas(target)?;
            for id in target.iter().filter(|id| !state.replicas.contains(id)) {
                check_eligible(draft.image(), *id)?;
            }
            target.to_vec()
        }
    };
    let wanted = towards(state, &original, target);
    check_survivors(state, &wanted)?;
    draft.settle(key.0, key.1, |_| wanted);
    Ok(())
}

fn towards(state: &PartitionState, original: &[BrokerId], target: Vec<BrokerId>) -> Wanted {
    let adding = target.iter().copied().filter(|id| !original.contains(id)).collect();
    let removing: Vec<_> = original.iter().copied().filter(|id| !target.contains(id)).collect();
    let replicas = target.into_iter().chain(removing.iter().copied()).collect();
    Wanted { replicas, adding, removing, ..Wanted::as_it_is(state) }
}

/// Taking back must not take away the only ones that are complete: those that were being added.
fn check_survivors(state: &PartitionState, wanted: &Wanted) -> Result<(), Refusal> {
    let stays = |id: &BrokerId| wanted.replicas.contains(id);
    let members = if state.isr.is_empty() { &state.elr } else { &state.isr };
    if members.is_empty() || members.iter().any(stays) {
        return Ok(());
    }
    let ids: Vec<String> = members.iter().map(BrokerId::to_string).collect();
    Err(wrong_assignment(format!(
        "only broker {} has all records, and it would be removed: wait until another replica is in \
         sync",
        ids.join(", ")
    )))
}
