//! What a partition may become: ISR, eligible leaders (KIP-966), leader, end of a reassignment.
//!
//! Everything that happens to a partition goes through [`settle`]: a broker fenced or back, a
//! leader's proposal, a reassignment, an election. It takes what is wanted and makes of it the
//! nearest state that keeps the rules; settling again changes nothing. The rules:
//!
//! ```text
//! 1. a fenced broker is in no ISR, nor is one that cannot use its copy (it is offline); a stopping
//!    one only if no other member is there
//! 2. who leaves the ISR goes to the ELR, as do members of the ELR stay there,
//!      while  |ISR| < min ISR  (the leader commits nothing: they stay complete)
//!      else the ELR is empty   (the leader commits without them)
//!    but for a copy that is offline: it is not trusted to be complete unless no other is
//! 3. a reassignment whose target is in sync is complete
//! 4. leader: the present one if it may, else the first of the ISR in the order of the replicas,
//!    else, if the ISR is empty, the first of the ELR, which then is the ISR; else nobody
//! 5. another leader, or a copy that was offline and is not any more: leader epoch + 1;
//!    any change: partition epoch + 1
//! ```
//!
//! The second half of rule 5 is for a copy that comes back with less than it had, made anew in the
//! place of a damaged one: a position that its broker told of the former copy, and that is still on
//! its way or remembered by the leader, is of an older epoch and counts no more.
//!
//! So with nobody left in sync, the last who were wait in the ELR, and the first to come back
//! leads:
//!
//! ```text
//! min ISR 2                 replicas 1 2 3
//! all there                 ISR 1 2 3   ELR -     leader 1
//! 3 is fenced               ISR 1 2     ELR -     leader 1    3 may miss what is written now
//! 2 is fenced               ISR 1       ELR 2     leader 1    nothing is committed now
//! 1 is fenced               ISR -       ELR 1 2   leader -
//! 3 comes back              ISR -       ELR 1 2   leader -    it waits for 1 or 2
//! 2 comes back              ISR 2       ELR 1     leader 2
//! 3 catches up              ISR 2 3     ELR -     leader 2    commits again
//! ```

use std::collections::{BTreeMap, BTreeSet};

use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::{BrokerId, LeaderEpoch, PartitionId, TopicId};

use super::draft::Draft;
use super::requests::{AlterPartitions, ControllerAnswer, CopyReport, IsrChange, Refusal};
use crate::metadata::{BrokerState, PartitionEpoch, PartitionState, Record};

/// What a partition is to become, as far as the rules allow.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) replicas: Vec<BrokerId>,
    pub(super) adding: Vec<BrokerId>,
    pub(super) removing: Vec<BrokerId>,
    pub(super) isr: Vec<BrokerId>,
    /// Leads if it is in sync, in the place of the present leader.
    pub(super) preferred: Option<BrokerId>,
    /// No longer complete: not in the ISR, and not in the ELR either.
    pub(super) lost: Vec<BrokerId>,
    /// Whose broker cannot use its copy.
    pub(super) offline: Vec<BrokerId>,
}

impl Wanted {
    /// Nothing but what the rules ask for.
    pub(super) fn as_it_is(state: &PartitionState) -> Self {
        Self {
            replicas: state.replicas.clone(),
            adding: state.adding.clone(),
            removing: state.removing.clone(),
            isr: state.isr.clone(),
            preferred: None,
            lost: Vec::new(),
            offline: state.offline.clone(),
        }
    }
}

/// A partition as it is made: all `replicas` are in sync, for there is nothing yet.
pub(super) fn new_partition(replicas: Vec<BrokerId>) -> PartitionState {
    let leader = replicas.first().copied();
    PartitionState {
        isr: replicas.clone(),
        elr: Vec::new(),
        adding: Vec::new(),
        removing: Vec::new(),
        offline: Vec::new(),
        leader,
        last_known_leader: leader,
        leader_epoch: LeaderEpoch::new(0),
        partition_epoch: PartitionEpoch::ZERO,
        replicas,
    }
}

/// The state nearest to `wanted` that keeps the rules above; `None` if that is `old`.
pub(super) fn settle(
    old: &PartitionState,
    wanted: Wanted,
    brokers: &BTreeMap<BrokerId, BrokerState>,
    min_isr: impl Fn(&PartitionState) -> usize,
) -> Option<PartitionState> {
    let Wanted { replicas, adding, removing, isr, preferred, lost, offline } = wanted;
    let mut new = PartitionState { replicas, adding, removing, ..old.clone() };
    new.offline = new.replicas.iter().copied().filter(|id| offline.contains(id)).collect();
    let excluded = |id: &BrokerId| lost.contains(id) || offline.contains(id);
    let members: BTreeSet<_> = isr.into_iter().filter(|id| !excluded(id)).collect();
    new.isr = in_sync(&new.replicas, &members, brokers);
    finish_reassignment(&mut new);
    let complete = new
        .replicas
        .iter()
        .copied()
        .filter(|id| old.is_complete_on(*id) && !new.isr.contains(id) && !lost.contains(id));
    new.elr = trusted(complete.collect(), &new);
    elect(&mut new, preferred, brokers);
    // Who was elected from the ELR is in sync now, and may have been what was missing.
    finish_reassignment(&mut new);
    new.elr.retain(|id| new.replicas.contains(id));
    new.offline.retain(|id| new.replicas.contains(id));
    if new.isr.len() >= min_isr(&new) {
        new.elr.clear();
    }
    if new == *old {
        return None;
    }
    let came_back = |id: &BrokerId| new.replicas.contains(id) && !new.offline.contains(id);
    if new.leader != old.leader || old.offline.iter().any(came_back) {
        new.leader_epoch = next_epoch(old.leader_epoch);
        new.last_known_leader = new.leader.or(old.leader).or(old.last_known_leader);
    }
    new.partition_epoch = old.partition_epoch.next();
    Some(new)
}

/// Of `members`, those that may be in the ISR, in the order of the replicas.
fn in_sync(
    replicas: &[BrokerId],
    members: &BTreeSet<BrokerId>,
    brokers: &BTreeMap<BrokerId, BrokerState>,
) -> Vec<BrokerId> {
    let there = |allowed: fn(&BrokerState) -> bool| -> Vec<BrokerId> {
        replicas
            .iter()
            .copied()
            .filter(|id| members.contains(id) && brokers.get(id).is_some_and(allowed))
            .collect()
    };
    let staying = there(BrokerState::is_eligible);
    if staying.is_empty() { there(|broker| !broker.fenced) } else { staying }
}

/// Of those who are `complete` and not in the ISR, the ones to rely on: without copies that are
/// offline, unless nobody else has what they had.
fn trusted(complete: Vec<BrokerId>, state: &PartitionState) -> Vec<BrokerId> {
    let usable = |id: &BrokerId| !state.offline.contains(id);
    if state.isr.is_empty() && !complete.iter().any(usable) {
        return complete;
    }
    complete.into_iter().filter(usable).collect()
}

fn finish_reassignment(state: &mut PartitionState) {
    let target = state.target_replicas();
    if state.is_reassigning() && target.iter().all(|id| state.isr.contains(id)) {
        state.isr.clone_from(&target);
        state.replicas = target;
        state.adding.clear();
        state.removing.clear();
    }
}

fn elect(
    state: &mut PartitionState,
    preferred: Option<BrokerId>,
    brokers: &BTreeMap<BrokerId, BrokerState>,
) {
    let may_lead = |id: &BrokerId| {
        brokers.get(id).is_some_and(BrokerState::is_eligible) && !state.offline.contains(id)
    };
    let in_isr = |id: &BrokerId| state.isr.contains(id);
    let elected = preferred
        .filter(|id| in_isr(id) && may_lead(id))
        .or_else(|| state.leader.filter(in_isr))
        .or_else(|| state.isr.first().copied());
    if elected.is_some() {
        state.leader = elected;
        return;
    }
    state.leader = state.elr.iter().copied().find(may_lead);
    state.isr.extend(state.leader);
    state.elr.retain(|id| Some(*id) != state.leader);
}

/// # Panics
/// After 2^31 elections of one partition.
fn next_epoch(epoch: LeaderEpoch) -> LeaderEpoch {
    let next = epoch.get().checked_add(1).expect("a partition has no 2^31 elections");
    LeaderEpoch::new(next)
}

/// Takes note of what a broker says of its copies. Of partitions that it has no part in, by now, it may
/// say what it likes.
pub(super) fn note_copies(draft: &mut Draft<'_>, id: BrokerId, copies: &[CopyReport]) {
    for CopyReport { topic, partition, offline } in copies {
        let Some(state) = draft.image().partition(*topic, *partition) else { continue };
        if !state.replicas.contains(&id) || state.offline.contains(&id) == *offline {
            continue;
        }
        tracing::warn!(broker = %id, %topic, %partition, offline, "a copy is usable or not any more");
        draft.settle(*topic, *partition, |state| {
            let mut wanted = Wanted::as_it_is(state);
            wanted.offline.retain(|other| *other != id);
            wanted.offline.extend(offline.then_some(id));
            wanted
        });
    }
}

/// Decides what a leader proposes.
pub(super) fn alter_partitions(
    draft: &mut Draft<'_>,
    request: &AlterPartitions,
) -> Result<ControllerAnswer, Refusal> {
    super::brokers::check_epoch(draft.image(), request.id, request.epoch)?;
    let outcomes =
        request.changes.iter().map(|change| alter_partition(draft, request.id, change)).collect();
    Ok(ControllerAnswer::Partitions(outcomes))
}

fn alter_partition(
    draft: &mut Draft<'_>,
    sender: BrokerId,
    change: &IsrChange,
) -> Result<PartitionState, Refusal> {
    let state = find(draft, change.topic, change.partition)?;
    check_leader(state, sender, change)?;
    check_members(draft, state, sender, change)?;
    let isr = change.isr.iter().map(|(id, _)| *id).collect();
    let settled = draft
        .settle(change.topic, change.partition, |state| Wanted { isr, ..Wanted::as_it_is(state) })
        .ok_or_else(Refusal::not_controller)?;
    if settled.partition_epoch > change.partition_epoch {
        return Ok(settled);
    }
    // A leader that proposes the ISR as it is takes back what it proposed before: once the epoch
    // has risen, nothing of that can still come to pass.
    let partition_epoch = settled.partition_epoch.next();
    let state = PartitionState { partition_epoch, ..settled };
    let (topic, partition) = (change.topic, change.partition);
    draft.write(Record::Partition { topic, partition, state: state.clone() });
    Ok(state)
}

fn find<'a>(
    draft: &'a Draft<'_>,
    topic: TopicId,
    partition: PartitionId,
) -> Result<&'a PartitionState, Refusal> {
    let known = draft.image().topic(topic).ok_or_else(|| {
        Refusal::new(ErrorCode::UnknownTopicId, format!("there is no topic with id {topic}"))
    })?;
    known.partitions.get(&partition).ok_or_else(|| {
        Refusal::new(
            ErrorCode::UnknownTopicOrPartition,
            format!("topic {:?} has no partition {partition}", known.name),
        )
    })
}

/// Whether the sender leads the partition, and in the state it is in.
///
/// Epochs that are greater than known here come from a controller that is ahead of this one.
fn check_leader(
    state: &PartitionState,
    sender: BrokerId,
    change: &IsrChange,
) -> Result<(), Refusal> {
    if change.leader_epoch < state.leader_epoch {
        let message = format!("leader epoch {}, now {}", change.leader_epoch, state.leader_epoch);
        return Err(Refusal::new(ErrorCode::FencedLeaderEpoch, message));
    }
    if change.leader_epoch > state.leader_epoch || change.partition_epoch > state.partition_epoch {
        return Err(Refusal::not_controller());
    }
    if state.leader != Some(sender) {
        let message = format!("broker {sender} does not lead the partition");
        return Err(Refusal::new(ErrorCode::InvalidRequest, message));
    }
    if change.partition_epoch < state.partition_epoch {
        let message =
            format!("partition epoch {}, now {}", change.partition_epoch, state.partition_epoch);
        return Err(Refusal::new(ErrorCode::InvalidUpdateVersion, message));
    }
    Ok(())
}

fn check_members(
    draft: &Draft<'_>,
    state: &PartitionState,
    sender: BrokerId,
    change: &IsrChange,
) -> Result<(), Refusal> {
    let members: BTreeSet<_> = change.isr.iter().map(|(id, _)| *id).collect();
    let invalid = |message: String| Err(Refusal::new(ErrorCode::InvalidRequest, message));
    if members.len() != change.isr.len() {
        return invalid("a broker stands twice in the ISR".to_owned());
    }
    if !members.contains(&sender) {
        return invalid(format!("the leader, broker {sender}, is not in the ISR"));
    }
    if let Some(other) = members.iter().find(|id| !state.replicas.contains(id)) {
        return invalid(format!("broker {other} is not a replica"));
    }
    for (id, epoch) in &change.isr {
        let ineligible = match draft.image().broker(*id) {
            None => "is not registered",
            Some(broker) if broker.epoch != *epoch => "has registered anew since",
            Some(broker) if broker.fenced => "is fenced",
            // One that is in the ISR and stops stays while nobody takes its place.
            Some(broker) if broker.stopping && !state.isr.contains(id) => "is stopping",
            Some(_) if state.offline.contains(id) => "cannot use its copy",
            Some(_) => continue,
        };
        let message = format!("broker {id} {ineligible}");
        return Err(Refusal::new(ErrorCode::IneligibleReplica, message));
    }
    Ok(())
}
