//! Copying from leaders: one task per leader, for all partitions that are followed there.
//!
//! ```text
//! wanted (all that is flushed) ─► Fetch ─► batches appended ─► flushed ─► wanted …
//! ```
//!
//! A fetch says from where it reads, and with that what is flushed here: so the next one goes out
//! when all that the last one brought is flushed. Where that takes long for one partition, the
//! others are asked for without it. Whatever fails is asked for again after a pause.
//!
//! Partitions that are not in sync here come last in a fetch, and are left out of it while their
//! [throttle](super::throttle) is closed: those that producers wait for go on.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tailwater_kafka::wire::fetch_request::{
    FetchPartition, FetchRequestData, FetchTopic, ReplicaState,
};
use tailwater_kafka::wire::fetch_response::{FetchResponseData, PartitionData};
use tailwater_kafka::wire::{ErrorCode, KafkaUuid};
use tailwater_kafka::{BrokerConnection, BrokerId, LeaderEpoch, Offset, TopicId};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::membership::Standing;
use super::peer;
use super::throttle::CatchUp;
use crate::metadata::{BrokerEpoch, Image};
use crate::partitions::PartitionKey;
use crate::replica::EpochEnd;
use crate::storage::flusher::Flusher;
use crate::storage::partition::{Partition, Shared, lock};
use crate::storage::replicate::{Answered, NotReplicated, Wanted};

/// How long a leader may keep a fetch waiting while there is nothing new.
const MAX_WAIT_MS: i32 = 250;

/// The same while something is being flushed here, which the leader is to hear of soon.
const MAX_WAIT_FLUSHING_MS: i32 = 2;

/// Bytes of one answer, and of one partition in it.
const ANSWER_BYTES: i32 = 8 << 20;
const PARTITION_BYTES: i32 = 2 << 20;

/// Before a partition or a leader that failed is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// How long what was appended may take to be flushed before the others are asked for without it: a
/// few flushes of a good disk. One file's flush may take a hundred times as long as another's.
const FLUSH_PATIENCE: Duration = Duration::from_millis(3);

/// The version of Fetch that brokers speak to each other: topics by id, and who asks with its epoch.
const FETCH_VERSION: i16 = 17;

/// What fetchers have in common.
#[derive(Debug, Clone)]
pub(crate) struct Common {
    pub(crate) me: BrokerId,
    pub(crate) shared: Arc<Shared>,
    pub(crate) flusher: Arc<Flusher>,
    /// Room for bytes that wait to be written.
    pub(crate) room: Arc<Semaphore>,
    pub(crate) image: watch::Receiver<Arc<Image>>,
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) catch_up: Arc<CatchUp>,
}

/// A fetcher for each leader that is followed.
#[derive(Debug)]
pub(crate) struct Fetchers {
    common: Common,
    leaders: HashMap<BrokerId, Fetcher>,
    followed: HashMap<PartitionKey, BrokerId>,
}

#[derive(Debug)]
struct Fetcher {
    followed: Arc<Followed>,
    /// Aborted when this is dropped.
    _task: JoinSet<()>,
}

/// The partitions that one leader is fetched for.
#[derive(Debug, Default)]
struct Followed {
    partitions: Mutex<BTreeMap<PartitionKey, Arc<Partition>>>,
    /// Another partition, or something flushed.
    changed: Arc<Notify>,
}

impl Fetchers {
    pub(crate) fn new(common: Common) -> Self {
        Self { common, leaders: HashMap::new(), followed: HashMap::new() }
    }

    /// Fetches `partition` from `leader`, and from no other any more.
    pub(crate) fn follow(&mut self, partition: &Arc<Partition>, leader: BrokerId) {
        let key = partition.name.key();
        if self.followed.get(&key).is_some_and(|before| *before != leader) {
            self.unfollow(partition);
        }
        let fetcher = self.leaders.entry(leader).or_insert_with(|| {
            let followed = Arc::new(Followed::default());
            let work = Work {
                leader,
                common: self.common.clone(),
                followed: Arc::clone(&followed),
                connection: None,
                paused: HashMap::new(),
                caught_up: HashSet::new(),
                flushing: Vec::new(),
            };
            let mut task = JoinSet::new();
            task.spawn(work.run());
            Fetcher { followed, _task: task }
        });
        partition.notify_flushed(Some(&fetcher.followed.changed));
        lock(&fetcher.followed.partitions).insert(key, Arc::clone(partition));
        fetcher.followed.changed.notify_one();
        self.followed.insert(key, leader);
    }

    /// Fetches `partition` from nobody.
    pub(crate) fn unfollow(&mut self, partition: &Partition) {
        let key = partition.name.key();
        let Some(leader) = self.followed.remove(&key) else { return };
        partition.notify_flushed(None);
        let Some(fetcher) = self.leaders.get(&leader) else { return };
        let mut partitions = lock(&fetcher.followed.partitions);
        partitions.remove(&key);
        let is_last = partitions.is_empty();
        drop(partitions);
        if is_last {
            self.leaders.remove(&leader);
        }
    }
}

struct Work {
    leader: BrokerId,
    common: Common,
    followed: Arc<Followed>,
    connection: Option<BrokerConnection>,
    /// Not asked for before then.
    paused: HashMap<PartitionKey, Instant>,
    /// Had everything that was committed at the last answer: about to be in sync, if they are not.
    caught_up: HashSet<PartitionKey>,
    /// Not asked for before what they have got is flushed.
    flushing: Vec<Arc<Partition>>,
}

/// A partition that is asked for.
struct Asked {
    partition: Arc<Partition>,
    wanted: Wanted,
    /// It has most of the log still to copy, and nobody waits for it.
    catches_up: bool,
}

impl Work {
    async fn run(mut self) {
        loop {
            let asked = self.wanted();
            if asked.is_empty() {
                // Woken by a flush or another partition; a pause ends by itself.
                drop(tokio::time::timeout(PAUSE, self.followed.changed.notified()).await);
                continue;
            }
            match self.fetch(&asked).await {
                Ok(response) => {
                    let appended = self.take(asked, response).await;
                    self.flushing.extend(appended);
                    self.wait_until_flushed().await;
                }
                Err(error) => {
                    tracing::debug!(leader = %self.leader, error, "fetch failed");
                    self.connection = None;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn wanted(&mut self) -> BTreeMap<PartitionKey, Asked> {
        let now = Instant::now();
        self.paused.retain(|_, until| *until > now);
        let may_catch_up = self.common.catch_up.may_ask(self.common.shared.now());
        let image = Arc::clone(&self.common.image.borrow());
        let partitions = lock(&self.followed.partitions);
        self.caught_up.retain(|key| partitions.contains_key(key));
        let asked = partitions.iter().filter(|(key, _)| !self.paused.contains_key(key));
        asked
            .filter_map(|(key, partition)| {
                let catches_up = !self.caught_up.contains(key) && !self.is_in_sync(&image, *key);
                if catches_up && !may_catch_up {
                    return None;
                }
                let wanted = partition.wanted().filter(|it| it.leadership.0 == self.leader)?;
                Some((*key, Asked { partition: Arc::clone(partition), wanted, catches_up }))
            })
            .collect()
    }

    fn is_in_sync(&self, image: &Image, (topic, partition): PartitionKey) -> bool {
        let state = image.partition(topic, partition);
        state.is_some_and(|state| state.isr.contains(&self.common.me))
    }

    async fn fetch(
        &mut self,
        asked: &BTreeMap<PartitionKey, Asked>,
    ) -> Result<FetchResponseData, String> {
        let connection = match self.connection.take().filter(|it| !it.is_closed()) {
            Some(connection) => connection,
            None => {
                let Common { shared, image, .. } = &self.common;
                peer::connect(&shared.config, image, self.leader).await?
            }
        };
        let request = self.request(asked);
        let response: FetchResponseData =
            connection.call_at(FETCH_VERSION, request).await.map_err(|error| error.to_string())?;
        self.connection = Some(connection);
        match response.error_code {
            0 => Ok(response),
            code => Err(format!("{:?}", ErrorCode::from(code))),
        }
    }

    fn request(&self, asked: &BTreeMap<PartitionKey, Asked>) -> FetchRequestData {
        // An answer has room for so much: first those that are not catching up.
        let mut topics: BTreeMap<(bool, TopicId), Vec<FetchPartition>> = BTreeMap::new();
        for ((topic, partition), Asked { wanted, catches_up, .. }) in asked {
            let (_, leader_epoch) = wanted.leadership;
            topics.entry((*catches_up, *topic)).or_default().push(
                FetchPartition::default()
                    .with_partition(partition.get())
                    .with_current_leader_epoch(leader_epoch.get())
                    .with_fetch_offset(wanted.from.get())
                    .with_last_fetched_epoch(wanted.last_epoch.get())
                    .with_log_start_offset(wanted.start.get())
                    .with_partition_max_bytes(PARTITION_BYTES),
            );
        }
        let topics = topics.into_iter().map(|((_, topic), partitions)| {
            FetchTopic::default()
                .with_topic_id(KafkaUuid::from_uuid(topic.get()))
                .with_partitions(partitions)
        });
        let is_flushing = self.flushing.iter().any(|partition| partition.is_flushing());
        let max_wait_ms = if is_flushing { MAX_WAIT_FLUSHING_MS } else { MAX_WAIT_MS };
        let epoch = self.common.standing.borrow().epoch.unwrap_or(BrokerEpoch::NONE).get();
        FetchRequestData::default()
            .with_replica_state(
                ReplicaState::default()
                    .with_replica_id(self.common.me.get())
                    .with_replica_epoch(epoch),
            )
            .with_max_wait_ms(max_wait_ms)
            .with_min_bytes(1)
            .with_max_bytes(ANSWER_BYTES)
            .with_topics(topics.collect())
    }

    /// Takes what came; the partitions that now have something to flush.
    async fn take(
        &mut self,
        mut asked: BTreeMap<PartitionKey, Asked>,
        response: FetchResponseData,
    ) -> Vec<Arc<Partition>> {
        let mut waits = Vec::new();
        for topic in response.responses {
            let id = TopicId::new(*topic.topic_id.inner());
            for data in topic.partitions {
                let key = (id, tailwater_kafka::PartitionId::new(data.partition_index));
                let Some(Asked { partition, wanted, catches_up }) = asked.remove(&key) else {
                    continue;
                };
                if catches_up {
                    let bytes = data.records.as_ref().map_or(0, |records| records.len());
                    self.common.catch_up.note(self.common.shared.now(), bytes);
                }
                let committed = (data.error_code == 0).then(|| Offset::new(data.high_watermark));
                let taken = self.take_one(&partition, wanted, data).await;
                let has_all = |committed| partition.offsets().is_ok_and(|own| own.end >= committed);
                if committed.is_some_and(has_all) {
                    self.caught_up.insert(key);
                } else {
                    self.caught_up.remove(&key);
                }
                match taken {
                    Ok(true) => waits.push(partition),
                    Ok(false) => {}
                    Err(reason) => {
                        let (topic, number) = (&partition.name.topic, partition.name.partition);
                        tracing::debug!(%topic, partition = %number, reason, "not copied now");
                        self.paused.insert(key, Instant::now() + PAUSE);
                    }
                }
            }
        }
        waits
    }

    /// Whether there is now something to flush.
    async fn take_one(
        &self,
        partition: &Arc<Partition>,
        wanted: Wanted,
        data: PartitionData,
    ) -> Result<bool, String> {
        match ErrorCode::from(data.error_code) {
            ErrorCode::None => {}
            ErrorCode::OffsetOutOfRange if data.log_start_offset > wanted.from.get() => {
                let start = Offset::new(data.log_start_offset);
                self.blocking(partition, move |partition| partition.restart_at(start)).await?;
                return Ok(false);
            }
            code => return Err(format!("{code:?}")),
        }
        if data.diverging_epoch.epoch >= 0 {
            let said = EpochEnd {
                epoch: LeaderEpoch::new(data.diverging_epoch.epoch),
                end: Offset::new(data.diverging_epoch.end_offset),
            };
            let leadership = wanted.leadership;
            self.blocking(partition, move |partition| partition.part(leadership, said)).await?;
            return Ok(false);
        }
        let answered = Answered {
            leadership: wanted.leadership,
            records: data.records.unwrap_or_default(),
            high_watermark: Offset::new(data.high_watermark),
            log_start: Offset::new(data.log_start_offset),
        };
        self.append(partition, &answered).await
    }

    async fn append(
        &self,
        partition: &Arc<Partition>,
        answered: &Answered,
    ) -> Result<bool, String> {
        let bytes = answered.records.len().min(self.common.shared.config.pending_bytes);
        let room = match u32::try_from(bytes) {
            Ok(0) | Err(_) => None,
            // The semaphore is never closed.
            Ok(bytes) => Arc::clone(&self.common.room).acquire_many_owned(bytes).await.ok(),
        };
        match partition.append_replicated(answered, room) {
            Ok(schedule) => {
                if schedule {
                    self.common.flusher.schedule(partition);
                }
                Ok(!answered.records.is_empty())
            }
            // The next metadata tells whom to ask.
            Err(NotReplicated::NotFollowing) => Ok(false),
            Err(error) => {
                if !matches!(error, NotReplicated::Stopped(_)) {
                    tracing::warn!(
                        topic = %partition.name.topic,
                        partition = %partition.name.partition,
                        leader = %self.leader,
                        %error,
                        "the leader's answer is not taken"
                    );
                }
                Err(error.to_string())
            }
        }
    }

    async fn blocking(
        &self,
        partition: &Arc<Partition>,
        work: impl FnOnce(&Partition) -> Result<(), crate::Error> + Send + 'static,
    ) -> Result<(), String> {
        let partition = Arc::clone(partition);
        let done = self.common.shared.config.workers.run(move || work(&partition)).await;
        done.flatten().map_err(|error| error.full_text())
    }

    /// Waits until everything that was appended is flushed, so that one fetch tells of all of it; not
    /// for long.
    async fn wait_until_flushed(&mut self) {
        let deadline = Instant::now() + FLUSH_PATIENCE;
        loop {
            // One that follows nobody any more, or has stopped, is not waited for.
            self.flushing.retain(|partition| partition.is_flushing());
            if self.flushing.is_empty() {
                return;
            }
            let flushed = self.followed.changed.notified();
            if tokio::time::timeout_at(deadline, flushed).await.is_err() {
                return;
            }
        }
    }
}
