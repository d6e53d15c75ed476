//! What a run has in common: its seed, its trace, its network, whether things go wrong at the
//! moment, and the first thing that must not have happened.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tailwater_kafka::{Client, ClientConfig, Transport};
use tokio_util::sync::CancellationToken;

use crate::Order;
use crate::dice::{Dice, ms};
use crate::mistaken::Heard;
use crate::network::Network;
use crate::plant::Plant;
use crate::trace::Trace;

/// A run. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) trace: Trace,
    pub(crate) network: Network,
    pub(crate) plant: Option<Plant>,
    pub(crate) heard: Heard,
    /// Log nodes.
    pub(crate) nodes: i32,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    faults: AtomicBool,
    has_lost_disk: AtomicBool,
    failure: Mutex<Option<String>>,
    failed: CancellationToken,
}

impl World {
    pub(crate) fn new(order: Order, trace: Trace) -> Self {
        let Order { seed, plant, nodes, .. } = order;
        let shared = Arc::new(Shared {
            faults: AtomicBool::new(true),
            has_lost_disk: AtomicBool::new(false),
            failure: Mutex::default(),
            failed: CancellationToken::new(),
        });
        let network = Network::new(Dice::new(seed, "network"), trace.clone());
        Self { seed, trace, network, plant, heard: Heard::default(), nodes, shared }
    }

    /// Replicas of a topic: every node has one.
    pub(crate) fn replication_factor(&self) -> i16 {
        i16::try_from(self.nodes).unwrap_or(1)
    }

    /// The dice of the component `label`.
    pub(crate) fn dice(&self, label: &str) -> Dice {
        Dice::new(self.seed, label)
    }

    /// Whether things go wrong.
    pub(crate) fn has_faults(&self) -> bool {
        self.shared.faults.load(Ordering::Relaxed)
    }

    /// Whether a disk may be lost, which it then is: one in a run, for when another node has all that
    /// was on it cannot be seen from outside.
    pub(crate) fn may_lose_disk(&self) -> bool {
        !self.shared.has_lost_disk.swap(true, Ordering::Relaxed)
    }

    /// Whether a machine has lost its disk.
    pub(crate) fn has_lost_disk(&self) -> bool {
        self.shared.has_lost_disk.load(Ordering::Relaxed)
    }

    /// From now on nothing goes wrong any more.
    pub(crate) fn end_faults(&self) {
        self.shared.faults.store(false, Ordering::Relaxed);
        self.network.heal();
        self.trace.note("world", format_args!("no more faults"));
    }

    /// Something that must not happen: the run ends. The first one is what is told.
    pub(crate) fn fail(&self, what: impl Into<String>) {
        let what = what.into();
        self.trace.note("world", format_args!("FAILED: {what}"));
        let mut failure = self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(what);
        self.shared.failed.cancel();
    }

    /// Waits until something has failed.
    pub(crate) async fn failed(&self) -> String {
        self.shared.failed.cancelled().await;
        let failure = self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.clone().unwrap_or_default()
    }

    /// A client on `host`, as soon as a broker answers.
    pub(crate) async fn client(&self, host: &str, brokers: &[String]) -> Client {
        let config = ClientConfig {
            client_id: host.to_owned(),
            connect_timeout: ms(1000),
            request_timeout: ms(2000),
            call_timeout: Duration::from_secs(20),
            rack: None,
        };
        loop {
            let way = Transport::simulated(
                brokers.to_vec(),
                self.network.end(host, CancellationToken::new()),
            );
            match Client::connect(config.clone(), way).await {
                Ok(client) => return client,
                Err(_) => tokio::time::sleep(ms(100)).await,
            }
        }
    }
}
