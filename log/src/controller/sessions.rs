//! Who has been heard of, and when.
//!
//! Sessions are not metadata: they are what this controller has seen since it leads. A new one
//! gives every broker a whole session time-out before it fences any.

use std::collections::BTreeMap;
use std::time::Duration;

use tailwater_kafka::BrokerId;

use crate::metadata::{BrokerEpoch, Image, MetadataIndex, Record};

#[derive(Debug)]
struct Session {
    epoch: BrokerEpoch,
    heard_at: Duration,
    /// The broker has applied metadata up to here.
    applied: MetadataIndex,
    /// The broker may be unfenced once it has applied this: its registration is in it.
    registered: MetadataIndex,
    /// Others may be relied on in its place once they have applied this: that it stops is in it.
    stopping: MetadataIndex,
}

/// The session of every registered broker.
#[derive(Debug)]
pub(super) struct Sessions {
    timeout: Duration,
    by_broker: BTreeMap<BrokerId, Session>,
    /// When this controller last did anything.
    awake_at: Duration,
}

impl Sessions {
    /// Begins a session for each broker of `image`.
    pub(super) fn new(now: Duration, timeout: Duration, image: &Image) -> Self {
        let index = image.index();
        let by_broker = image
            .brokers()
            .iter()
            .map(|(id, broker)| (*id, Session::new(broker.epoch, now, index)))
            .collect();
        Self { timeout, by_broker, awake_at: now }
    }

    /// This controller is running at `now`.
    ///
    /// If it was not for half a time-out (the machine was suspended, the disk hung), it has not
    /// listened either: then silence says nothing about the brokers.
    pub(super) fn awake(&mut self, now: Duration) {
        if now.saturating_sub(self.awake_at) > self.timeout / 2 {
            for session in self.by_broker.values_mut() {
                session.heard_at = now;
            }
        }
        self.awake_at = now;
    }

    /// A heartbeat came.
    pub(super) fn hear(
        &mut self,
        now: Duration,
        id: BrokerId,
        epoch: BrokerEpoch,
        applied: MetadataIndex,
    ) {
        if let Some(session) = self.by_broker.get_mut(&id).filter(|known| known.epoch == epoch) {
            session.heard_at = now;
            session.applied = session.applied.max(applied);
        }
    }

    /// An entry was committed.
    pub(super) fn committed(&mut self, now: Duration, index: MetadataIndex, records: &[Record]) {
        for record in records {
            match record {
                Record::Broker { id, state } => {
                    let session = self
                        .by_broker
                        .entry(*id)
                        .or_insert_with(|| Session::new(state.epoch, now, index));
                    if session.epoch != state.epoch {
                        *session = Session::new(state.epoch, now, index);
                    }
                    if state.stopping && session.stopping == session.registered {
                        session.stopping = index;
                    }
                }
                Record::RemoveBroker { id } => {
                    self.by_broker.remove(id);
                }
                Record::Cluster { .. }
                | Record::Topic { .. }
                | Record::RemoveTopic { .. }
                | Record::Partition { .. }
                | Record::ProducerIds { .. }
                | Record::Acl { .. }
                | Record::RemoveAcl { .. } => {}
            }
        }
    }

    /// Whether `id` has been silent for longer than a broker may.
    pub(super) fn has_expired(&self, now: Duration, id: BrokerId) -> bool {
        self.by_broker
            .get(&id)
            .is_none_or(|session| now.saturating_sub(session.heard_at) >= self.timeout)
    }

    /// Whether `id` has applied its own registration, and so all that came before.
    pub(super) fn has_caught_up(&self, id: BrokerId) -> bool {
        self.by_broker.get(&id).is_some_and(|session| session.applied >= session.registered)
    }

    /// Whether all of `others` know that `id` is stopping, and so who leads in its place.
    pub(super) fn is_stop_known(
        &self,
        id: BrokerId,
        mut others: impl Iterator<Item = BrokerId>,
    ) -> bool {
        let Some(stopping) = self.by_broker.get(&id).map(|session| session.stopping) else {
            return true;
        };
        others.all(|other| {
            self.by_broker.get(&other).is_none_or(|session| session.applied >= stopping)
        })
    }
}

impl Session {
    fn new(epoch: BrokerEpoch, now: Duration, index: MetadataIndex) -> Self {
        Self {
            epoch,
            heard_at: now,
            applied: MetadataIndex::ZERO,
            registered: index,
            stopping: index,
        }
    }
}
