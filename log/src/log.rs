//! A log node: its data folder, its threads and tasks, its beginning and its end.
//!
//! The order of the beginning: the folder; the controller, if the node carries one; then the broker
//! registers, hears what it is to have, opens that, and is relied on. The order of the end: the
//! broker asks to be let go, so that others lead; no new requests (the caller's token stops
//! [`Log::serve`]), the tasks, the flush threads; then [`Log::close`] writes, flushes and seals every
//! partition, and lets go of the folder. A `Log` that is dropped without being closed leaves its
//! files like a process that died.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tailwater_kafka::{BrokerId, ServerConfig};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::Error;
use crate::config::{Config, FlushPolicy};
use crate::controller::{Registration, Settings as ControllerSettings};
use crate::coordinator::Coordinators;
use crate::folder::{self, Folder};
use crate::metadata::{Image, MetadataIndex};
use crate::node::assign::Assigner;
use crate::node::controller::{self, ControllerNode};
use crate::node::errands::{self, ErrandRunner};
use crate::node::fetcher::{Common, Fetchers};
use crate::node::link::ControllerLink;
use crate::node::membership::{Membership, NOT_REGISTERED, Standing};
use crate::node::throttle::CatchUp;
use crate::partitions::Partitions;
use crate::producers::ProducerIds;
use crate::quorum::{Quorum, QuorumConfig, QuorumNetwork, SNAPSHOT_AFTER, SNAPSHOT_PART_BYTES};
use crate::storage::flusher::Flusher;
use crate::storage::partition::{Shared, lock};
use crate::upkeep;

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
    /// See [`Membership::confirmed`].
    pub(crate) confirmed: watch::Receiver<Option<Instant>>,
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
    pub(crate) catch_up: Arc<CatchUp>,
    /// What clients have read here of partitions that this node follows.
    pub(crate) follower_read_bytes: AtomicU64,
    leaving: CancellationToken,
    tasks: Mutex<JoinSet<()>>,
    stop_tasks: CancellationToken,
    _stop_on_drop: DropGuard,
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
        let opened = workers.run(move || folder::open(config)).await??;
        let network = opened.shared.config.controller_network.network();
        let controller = open_controller(&opened.shared, &network).await?;
        let log = Arc::new(Self::start(opened, controller, network));
        if log.is_broker() {
            log.spawn(upkeep::look_after_retention(Arc::downgrade(&log)));
        }
        if log.shared.config.all_controllers().len() == 1 && log.controller.is_some() {
            log.until_serving().await?;
        }
        Ok(log)
    }

    /// Waits until this node serves, or cannot any more: then it is to be closed and started again.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the controller of this node has stopped.
    pub async fn until_serving(&self) -> Result<(), Error> {
        tokio::select! {
            biased;
            () = self.serving() => Ok(()),
            reason = self.stopped() => {
                Err(Error::Unavailable { operation: "begin to serve", reason })
            }
        }
    }

    /// Waits until the controller of this node has stopped, and says why: what the metadata quorum
    /// writes could not be flushed, say. It takes part no more until the node is closed and opened
    /// again, so whoever runs it should do that. Waits for ever if the node carries none.
    pub async fn stopped(&self) -> String {
        let Some(controller) = &self.controller else { return std::future::pending().await };
        let mut status = controller.quorum().watch();
        let ended = status.wait_for(|status| status.stopped.is_some()).await;
        ended.map_or_else(
            |closed| closed.to_string(),
            |status| status.stopped.clone().unwrap_or_default(),
        )
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
        if !self.is_broker() || self.image.borrow().brokers().len() < 2 {
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

    /// This node's id.
    pub fn node_id(&self) -> BrokerId {
        self.shared.config.node_id
    }

    /// Whether it has copies of partitions and serves clients; else it is a controller only.
    pub fn is_broker(&self) -> bool {
        self.shared.config.broker
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

    /// Waits until this node serves: it is relied on, and leads what it is to lead. Or, without a
    /// broker, until its controller is part of a cluster that has begun.
    pub async fn serving(&self) {
        if !self.is_broker() {
            let mut image = self.image.subscribe();
            // What shows it is this node's own task.
            drop(image.wait_for(|image| image.cluster().is_some()).await);
            return;
        }
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

    /// The cluster's id, for its life; empty while this node is not part of one yet.
    pub fn cluster_id(&self) -> String {
        let image = self.image.borrow();
        image.cluster().map_or_else(String::new, |cluster| cluster.cluster_id.clone())
    }

    fn start(
        opened: Folder,
        controller: Option<Arc<ControllerNode>>,
        network: Arc<dyn QuorumNetwork>,
    ) -> Self {
        let Folder { shared, directory, stopped_as, partitions, flusher } = opened;
        let config = &shared.config;
        let me = config.node_id;
        let own = controller.as_ref().map(|controller| (me, Arc::clone(controller)));
        let (image, standing) =
            (watch::Sender::new(Arc::<Image>::default()), watch::Sender::new(NOT_REGISTERED));
        let (assigned, confirmed) =
            (watch::Sender::new(MetadataIndex::ZERO), watch::Sender::new(None));
        let (leaving, stop_tasks) = (CancellationToken::new(), CancellationToken::new());
        let controllers = config.all_controllers();
        let link = Arc::new(ControllerLink::new(own, &controllers, network, stop_tasks.clone()));
        let room = Arc::new(Semaphore::new(config.pending_bytes));
        let coordinators = Arc::new(Coordinators::default());
        let catch_up = Arc::new(CatchUp::new(config.replication_throttle));
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
            confirmed: confirmed.clone(),
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
            catch_up: Arc::clone(&catch_up),
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
            confirmed: confirmed.subscribe(),
            image,
            link,
            controller,
            coordinators,
            producer_ids: ProducerIds::default(),
            partitions,
            flusher,
            intake: tokio::sync::Mutex::default(),
            room,
            catch_up,
            follower_read_bytes: AtomicU64::new(0),
            leaving,
            tasks: Mutex::default(),
            _stop_on_drop: stop_tasks.clone().drop_guard(),
            stop_tasks,
            shared,
        };
        if !log.shared.config.broker {
            if let Some(controller) = &log.controller {
                log.spawn(controller::show(Arc::clone(controller), log.image.clone()));
            }
            return log;
        }
        log.spawn(membership.run());
        log.spawn(errands.run());
        log.spawn(errands::propose(
            me,
            proposed,
            log.standing.clone(),
            Arc::clone(&log.link),
            Arc::clone(&log.partitions),
        ));
        log.spawn(upkeep::sync_in_background(Arc::clone(&log.shared), Arc::clone(&log.partitions)));
        log.spawn(upkeep::open_refused(Arc::clone(&log.shared), Arc::clone(&log.partitions)));
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
            let data_dir = &self.shared.config.data_dir;
            outcome = outcome.and(folder::note_stop(data_dir, broker_epoch));
        }
        outcome
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
        snapshot_part_bytes: SNAPSHOT_PART_BYTES,
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
