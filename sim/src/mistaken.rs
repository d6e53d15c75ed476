//! A log node with a planted mistake in how it replicates.
//!
//! The mistake is made in what followers and leaders say to each other, on its way, so that nothing
//! of it is in the program itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tailwater_kafka::wire::fetch_request::{FetchPartition, FetchRequestData};
use tailwater_kafka::wire::fetch_response::{EpochEndOffset, FetchResponseData};
use tailwater_kafka::wire::metadata_request::{MetadataRequestData, MetadataRequestTopic};
use tailwater_kafka::wire::{ApiKey, ApiRange, KafkaUuid, Request, RequestHeader, Response};
use tailwater_kafka::{BrokerId, Node, RequestContext};

use crate::plant::Plant;

/// The first version of Metadata that finds topics by their ids.
const METADATA_BY_ID: i16 = 12;

/// What the followers of all nodes have said and heard. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// The newest of each broker.
    incarnations: BTreeMap<i32, i64>,
    copies: BTreeMap<(i32, Key), Copy>,
}

/// A partition: its topic, its number.
type Key = (KafkaUuid, i32);

/// What a follower knows of a partition.
#[derive(Debug, Clone, Copy)]
struct Copy {
    leader_epoch: i32,
    high_watermark: i64,
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub(crate) struct Mistaken {
    node: Arc<dyn Node>,
    plant: Plant,
    heard: Heard,
}

impl Mistaken {
    pub(crate) fn new(node: Arc<dyn Node>, plant: Plant, heard: Heard) -> Self {
        Self { node, plant, heard }
    }
}

#[async_trait]
impl Node for Mistaken {
    fn node_id(&self) -> BrokerId {
        self.node.node_id()
    }

    fn supported_apis(&self) -> &[ApiRange] {
        self.node.supported_apis()
    }

    async fn handle(
        &self,
        context: &RequestContext,
        header: &RequestHeader,
        mut request: Request,
    ) -> Response {
        let mut cuts = BTreeMap::new();
        if let Request::Fetch(fetch) = &mut request
            && fetch.replica_state.replica_id >= 0
        {
            let newest = self.note_incarnation(fetch);
            match self.plant {
                Plant::FollowersKeepWhatDiverged => {
                    each(fetch, |_, partition| partition.last_fetched_epoch = -1);
                }
                Plant::FollowersClaimMore => {
                    each(fetch, |_, partition| partition.fetch_offset += 1);
                }
                Plant::LeadersForgetTheFence => fetch.replica_state.replica_epoch = newest,
                Plant::LeadersCountAnybody => self.count_for_members(context, header, fetch).await,
                Plant::FollowersCutAtHighWatermark => cuts = self.cuts(fetch),
                Plant::AcksBeforeFlush
                | Plant::DiskLies
                | Plant::CommitsEachStep
                | Plant::SavesProgressAside => {}
            }
            let follower = fetch.replica_state.replica_id;
            let mut response = self.node.handle(context, header, request).await;
            if let Response::Fetch(answer) = &mut response {
                self.hear(follower, answer, &cuts);
            }
            return response;
        }
        self.node.handle(context, header, request).await
    }
}

impl Mistaken {
    fn note_incarnation(&self, fetch: &FetchRequestData) -> i64 {
        let state = &fetch.replica_state;
        let mut heard = self.heard.lock();
        let newest = heard.incarnations.entry(state.replica_id).or_default();
        *newest = state.replica_epoch.max(*newest);
        *newest
    }

    /// Where a follower cuts what it asks for: at the high watermark that it knows, if this is the
    /// first that it says in this leader epoch. It asks as one who has cut already.
    fn cuts(&self, fetch: &mut FetchRequestData) -> BTreeMap<Key, (i32, EpochEndOffset)> {
        let follower = fetch.replica_state.replica_id;
        let mut heard = self.heard.lock();
        let mut cuts = BTreeMap::new();
        each(fetch, |topic, partition| {
            let key = (topic, partition.partition);
            let unknown = Copy { leader_epoch: -1, high_watermark: i64::MAX };
            let known = heard.copies.entry((follower, key)).or_insert(unknown);
            let is_first = partition.current_leader_epoch > known.leader_epoch;
            let mut cut = EpochEndOffset::default();
            if is_first && known.high_watermark < partition.fetch_offset {
                cut = cut
                    .with_epoch(partition.last_fetched_epoch)
                    .with_end_offset(known.high_watermark);
                partition.fetch_offset = known.high_watermark;
            }
            cuts.insert(key, (partition.current_leader_epoch, cut));
        });
        cuts
    }

    /// Notes what a follower hears, and tells it to cut.
    fn hear(
        &self,
        follower: i32,
        answer: &mut FetchResponseData,
        cuts: &BTreeMap<Key, (i32, EpochEndOffset)>,
    ) {
        let mut heard = self.heard.lock();
        for topic in &mut answer.responses {
            for data in topic.partitions.iter_mut().filter(|data| data.error_code == 0) {
                let key = (topic.topic_id, data.partition_index);
                let Some((leader_epoch, cut)) = cuts.get(&key) else { continue };
                let (leader_epoch, high_watermark) = (*leader_epoch, data.high_watermark);
                heard.copies.insert((follower, key), Copy { leader_epoch, high_watermark });
                if cut.epoch >= 0 {
                    data.diverging_epoch = cut.clone();
                    data.records = Some(bytes::Bytes::new());
                }
            }
        }
    }

    /// Has what a follower outside of the ISR asks for count for the members, too.
    async fn count_for_members(
        &self,
        context: &RequestContext,
        header: &RequestHeader,
        fetch: &FetchRequestData,
    ) {
        let follower = fetch.replica_state.replica_id;
        let in_sync = self.in_sync(context, header, fetch).await;
        let members: BTreeSet<i32> = in_sync.values().flatten().copied().collect();
        for member in members.into_iter().filter(|id| *id != self.node_id().get()) {
            let Some(incarnation) = self.heard.lock().incarnations.get(&member).copied() else {
                continue;
            };
            let mut asks = fetch.clone().with_max_wait_ms(0);
            asks.replica_state.replica_id = member;
            asks.replica_state.replica_epoch = incarnation;
            for topic in &mut asks.topics {
                topic.partitions.retain(|partition| {
                    let members = in_sync.get(&(topic.topic_id, partition.partition));
                    members.is_some_and(|isr| isr.contains(&member) && !isr.contains(&follower))
                });
            }
            asks.topics.retain(|topic| !topic.partitions.is_empty());
            if !asks.topics.is_empty() {
                self.node.handle(context, header, Request::Fetch(asks)).await;
            }
        }
    }

    /// The ISR of each partition that is asked for, as this node knows it.
    async fn in_sync(
        &self,
        context: &RequestContext,
        header: &RequestHeader,
        fetch: &FetchRequestData,
    ) -> BTreeMap<Key, Vec<i32>> {
        let topics = fetch.topics.iter();
        let topics = topics.map(|topic| {
            MetadataRequestTopic::default().with_topic_id(topic.topic_id).with_name(None)
        });
        let request = MetadataRequestData::default().with_topics(Some(topics.collect()));
        let header =
            RequestHeader { api: ApiKey::Metadata, version: METADATA_BY_ID, ..header.clone() };
        let asked = self.node.handle(context, &header, Request::Metadata(request)).await;
        let Response::Metadata(metadata) = asked else { return BTreeMap::new() };
        let topics = metadata.topics.into_iter().flat_map(|topic| {
            let id = topic.topic_id;
            topic.partitions.into_iter().map(move |it| ((id, it.partition_index), it.isr_nodes))
        });
        topics.collect()
    }
}

fn each(fetch: &mut FetchRequestData, mut change: impl FnMut(KafkaUuid, &mut FetchPartition)) {
    for topic in &mut fetch.topics {
        for partition in &mut topic.partitions {
            change(topic.topic_id, partition);
        }
    }
}
