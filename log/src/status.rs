//! Where the partitions of a node stand, for those who watch it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tailwater_kafka::{BrokerId, LeaderEpoch, Offset, PartitionId, TopicId};

use crate::log::Log;
use crate::metadata::Image;
use crate::storage::partition::Partition;

/// Where a partition stands: for metrics and `tailwater status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionStatus {
    /// The topic's name.
    pub topic: String,
    /// The topic's identity.
    pub topic_id: TopicId,
    /// The partition's number.
    pub partition: PartitionId,
    /// The epoch in which this node leads it; `None` where it follows.
    pub leads: Option<LeaderEpoch>,
    /// The first offset that is kept.
    pub start_offset: Offset,
    /// The first offset that readers do not see yet.
    pub high_watermark: Offset,
    /// The offset that the next record gets.
    pub end_offset: Offset,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// Replicas that it should have and that are not in sync, if this node leads it.
    pub missing_replicas: usize,
    /// What its followers have, if this node leads it.
    pub followers: Vec<FollowerStatus>,
    /// Why it serves nobody, with the file, the position and the remedy; `None` while it does.
    pub offline: Option<String>,
}

/// What a follower has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowerStatus {
    /// The follower.
    pub broker: BrokerId,
    /// The first offset that it has not flushed; `None` if it has not asked since the election.
    pub end_offset: Option<Offset>,
    /// Whether it is in the ISR.
    pub in_sync: bool,
}

impl Log {
    /// Where every partition of this node stands.
    pub fn partitions(&self) -> Vec<PartitionStatus> {
        let image = Arc::clone(&self.image.borrow());
        self.partitions.all().iter().map(|partition| status(&image, partition)).collect()
    }

    /// How many bytes have been copied since the start for replicas here that were not in sync.
    pub fn catch_up_bytes(&self) -> u64 {
        self.catch_up.bytes()
    }

    /// How many bytes clients have read here, since the start, of partitions that another node leads.
    pub fn follower_read_bytes(&self) -> u64 {
        self.follower_read_bytes.load(Ordering::Relaxed)
    }

    /// How many partitions of the whole cluster nobody leads, as far as this node knows: no replica
    /// that has everything is there. They take and give nothing.
    pub fn leaderless_partitions(&self) -> usize {
        let image = Arc::clone(&self.image.borrow());
        image.partitions().filter(|(.., state)| state.leader.is_none()).count()
    }
}

fn status(image: &Image, partition: &Partition) -> PartitionStatus {
    let (offsets, size_bytes, stopped) = partition.condition();
    let name = &partition.name;
    let leads = partition.leads();
    let state = image.partition(name.topic_id, name.partition).filter(|_| leads.is_some());
    PartitionStatus {
        topic: name.topic.clone(),
        topic_id: name.topic_id,
        partition: name.partition,
        leads,
        start_offset: offsets.start,
        high_watermark: offsets.high_watermark,
        end_offset: offsets.end,
        size_bytes,
        missing_replicas: state.map_or(0, |state| state.replicas.len() - state.isr.len()),
        followers: partition
            .followers()
            .into_iter()
            .map(|one| FollowerStatus {
                broker: one.replica,
                end_offset: one.end,
                in_sync: one.in_sync,
            })
            .collect(),
        offline: stopped.map(|why| why.to_string()),
    }
}
