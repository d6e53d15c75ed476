//! Three nodes on this machine, ours or Kafka's, with the same settings.

use std::path::Path;
use std::thread;

use anyhow::{Context, Result, bail};
use tailwater_scratch::{Kafka, Tailwater, free_port};

use super::load::Load;
use crate::admin;
use crate::bench::ours::used;

/// Nodes of a cluster; every one is broker and controller.
pub(super) const NODES: usize = 3;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Ours,
    Kafka,
}

/// What an acknowledged record has survived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Durability {
    /// It is in the memory of every in-sync replica: Kafka's default.
    Copied,
    /// It is on the disk of every in-sync replica: our default.
    Flushed,
}

impl Durability {
    pub(super) fn name(self) -> &'static str {
        match self {
            Durability::Copied => "copied",
            Durability::Flushed => "flushed",
        }
    }

    /// Kafka with our default flushes also get our default session, so that both its elections are
    /// seen: as it comes, and with a dead broker noticed as soon.
    fn of_kafka(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Durability::Copied => &[("min.insync.replicas", "2")],
            Durability::Flushed => &[
                ("min.insync.replicas", "2"),
                ("log.flush.interval.messages", "1"),
                ("broker.session.timeout.ms", "2000"),
                ("broker.heartbeat.interval.ms", "400"),
            ],
        }
    }

    fn of_ours(self) -> &'static str {
        match self {
            Durability::Copied => "never",
            Durability::Flushed => "always",
        }
    }
}

/// A cluster that runs. It ends, and its folders go, on drop.
#[derive(Debug)]
pub(super) enum Nodes {
    Ours(Vec<Tailwater>, Vec<String>),
    Kafka(Vec<Kafka>),
}

/// What the processes of a cluster have used so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    pub(super) cpu_seconds: f64,
    /// The most that each ever had, added up, in bytes.
    pub(super) peak_memory: u64,
}

impl Nodes {
    /// Starts a cluster of `side`; ours is `binary`.
    ///
    /// # Errors
    /// If a node does not come up.
    pub(super) fn start(side: Side, durability: Durability, binary: &Path) -> Result<Nodes> {
        match side {
            Side::Ours => start_ours(durability, binary),
            Side::Kafka => Kafka::cluster(NODES, durability.of_kafka()).map(Nodes::Kafka),
        }
    }

    /// For `bootstrap.servers`.
    pub(super) fn servers(&self) -> String {
        match self {
            Nodes::Ours(_, servers) => servers.join(","),
            Nodes::Kafka(nodes) => nodes.iter().map(Kafka::bootstrap).collect::<Vec<_>>().join(","),
        }
    }

    pub(super) fn used(&self) -> Result<Used> {
        let pids: Vec<Option<u32>> = match self {
            Nodes::Ours(nodes, _) => nodes.iter().map(Tailwater::pid).collect(),
            Nodes::Kafka(nodes) => nodes.iter().map(Kafka::pid).collect(),
        };
        let mut sum = Used { cpu_seconds: 0.0, peak_memory: 0 };
        for pid in pids.into_iter().flatten() {
            let (cpu_seconds, peak_memory) = used(pid)?;
            sum.cpu_seconds += cpu_seconds;
            sum.peak_memory += peak_memory;
        }
        Ok(sum)
    }

    /// The node whose controller is active, counted from 0.
    pub(super) fn controller(&self, load: &mut Load) -> Result<usize> {
        match self {
            Nodes::Ours(nodes, _) => {
                for (number, node) in nodes.iter().enumerate() {
                    let label = format!("node=\"{}\"", number + 1);
                    let metrics = admin::metrics(&node.admin())?;
                    if metrics.value("tailwater_controller_active", &label) == Some(1.0) {
                        return Ok(number);
                    }
                }
                bail!("no node has the active controller")
            }
            Nodes::Kafka(_) => number_of(load.controller()?),
        }
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self, number: usize) -> Result<()> {
        match self {
            Nodes::Ours(nodes, _) => nodes[number].kill(),
            Nodes::Kafka(nodes) => nodes[number].kill(),
        }
    }

    /// Starts one that was killed, and waits until it is up.
    pub(super) fn start_again(&mut self, number: usize) -> Result<()> {
        match self {
            Nodes::Ours(nodes, _) => nodes[number].start_again(),
            Nodes::Kafka(nodes) => nodes[number].start_again(),
        }
    }
}

/// Ids of nodes count from 1.
pub(super) fn number_of(id: i32) -> Result<usize> {
    let number = usize::try_from(id).ok().and_then(|id| id.checked_sub(1));
    number.filter(|number| *number < NODES).with_context(|| format!("no node has the id {id}"))
}

fn start_ours(durability: Durability, binary: &Path) -> Result<Nodes> {
    let ports: Vec<(u16, u16)> = (0..NODES).map(|_| (free_port(), free_port())).collect();
    let controllers = (1..).zip(&ports).map(|(id, (_, at))| format!("\"{id}@127.0.0.1:{at}\""));
    let controllers = controllers.collect::<Vec<_>>().join(", ");
    let prepare = |(id, (listen, controller_listen)): (usize, &(u16, u16))| {
        let text = format!(
            "[log]
data_dir = \"log\"
node_id = {id}
listen = \"127.0.0.1:{listen}\"
controller_listen = \"127.0.0.1:{controller_listen}\"
controllers = [{controllers}]
replication_factor = {NODES}
min_insync_replicas = 2
flush = \"{}\"
",
            durability.of_ours()
        );
        Tailwater::prepare_whole(binary, &text)
    };
    let mut nodes = (1..).zip(&ports).map(prepare).collect::<Result<Vec<Tailwater>>>()?;
    // None of them serves before a majority is there.
    thread::scope(|scope| {
        let starts: Vec<_> =
            nodes.iter_mut().map(|node| scope.spawn(|| node.start_again())).collect();
        starts.into_iter().try_for_each(|start| match start.join() {
            Ok(started) => started,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    let servers = ports.iter().map(|(listen, _)| format!("127.0.0.1:{listen}")).collect();
    Ok(Nodes::Ours(nodes, servers))
}
