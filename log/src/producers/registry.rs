//! Producer ids and transactional ids of the node, and the fence in front of every partition.
//!
//! A transactional id names a role that only one process may have, such as capturing a source. Each
//! InitProducerId on it gives the same producer id with the next epoch, durably, and from the
//! moment it is answered no batch of an older epoch is taken on any partition, whether or not the
//! new process has written there. That is the order in [`ProducerRegistry::init`]: the journal
//! first, then the fence, then the answer; and [`Fencing::admit`] holds the fence still while a
//! batch is put in the log, so none slips through between the look and the append.
//!
//! The journal may be older than the partitions: restored from a copy, say. An id or an epoch that
//! is given again would have a new producer's batches taken for repetitions of the old one's, and
//! acknowledged without being written. So [`ProducerRegistry::open`] begins above everything that
//! the partitions have seen.
//!
//! Journal entries (see [`journal`](crate::storage::journal)), numbers big-endian:
//!
//! | key | value |
//! |---|---|
//! | `0x01` | next producer id that is not reserved i64 |
//! | `0x02`, transactional id | producer id i64, epoch i16 |
//! | `0x03`, producer id i64 | empty: its epochs are used up, all of them are fenced |

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::{Buf, BufMut, Bytes};
use tailwater_kafka::{ProducerEpoch, ProducerId};
use tokio::sync::Mutex;

use crate::Error;
use crate::producers::Refusal;
use crate::storage::journal::{Change, Entries, Journal};

/// Ids reserved at once: most InitProducerIds of plain producers then cost no flush.
const BLOCK: i64 = 1000;

/// The last epoch that is given: the next one would not leave room for a fence.
const LAST_EPOCH: i16 = i16::MAX - 1;

const NEXT_ID: u8 = 1;
const TRANSACTIONAL: u8 = 2;
const RETIRED: u8 = 3;

/// What a client asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct InitRequest {
    /// The role; without one the producer is just a new producer.
    pub(crate) transactional_id: Option<String>,
    /// What the client believes to be (KIP-360); only it may then go on.
    pub(crate) believes: Option<(ProducerId, ProducerEpoch)>,
}

/// Why there is no producer id.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    /// The client has been fenced: another one has taken over the role.
    #[error("another producer has taken over transactional id {0:?}")]
    Fenced(String),
    /// The journal could not take it.
    #[error(transparent)]
    Journal(#[from] Error),
}

/// Gives out producer ids.
#[derive(Debug)]
pub(crate) struct ProducerRegistry {
    journal: Journal,
    /// One InitProducerId at a time.
    ids: Mutex<IdBlock>,
    fencing: Arc<Fencing>,
}

/// Producer ids that are reserved and not given yet.
#[derive(Debug)]
struct IdBlock {
    next: i64,
    until: i64,
}

/// The current epoch of every producer with a transactional id.
#[derive(Debug, Default)]
pub(crate) struct Fencing {
    epochs: RwLock<HashMap<ProducerId, ProducerEpoch>>,
}

/// Proof that a batch's epoch is current; no newer one begins while it lives.
#[derive(Debug)]
pub(crate) struct Admission<'a> {
    _still: RwLockReadGuard<'a, HashMap<ProducerId, ProducerEpoch>>,
}

impl Fencing {
    /// Admits a batch to be appended while the admission lives.
    ///
    /// # Errors
    /// If the producer has a newer epoch, or never had this one.
    pub(crate) fn admit(
        &self,
        producer: ProducerId,
        epoch: ProducerEpoch,
    ) -> Result<Admission<'_>, Refusal> {
        let epochs = self.epochs.read().unwrap_or_else(PoisonError::into_inner);
        match epochs.get(&producer) {
            Some(current) if *current != epoch => {
                Err(Refusal::StaleEpoch { producer, current: *current, found: epoch })
            }
            _ => Ok(Admission { _still: epochs }),
        }
    }

    fn set_all(&self, entries: &Entries) {
        for (producer, epoch) in fences(entries) {
            self.set(producer, epoch);
        }
    }

    fn set(&self, producer: ProducerId, epoch: ProducerEpoch) {
        self.epochs.write().unwrap_or_else(PoisonError::into_inner).insert(producer, epoch);
    }
}

impl ProducerRegistry {
    /// A registry over its journal, which gives nothing that a partition has `seen`. Blocks.
    ///
    /// # Errors
    /// If the journal is behind and could not take that.
    pub(crate) fn open(
        journal: Journal,
        seen: &HashMap<ProducerId, ProducerEpoch>,
    ) -> Result<Self, Error> {
        let registry = Self::new(journal);
        registry.learn(seen)?;
        Ok(registry)
    }

    fn new(journal: Journal) -> Self {
        let fencing = Fencing::default();
        let until = journal.read(|entries| {
            fencing.set_all(entries);
            next_id(entries)
        });
        // The rest of a block that was being given out is lost, not given twice.
        let ids = Mutex::new(IdBlock { next: until, until });
        Self { journal, ids, fencing: Arc::new(fencing) }
    }

    /// Gives nothing from now on that a partition has `seen`. Blocks.
    ///
    /// # Errors
    /// If the journal is behind and could not take that.
    pub(crate) fn learn(&self, seen: &HashMap<ProducerId, ProducerEpoch>) -> Result<(), Error> {
        // Where tasks do the blocking work, waiting would be for ever.
        let mut ids = self.ids.try_lock().unwrap_or_else(|_| self.ids.blocking_lock());
        let changes = self.journal.read(|entries| missing(entries, seen));
        if !changes.is_empty() {
            tracing::warn!(
                entries = changes.len(),
                "the partitions know newer producers than producers.journal; it is brought up to \
                 date"
            );
            self.journal.change_blocking(changes)?;
            self.journal.read(|entries| self.fencing.set_all(entries));
        }
        ids.next = ids.next.max(above(seen));
        ids.until = ids.until.max(ids.next);
        Ok(())
    }

    /// The fence in front of every partition.
    pub(crate) fn fencing(&self) -> &Arc<Fencing> {
        &self.fencing
    }

    /// The producer that has `transactional_id`.
    pub(crate) fn producer_of(&self, transactional_id: &str) -> Option<ProducerId> {
        self.current(transactional_id).map(|(producer, _)| producer)
    }

    /// Gives out a producer id and epoch, fencing every older one of the same transactional id.
    ///
    /// # Errors
    /// If the client is fenced, or the journal could not take it.
    pub(crate) async fn init(
        &self,
        request: InitRequest,
    ) -> Result<(ProducerId, ProducerEpoch), InitError> {
        let mut ids = self.ids.lock().await;
        let Some(transactional_id) = request.transactional_id else {
            let producer = self.allocate(&mut ids).await?;
            return Ok((producer, ProducerEpoch::new(0)));
        };
        let current = self.current(&transactional_id);
        if request.believes.is_some() && request.believes != current {
            return Err(InitError::Fenced(transactional_id));
        }
        let mut changes = Vec::new();
        let given = match current {
            Some((producer, epoch)) if epoch.get() < LAST_EPOCH => {
                (producer, ProducerEpoch::new(epoch.get() + 1))
            }
            used_up => {
                if let Some((old, _)) = used_up {
                    changes.push((retired_key(old), Some(Bytes::new())));
                }
                (self.allocate(&mut ids).await?, ProducerEpoch::new(0))
            }
        };
        changes.push((transactional_key(&transactional_id), Some(encode(given))));
        self.journal.change(changes).await?;
        if let Some((old, _)) = current
            && old != given.0
        {
            self.fencing.set(old, ProducerEpoch::new(i16::MAX));
        }
        self.fencing.set(given.0, given.1);
        Ok(given)
    }

    /// Finishes what waits. Blocks.
    ///
    /// # Errors
    /// If the journal's thread had died.
    pub(crate) fn close(&self) -> Result<(), Error> {
        self.journal.close()
    }

    fn current(&self, transactional_id: &str) -> Option<(ProducerId, ProducerEpoch)> {
        self.journal.read(|entries| {
            entries.get(&transactional_key(transactional_id)).and_then(|value| decode(value))
        })
    }

    async fn allocate(&self, ids: &mut IdBlock) -> Result<ProducerId, Error> {
        if ids.next == ids.until {
            let until = ids.until + BLOCK;
            let reserved = Bytes::copy_from_slice(&until.to_be_bytes());
            self.journal.change(vec![(vec![NEXT_ID], Some(reserved))]).await?;
            ids.until = until;
        }
        ids.next += 1;
        Ok(ProducerId::new(ids.next - 1))
    }
}

/// What brings the journal up to the producers that the partitions have seen.
fn missing(entries: &Entries, seen: &HashMap<ProducerId, ProducerEpoch>) -> Vec<Change> {
    let next = above(seen);
    let mut changes = Vec::new();
    if next > next_id(entries) {
        changes.push((vec![NEXT_ID], Some(Bytes::copy_from_slice(&next.to_be_bytes()))));
    }
    for (key, value) in entries.iter().filter(|(key, _)| key.first() == Some(&TRANSACTIONAL)) {
        if let Some((producer, epoch)) = decode(value)
            && let Some(seen) = seen.get(&producer)
            && *seen > epoch
        {
            changes.push((key.clone(), Some(encode((producer, *seen)))));
        }
    }
    changes
}

/// The first id above all that were seen.
fn above(seen: &HashMap<ProducerId, ProducerEpoch>) -> i64 {
    // Ids are given from 0 on: the greatest ones are somebody's invention, and leave no room.
    let given = seen.keys().map(|id| id.get()).filter(|id| *id < i64::MAX / 2);
    given.max().map_or(0, |id| id + 1)
}

fn next_id(entries: &Entries) -> i64 {
    entries.get(&vec![NEXT_ID]).and_then(|value| (&value[..]).try_get_i64().ok()).unwrap_or(0)
}

fn fences(entries: &Entries) -> impl Iterator<Item = (ProducerId, ProducerEpoch)> + '_ {
    entries.iter().filter_map(|(key, value)| match key.split_first()? {
        (&TRANSACTIONAL, _) => decode(value),
        (&RETIRED, mut id) => {
            Some((ProducerId::new(id.try_get_i64().ok()?), ProducerEpoch::new(i16::MAX)))
        }
        _ => None,
    })
}

fn transactional_key(transactional_id: &str) -> Vec<u8> {
    let mut key = vec![TRANSACTIONAL];
    key.extend_from_slice(transactional_id.as_bytes());
    key
}

fn retired_key(producer: ProducerId) -> Vec<u8> {
    let mut key = vec![RETIRED];
    key.put_i64(producer.get());
    key
}

fn encode((producer, epoch): (ProducerId, ProducerEpoch)) -> Bytes {
    let mut value = Vec::with_capacity(10);
    value.put_i64(producer.get());
    value.put_i16(epoch.get());
    value.into()
}

fn decode(mut value: &[u8]) -> Option<(ProducerId, ProducerEpoch)> {
    let producer = ProducerId::new(value.try_get_i64().ok()?);
    Some((producer, ProducerEpoch::new(value.try_get_i16().ok()?)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::storage::testing::shared;

    fn open(folder: &Path) -> ProducerRegistry {
        let path = folder.join("producers.journal");
        ProducerRegistry::new(Journal::open(&path, &shared()).unwrap())
    }

    fn role(name: &str) -> InitRequest {
        InitRequest { transactional_id: Some(name.to_owned()), believes: None }
    }

    #[tokio::test]
    async fn the_same_id_comes_back_with_the_next_epoch_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let registry = open(folder.path());
        let (first, epoch) = registry.init(role("a")).await.unwrap();
        assert_eq!(epoch, ProducerEpoch::new(0));
        let (other, _) = registry.init(role("b")).await.unwrap();
        assert_ne!(first, other);
        assert_eq!(registry.init(role("a")).await.unwrap(), (first, ProducerEpoch::new(1)));
        registry.close().unwrap();
        let registry = open(folder.path());
        // Before anyone asks again, the older epoch is fenced already.
        assert!(registry.fencing().admit(first, ProducerEpoch::new(0)).is_err());
        assert!(registry.fencing().admit(first, ProducerEpoch::new(1)).is_ok());
        assert_eq!(registry.init(role("a")).await.unwrap(), (first, ProducerEpoch::new(2)));
        assert!(registry.fencing().admit(first, ProducerEpoch::new(1)).is_err());
    }

    #[tokio::test]
    async fn ids_are_never_given_twice() {
        let folder = tempfile::tempdir().unwrap();
        let mut given = std::collections::HashSet::new();
        for _ in 0..3 {
            let registry = open(folder.path());
            for _ in 0..BLOCK + 5 {
                let (producer, _) = registry.init(InitRequest::default()).await.unwrap();
                assert!(given.insert(producer));
            }
            registry.close().unwrap();
        }
    }

    #[tokio::test]
    async fn a_journal_that_is_behind_the_partitions_gives_nothing_twice() {
        let folder = tempfile::tempdir().unwrap();
        let registry = open(folder.path());
        let (producer, _) = registry.init(role("a")).await.unwrap();
        registry.close().unwrap();
        let seen = HashMap::from([
            (producer, ProducerEpoch::new(7)),
            (ProducerId::new(5000), ProducerEpoch::new(0)),
            (ProducerId::new(i64::MAX), ProducerEpoch::new(0)),
        ]);
        let path = folder.path().join("producers.journal");
        let opening = tokio::task::spawn_blocking(move || {
            ProducerRegistry::open(Journal::open(&path, &shared()).unwrap(), &seen).unwrap()
        });
        let registry = opening.await.unwrap();
        assert!(registry.fencing().admit(producer, ProducerEpoch::new(6)).is_err());
        assert_eq!(registry.init(role("a")).await.unwrap(), (producer, ProducerEpoch::new(8)));
        let next = registry.init(InitRequest::default()).await.unwrap();
        assert_eq!(next.0, ProducerId::new(5001));
        // And of a partition that could not be opened at once.
        let learning = tokio::task::spawn_blocking(move || {
            let seen = [(producer, ProducerEpoch::new(9)), (ProducerId::new(5500), next.1)];
            registry.learn(&HashMap::from(seen)).unwrap();
            registry
        });
        let registry = learning.await.unwrap();
        assert!(registry.fencing().admit(producer, ProducerEpoch::new(8)).is_err());
        let (next, _) = registry.init(InitRequest::default()).await.unwrap();
        assert_eq!(next, ProducerId::new(5501));
    }

    #[tokio::test]
    async fn used_up_epochs_give_a_new_id_and_fence_the_old_one_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let registry = open(folder.path());
        let (old, _) = registry.init(role("a")).await.unwrap();
        let spent = (old, ProducerEpoch::new(LAST_EPOCH));
        let change = (transactional_key("a"), Some(encode(spent)));
        registry.journal.change(vec![change]).await.unwrap();
        let (new, epoch) = registry.init(role("a")).await.unwrap();
        assert_ne!(new, old);
        assert_eq!(epoch, ProducerEpoch::new(0));
        registry.close().unwrap();
        let registry = open(folder.path());
        assert!(registry.fencing().admit(old, ProducerEpoch::new(LAST_EPOCH)).is_err());
        assert!(registry.fencing().admit(new, epoch).is_ok());
    }

    #[tokio::test]
    async fn who_believes_to_be_an_older_one_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let registry = open(folder.path());
        let first = registry.init(role("a")).await.unwrap();
        let again = InitRequest { believes: Some(first), ..role("a") };
        let second = registry.init(again.clone()).await.unwrap();
        assert_eq!(second.1, ProducerEpoch::new(1));
        assert!(matches!(registry.init(again).await, Err(InitError::Fenced(_))));
    }
}
