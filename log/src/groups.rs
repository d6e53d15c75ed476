//! How far readers have come: the committed offsets of consumer groups.
//!
//! A group is a name here: readers assign partitions themselves and commit where they are. Offsets
//! belong to a topic's *id*: a topic made anew under an old name begins without any.
//!
//! Groups named `tailwater.<pipeline>` are attached pipelines. What such a group has not passed is
//! held back from retention: on every partition of a topic for which it has committed anything,
//! from its offset on, and from the beginning on partitions where it has none yet.
//!
//! Journal entries (see [`journal`](crate::storage::journal)), numbers big-endian:
//!
//! | key | value |
//! |---|---|
//! | `0x01`, group length u16, group, topic id (16), partition i32 | offset i64, leader epoch i32, committed at i64 ms, metadata (the rest; absent if the byte before it is 0, else 1) |

use std::collections::BTreeSet;

use bytes::{Buf, BufMut, Bytes};
use tailwater_kafka::{LeaderEpoch, Offset, PartitionId, TopicId};
use uuid::Uuid;

use crate::Error;
use crate::storage::journal::{Change, Entries, Journal};
use crate::storage::retention::Hold;

/// What the groups of pipelines begin with.
pub(crate) const PIPELINE_PREFIX: &str = "tailwater.";

/// The longest group name: what its length field holds.
pub(crate) const MAX_GROUP_BYTES: usize = u16::MAX as usize;

const OFFSET: u8 = 1;

/// A partition by its topic's identity.
pub(crate) type PartitionKey = (TopicId, PartitionId);

/// Where a group is on a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Committed {
    /// The next offset that the group wants.
    pub(crate) offset: Offset,
    pub(crate) leader_epoch: LeaderEpoch,
    /// When it was committed by the node's clock, ms.
    pub(crate) at_ms: i64,
    /// Whatever the reader wanted to remember.
    pub(crate) metadata: Option<String>,
}

/// The committed offsets of all groups.
#[derive(Debug)]
pub(crate) struct Groups {
    journal: Journal,
}

impl Groups {
    /// Groups over their journal.
    pub(crate) fn new(journal: Journal) -> Self {
        Self { journal }
    }

    /// Remembers where `group` is, all or nothing.
    ///
    /// # Errors
    /// If the journal could not take it.
    pub(crate) async fn commit(
        &self,
        group: &str,
        offsets: Vec<(PartitionKey, Committed)>,
    ) -> Result<(), Error> {
        let changes = offsets
            .into_iter()
            .map(|(partition, committed)| (key(group, partition), Some(committed.encode())))
            .collect();
        self.journal.change(changes).await
    }

    /// Where `group` is on `partition`.
    pub(crate) fn committed(&self, group: &str, partition: PartitionKey) -> Option<Committed> {
        self.journal.read(|entries| {
            entries.get(&key(group, partition)).and_then(|value| Committed::decode(value))
        })
    }

    /// Where `group` is everywhere.
    pub(crate) fn all_committed(&self, group: &str) -> Vec<(PartitionKey, Committed)> {
        self.journal.read(|entries| {
            of_group(entries, group)
                .filter_map(|(key, value)| Some((parse_key(key)?.1, Committed::decode(value)?)))
                .collect()
        })
    }

    /// Forgets where `group` is on `partitions`.
    ///
    /// # Errors
    /// If the journal could not take it.
    pub(crate) async fn forget(
        &self,
        group: &str,
        partitions: &[PartitionKey],
    ) -> Result<(), Error> {
        let changes = partitions.iter().map(|partition| (key(group, *partition), None)).collect();
        self.journal.change(changes).await
    }

    /// Forgets a group; `false` if there was none.
    ///
    /// # Errors
    /// If the journal could not take it.
    pub(crate) async fn release(&self, group: &str) -> Result<bool, Error> {
        self.remove(|entries| of_group(entries, group).map(|(key, _)| key.clone()).collect()).await
    }

    /// Forgets everything about a topic that is gone.
    ///
    /// # Errors
    /// If the journal could not take it.
    pub(crate) async fn forget_topic(&self, topic: TopicId) -> Result<bool, Error> {
        self.remove(|entries| {
            let is_of_topic =
                |key: &&Vec<u8>| parse_key(key).is_some_and(|(_, (of, _))| of == topic);
            entries.keys().filter(is_of_topic).cloned().collect()
        })
        .await
    }

    /// What attached pipelines still need of a partition.
    pub(crate) fn hold(&self, (topic, partition): PartitionKey) -> Hold {
        self.journal.read(|entries| {
            let mut attached = BTreeSet::new();
            let mut committed = BTreeSet::new();
            let mut least = None;
            for (key, value) in entries {
                let Some((group, (of_topic, of_partition))) = parse_key(key) else { continue };
                if of_topic != topic || !group.starts_with(PIPELINE_PREFIX) {
                    continue;
                }
                attached.insert(group);
                if of_partition == partition
                    && let Some(Committed { offset, .. }) = Committed::decode(value)
                {
                    committed.insert(group);
                    least = Some(least.map_or(offset, |least: Offset| least.min(offset)));
                }
            }
            if attached.len() > committed.len() {
                return Hold::From(Offset::ZERO);
            }
            least.map_or(Hold::Nothing, Hold::From)
        })
    }

    /// Finishes what waits. Blocks.
    ///
    /// # Errors
    /// If the journal's thread had died.
    pub(crate) fn close(&self) -> Result<(), Error> {
        self.journal.close()
    }

    async fn remove(&self, find: impl FnOnce(&Entries) -> Vec<Vec<u8>>) -> Result<bool, Error> {
        let keys = self.journal.read(find);
        let found = !keys.is_empty();
        let changes: Vec<Change> = keys.into_iter().map(|key| (key, None)).collect();
        self.journal.change(changes).await?;
        Ok(found)
    }
}

impl Committed {
    fn encode(&self) -> Bytes {
        let mut value = Vec::with_capacity(24);
        value.put_i64(self.offset.get());
        value.put_i32(self.leader_epoch.get());
        value.put_i64(self.at_ms);
        value.put_u8(self.metadata.is_some().into());
        value.put_slice(self.metadata.as_deref().unwrap_or_default().as_bytes());
        value.into()
    }

    fn decode(mut value: &[u8]) -> Option<Self> {
        let offset = Offset::new(value.try_get_i64().ok()?);
        let leader_epoch = LeaderEpoch::new(value.try_get_i32().ok()?);
        let at_ms = value.try_get_i64().ok()?;
        let has_metadata = value.try_get_u8().ok()? != 0;
        let metadata = String::from_utf8(value.to_vec()).ok()?;
        Some(Self { offset, leader_epoch, at_ms, metadata: has_metadata.then_some(metadata) })
    }
}

fn group_prefix(group: &str) -> Vec<u8> {
    let mut prefix = vec![OFFSET];
    // Longer names are refused at the door.
    prefix.put_u16(u16::try_from(group.len()).unwrap_or(u16::MAX));
    prefix.put_slice(group.as_bytes());
    prefix
}

fn key(group: &str, (topic, partition): PartitionKey) -> Vec<u8> {
    let mut key = group_prefix(group);
    key.put_slice(topic.get().as_bytes());
    key.put_i32(partition.get());
    key
}

fn parse_key(key: &[u8]) -> Option<(&str, PartitionKey)> {
    let mut rest = key.strip_prefix(&[OFFSET])?;
    let length = usize::from(rest.try_get_u16().ok()?);
    let (group, mut rest) = rest.split_at_checked(length)?;
    let topic = TopicId::new(Uuid::from_slice(rest.get(..16)?).ok()?);
    rest.advance(16);
    let partition = PartitionId::new(rest.try_get_i32().ok()?);
    Some((std::str::from_utf8(group).ok()?, (topic, partition)))
}

fn of_group<'a>(
    entries: &'a Entries,
    group: &str,
) -> impl Iterator<Item = (&'a Vec<u8>, &'a Bytes)> {
    let prefix = group_prefix(group);
    entries.range(prefix.clone()..).take_while(move |(key, _)| key.starts_with(&prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::testing::shared;

    fn open(folder: &tempfile::TempDir) -> Groups {
        let path = folder.path().join("groups.journal");
        Groups::new(Journal::open(&path, &shared()).unwrap())
    }

    fn partition(topic: u128, number: i32) -> PartitionKey {
        (TopicId::new(Uuid::from_u128(topic)), PartitionId::new(number))
    }

    fn at(offset: i64) -> Committed {
        Committed {
            offset: Offset::new(offset),
            leader_epoch: LeaderEpoch::NONE,
            at_ms: 5,
            metadata: Some("my note".to_owned()),
        }
    }

    #[tokio::test]
    async fn offsets_and_metadata_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let groups = open(&folder);
        groups.commit("g", vec![(partition(1, 0), at(7)), (partition(1, 1), at(8))]).await.unwrap();
        groups.commit("gg", vec![(partition(1, 0), at(9))]).await.unwrap();
        groups.close().unwrap();
        let groups = open(&folder);
        assert_eq!(groups.committed("g", partition(1, 0)), Some(at(7)));
        assert_eq!(groups.committed("g", partition(2, 0)), None);
        assert_eq!(groups.all_committed("g").len(), 2);
        assert!(groups.release("g").await.unwrap());
        assert!(!groups.release("g").await.unwrap());
        assert_eq!(groups.committed("gg", partition(1, 0)), Some(at(9)));
        groups.forget_topic(partition(1, 0).0).await.unwrap();
        assert_eq!(groups.committed("gg", partition(1, 0)), None);
    }

    #[tokio::test]
    async fn only_pipelines_hold_and_the_slowest_counts() {
        let folder = tempfile::tempdir().unwrap();
        let groups = open(&folder);
        groups.commit("somebody", vec![(partition(1, 0), at(1))]).await.unwrap();
        assert_eq!(groups.hold(partition(1, 0)), Hold::Nothing);
        groups.commit("tailwater.a", vec![(partition(1, 0), at(50))]).await.unwrap();
        groups.commit("tailwater.b", vec![(partition(1, 0), at(30))]).await.unwrap();
        assert_eq!(groups.hold(partition(1, 0)), Hold::From(Offset::new(30)));
        // Attached to the topic, nothing said about this partition yet: all of it is needed.
        assert_eq!(groups.hold(partition(1, 1)), Hold::From(Offset::ZERO));
        assert_eq!(groups.hold(partition(2, 0)), Hold::Nothing);
        groups.release("tailwater.b").await.unwrap();
        assert_eq!(groups.hold(partition(1, 0)), Hold::From(Offset::new(50)));
    }
}
