//! Several Tailwater nodes whose logs are one: processes that are killed, and links that are cut.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::host::Host;
use crate::network::Network;
use crate::port::free_port;
use crate::tailwater::Tailwater;

/// Where nodes listen that have a host of their own.
const PORT: u16 = 9092;
const CONTROLLER_PORT: u16 = 9093;

/// A log of several nodes; it ends, and its folders go, on drop or with this process.
///
/// Nodes are counted from 0 here; node `n` has the id `n + 1` in the cluster.
#[derive(Debug)]
pub struct Cluster {
    // Before the network that they run on.
    nodes: Vec<Node>,
    network: Option<Network>,
}

#[derive(Debug)]
struct Node {
    tailwater: Tailwater,
    /// `host:port` for clients.
    address: String,
}

/// Where a node listens.
struct Place {
    listen: String,
    controller_listen: String,
    host: Option<Host>,
}

impl Cluster {
    /// Starts `count` nodes of `binary`, each on its own port of this host.
    ///
    /// # Errors
    /// If one does not come up: with the end of its log.
    pub fn start(binary: &Path, count: u8) -> Result<Cluster> {
        let place = |_| Place {
            listen: format!("127.0.0.1:{}", free_port()),
            controller_listen: format!("127.0.0.1:{}", free_port()),
            host: None,
        };
        Cluster::start_at(binary, (0..count).map(place).collect(), None)
    }

    /// Starts `count` nodes of `binary`, each on a host of its own. Only root may.
    ///
    /// # Errors
    /// If the system does not let us, or one does not come up: with the end of its log.
    pub fn start_on_hosts(binary: &Path, count: u8) -> Result<Cluster> {
        let mut network = Network::start()?;
        let mut places = Vec::new();
        for _ in 0..count {
            let host = network.host()?;
            places.push(Place {
                listen: format!("{}:{PORT}", host.address()),
                controller_listen: format!("{}:{CONTROLLER_PORT}", host.address()),
                host: Some(host),
            });
        }
        Cluster::start_at(binary, places, Some(network))
    }

    fn start_at(binary: &Path, places: Vec<Place>, network: Option<Network>) -> Result<Cluster> {
        let controllers: Vec<String> = (1..)
            .zip(&places)
            .map(|(id, place)| format!("\"{id}@{}\"", place.controller_listen))
            .collect();
        let controllers = controllers.join(", ");
        let mut cluster = Cluster { nodes: Vec::new(), network };
        for (id, place) in (1..).zip(places) {
            let tailwater = match place.host {
                Some(host) => Tailwater::prepare_on(host, binary, "")?,
                None => Tailwater::prepare_whole(binary, "")?,
            };
            tailwater.configure(&format!(
                "[log]\ndata_dir = \"{}\"\nnode_id = {id}\nlisten = \"{}\"\n\
                 controller_listen = \"{}\"\ncontrollers = [{controllers}]\n\
                 replication_factor = 3\nmin_insync_replicas = 2\ninsecure = true\n",
                folder_of(&tailwater).display(),
                place.listen,
                place.controller_listen,
            ))?;
            cluster.nodes.push(Node { tailwater, address: place.listen });
        }
        // None serves before a majority is there.
        for node in &mut cluster.nodes {
            node.tailwater.spawn()?;
        }
        for node in &mut cluster.nodes {
            node.tailwater.wait_until_up()?;
        }
        Ok(cluster)
    }

    /// How many nodes there are, running or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Every node's address for Kafka clients.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// The process of a node.
    ///
    /// # Panics
    /// If there is no such node.
    #[must_use]
    pub fn node(&self, number: usize) -> &Tailwater {
        &self.nodes[number].tailwater
    }

    /// As [`Cluster::node`], to do something to it.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn node_mut(&mut self, number: usize) -> &mut Tailwater {
        &mut self.nodes[number].tailwater
    }

    /// The folder with a node's partitions.
    ///
    /// # Panics
    /// If there is no such node.
    #[must_use]
    pub fn folder(&self, number: usize) -> PathBuf {
        folder_of(self.node(number))
    }

    /// Pulls the cable of a node: it reaches nobody, nobody reaches it, and nobody is told.
    ///
    /// # Errors
    /// If it has no host of its own.
    pub fn isolate(&self, number: usize) -> Result<()> {
        self.network()?.isolate(self.host(number)?)
    }

    /// Ends [`Cluster::isolate`].
    ///
    /// # Errors
    /// If it has no host of its own.
    pub fn join(&self, number: usize) -> Result<()> {
        self.network()?.join(self.host(number)?)
    }

    /// Nothing more that node `from` sends reaches node `to`; the other way is open.
    ///
    /// # Errors
    /// If they have no hosts of their own.
    pub fn lose(&self, from: usize, to: usize) -> Result<()> {
        self.host(from)?.lose(self.host(to)?.address())
    }

    /// Ends [`Cluster::lose`].
    ///
    /// # Errors
    /// If they have no hosts of their own.
    pub fn find(&self, from: usize, to: usize) -> Result<()> {
        self.host(from)?.find(self.host(to)?.address())
    }

    fn host(&self, number: usize) -> Result<&Host> {
        self.node(number).host().context("a node with a host of its own")
    }

    fn network(&self) -> Result<&Network> {
        self.network.as_ref().context("nodes with hosts of their own")
    }
}

fn folder_of(tailwater: &Tailwater) -> PathBuf {
    tailwater.config().with_file_name("log")
}
