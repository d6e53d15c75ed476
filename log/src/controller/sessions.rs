//! Who has been heard of, and when.
//!
//! Sessions are not metadata: they are what this controller has seen since it leads. A new one
//! gives every broker a whole session time-out before it fences any.
//!
//! Two are back within moments or gone, and have a fraction of the time-out. A broker nearly always
//! has a heartbeat here that waits for news: one whose connection ended, as the system ends those of
//! a process that was killed. And the one on the node that led before: it was replaced because it
//! had been silent for longer than that already.

use std::collections::BTreeMap;
use std::time::Duration;

use tailwater_kafka::BrokerId;

use super::requests::Heartbeat;
use crate::metadata::{BrokerEpoch, Image, MetadataIndex, Record};

#[derive(Debug)]
struct Session {
    epoch: BrokerEpoch,
    heard_at: Duration,
    /// The request that was its last heartbeat.
    last_heartbeat: Option<u64>,
    /// When the connection of that one ended, or its node was replaced as the one that leads.
    left_at: Option<Duration>,
    /// The broker has applied metadata up to here.
    applied: MetadataIndex,
    /// The broker may be unfenced once it has applied this: its registration is in it.
    registered: MetadataIndex,
    /// Others may be relied on in its place once they have applied this: that it stops is in it.
    stopping: MetadataIndex,
}

/// What part of the time-out a broker has to come back: it asks the other controllers once, rests for
/// 100 ms, and connects.
const TO_COME_BACK: u32 = 8;

/// The session of every registered broker.
#[derive(Debug)]
pub(super) struct Sessions {
    timeout: Duration,
    by_broker: BTreeMap<BrokerId, Session>,
    /// When this controller last did anything.
    awake_at: Duration,
}

impl Sessions {
    /// Begins a session for each broker of `image`; `led_before` has to come back.
    pub(super) fn new(
        now: Duration,
        timeout: Duration,
        image: &Image,
        led_before: Option<BrokerId>,
    ) -> Self {
        let index = image.index();
        let begin = |id: &BrokerId, epoch| Session {
            left_at: (led_before == Some(*id)).then_some(now),
            ..Session::new(epoch, now, index)
        };
        let brokers = image.brokers().iter();
        let by_broker = brokers.map(|(id, broker)| (*id, begin(id, broker.epoch))).collect();
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
                session.left_at = None;
            }
        }
        self.awake_at = now;
    }

    /// A heartbeat came, as this request.
    pub(super) fn hear(&mut self, now: Duration, request: u64, beat: &Heartbeat) {
        let session = self.by_broker.get_mut(&beat.id);
        if let Some(session) = session.filter(|known| known.epoch == beat.epoch) {
            session.heard_at = now;
            session.last_heartbeat = Some(request);
            session.left_at = None;
            session.applied = session.applied.max(beat.applied);
        }
    }

    /// Nobody waits for the answer to this heartbeat any more. An older one than the broker's last
    /// says nothing: that came over another connection.
    pub(super) fn leave(&mut self, now: Duration, request: u64) {
        let mut sessions = self.by_broker.values_mut();
        if let Some(left) = sessions.find(|session| session.last_heartbeat == Some(request)) {
            left.left_at = Some(now);
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
        self.by_broker.get(&id).is_none_or(|session| {
            let is_over = |since, time| now.saturating_sub(since) >= time;
            let has_left = |left_at| is_over(left_at, self.timeout / TO_COME_BACK);
            is_over(session.heard_at, self.timeout) || session.left_at.is_some_and(has_left)
        })
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
            last_heartbeat: None,
            left_at: None,
            applied: MetadataIndex::ZERO,
            registered: index,
            stopping: index,
        }
    }
}
