//! Three nodes under foreign producers, librdkafka's and Kafka's own: idempotent, `acks=all`,
//! `min_insync_replicas = 2`. Nodes that lead die, links are cut; every acknowledged record is there
//! once and in order, on every replica, and writes go on soon.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailwater_scratch::{
    Acknowledged, Client, Cluster, Host, Writer, Writing, everything, now_us, wait_until,
};

use crate::cluster::{NODES, create_topic, logs, replicas_are_equal, until_in_sync};
use crate::numbers::{check, read, silences};
use crate::operator::{assert_clean, get};
use crate::world::binary;

const TOPIC: &str = "numbers";

/// Two for each node to lead.
const PARTITIONS: i32 = 6;

/// Of a partition of a client, between two numbers.
const INTERVAL: Duration = Duration::from_millis(5);

/// How long anything may take on a loaded machine; no test waits for it to pass.
const LIMIT: Duration = Duration::from_secs(180);

/// What writes may take to go on on a machine that does other things besides. What they take is
/// printed: docs/operations.md promises five seconds.
const AVAILABLE_AGAIN: Duration = Duration::from_secs(30);

/// Acknowledgements that come so soon after a loss may have been on their way, µs.
const ON_THE_WAY_US: u64 = 100_000;

/// Clients that are told to give up on a connection that says nothing do it after this.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// How long nodes are killed, or links cut.
fn duration() -> Duration {
    if everything() { Duration::from_secs(300) } else { Duration::from_secs(20) }
}

/// A cluster that is written to.
struct Written {
    cluster: Cluster,
    writers: Vec<Writer>,
    random: SmallRng,
    losses: Vec<Loss>,
}

/// What happened when, and to which partitions.
struct Loss {
    what: String,
    partitions: Vec<i32>,
    at_us: u64,
}

impl Written {
    fn start(cluster: Cluster, seed: u64, request_timeout: Option<Duration>) -> Result<Written> {
        println!("seed {seed}");
        create_topic(&cluster, TOPIC, PARTITIONS)?;
        until_in_sync(&cluster, TOPIC)?;
        let addresses = cluster.addresses();
        let writing = Writing {
            addresses: &addresses,
            topic: TOPIC,
            partitions: PARTITIONS,
            interval: INTERVAL,
            request_timeout,
        };
        let mut writers = Vec::new();
        for client in Client::ALL {
            match client.available() {
                Ok(()) => writers.push(Writer::start(client, &writing)?),
                Err(why) => println!("{} left out: {why}", client.name()),
            }
        }
        ensure!(!writers.is_empty(), "no producer can be run here");
        let random = SmallRng::seed_from_u64(seed);
        let mut written = Written { cluster, writers, random, losses: Vec::new() };
        written.until_written_after(now_us())?;
        Ok(written)
    }

    /// Waits until each client has an acknowledgement from every partition that is later.
    fn until_written_after(&mut self, at_us: u64) -> Result<()> {
        for writer in &mut self.writers {
            let name = writer.client().name();
            wait_until(LIMIT, &format!("an acknowledgement to {name} of each partition"), || {
                let acknowledged = writer.acknowledged()?;
                let later = |partition| {
                    let mut newest = acknowledged.iter().rev();
                    newest.any(|one| one.partition == partition && one.at_us > at_us)
                };
                Ok((0..PARTITIONS).all(later).then_some(()))
            })
            .with_context(|| format!("{}\n{}", writer.log(), logs(&self.cluster)))?;
        }
        Ok(())
    }

    /// Notes a loss that happens now.
    fn lose(&mut self, what: String, partitions: Vec<i32>) {
        self.losses.push(Loss { what, partitions, at_us: now_us() });
    }

    /// Waits until writes go on after the last loss.
    fn until_writes_go_on(&mut self) -> Result<()> {
        let at_us = self.losses.last().map_or(0, |loss| loss.at_us);
        self.until_written_after(at_us + ON_THE_WAY_US)
    }

    /// Lets the clients write for a moment.
    fn go_on(&mut self) -> Result<()> {
        let moment = self.random.random_range(0..1_000_000);
        self.until_written_after(now_us() + moment)
    }

    /// SIGKILL to a node that leads; it comes back when writes go on without it, or before.
    fn kill_a_leader(&mut self) -> Result<()> {
        let layout = until_in_sync(&self.cluster, TOPIC)?;
        let victim = self.one_of(&layout.leading());
        let controls = if self.controls(victim) { ", which controls" } else { "" };
        self.lose(format!("kill of {}{controls}", victim + 1), layout.led_by(victim));
        self.cluster.node_mut(victim).kill()?;
        if self.random.random_ratio(3, 4) {
            self.until_writes_go_on()?;
            self.go_on()?;
        }
        self.cluster.node_mut(victim).spawn()?;
        self.until_writes_go_on()?;
        until_in_sync(&self.cluster, TOPIC)?;
        self.go_on()
    }

    fn controls(&self, node: usize) -> bool {
        let active = |line: &str| {
            let value = line.rsplit(' ').next().and_then(|value| value.parse().ok());
            line.starts_with("tailwater_controller_active") && value == Some(1.0)
        };
        let page = get(self.cluster.node(node), "/metrics");
        page.is_ok_and(|(_, page)| page.lines().any(active))
    }

    /// Cuts links, and mends them when writes go on without, or are known not to.
    fn cut(&mut self) -> Result<()> {
        let layout = until_in_sync(&self.cluster, TOPIC)?;
        let victim = self.one_of(&layout.leading());
        let others: Vec<usize> = (0..self.cluster.len()).filter(|node| *node != victim).collect();
        let other = self.one_of(&others);
        let (name, peer) = (victim + 1, other + 1);
        let links = [(victim, other), (other, victim)];
        let kind = self.random.random_range(0..4);
        let (what, cut): (String, &[(usize, usize)]) = match kind {
            0 => (format!("{name} cut off"), &[]),
            1 => (format!("{name} and {peer} cut"), &links),
            2 => (format!("{name} to {peer} cut"), &links[..1]),
            _ => (format!("{peer} to {name} cut"), &links[1..]),
        };
        let led = if kind == 0 { layout.led_by(victim) } else { (0..PARTITIONS).collect() };
        self.lose(what, led);
        if cut.is_empty() {
            self.cluster.isolate(victim)?;
        }
        for (from, to) in cut {
            self.cluster.lose(*from, *to)?;
        }
        self.until_writes_go_on()?;
        self.go_on()?;
        if cut.is_empty() {
            self.cluster.join(victim)?;
        }
        for (from, to) in cut {
            self.cluster.find(*from, *to)?;
        }
        until_in_sync(&self.cluster, TOPIC)?;
        self.go_on()
    }

    fn one_of(&mut self, nodes: &[usize]) -> usize {
        nodes[self.random.random_range(0..nodes.len())]
    }

    /// Lets the clients finish, and compares what they were told with what every node says.
    fn finish(mut self) -> Result<()> {
        let mut acknowledged = BTreeMap::new();
        for mut writer in std::mem::take(&mut self.writers) {
            let all = writer.finish().with_context(|| logs(&self.cluster))?;
            acknowledged.insert(writer.client(), all);
        }
        until_in_sync(&self.cluster, TOPIC)?;
        let mut counts = Vec::new();
        for address in self.cluster.addresses() {
            let stored = read(&address, TOPIC)?;
            check(&stored, &acknowledged).with_context(|| format!("as {address} says"))?;
            counts.push(stored.len());
        }
        let total: usize = acknowledged.values().map(Vec::len).sum();
        ensure!(counts.iter().all(|count| *count == total), "{counts:?}, acknowledged: {total}");
        replicas_are_equal(&mut self.cluster, TOPIC)?;
        println!("{total} records acknowledged, each there once and in order on every node");
        for number in 0..self.cluster.len() {
            assert_clean(&self.cluster.node(number).log());
        }
        for (client, acknowledged) in &acknowledged {
            report(*client, acknowledged, &self.losses)?;
        }
        Ok(())
    }
}

/// Prints how long writes waited after each loss.
fn report(client: Client, acknowledged: &[Acknowledged], losses: &[Loss]) -> Result<()> {
    let name = client.name();
    let mut longest = Vec::new();
    let ends = losses.iter().skip(1).map(|loss| loss.at_us).chain([u64::MAX]);
    for (loss, until) in losses.iter().zip(ends) {
        let silences = silences(acknowledged, &loss.partitions, loss.at_us, until);
        let waited = silences.into_iter().max().context("a loss concerns a partition")?;
        let waited = Duration::from_micros(waited);
        println!("{name}: {}: writes after {:.1} s", loss.what, waited.as_secs_f64());
        longest.push(waited);
    }
    longest.sort_unstable();
    let (median, most) = (longest[longest.len() / 2], longest[longest.len() - 1]);
    println!(
        "{name}: {} losses, writes again after {:.1} s (median), {:.1} s (longest)",
        longest.len(),
        median.as_secs_f64(),
        most.as_secs_f64()
    );
    ensure!(most < AVAILABLE_AGAIN, "{name} waited for {most:?}");
    Ok(())
}

fn for_a_while(
    written: &mut Written,
    mut act: impl FnMut(&mut Written) -> Result<()>,
) -> Result<()> {
    let until = now_us() + u64::try_from(duration().as_micros())?;
    while now_us() < until {
        act(written)?;
    }
    Ok(())
}

fn leaders_die() -> Result<()> {
    let cluster = Cluster::start(binary(), NODES)?;
    let mut written = Written::start(cluster, 701, None)?;
    for_a_while(&mut written, Written::kill_a_leader)?;
    written.finish()
}

#[test]
fn leaders_are_killed_under_foreign_producers() {
    leaders_die().unwrap();
}

fn links_are_cut() -> Result<()> {
    let cluster = Cluster::start_on_hosts(binary(), NODES)?;
    let mut written = Written::start(cluster, 702, Some(REQUEST_TIMEOUT))?;
    for_a_while(&mut written, Written::cut)?;
    written.finish()
}

#[test]
fn links_are_cut_under_foreign_producers() {
    if let Err(why) = Host::available() {
        println!("left out: {why}");
        return;
    }
    links_are_cut().unwrap();
}
