//! How long nothing is acknowledged when a node is killed.
//!
//! Every node has a replica of every partition, so the death of any of them is felt by all: where it
//! led, another has to be elected; elsewhere the leader waits until it is no more in sync.

use std::fmt;

use anyhow::{Context, Result};

use super::load::Load;
use super::nodes::{NODES, Nodes, number_of};

/// Of each kind, per cluster.
const KILLS: usize = 2;

/// From the last acknowledged write to the next one, on the partition where it took longest, in
/// seconds.
#[derive(Debug, Default)]
pub(super) struct Elections {
    /// Of a node that leads and whose controller is not the active one.
    pub(super) leader: Vec<f64>,
    /// Of the node whose controller is.
    pub(super) controller: Vec<f64>,
}

impl Elections {
    pub(super) fn longest(&self) -> f64 {
        self.leader.iter().chain(&self.controller).copied().fold(0.0, f64::max)
    }
}

impl fmt::Display for Elections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |times: &[f64]| {
            times.iter().map(|time| format!("{time:.2}")).collect::<Vec<_>>().join(" ")
        };
        write!(
            f,
            "{} s (leader), {} s (and controller)",
            list(&self.leader),
            list(&self.controller)
        )
    }
}

/// Kills nodes under a producer, each of them once all replicas are in sync.
pub(super) fn measure(nodes: &mut Nodes, load: &mut Load) -> Result<Elections> {
    load.write_steadily()?;
    let mut elections = Elections::default();
    for _ in 0..KILLS {
        for with_controller in [false, true] {
            let victim = victim(nodes, load, with_controller)?;
            let seconds = load.gap(|| nodes.kill(victim))?;
            if with_controller {
                elections.controller.push(seconds);
            } else {
                elections.leader.push(seconds);
            }
            nodes.start_again(victim)?;
            load.wait_until_whole(NODES)?;
        }
    }
    Ok(elections)
}

fn victim(nodes: &Nodes, load: &mut Load, with_controller: bool) -> Result<usize> {
    let controller = nodes.controller(load)?;
    let leaders: Vec<usize> = load.leaders()?.into_iter().map(number_of).collect::<Result<_>>()?;
    if with_controller {
        return Ok(controller);
    }
    leaders
        .into_iter()
        .find(|leader| *leader != controller)
        .context("the node of the active controller leads every partition")
}
