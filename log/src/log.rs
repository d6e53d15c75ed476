//! A log node: its data folder, its threads and tasks, its beginning and its end.
//!
//! The order of the beginning: the folder; the controller, if the node carries one; then the broker
//! registers, hears what it is to have, opens that, and is relied on. The order of the end: the
//! broker asks to be let go, so that others lead; no new requests (the caller's token stops
//! [`Log::serve`]), the tasks, the flush threads; then [`Log::close`] writes, flushes and seals every
//! partition, and lets go of the folder. A `Log` that is dropped without being closed leaves its
//! files like a process that died.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tailwater_kafka::{BrokerId, LeaderEpoch, Offset, PartitionId, ServerConfig, TopicId};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::Error;
use crate::config::{Config, FlushPolicy};
use crate::controller::{Registration, Settings as ControllerSettings};
use crate::coordinator::Coordinators;
use crate::metadata::{BrokerEpoch, Image, MetadataIndex};
use crate::node::assign::Assigner;
use crate::node::controller::{Ask, ControllerNode};
use crate::node::errands::{self, ErrandRunner};
use crate::node::fetcher::{Common, Fetchers};
use crate::node::link::ControllerLink;
use crate::node::membership::{Membership, NOT_REGISTERED, Standing};
use crate::partitions::{PartitionKey, Partitions};
use crate::producers::ProducerIds;
use crate::quorum::{
    ControllerHandler, ControllerMessage, ControllerReply, Quorum, QuorumConfig, QuorumNetwork,
    SNAPSHOT_AFTER,
};
use crate::storage::checkpoint::{decode_json, encode_json};
use crate::storage::disk;
use crate::storage::flusher::Flusher;
use crate::storage::folder_lock::FolderLock;
use crate::storage::partition::{Partition, Shared, lock};
use crate::storage::reserve::Reserve;
use crate::storage::retention::Hold;

const NODE_VERSION: u32 = 2;
const STOPPED_VERSION: u32 = 1;

/// How often flush marks are made durable, and with them how old one may be after a power cut.
const BACKGROUND_SYNC: Duration = Duration::from_secs(1);

/// How soon a partition is tried again that could not be opened: it takes reading its last segment.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// How long a node that stops waits for others to lead what it leads.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

/// A log node.
pub struct Log {
    pub(crate) shared: Arc<Shared>,
    pub(crate) partitions: Arc<Partitions>,
    pub(crate) image: watch::Sender<Arc<Image>>,
    /// What of the metadata has been carried out here.
    pub(crate) assigned: watch::Receiver<MetadataIndex>,
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) link: Arc<ControllerLink>,
    pub(crate) controller: Option<Arc<ControllerNode>>,
    pub(crate) coordinators: Arc<Coordinators>,
    pub(crate) producer_ids: ProducerIds,
    pub(crate) flusher: Arc<Flusher>,
    /// Held, first come first served, while a request's batches are appended: what a connection
    /// sends is taken in the order in which it came, also when there is no room for a while.
    pub(crate) intake: tokio::sync::Mutex<()>,
    /// Room for bytes that wait to be written.
    pub(crate) room: Arc<Semaphore>,
    /// Requests of several steps, which go on to their end although the connection that asked for
    /// them is gone.
    pub(crate) requests: TaskTracker,
    leaving: CancellationToken,
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

/// What `node.json` says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredNode {
    version: u32,
    node_id: i32,
    /// Chosen when the folder was made: another folder has none of the records that this one has.
    directory: Uuid,
}

/// What every version of `node.json` has.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// What `stopped.json` says: it is there between a clean stop and the next start.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredStop {
    version: u32,
    broker_epoch: BrokerEpoch,
}

/// What opening the folder gives.
struct Opened {
    shared: Arc<Shared>,
    directory: Uuid,
    stopped_as: Option<BrokerEpoch>,
    partitions: Arc<Partitions>,
    flusher: Arc<Flusher>,
}

impl Log {
    /// Opens the node in its data folder, making what is not there yet.
    ///
    /// A node alone serves when this returns. One of several may still wait for the others.
    ///
    /// # Errors
    /// If the folder is in use, belongs to another node, or cannot be understood. A damaged
    /// partition is no error: it is offline, and [`Log::partitions`] says why. One for which there
    /// were no files, no memory or no space is tried again while the node runs.
    pub async fn open(config: Config) -> Result<Arc<Self>, Error> {
        config.validate()?;
        let workers = config.workers.clone();
        let opened = workers.run(move || open_folder(config)).await??;
        let network = opened.shared.config.controller_network.network();
        let controller = open_controller(&opened.shared, &network).await?;
        let log = Arc::new(Self::start(opened, controller, network));
        log.spawn(Self::look_after_retention(Arc::downgrade(&log)));
        if log.shared.config.all_controllers().len() == 1
            && let Some(controller) = &log.controller
        {
            log.serving_alone(controller.quorum()).await?;
        }
        Ok(log)
    }

    /// Waits until this node serves, or never will: its own quorum is the only one.
    async fn serving_alone(&self, quorum: &Quorum) -> Result<(), Error> {
        let mut status = quorum.watch();
        let stopped = async {
            let ended = status.wait_for(|status| status.stopped.is_some()).await;
            ended.map_or_else(
                |closed| closed.to_string(),
                |status| status.stopped.clone().unwrap_or_default(),
            )
        };
        tokio::select! {
            biased;
            () = self.serving() => Ok(()),
            reason = stopped => Err(Error::Unavailable { operation: "begin to serve", reason }),
        }
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

    /// Serves the other nodes of the cluster on `listener` until `shutdown`, if this node carries a
    /// controller.
    pub async fn serve_controller(
        self: Arc<Self>,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) {
        crate::quorum::serve(listener, self, shutdown).await;
    }

    /// Has others lead what this node leads, as far as there are any who can, and waits until they
    /// do, ten seconds at most. To be called before [`Log::serve`] is stopped: clients are told
    /// where to go.
    pub async fn leave(&self) {
        if self.image.borrow().brokers().len() < 2 {
            return;
        }
        self.leaving.cancel();
        let mut standing = self.standing.clone();
        let left = standing.wait_for(|standing| standing.may_stop);
        if tokio::time::timeout(LEAVE_PATIENCE, left).await.is_err() {
            tracing::warn!("stopping although others could not take over");
        }
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
        self.coordinators.close();
        let log = Arc::clone(self);
        let closing = self.shared.config.workers.run(move || log.close_blocking());
        outcome = outcome.and(closing.await.flatten());
        if let Some(controller) = &self.controller {
            controller.quorum().close().await;
        }
        self.shared.folder_lock.release();
        outcome
    }

    /// Where every partition of this node stands.
    pub fn partitions(&self) -> Vec<PartitionStatus> {
        let image = Arc::clone(&self.image.borrow());
        self.partitions.all().iter().map(|partition| status(&image, partition)).collect()
    }

    /// This node's id.
    pub fn node_id(&self) -> BrokerId {
        self.shared.config.node_id
    }

    /// Takes a controller out of the metadata quorum, for good: its node is gone, or is to be a
    /// broker only. To be asked of the node whose controller is active.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: another controller is active, or it is the last one.
    pub async fn remove_controller(&self, id: BrokerId) -> Result<(), Error> {
        let unavailable =
            |reason: String| Error::Unavailable { operation: "remove the controller", reason };
        let controller = self.controller.as_ref();
        let controller = controller.ok_or_else(|| unavailable("here is none".to_owned()))?;
        let removed = controller.quorum().remove_voter(id).await;
        removed.map_err(|error| unavailable(error.to_string()))
    }

    /// Whether this node's controller decides for the cluster.
    pub fn is_active_controller(&self) -> bool {
        let active = |node: &Arc<ControllerNode>| node.quorum().watch().borrow().is_active();
        self.controller.as_ref().is_some_and(active)
    }

    /// Whether the controller relies on this node.
    pub fn is_in_service(&self) -> bool {
        self.standing.borrow().in_service
    }

    /// Waits until this node serves: it is relied on, and leads what it is to lead.
    pub async fn serving(&self) {
        let mut standing = self.standing.clone();
        // The membership is this node's own task.
        drop(standing.wait_for(|standing| standing.in_service).await);
        let me = self.shared.config.node_id;
        let mut image = self.image.subscribe();
        drop(image.wait_for(|image| image.broker(me).is_some_and(|broker| !broker.fenced)).await);
        let image = Arc::clone(&image.borrow());
        self.carried_out(image.index()).await;
        for (topic, _, number, state) in image.partitions() {
            if state.leader == Some(me)
                && let Some(partition) = self.partitions.get((topic, number))
            {
                partition.leading(state.leader_epoch).await;
            }
        }
    }

    /// Waits until what the metadata says up to `index` is carried out here.
    pub(crate) async fn carried_out(&self, index: MetadataIndex) {
        let mut assigned = self.assigned.clone();
        // The membership is this node's own task.
        drop(assigned.wait_for(|assigned| *assigned >= index).await);
    }

    /// Removes what is past its retention now, as the node does every
    /// [`Config::retention_check`]. Returns how many bytes that freed.
    ///
    /// # Errors
    /// If a thread of the log died.
    pub async fn enforce_retention(self: &Arc<Self>) -> Result<u64, Error> {
        let holds = self.holds().await;
        enforce_retention(&self.shared, &self.partitions, holds).await
    }

    /// Compacts what is worth it now, as the node does every [`Config::retention_check`]. Returns
    /// how many bytes that freed.
    ///
    /// # Errors
    /// If a thread of the log died.
    pub async fn compact(&self) -> Result<u64, Error> {
        compact(&self.shared, &self.partitions).await
    }

    /// The cluster's id, for its life; empty while this node is not part of one yet.
    pub fn cluster_id(&self) -> String {
        let image = self.image.borrow();
        image.cluster().map_or_else(String::new, |cluster| cluster.cluster_id.clone())
    }

    fn start(
        opened: Opened,
        controller: Option<Arc<ControllerNode>>,
        network: Arc<dyn QuorumNetwork>,
    ) -> Self {
        let Opened { shared, directory, stopped_as, partitions, flusher } = opened;
        let config = &shared.config;
        let me = config.node_id;
        let own = controller.as_ref().map(|controller| (me, Arc::clone(controller)));
        let (image, standing) =
            (watch::Sender::new(Arc::<Image>::default()), watch::Sender::new(NOT_REGISTERED));
        let assigned = watch::Sender::new(MetadataIndex::ZERO);
        let (leaving, stop_tasks) = (CancellationToken::new(), CancellationToken::new());
        let controllers = config.all_controllers();
        let link = Arc::new(ControllerLink::new(own, &controllers, network, stop_tasks.clone()));
        let room = Arc::new(Semaphore::new(config.pending_bytes));
        let coordinators = Arc::new(Coordinators::default());
        let membership = Membership {
            registration: Registration {
                id: me,
                incarnation: Uuid::new_v4(),
                directory,
                host: config.advertised_host.clone(),
                port: config.advertised_port,
                rack: config.rack.clone(),
                previous_epoch: stopped_as,
                keeps_unflushed: config.flush != FlushPolicy::Always,
            },
            link: Arc::clone(&link),
            image: image.clone(),
            assigned: assigned.clone(),
            standing: standing.clone(),
            assigner: Assigner::new(
                me,
                Arc::clone(&shared),
                Arc::clone(&partitions),
                Arc::clone(&flusher),
            ),
            leaving: leaving.clone(),
        };
        let common = Common {
            me,
            shared: Arc::clone(&shared),
            flusher: Arc::clone(&flusher),
            room: Arc::clone(&room),
            image: image.subscribe(),
            standing: standing.subscribe(),
        };
        let (proposals, proposed) = errands::proposals();
        let errands = ErrandRunner {
            shared: Arc::clone(&shared),
            partitions: Arc::clone(&partitions),
            flusher: Arc::clone(&flusher),
            coordinators: Arc::clone(&coordinators),
            fetchers: Fetchers::new(common),
            proposals,
        };
        let log = Self {
            assigned: assigned.subscribe(),
            standing: standing.subscribe(),
            image,
            link,
            controller,
            coordinators,
            producer_ids: ProducerIds::default(),
            partitions,
            flusher,
            intake: tokio::sync::Mutex::default(),
            room,
            requests: TaskTracker::new(),
            leaving,
            tasks: Mutex::default(),
            _stop_on_drop: stop_tasks.clone().drop_guard(),
            stop_tasks,
            shared,
        };
        log.spawn(membership.run());
        log.spawn(errands.run());
        log.spawn(errands::propose(
            me,
            proposed,
            log.standing.clone(),
            Arc::clone(&log.link),
            Arc::clone(&log.partitions),
        ));
        log.spawn(sync_in_background(Arc::clone(&log.shared), Arc::clone(&log.partitions)));
        log.spawn(open_refused(Arc::clone(&log.shared), Arc::clone(&log.partitions)));
        log
    }

    /// Runs a task until the node stops. Nothing of it is lost when it is dropped.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop_tasks.clone();
        lock(&self.tasks).spawn(async move {
            // Ended or cancelled: nothing is left to say.
            stop.run_until_cancelled_owned(task).await.unwrap_or_default();
        });
    }

    fn close_blocking(&self) -> Result<(), Error> {
        let mut outcome = self.flusher.stop();
        let mut clean = true;
        for partition in self.partitions.all() {
            partition.close();
            clean &= partition.is_closed_clean();
        }
        let epoch = self.standing.borrow().epoch;
        if let Some(broker_epoch) = epoch
            && clean
        {
            let stop = StoredStop { version: STOPPED_VERSION, broker_epoch };
            let path = self.shared.config.data_dir.join("stopped.json");
            outcome = outcome.and(disk::replace_file(&path, &encode_json(&stop)));
        }
        outcome
    }

    /// Looks after retention; the caller spawns it where the node is shared already.
    pub(crate) async fn look_after_retention(log: std::sync::Weak<Self>) {
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
}

#[async_trait::async_trait]
impl ControllerHandler for Log {
    async fn handle(&self, message: ControllerMessage) -> ControllerReply {
        let refused = |reason: &str| ControllerReply::Refused { reason: reason.to_owned() };
        let Some(controller) = &self.controller else {
            return refused("this node carries no controller");
        };
        match message {
            ControllerMessage::Quorum(message) => {
                ControllerReply::Quorum(controller.quorum().handle(message).await)
            }
            ControllerMessage::Controller(ask) => match serde_json::from_value::<Ask>(ask) {
                Ok(ask) => match serde_json::to_value(controller.handle(ask).await) {
                    Ok(reply) => ControllerReply::Controller(reply),
                    Err(error) => refused(&error.to_string()),
                },
                Err(error) => refused(&error.to_string()),
            },
        }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("data_dir", &self.shared.config.data_dir)
            .field("node_id", &self.shared.config.node_id)
            .finish_non_exhaustive()
    }
}

fn open_folder(config: Config) -> Result<Opened, Error> {
    let data_dir = config.data_dir.clone();
    fs::create_dir_all(&data_dir).map_err(Error::io("create", &data_dir))?;
    let folder_lock = FolderLock::take(&data_dir)?;
    let directory = match read_node(&data_dir, config.node_id)? {
        Some(directory) => directory,
        None => write_node(&data_dir, config.node_id)?,
    };
    let stopped_as = take_stop(&data_dir, &config)?;
    let reserve = Reserve::open(&data_dir, config.reserve_bytes);
    let shared = Arc::new(Shared::new(config, folder_lock, reserve));
    let partitions = Arc::new(Partitions::new(&data_dir, Arc::clone(&shared))?);
    let config = &shared.config;
    let flusher = Arc::new(Flusher::start(config.flush_threads, &config.workers)?);
    Ok(Opened { shared, directory, stopped_as, partitions, flusher })
}

async fn open_controller(
    shared: &Arc<Shared>,
    network: &Arc<dyn QuorumNetwork>,
) -> Result<Option<Arc<ControllerNode>>, Error> {
    let config = &shared.config;
    let controllers = config.all_controllers();
    let Some(address) = controllers.get(&config.node_id).cloned() else { return Ok(None) };
    let quorum = QuorumConfig {
        node: config.node_id,
        address,
        directory: config.data_dir.join("metadata"),
        controllers,
        disk: Arc::clone(&config.disk),
        timeouts: config.quorum(),
        snapshot_after: SNAPSHOT_AFTER,
    };
    let quorum = Quorum::open(quorum, Arc::clone(network)).await?;
    let settings = ControllerSettings {
        cluster_id: Uuid::new_v4().simple().to_string(),
        session_timeout: config.session_timeout,
        default_partitions: config.default_partitions,
        default_replication_factor: config.replication_factor,
        min_insync_replicas: config.min_insync_replicas,
        ..ControllerSettings::default()
    };
    Ok(Some(Arc::new(ControllerNode::start(quorum, settings))))
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

/// Which folder this is, if it is a node's already.
fn read_node(data_dir: &Path, node_id: BrokerId) -> Result<Option<Uuid>, Error> {
    let path = data_dir.join("node.json");
    let Some(contents) = disk::read_if_exists(&path)? else { return Ok(None) };
    let older: Version = decode_json(&path, &contents, NODE_VERSION)?;
    if older.version < NODE_VERSION {
        return Err(Error::Config {
            problems: vec![format!(
                "{} is from before there was metadata, which no release had: begin with an empty \
                 folder, and let the sources write anew",
                data_dir.display()
            )],
        });
    }
    let stored: StoredNode = decode_json(&path, &contents, NODE_VERSION)?;
    if stored.node_id != node_id.get() {
        return Err(Error::OtherNode {
            path: data_dir.to_owned(),
            found: stored.node_id,
            configured: node_id.get(),
        });
    }
    Ok(Some(stored.directory))
}

fn write_node(data_dir: &Path, node_id: BrokerId) -> Result<Uuid, Error> {
    let path = data_dir.join("node.json");
    let stored =
        StoredNode { version: NODE_VERSION, node_id: node_id.get(), directory: Uuid::new_v4() };
    disk::replace_file(&path, &encode_json(&stored))?;
    Ok(stored.directory)
}

/// As which registration the node stopped with everything flushed. What says so goes, durably,
/// before anything is written that a crash could take away.
fn take_stop(data_dir: &Path, config: &Config) -> Result<Option<BrokerEpoch>, Error> {
    let path = data_dir.join("stopped.json");
    let Some(contents) = disk::read_if_exists(&path)? else { return Ok(None) };
    let stored: StoredStop = decode_json(&path, &contents, STOPPED_VERSION)?;
    disk::remove_file(&path)?;
    disk::sync_folder(&*config.disk, data_dir)?;
    Ok(Some(stored.broker_epoch))
}

/// Flushes what an interval policy left, and flush marks under every policy.
async fn sync_in_background(shared: Arc<Shared>, partitions: Arc<Partitions>) {
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
async fn open_refused(shared: Arc<Shared>, partitions: Arc<Partitions>) {
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
            let key = (partition.name.topic_id, partition.name.partition);
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
