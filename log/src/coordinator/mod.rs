//! What is kept for clients on topics of the log's own: where groups are, and who writes.
//!
//! ```text
//! __consumer_offsets    hash(group) % partitions             ─► leader's coordinator: offsets
//! __transaction_state   hash(transactional id) % partitions  ─► leader's coordinator: producers
//! ```
//!
//! Whoever leads a partition of such a topic is the coordinator of everything that hashes to it. It
//! knows nothing that is not in that partition: a new leader first reads it to what was there at its
//! election, and once all of that is committed ([`store`]). Keys and values are Kafka's own, so that
//! other tools can read them.

mod codec;
pub(crate) mod offsets;
mod store;
pub(crate) mod transactional;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use tailwater_kafka::{LeaderEpoch, PartitionId};
use tokio::sync::watch;

pub(crate) use store::{NotChanged, Store};

use crate::storage::flusher::Flusher;
use crate::storage::partition::Partition;

/// Where groups are.
pub(crate) const OFFSETS_TOPIC: &str = "__consumer_offsets";
/// Who has which transactional id.
pub(crate) const TRANSACTIONS_TOPIC: &str = "__transaction_state";

/// Whether a topic is the log's own.
pub(crate) fn is_internal(topic: &str) -> bool {
    [OFFSETS_TOPIC, TRANSACTIONS_TOPIC].contains(&topic)
}

/// The partition of `count` that looks after `key`: as Kafka's brokers and tools compute it.
pub(crate) fn partition_of(key: &str, count: usize) -> PartitionId {
    let hash = key
        .encode_utf16()
        .fold(0i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    let count = i32::try_from(count.max(1)).unwrap_or(i32::MAX);
    PartitionId::new(hash.checked_abs().unwrap_or(0) % count)
}

/// The coordinators of this node.
#[derive(Debug, Default)]
pub(crate) struct Coordinators {
    stores: RwLock<BTreeMap<(String, PartitionId), Arc<Store>>>,
    /// Another store, or one that has been read or has ended.
    changed: watch::Sender<()>,
}

impl Coordinators {
    /// This node leads `partition` from now on, if it is one of the log's own topics.
    pub(crate) fn lead(
        &self,
        partition: &Arc<Partition>,
        leader_epoch: LeaderEpoch,
        flusher: &Arc<Flusher>,
    ) {
        if is_internal(&partition.name.topic) {
            let (partition, flusher) = (Arc::clone(partition), Arc::clone(flusher));
            let key = (partition.name.topic.clone(), partition.name.partition);
            let store = Store::load(partition, leader_epoch, flusher, self.changed.clone());
            self.stores
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(key, Arc::new(store));
            self.changed.send_replace(());
        }
    }

    /// It leads it no more.
    pub(crate) fn resign(&self, partition: &Partition) {
        let key = (partition.name.topic.clone(), partition.name.partition);
        self.stores.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
        self.changed.send_replace(());
    }

    /// Reads anew what ended although this node leads it: a change of unknown outcome, a disk that
    /// could not be read.
    pub(crate) fn renew(&self, flusher: &Arc<Flusher>) {
        let mut stores = self.stores.write().unwrap_or_else(PoisonError::into_inner);
        for store in stores.values_mut() {
            if let Some(renewed) = store.renewed(flusher, &self.changed) {
                *store = Arc::new(renewed);
            }
        }
    }

    /// Told whenever another answer of [`Coordinators::store`] may be had.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The store of that partition.
    ///
    /// # Errors
    /// [`NotChanged::NotCoordinator`] if another node has it, [`NotChanged::Loading`] if it is not
    /// read yet.
    pub(crate) fn store(
        &self,
        topic: &str,
        partition: PartitionId,
    ) -> Result<Arc<Store>, NotChanged> {
        let stores = self.stores.read().unwrap_or_else(PoisonError::into_inner);
        let store = stores.get(&(topic.to_owned(), partition)).ok_or(NotChanged::NotCoordinator)?;
        store.check()?;
        Ok(Arc::clone(store))
    }

    /// Every store of `topic` that this node has.
    ///
    /// # Errors
    /// [`NotChanged::Loading`] if one of them is not read yet.
    pub(crate) fn all(&self, topic: &str) -> Result<Vec<Arc<Store>>, NotChanged> {
        let stores = self.stores.read().unwrap_or_else(PoisonError::into_inner);
        let of_topic = stores.iter().filter(|((name, _), _)| name == topic);
        let mut all = Vec::new();
        for (_, store) in of_topic {
            store.check()?;
            all.push(Arc::clone(store));
        }
        Ok(all)
    }

    /// Ends them all.
    pub(crate) fn close(&self) {
        self.stores.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hash_as_javas_strings() {
        // "shop".hashCode() is 3529462, "tailwater.shop_to_copy".hashCode() is negative or not:
        // either way its absolute value counts.
        assert_eq!(partition_of("shop", 50).get(), 3_529_462 % 50);
        assert_eq!(partition_of("", 50).get(), 0);
        // The one string whose hash has no absolute value.
        assert_eq!(partition_of("polygenelubricants", 50).get(), 0);
    }
}
