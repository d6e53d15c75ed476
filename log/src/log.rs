//! A log node: its data folder, its threads and tasks, its beginning and its end.
//!
//! The order of the end: no new requests (the caller's token stops [`Log::serve`]), the tasks, the
//! flush threads; then [`Log::close`] writes, flushes and seals every partition, and lets go of the
//! folder. A `Log` that is dropped without being closed leaves its files like a process that died.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tailwater_kafka::{BrokerId, Offset, PartitionId, ServerConfig, TopicId};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::Error;
use crate::config::{Config, FlushPolicy};
use crate::groups::Groups;
use crate::producers::ProducerRegistry;
use crate::storage::checkpoint::{decode_json, encode_json};
use crate::storage::disk;
use crate::storage::flusher::Flusher;
use crate::storage::folder_lock::FolderLock;
use crate::storage::journal::Journal;
use crate::storage::partition::{Partition, Shared, lock};
use crate::storage::reserve::Reserve;
use crate::storage::retention::Hold;
use crate::topics::Topics;

const NODE_VERSION: u32 = 1;

const PRODUCERS: &str = "producers.journal";
const GROUPS: &str = "groups.journal";

/// How often flush marks are made durable, and with them how old one may be after a power cut.
const BACKGROUND_SYNC: Duration = Duration::from_secs(1);

/// How soon a partition is tried again that could not be opened: it takes reading its last segment.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// A log node.
pub struct Log {
    pub(crate) shared: Arc<Shared>,
    pub(crate) cluster_id: String,
    pub(crate) topics: Arc<Topics>,
    pub(crate) producers: Arc<ProducerRegistry>,
    pub(crate) groups: Arc<Groups>,
    pub(crate) flusher: Flusher,
    /// Held, first come first served, while a request's batches are appended: what a connection
    /// sends is taken in the order in which it came, also when there is no room for a while.
    pub(crate) intake: tokio::sync::Mutex<()>,
    /// Room for bytes that wait to be written.
    pub(crate) room: Arc<Semaphore>,
    /// Requests of several steps, which go on to their end although the connection that asked for
    /// them is gone.
    pub(crate) requests: TaskTracker,
    tasks: Mutex<JoinSet<()>>,
    stop_tasks: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// Where a partition stands: for metrics and `tailwater status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionStatus {
    /// The topic's name.
    pub topic: String,
    /// The topic's identity.
    pub topic_id: TopicId,
    /// The partition's number.
    pub partition: PartitionId,
    /// The first offset that is kept.
    pub start_offset: Offset,
    /// The first offset that readers do not see yet.
    pub high_watermark: Offset,
    /// The offset that the next record gets.
    pub end_offset: Offset,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// Why it serves nobody, with the file, the position and the remedy; `None` while it does.
    pub offline: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredNode {
    version: u32,
    cluster_id: String,
    node_id: i32,
}

impl Log {
    /// Opens the node in its data folder, making what is not there yet.
    ///
    /// # Errors
    /// If the folder is in use, belongs to another node, or cannot be understood. A damaged
    /// partition is no error: it is offline, and [`Log::partitions`] says why. One for which there
    /// were no files, no memory or no space is tried again while the node runs.
    pub async fn open(config: Config) -> Result<Arc<Self>, Error> {
        config.validate()?;
        let workers = config.workers.clone();
        let opened = workers.run(move || Self::open_blocking(config)).await;
        let log = Arc::new(opened??);
        log.start_tasks();
        Ok(log)
    }

    /// Serves Kafka's protocol on `listener` until `shutdown`.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) {
        let server = ServerConfig {
            max_connections: self.shared.config.max_connections,
            request_bytes: self.shared.config.request_bytes,
            ..ServerConfig::default()
        };
        tailwater_kafka::serve(self, listener, server, shutdown).await;
    }

    /// Writes, flushes and seals everything, and lets go of the data folder. Requests that still
    /// come are answered with errors.
    ///
    /// # Errors
    /// If a thread of the log had died. What it had acknowledged is on the disk all the same.
    pub async fn close(self: &Arc<Self>) -> Result<(), Error> {
        self.stop_tasks.cancel();
        self.requests.close();
        self.requests.wait().await;
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        let mut outcome = Ok(());
        while let Some(ended) = tasks.join_next().await {
            outcome = outcome.and(ended.map_err(|_| Error::TaskFailed));
        }
        let log = Arc::clone(self);
        let closing = self.shared.config.workers.run(move || log.close_blocking());
        outcome = outcome.and(closing.await.flatten());
        self.shared.folder_lock.release();
        outcome
    }

    /// Where every partition stands.
    pub fn partitions(&self) -> Vec<PartitionStatus> {
        let topics = self.topics.all();
        topics.iter().flat_map(|topic| &topic.partitions).map(|one| status(one)).collect()
    }

    /// Lets go of everything that the group `group` holds back from retention, and forgets where
    /// it is: what `tailwater detach` does. Returns whether there was such a group.
    ///
    /// # Errors
    /// If it could not be made durable; then nothing has changed.
    pub async fn release_group(&self, group: &str) -> Result<bool, Error> {
        self.groups.release(group).await
    }

    /// Removes what is past its retention now, as the node does every
    /// [`Config::retention_check`]. Returns how many bytes that freed.
    ///
    /// # Errors
    /// If a thread of the log died.
    pub async fn enforce_retention(&self) -> Result<u64, Error> {
        enforce_retention(&self.shared, &self.topics, &self.groups).await
    }

    /// Compacts what is worth it now, as the node does every [`Config::retention_check`]. Returns
    /// how many bytes that freed.
    ///
    /// # Errors
    /// If a thread of the log died.
    pub async fn compact(&self) -> Result<u64, Error> {
        compact(&self.shared, &self.topics).await
    }

    /// The cluster's id: the same for the life of the data folder.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    fn open_blocking(config: Config) -> Result<Self, Error> {
        let data_dir = config.data_dir.clone();
        fs::create_dir_all(&data_dir).map_err(Error::io("create", &data_dir))?;
        let folder_lock = FolderLock::take(&data_dir)?;
        let known = read_node(&data_dir, config.node_id)?;
        if known.is_some() {
            require_journals(&data_dir)?;
        }
        let reserve = Reserve::open(&data_dir, config.reserve_bytes);
        let shared = Arc::new(Shared::new(config, folder_lock, reserve));
        let config = &shared.config;
        // Flushed whatever the policy: an epoch must never come back, and both are small.
        let journal = |name: &str| Journal::open(&data_dir.join(name), &shared);
        let (producers, groups) = (journal(PRODUCERS)?, journal(GROUPS)?);
        // Last of what must be there at every later start.
        let cluster_id = match known {
            Some(cluster_id) => cluster_id,
            None => write_node(&data_dir, config.node_id)?,
        };
        let groups = Arc::new(Groups::new(groups));
        let topics = Arc::new(Topics::open(&data_dir, Arc::clone(&shared))?);
        let producers = Arc::new(ProducerRegistry::open(producers, &topics.producer_epochs())?);
        let flusher = Flusher::start(config.flush_threads, &config.workers)?;
        let room = Arc::new(Semaphore::new(config.pending_bytes));
        let stop_tasks = CancellationToken::new();
        Ok(Self {
            cluster_id,
            topics,
            producers,
            groups,
            flusher,
            intake: tokio::sync::Mutex::default(),
            room,
            requests: TaskTracker::new(),
            tasks: Mutex::default(),
            _stop_on_drop: stop_tasks.clone().drop_guard(),
            stop_tasks,
            shared,
        })
    }

    fn close_blocking(&self) -> Result<(), Error> {
        let outcome = self.flusher.stop();
        for topic in self.topics.all() {
            for partition in &topic.partitions {
                partition.close();
            }
        }
        outcome.and(self.producers.close()).and(self.groups.close())
    }

    fn start_tasks(self: &Arc<Self>) {
        let mut tasks = lock(&self.tasks);
        tasks.spawn(sync_in_background(
            Arc::clone(&self.shared),
            Arc::clone(&self.topics),
            self.stop_tasks.clone(),
        ));
        tasks.spawn(open_refused(
            Arc::clone(&self.shared),
            Arc::clone(&self.topics),
            Arc::clone(&self.producers),
            self.stop_tasks.clone(),
        ));
        tasks.spawn(look_after_retention(
            Arc::clone(&self.shared),
            Arc::clone(&self.topics),
            Arc::clone(&self.groups),
            self.stop_tasks.clone(),
        ));
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("data_dir", &self.shared.config.data_dir)
            .field("cluster_id", &self.cluster_id)
            .finish_non_exhaustive()
    }
}

fn status(partition: &Partition) -> PartitionStatus {
    let (offsets, size_bytes, stopped) = partition.condition();
    PartitionStatus {
        topic: partition.name.topic.clone(),
        topic_id: partition.name.topic_id,
        partition: partition.name.partition,
        start_offset: offsets.start,
        high_watermark: offsets.high_watermark,
        end_offset: offsets.end,
        size_bytes,
        offline: stopped.map(|why| why.to_string()),
    }
}

/// The cluster's id, if the folder is a node's already.
fn read_node(data_dir: &Path, node_id: BrokerId) -> Result<Option<String>, Error> {
    let path = data_dir.join("node.json");
    let Some(contents) = disk::read_if_exists(&path)? else { return Ok(None) };
    let stored: StoredNode = decode_json(&path, &contents, NODE_VERSION)?;
    if stored.node_id != node_id.get() {
        return Err(Error::OtherNode {
            path: data_dir.to_owned(),
            found: stored.node_id,
            configured: node_id.get(),
        });
    }
    Ok(Some(stored.cluster_id))
}

/// Empty journals in the place of lost ones would forget what pipelines hold back from retention,
/// and who is fenced.
fn require_journals(data_dir: &Path) -> Result<(), Error> {
    for name in [PRODUCERS, GROUPS] {
        let path = data_dir.join(name);
        if !path.try_exists().map_err(Error::io("look for", &path))? {
            let reason = "the file is missing; restore the whole folder from a copy, or begin with \
                          an empty one and take new snapshots of the sources";
            return Err(Error::corrupt(&path, 0, reason));
        }
    }
    Ok(())
}

fn write_node(data_dir: &Path, node_id: BrokerId) -> Result<String, Error> {
    let path = data_dir.join("node.json");
    let cluster_id = Uuid::new_v4().simple().to_string();
    let stored = StoredNode { version: NODE_VERSION, cluster_id, node_id: node_id.get() };
    disk::replace_file(&path, &encode_json(&stored))?;
    Ok(stored.cluster_id)
}

/// Flushes what an interval policy left, and flush marks under every policy.
async fn sync_in_background(shared: Arc<Shared>, topics: Arc<Topics>, stop: CancellationToken) {
    let every = match shared.config.flush {
        FlushPolicy::Interval(interval) => interval,
        FlushPolicy::Always | FlushPolicy::Never => BACKGROUND_SYNC,
    };
    while sleep_unless(&stop, every).await {
        let topics = Arc::clone(&topics);
        let synced = shared.config.workers.run(move || {
            for topic in topics.all() {
                for partition in &topic.partitions {
                    partition.guard(Partition::sync_in_background);
                }
            }
        });
        if synced.await.is_err() {
            tracing::error!("flushing in the background failed; tried again");
        }
    }
}

/// Opens the partitions for which there were no files, no memory or no space at the start, until
/// none of them is left.
async fn open_refused(
    shared: Arc<Shared>,
    topics: Arc<Topics>,
    producers: Arc<ProducerRegistry>,
    stop: CancellationToken,
) {
    while sleep_unless(&stop, REFUSED_PAUSE).await {
        let (topics, producers) = (Arc::clone(&topics), Arc::clone(&producers));
        let opening = shared.config.workers.run(move || {
            let partitions = topics.all().into_iter().flat_map(|topic| topic.partitions.clone());
            let left = partitions.filter(|partition| {
                let again = |one: &Partition| one.open_again(|seen| producers.learn(seen));
                partition.guard(again) == Some(true)
            });
            left.count()
        });
        if opening.await.is_ok_and(|left| left == 0) {
            return;
        }
    }
}

async fn look_after_retention(
    shared: Arc<Shared>,
    topics: Arc<Topics>,
    groups: Arc<Groups>,
    stop: CancellationToken,
) {
    while sleep_unless(&stop, shared.config.retention_check).await {
        let retained = enforce_retention(&shared, &topics, &groups).await;
        if let Err(error) = retained.and(compact(&shared, &topics).await) {
            tracing::error!(error = %error.full_text(), "retention failed; tried again later");
        }
    }
}

async fn enforce_retention(
    shared: &Arc<Shared>,
    topics: &Arc<Topics>,
    groups: &Arc<Groups>,
) -> Result<u64, Error> {
    let workers = shared.config.workers.clone();
    let (shared, topics, groups) = (Arc::clone(shared), Arc::clone(topics), Arc::clone(groups));
    let enforcing = workers.run(move || {
        let now = shared.config.clock.now_ms();
        let partitions: Vec<_> =
            topics.all().iter().flat_map(|topic| topic.partitions.clone()).collect();
        let mut size: u64 = partitions.iter().map(|partition| partition.condition().1).sum();
        let mut freed = 0;
        for partition in partitions {
            partition.expire_producers(now);
            let key = (partition.name.topic_id, partition.name.partition);
            let limit = shared.config.retention_limit.unwrap_or(u64::MAX);
            let excess_bytes = size.saturating_sub(limit);
            let before = partition.condition().1;
            freed += retain(&partition, now, groups.hold(key), excess_bytes);
            // Not what was freed: a file that was released may still be there, and one released
            // earlier may have gone now. Neither is a reason to take more from the next partition.
            size -= before.saturating_sub(partition.condition().1).min(size);
        }
        shared.reserve.refill();
        freed
    });
    enforcing.await
}

async fn compact(shared: &Shared, topics: &Arc<Topics>) -> Result<u64, Error> {
    let topics = Arc::clone(topics);
    let compacting = shared.config.workers.run(move || {
        let mut freed = 0;
        for topic in topics.all() {
            for partition in &topic.partitions {
                let compacted = partition.guard(Partition::compact).unwrap_or(Ok(0));
                freed += compacted.unwrap_or_else(|error| {
                    tracing::warn!(
                        topic = %topic.name,
                        partition = %partition.name.partition,
                        error = %error.full_text(),
                        "not compacted; tried again later"
                    );
                    0
                });
            }
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

/// Whether the time went by before it was time to stop.
async fn sleep_unless(stop: &CancellationToken, time: Duration) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(time) => true,
    }
}
