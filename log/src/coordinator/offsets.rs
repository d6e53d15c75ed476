//! Where groups are: the committed offsets on `__consumer_offsets`.
//!
//! A group is a name here: readers assign partitions themselves and commit where they are. Offsets
//! belong to a topic's *id*: a topic made anew under an old name begins without any.
//!
//! Groups named `tailwater.<pipeline>` are attached pipelines: what such a group has not passed is
//! held back from retention.
//!
//! The records are Kafka's, numbers big-endian:
//!
//! | | version | fields |
//! |---|---|---|
//! | key | i16 = 1 | group string, topic string, partition i32 |
//! | value | i16 = 4 | offset i64, leader epoch i32, metadata compact string, committed at i64 ms, tagged: 0 topic id |
//!
//! Keys of other versions (Kafka's group metadata) are not ours yet, and are left alone.

use bytes::{Buf, BufMut, Bytes};
use tailwater_kafka::{LeaderEpoch, Offset, PartitionId, TopicId};
use uuid::Uuid;

use super::codec::{
    get_compact_string, get_string, get_varint, put_compact_string, put_string, put_varint, take,
};
use super::store::{Change, Entries, NotChanged, Store};
use crate::partitions::PartitionKey;

/// What the groups of pipelines begin with.
pub(crate) const PIPELINE_PREFIX: &str = "tailwater.";

/// The longest group name: what its length field holds.
pub(crate) const MAX_GROUP_BYTES: usize = i16::MAX as usize;

const KEY_VERSION: i16 = 1;
const VALUE_VERSION: i16 = 4;
const TOPIC_ID_TAG: u32 = 0;

/// A partition as offsets are kept for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OfPartition {
    pub(crate) topic: String,
    pub(crate) topic_id: TopicId,
    pub(crate) partition: PartitionId,
}

/// Where a group is on a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Committed {
    /// The next offset that the group wants.
    pub(crate) offset: Offset,
    pub(crate) leader_epoch: LeaderEpoch,
    /// When it was committed by the coordinator's clock, ms.
    pub(crate) at_ms: i64,
    /// Whatever the reader wanted to remember.
    pub(crate) metadata: String,
}

/// Remembers where `group` is, all or nothing.
///
/// # Errors
/// As [`Store::change`].
pub(crate) async fn commit(
    store: &Store,
    group: &str,
    offsets: Vec<(OfPartition, Committed)>,
) -> Result<(), NotChanged> {
    let changes = offsets
        .into_iter()
        .map(|(of, committed)| {
            (key(group, &of.topic, of.partition), Some(committed.encode(of.topic_id)))
        })
        .collect();
    store.change(changes).await
}

/// Where `group` is on a partition.
pub(crate) fn committed(store: &Store, group: &str, of: &OfPartition) -> Option<Committed> {
    store.read(|entries| {
        let value = entries.get(&key(group, &of.topic, of.partition))?;
        let (topic_id, committed) = Committed::decode(value)?;
        (topic_id == of.topic_id).then_some(committed)
    })
}

/// Where `group` is everywhere.
pub(crate) fn all_committed(store: &Store, group: &str) -> Vec<(OfPartition, Committed)> {
    store.read(|entries| of_group(entries, group).filter_map(parse).collect())
}

/// Forgets where `group` is on `partitions`.
///
/// # Errors
/// As [`Store::change`].
pub(crate) async fn forget(
    store: &Store,
    group: &str,
    partitions: &[OfPartition],
) -> Result<(), NotChanged> {
    let changes = partitions.iter().map(|of| (key(group, &of.topic, of.partition), None));
    store.change(changes.collect()).await
}

/// Forgets a group; `false` if there was none.
///
/// # Errors
/// As [`Store::change`].
pub(crate) async fn release(store: &Store, group: &str) -> Result<bool, NotChanged> {
    remove(store, |entries| of_group(entries, group).map(|(key, _)| key.clone()).collect()).await
}

/// Forgets what is kept for topics that are not there any more.
///
/// # Errors
/// As [`Store::change`].
pub(crate) async fn forget_topics(
    store: &Store,
    is_gone: impl Fn(TopicId) -> bool,
) -> Result<bool, NotChanged> {
    remove(store, |entries| {
        let gone = entries
            .iter()
            .filter(|entry| parse(*entry).is_some_and(|(of, _)| is_gone(of.topic_id)));
        gone.map(|(key, _)| key.clone()).collect()
    })
    .await
}

/// The groups that are kept here.
pub(crate) fn groups(store: &Store) -> Vec<String> {
    store.read(|entries| {
        let mut groups: Vec<String> =
            entries.keys().filter_map(|key| Some(parse_key(key)?.0.to_owned())).collect();
        groups.dedup();
        groups
    })
}

/// Where attached pipelines are: group, partition, offset.
pub(crate) fn attached(store: &Store) -> Vec<(String, PartitionKey, Offset)> {
    store.read(|entries| {
        entries
            .iter()
            .filter_map(|entry| {
                let (group, ..) = parse_key(entry.0)?;
                let (of, committed) = parse(entry)?;
                group
                    .starts_with(PIPELINE_PREFIX)
                    .then(|| (group.to_owned(), (of.topic_id, of.partition), committed.offset))
            })
            .collect()
    })
}

async fn remove(
    store: &Store,
    find: impl FnOnce(&Entries) -> Vec<Vec<u8>>,
) -> Result<bool, NotChanged> {
    let keys = store.read(find);
    let found = !keys.is_empty();
    let changes: Vec<Change> = keys.into_iter().map(|key| (key, None)).collect();
    store.change(changes).await?;
    Ok(found)
}

impl Committed {
    fn encode(&self, topic_id: TopicId) -> Bytes {
        let mut value = Vec::with_capacity(48 + self.metadata.len());
        value.put_i16(VALUE_VERSION);
        value.put_i64(self.offset.get());
        value.put_i32(self.leader_epoch.get());
        put_compact_string(&mut value, &self.metadata);
        value.put_i64(self.at_ms);
        put_varint(&mut value, 1);
        put_varint(&mut value, TOPIC_ID_TAG);
        put_varint(&mut value, 16);
        value.put_slice(topic_id.get().as_bytes());
        value.into()
    }

    fn decode(mut value: &[u8]) -> Option<(TopicId, Self)> {
        if value.try_get_i16().ok()? != VALUE_VERSION {
            return None;
        }
        let offset = Offset::new(value.try_get_i64().ok()?);
        let leader_epoch = LeaderEpoch::new(value.try_get_i32().ok()?);
        let metadata = get_compact_string(&mut value)?.to_owned();
        let at_ms = value.try_get_i64().ok()?;
        let mut topic_id = None;
        for _ in 0..get_varint(&mut value)? {
            let tag = get_varint(&mut value)?;
            let length = usize::try_from(get_varint(&mut value)?).ok()?;
            let field = take(&mut value, length)?;
            if tag == TOPIC_ID_TAG {
                topic_id = Some(TopicId::new(Uuid::from_slice(field).ok()?));
            }
        }
        Some((topic_id?, Self { offset, leader_epoch, at_ms, metadata }))
    }
}

fn group_prefix(group: &str) -> Vec<u8> {
    let mut prefix = Vec::with_capacity(16 + group.len());
    prefix.put_i16(KEY_VERSION);
    put_string(&mut prefix, group);
    prefix
}

fn key(group: &str, topic: &str, partition: PartitionId) -> Vec<u8> {
    let mut key = group_prefix(group);
    put_string(&mut key, topic);
    key.put_i32(partition.get());
    key
}

fn parse_key(mut key: &[u8]) -> Option<(&str, &str, PartitionId)> {
    if key.try_get_i16().ok()? != KEY_VERSION {
        return None;
    }
    let (group, topic) = (get_string(&mut key)?, get_string(&mut key)?);
    Some((group, topic, PartitionId::new(key.try_get_i32().ok()?)))
}

fn parse((key, value): (&Vec<u8>, &Bytes)) -> Option<(OfPartition, Committed)> {
    let (_, topic, partition) = parse_key(key)?;
    let (topic_id, committed) = Committed::decode(value)?;
    Some((OfPartition { topic: topic.to_owned(), topic_id, partition }, committed))
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

    #[test]
    fn records_are_kafkas() {
        let topic_id = TopicId::new(Uuid::from_u128(0x0102));
        let committed = Committed {
            offset: Offset::new(7),
            leader_epoch: LeaderEpoch::new(3),
            at_ms: 5,
            metadata: "note".to_owned(),
        };
        let key = key("g", "shop", PartitionId::new(2));
        assert_eq!(key, b"\x00\x01\x00\x01g\x00\x04shop\x00\x00\x00\x02");
        let value = committed.encode(topic_id);
        let expected = b"\x00\x04\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x03\x05note\
            \x00\x00\x00\x00\x00\x00\x00\x05\x01\x00\x10\
            \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x02";
        assert_eq!(&value[..], &expected[..]);
        let of = OfPartition { topic: "shop".to_owned(), topic_id, partition: PartitionId::new(2) };
        assert_eq!(parse((&key, &value)), Some((of, committed)));
        for length in 0..value.len() {
            assert_eq!(Committed::decode(&value[..length]), None);
        }
        for length in 0..key.len() {
            assert_eq!(parse_key(&key[..length]), None);
        }
    }
}
