//! Which replica a client reads from (KIP-392).
//!
//! ```text
//! client in rack b ──► leader in rack a: "read from replica 2" ──► replica 2 in rack b: batches
//!        ▲                                                             │ not in sync, not in service
//!        └──────────────── NOT_LEADER_OR_FOLLOWER ─────────────────────┘
//! ```
//!
//! A follower gives what is below its own high watermark, which is never above what is committed; so
//! what it gives is right, if old. It gives nothing once it knows that it is not relied on: a client
//! would wait for what does not come any more. Clients of before the KIP never ask followers; one that
//! does has missed an election.

use std::sync::Arc;

use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::wire::fetch_request::FetchPartition;
use tailwater_kafka::{BrokerId, Offset};

use super::Refused;
use super::view::Topic;
use crate::log::Log;
use crate::storage::partition::Partition;

/// The first version of Fetch in which clients say where they are, and may be sent elsewhere.
const RACKS: i16 = 11;

/// A client that reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientReader<'a> {
    /// Where it is; empty if it does not say.
    pub(super) rack: &'a str,
    /// Of its request.
    pub(super) version: i16,
}

impl Log {
    /// The replica that `client` had better read from than this one.
    ///
    /// # Errors
    /// NOT_LEADER_OR_FOLLOWER if it is to ask the leader.
    pub(super) fn better_replica(
        &self,
        topic: &Topic,
        partition: &Arc<Partition>,
        asked: &FetchPartition,
        client: ClientReader<'_>,
    ) -> Result<Option<BrokerId>, Refused> {
        let offsets = partition.offsets()?;
        if partition.leads().is_none() {
            let is_relied_on = self.is_in_service() && self.is_in_isr(topic, partition)?;
            let may = client.version >= RACKS && is_relied_on;
            return if may { Ok(None) } else { Err(ErrorCode::NotLeaderOrFollower.into()) };
        }
        let from = Offset::new(asked.fetch_offset);
        let is_there = offsets.start <= from && from <= offsets.high_watermark;
        if client.version < RACKS || client.rack.is_empty() || !is_there {
            return Ok(None);
        }
        Ok(self.nearest(topic, partition, from, client.rack))
    }

    fn is_in_isr(&self, topic: &Topic, partition: &Partition) -> Result<bool, Refused> {
        let state = topic.partition(partition.name.partition.get())?;
        Ok(state.isr.contains(&self.node_id()))
    }

    /// The in-sync follower in `rack` that has the most, and everything before `from`; `None` if there
    /// is none, or this leader is there itself.
    fn nearest(
        &self,
        topic: &Topic,
        partition: &Partition,
        from: Offset,
        rack: &str,
    ) -> Option<BrokerId> {
        if self.shared.config.rack.as_deref() == Some(rack) {
            return None;
        }
        let brokers = topic.brokers();
        let is_near = |id: BrokerId| {
            let broker = brokers.get(&id).filter(|broker| broker.is_eligible());
            broker.is_some_and(|broker| broker.rack.as_deref() == Some(rack))
        };
        let mut near: Vec<_> = partition.followers();
        near.retain(|one| one.in_sync && one.end >= Some(from) && is_near(one.replica));
        // The least id among equals: the answer is the same each time.
        near.sort_by_key(|one| (std::cmp::Reverse(one.end), one.replica));
        near.first().map(|one| one.replica)
    }
}
