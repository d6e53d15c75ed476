//! What a node does by itself, time and again: flush marks, partitions that could not be opened,
//! retention, compaction.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tailwater_kafka::Offset;

use crate::Error;
use crate::config::FlushPolicy;
use crate::log::Log;
use crate::partitions::{PartitionKey, Partitions};
use crate::storage::partition::{Partition, Shared};
use crate::storage::retention::Hold;

/// How often flush marks are made durable, and with them how old one may be after a power cut.
const BACKGROUND_SYNC: Duration = Duration::from_secs(1);

/// How soon a partition is tried again that could not be opened: it takes reading its last segment.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

impl Log {
    /// Removes what is past its retention now, as the node does every
    /// [`Config::retention_check`](crate::Config::retention_check). Returns how many bytes that freed.
    ///
    /// # Errors
    /// If a thread of the log died.
    pub async fn enforce_retention(self: &Arc<Self>) -> Result<u64, Error> {
        let holds = self.holds().await;
        enforce_retention(&self.shared, &self.partitions, holds).await
    }

    /// Compacts what is worth it now, as the node does every
    /// [`Config::retention_check`](crate::Config::retention_check). Returns how many bytes that freed.
    ///
    /// # Errors
    /// If a thread of the log died.
    pub async fn compact(&self) -> Result<u64, Error> {
        compact(&self.shared, &self.partitions).await
    }
}

/// Looks after retention and compaction for as long as the node is there.
pub(crate) async fn look_after_retention(log: Weak<Log>) {
    loop {
        let Some(every) = log.upgrade().map(|log| log.shared.config.retention_check) else {
            return;
        };
        tokio::time::sleep(every).await;
        let Some(log) = log.upgrade() else { return };
        log.forget_deleted_topics().await;
        let retained = log.enforce_retention().await;
        if let Err(error) = retained.and(log.compact().await) {
            tracing::error!(error = %error.full_text(), "retention failed; tried again later");
        }
    }
}

/// Flushes what an interval policy left, and flush marks under every policy.
pub(crate) async fn sync_in_background(shared: Arc<Shared>, partitions: Arc<Partitions>) {
    let every = match shared.config.flush {
        FlushPolicy::Interval(interval) => interval.min(BACKGROUND_SYNC),
        FlushPolicy::Always | FlushPolicy::Never => BACKGROUND_SYNC,
    };
    loop {
        tokio::time::sleep(every).await;
        let partitions = Arc::clone(&partitions);
        let synced = shared.config.workers.run(move || {
            for partition in partitions.all() {
                partition.guard(Partition::sync_in_background);
            }
        });
        if synced.await.is_err() {
            return;
        }
    }
}

/// Opens the partitions for which there were no files, no memory or no space at the start.
pub(crate) async fn open_refused(shared: Arc<Shared>, partitions: Arc<Partitions>) {
    loop {
        tokio::time::sleep(REFUSED_PAUSE).await;
        let partitions = Arc::clone(&partitions);
        let opened = shared.config.workers.run(move || {
            for partition in partitions.all() {
                partition.guard(Partition::open_again);
            }
        });
        if opened.await.is_err() {
            return;
        }
    }
}

async fn enforce_retention(
    shared: &Arc<Shared>,
    partitions: &Arc<Partitions>,
    holds: Option<HashMap<PartitionKey, Hold>>,
) -> Result<u64, Error> {
    let workers = shared.config.workers.clone();
    let (shared, partitions) = (Arc::clone(shared), Arc::clone(partitions));
    let enforcing = workers.run(move || {
        let now = shared.config.clock.now_ms();
        let partitions = partitions.all();
        let mut size: u64 = partitions.iter().map(|partition| partition.condition().1).sum();
        let mut freed = 0;
        for partition in partitions {
            partition.expire_producers(now);
            let key = partition.name.key();
            let hold = match &holds {
                Some(holds) => holds.get(&key).copied().unwrap_or(Hold::Nothing),
                // Nobody could say what is still needed: all of it may be.
                None => Hold::From(Offset::ZERO),
            };
            let limit = shared.config.retention_limit.unwrap_or(u64::MAX);
            let excess_bytes = size.saturating_sub(limit);
            let before = partition.condition().1;
            freed += retain(&partition, now, hold, excess_bytes);
            // Not what was freed: a file that was released may still be there, and one released
            // earlier may have gone now. Neither is a reason to take more from the next partition.
            size -= before.saturating_sub(partition.condition().1).min(size);
        }
        shared.reserve.refill();
        freed
    });
    enforcing.await
}

async fn compact(shared: &Arc<Shared>, partitions: &Arc<Partitions>) -> Result<u64, Error> {
    let partitions = Arc::clone(partitions);
    let compacting = shared.config.workers.run(move || {
        let mut freed = 0;
        for partition in partitions.all() {
            let compacted = partition.guard(Partition::compact).unwrap_or(Ok(0));
            freed += compacted.unwrap_or_else(|error| {
                tracing::warn!(
                    topic = %partition.name.topic,
                    partition = %partition.name.partition,
                    error = %error.full_text(),
                    "not compacted; tried again later"
                );
                0
            });
        }
        freed
    });
    compacting.await
}

fn retain(partition: &Partition, now_ms: i64, hold: Hold, excess_bytes: u64) -> u64 {
    let enforced =
        partition.guard(|partition| partition.enforce_retention(now_ms, hold, excess_bytes));
    match enforced {
        Some(Ok(freed)) => freed,
        None => 0,
        Some(Err(error)) => {
            tracing::warn!(
                topic = %partition.name.topic,
                partition = %partition.name.partition,
                error = %error.full_text(),
                "old segments not removed; tried again later"
            );
            0
        }
    }
}
