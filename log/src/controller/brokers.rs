//! The life of a broker: registered, unfenced, silent, stopping, gone.
//!
//! ```text
//!            Register                 Heartbeat that has applied the registration
//! (unknown) ──────────► fenced ◄───────────────────────────────────────────► unfenced
//!                         ▲        silent for the session time-out               │
//!                         │ Register                        Heartbeat "stopping" │
//!                         └────────────────── stopping ◄─────────────────────────┘
//! ```
//!
//! Whatever changes about a broker, its partitions are settled in the same entry (see
//! `partitions`): no image has a fenced leader.
//!
//! A restart costs a broker its place in each ISR but not its completeness, as long as it has what
//! it had: it comes back to the same data folder and, if it acknowledges before it flushes, it
//! stopped in order. Else it is forgotten as a holder of what was committed (KIP-966).

use std::collections::BTreeSet;
use std::time::Duration;

use tailwater_kafka::BrokerId;
use tailwater_kafka::wire::ErrorCode;

use super::draft::Draft;
use super::partitions;
use super::requests::{ControllerAnswer, Heartbeat, HeartbeatAnswer, Refusal, Registration};
use super::sessions::Sessions;
use crate::metadata::{BrokerEpoch, BrokerState, Image, PartitionState, Record};

/// Whether `epoch` is the present registration of `id`.
pub(super) fn check_epoch(
    image: &Image,
    id: BrokerId,
    epoch: BrokerEpoch,
) -> Result<&BrokerState, Refusal> {
    let Some(broker) = image.broker(id) else {
        let message = format!("broker {id} is not registered");
        return Err(Refusal::new(ErrorCode::BrokerIdNotRegistered, message));
    };
    if broker.epoch != epoch {
        let message =
            format!("broker {id} has registered again: its epoch is {}, not {epoch}", broker.epoch);
        return Err(Refusal::new(ErrorCode::StaleBrokerEpoch, message));
    }
    Ok(broker)
}

pub(super) fn register(
    draft: &mut Draft<'_>,
    request: &Registration,
) -> Result<ControllerAnswer, Refusal> {
    let known = draft.image().broker(request.id);
    if let Some(known) = known {
        if is_the_same_start(known, request) {
            return Ok(ControllerAnswer::Registered { epoch: known.epoch });
        }
        check_replacement(known, request)?;
    }
    // The index alone would give two registrations that are decided together one epoch.
    let epoch = known
        .map(|known| BrokerEpoch::new(known.epoch.get().saturating_add(1)))
        .into_iter()
        .fold(BrokerEpoch::after(draft.image().index()), BrokerEpoch::max);
    let has_other_disk = known.is_some_and(|known| known.directory != request.directory);
    let is_unclean = known.is_some_and(|known| request.previous_epoch != Some(known.epoch));
    let lacks_unflushed = is_unclean && request.keeps_unflushed;

    let state = BrokerState {
        epoch,
        incarnation: request.incarnation,
        directory: request.directory,
        host: request.host.clone(),
        port: request.port,
        rack: request.rack.clone(),
        fenced: true,
        stopping: false,
    };
    draft.write(Record::Broker { id: request.id, state });
    draft.resettle(&BTreeSet::from([request.id]), |id, partition| {
        // Nobody else can have more of a partition than its only replica.
        has_other_disk || lacks_unflushed && partition.replicas != [id]
    });
    Ok(ControllerAnswer::Registered { epoch })
}

/// Whether this is a registration asked for again because its answer was lost.
fn is_the_same_start(known: &BrokerState, request: &Registration) -> bool {
    known.incarnation == request.incarnation
        && known.directory == request.directory
        && known.host == request.host
        && known.port == request.port
        && known.rack == request.rack
}

/// A data folder belongs to one process at a time, so a new start from the same folder means that
/// the former is dead. From another folder it may be a second broker with the same id.
fn check_replacement(known: &BrokerState, request: &Registration) -> Result<(), Refusal> {
    if known.fenced || known.directory == request.directory {
        return Ok(());
    }
    let message = format!(
        "a broker {} is alive at {}:{} with another data folder: stop that one first, or give this \
         one its own node_id",
        request.id, known.host, known.port
    );
    Err(Refusal::new(ErrorCode::DuplicateBrokerRegistration, message))
}

pub(super) fn heartbeat(
    draft: &mut Draft<'_>,
    sessions: &Sessions,
    request: &Heartbeat,
) -> Result<ControllerAnswer, Refusal> {
    let known = &check_epoch(draft.image(), request.id, request.epoch)?.clone();
    // First: whoever is unfenced below may lead, but not with a copy that it cannot use.
    partitions::note_copies(draft, request.id, &request.copies);
    let mut state = known.clone();
    if request.stopping {
        state.stopping = true;
    }
    if !state.stopping && sessions.has_caught_up(request.id) {
        state.fenced = false;
    }
    let began_to_stop = state.stopping && !known.stopping;
    if state != *known {
        draft.write(Record::Broker { id: request.id, state: state.clone() });
        draft.resettle(&BTreeSet::from([request.id]), |_, _| false);
    }
    let may_stop = state.stopping && {
        let image = draft.image();
        let mut others =
            image.brokers().keys().copied().filter(|id| image.is_eligible(*id)).peekable();
        // Who else there is has not seen yet what this draft says.
        if began_to_stop {
            others.peek().is_none()
        } else {
            sessions.is_stop_known(request.id, others)
        }
    };
    Ok(ControllerAnswer::Heartbeat(HeartbeatAnswer { fenced: state.fenced, may_stop }))
}

/// Fences who has been silent for too long.
pub(super) fn fence_silent(draft: &mut Draft<'_>, sessions: &Sessions, now: Duration) {
    let silent: Vec<_> = draft
        .image()
        .live_brokers()
        .filter(|(id, _)| sessions.has_expired(now, *id))
        .map(|(id, state)| (id, state.clone()))
        .collect();
    if silent.is_empty() {
        return;
    }
    let mut fenced = BTreeSet::new();
    for (id, mut state) in silent {
        tracing::warn!(broker = %id, "the broker is silent and is fenced");
        state.fenced = true;
        draft.write(Record::Broker { id, state });
        fenced.insert(id);
    }
    // All at once, so that none is elected in the place of another that is silent too.
    draft.resettle(&fenced, |_, _| false);
}

pub(super) fn unregister(draft: &mut Draft<'_>, id: BrokerId) -> Result<ControllerAnswer, Refusal> {
    let Some(known) = draft.image().broker(id) else {
        let message = format!("broker {id} is not registered");
        return Err(Refusal::new(ErrorCode::BrokerIdNotRegistered, message));
    };
    if !known.fenced {
        let message = format!("broker {id} is alive: stop it first");
        return Err(Refusal::new(ErrorCode::InvalidRequest, message));
    }
    let has_replica = |state: &PartitionState| state.replicas.contains(&id);
    let held = draft.image().partitions().filter(|(.., state)| has_replica(state)).count();
    if let Some((_, topic, number, _)) =
        draft.image().partitions().find(|(.., state)| has_replica(state))
    {
        let message = format!(
            "broker {id} has replicas of {held} partitions, {}-{number} among them: move them to \
             other brokers first",
            topic.name
        );
        return Err(Refusal::new(ErrorCode::InvalidRequest, message));
    }
    draft.write(Record::RemoveBroker { id });
    Ok(ControllerAnswer::Unregistered)
}
