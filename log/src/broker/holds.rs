//! What attached pipelines still need of each partition: their groups' offsets, wherever their
//! coordinators are. While one of those cannot be asked, everything may still be needed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tailwater_kafka::wire::list_groups_request::ListGroupsRequestData;
use tailwater_kafka::wire::list_groups_response::ListGroupsResponseData;
use tailwater_kafka::wire::offset_fetch_request::{
    OffsetFetchRequestData, OffsetFetchRequestGroup,
};
use tailwater_kafka::wire::offset_fetch_response::OffsetFetchResponseData;
use tailwater_kafka::{BrokerId, Offset, PartitionId, TopicId};

use crate::coordinator::{OFFSETS_TOPIC, offsets};
use crate::log::Log;
use crate::node::peer;
use crate::partitions::PartitionKey;
use crate::storage::retention::Hold;

/// Versions in which brokers ask each other: topics by id.
const LIST_GROUPS_VERSION: i16 = 4;
const OFFSET_FETCH_VERSION: i16 = 10;

/// Where a group is on a partition.
type Position = (String, PartitionKey, Offset);

impl Log {
    /// What is held back of each partition of this node; `None` if somebody could not be asked.
    pub(crate) async fn holds(&self) -> Option<HashMap<PartitionKey, Hold>> {
        let image = self.metadata_now();
        let mut positions = Vec::new();
        let me = self.shared.config.node_id;
        let mut others = BTreeSet::new();
        if let Some((_, topic)) = image.topic_by_name(OFFSETS_TOPIC) {
            for (number, state) in &topic.partitions {
                match state.leader? {
                    leader if leader == me => {
                        let store = self.loaded(OFFSETS_TOPIC, *number).await.ok()?;
                        positions.extend(offsets::attached(&store));
                    }
                    other => drop(others.insert(other)),
                }
            }
        }
        for other in others {
            positions.extend(self.attached_at(other).await?);
        }
        let keys = self.partitions.all();
        let keys = keys.iter().map(|it| it.name.key());
        Some(keys.map(|key| (key, hold(&positions, key))).collect())
    }

    /// Forgets where groups are on topics that are gone.
    pub(crate) async fn forget_deleted_topics(&self) {
        let image = self.metadata_now();
        for store in self.coordinators.all(OFFSETS_TOPIC).unwrap_or_default() {
            let forgotten = offsets::forget_topics(&store, |id| image.topic(id).is_none()).await;
            if let Err(error) = forgotten {
                tracing::debug!(%error, "offsets of deleted topics are forgotten later");
            }
        }
    }

    /// The attached pipelines whose coordinator is that broker.
    async fn attached_at(&self, broker: BrokerId) -> Option<Vec<Position>> {
        let image = self.image.subscribe();
        let connection = peer::connect(&self.shared.config, &image, broker).await.ok()?;
        let listed: ListGroupsResponseData =
            connection.call_at(LIST_GROUPS_VERSION, ListGroupsRequestData::default()).await.ok()?;
        if listed.error_code != 0 {
            return None;
        }
        let attached = listed
            .groups
            .into_iter()
            .filter(|group| group.group_id.as_str().starts_with(offsets::PIPELINE_PREFIX));
        let groups = attached.map(|group| {
            OffsetFetchRequestGroup::default().with_group_id(group.group_id).with_topics(None)
        });
        let request = OffsetFetchRequestData::default().with_groups(groups.collect());
        if request.groups.is_empty() {
            return Some(Vec::new());
        }
        let fetched: OffsetFetchResponseData =
            connection.call_at(OFFSET_FETCH_VERSION, request).await.ok()?;
        let mut positions = Vec::new();
        for group in fetched.groups {
            if group.error_code != 0 {
                return None;
            }
            for topic in group.topics {
                let id = TopicId::new(*topic.topic_id.inner());
                for partition in topic.partitions {
                    let key = (id, PartitionId::new(partition.partition_index));
                    let offset = Offset::new(partition.committed_offset);
                    positions.push((group.group_id.as_str().to_owned(), key, offset));
                }
            }
        }
        Some(positions)
    }
}

/// Held on every partition of a topic for which a pipeline has committed anything: from its offset
/// on, and from the beginning on partitions where it has none yet.
fn hold(positions: &[Position], key: PartitionKey) -> Hold {
    let mut by_group: BTreeMap<&str, Option<Offset>> = BTreeMap::new();
    for (group, (topic, partition), offset) in positions {
        if *topic == key.0 {
            let here = by_group.entry(group).or_default();
            if *partition == key.1 {
                *here = Some(*offset);
            }
        }
    }
    let needed = by_group.into_values().map(|here| here.unwrap_or(Offset::ZERO));
    needed.min().map_or(Hold::Nothing, Hold::From)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn key(topic: u128, partition: i32) -> PartitionKey {
        (TopicId::new(Uuid::from_u128(topic)), PartitionId::new(partition))
    }

    #[test]
    fn the_slowest_pipeline_counts_and_a_new_one_needs_everything() {
        let at = |group: &str, key, offset| (group.to_owned(), key, Offset::new(offset));
        let positions = [at("tailwater.a", key(1, 0), 50), at("tailwater.b", key(1, 0), 30)];
        assert_eq!(hold(&positions, key(1, 0)), Hold::From(Offset::new(30)));
        // Attached to the topic, nothing said about this partition yet: all of it is needed.
        assert_eq!(hold(&positions, key(1, 1)), Hold::From(Offset::ZERO));
        assert_eq!(hold(&positions, key(2, 0)), Hold::Nothing);
        assert_eq!(hold(&positions[..1], key(1, 0)), Hold::From(Offset::new(50)));
    }
}
