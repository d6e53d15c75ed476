//! Pipelines over a log of three nodes: nodes, capture hosts, apply hosts and sources die at random
//! under load. The targets end equal to their sources, and no reader of them ever sees half a
//! transaction.
//!
//! ```text
//!   postgres ─► capture 1, capture 2 ─┐ 3 partitions ┌─► apply 1, apply 2 ─► postgres
//!                                     ├─ node 1 2 3 ─┤
//!   mariadb ──► capture 1, capture 2 ─┘              └─► apply 1, apply 2 ─► mariadb
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailwater_scratch::{Cluster, Flavor, Server, Tailwater, everything, now_us, wait_until};

use crate::cluster::{NODES, logs};
use crate::operator::{assert_clean, status};
use crate::workload::Workload;
use crate::world::{Watcher, World, binary, same_rows};

/// How long anything may take on a loaded machine; no test waits for it to pass.
const LIMIT: Duration = Duration::from_secs(300);

/// Transactions of a script, and how often one begins.
const SCRIPT: usize = 10;
const PACE: Duration = Duration::from_millis(100);

/// How long processes are killed.
fn duration() -> Duration {
    if everything() { Duration::from_secs(600) } else { Duration::from_secs(25) }
}

/// Waits until `at_us`, which is soon.
fn until(at_us: u64) -> Result<()> {
    wait_until(LIMIT, "a moment", || Ok((now_us() >= at_us).then_some(())))
}

/// Writes to a source, which dies between two scripts when it is told to.
struct Load {
    stop: Arc<AtomicBool>,
    crash: Arc<AtomicBool>,
    thread: JoinHandle<Result<usize>>,
}

impl Load {
    fn start(from: (&'static Server, String), mut workload: Workload) -> Load {
        let (stop, crash) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stopped, crashes) = (Arc::clone(&stop), Arc::clone(&crash));
        let thread = std::thread::spawn(move || {
            let mut transactions = 0;
            let mut next = now_us();
            while !stopped.load(Ordering::SeqCst) {
                from.0.sql(&from.1, &workload.transactions(SCRIPT)).context("the load")?;
                transactions += SCRIPT;
                if crashes.swap(false, Ordering::SeqCst) {
                    // What was committed last may not have been sent.
                    from.0.crash()?;
                }
                next = now_us().max(next + u64::try_from(PACE.as_micros())?);
                until(next)?;
            }
            Ok(transactions)
        });
        Load { stop, crash, thread }
    }

    fn finish(self) -> Result<usize> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the load does not panic")
    }
}

/// A source, a target, and what stands between them and the log.
struct Line {
    name: String,
    from: (&'static Server, String),
    to: (&'static Server, String),
    captures: [Tailwater; 2],
    applies: [Tailwater; 2],
    watcher: Watcher,
    load: Load,
}

impl Line {
    /// Starts it all, and waits until the pipeline streams.
    fn start(cluster: &Cluster, flavor: Flavor, source: &'static str, seed: u64) -> Result<Line> {
        let server =
            || -> Result<&'static Server> { Ok(Box::leak(Box::new(Server::start(flavor)?))) };
        let world = World::between(server()?, server()?, seed)?.with_source(source)?;
        let brokers: Vec<String> =
            cluster.addresses().iter().map(|address| format!("{address:?}")).collect();
        let log = format!("[log]\nbrokers = [{}]\nreplication_factor = 3\n", brokers.join(", "));
        let start = |role: String| {
            let mut host = Tailwater::prepare_whole(binary(), &format!("{log}{role}"))?;
            host.start_again()?;
            anyhow::Ok(host)
        };
        let captures = [start(world.source_role())?, start(world.source_role())?];
        let applies = [start(world.pipeline_role(""))?, start(world.pipeline_role(""))?];
        wait_until(LIMIT, "a pipeline that streams", || {
            for host in &applies {
                let streams =
                    |status: serde_json::Value| status["pipelines"][0]["state"] == "streaming";
                if status(host).is_ok_and(streams) {
                    return Ok(Some(()));
                }
            }
            Ok(None)
        })
        .with_context(|| format!("{}\n{}", captures[0].log(), applies[0].log()))?;
        Ok(Line {
            name: flavor.to_string(),
            watcher: Watcher::start(world.to.clone()),
            load: Load::start(world.from.clone(), world.workload),
            from: world.from,
            to: world.to,
            captures,
            applies,
        })
    }

    fn hosts(&mut self) -> impl Iterator<Item = &mut Tailwater> {
        self.captures.iter_mut().chain(&mut self.applies)
    }

    /// The target has become the source, and never showed half a transaction.
    fn finish(mut self, cluster: &Cluster) -> Result<()> {
        let transactions = self.load.finish()?;
        let mut differing = String::new();
        wait_until(LIMIT, "equal databases", || match same_rows(&self.from, &self.to) {
            Ok(()) => Ok(Some(())),
            Err(error) => {
                differing = format!("{error:#}");
                Ok(None)
            }
        })
        .with_context(|| {
            let hosts = self.captures.iter().chain(&self.applies);
            let said: Vec<String> =
                hosts.map(|host| format!("{:?}\n{}", status(host), end_of(&host.log()))).collect();
            format!("{}: {differing}\n{}\n{}", self.name, said.join("\n"), logs(cluster))
        })?;
        let looks = self.watcher.finish()?;
        ensure!(looks > 0);
        println!("{}: {transactions} transactions, {looks} looks at the target", self.name);
        for host in self.captures.iter_mut().chain(&mut self.applies) {
            host.stop()?;
            assert_clean(&host.log());
        }
        Ok(())
    }
}

fn end_of(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// What may die.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Node(usize),
    /// Of a line: one of two captures, then one of two applies.
    Host(usize, usize),
    Source(usize),
}

struct Chaos {
    cluster: Cluster,
    lines: Vec<Line>,
    random: SmallRng,
    /// Kills of nodes, hosts and sources.
    kills: [usize; 3],
}

impl Chaos {
    fn start(seed: u64) -> Result<Chaos> {
        println!("seed {seed}");
        let cluster = Cluster::start(binary(), NODES)?;
        let lines = vec![
            Line::start(&cluster, Flavor::Postgres15, "partitions = 3", seed)?,
            Line::start(&cluster, Flavor::MariaDb, "", seed + 1)?,
        ];
        Ok(Chaos { cluster, lines, random: SmallRng::seed_from_u64(seed), kills: [0; 3] })
    }

    fn victim(&mut self) -> Victim {
        let line = self.random.random_range(0..self.lines.len());
        match self.random.random_range(0..10) {
            0..=3 => Victim::Node(self.random.random_range(0..self.cluster.len())),
            4..=8 => Victim::Host(line, self.random.random_range(0..4)),
            _ => Victim::Source(line),
        }
    }

    /// Who runs is killed, who does not is started.
    fn strike(&mut self) -> Result<()> {
        match self.victim() {
            Victim::Node(number) => {
                let down = (0..self.cluster.len()).find(|node| !self.cluster.node(*node).runs());
                // One at a time: the log goes on without any one of them.
                match down {
                    Some(down) => self.cluster.node_mut(down).spawn(),
                    None => {
                        self.kills[0] += 1;
                        self.cluster.node_mut(number).kill()
                    }
                }
            }
            Victim::Host(line, number) => {
                let host = self.lines[line].hosts().nth(number).context("a line has four hosts")?;
                if host.runs() {
                    self.kills[1] += 1;
                    host.kill()
                } else {
                    host.spawn()
                }
            }
            Victim::Source(line) => {
                self.kills[2] += 1;
                self.lines[line].load.crash.store(true, Ordering::SeqCst);
                Ok(())
            }
        }
    }

    fn run(&mut self, duration: Duration) -> Result<()> {
        let end = now_us() + u64::try_from(duration.as_micros())?;
        while now_us() < end {
            self.strike()?;
            let pause = self.random.random_range(0..2_000_000);
            until(now_us() + pause)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        for number in 0..self.cluster.len() {
            let node = self.cluster.node_mut(number);
            if !node.runs() {
                node.spawn()?;
            }
        }
        for host in self.lines.iter_mut().flat_map(Line::hosts) {
            if !host.runs() {
                host.spawn()?;
            }
        }
        let [nodes, hosts, sources] = self.kills;
        println!("killed: {nodes} nodes, {hosts} hosts, {sources} sources");
        for line in self.lines {
            line.finish(&self.cluster)?;
        }
        for number in 0..self.cluster.len() {
            assert_clean(&self.cluster.node(number).log());
        }
        Ok(())
    }
}

fn everything_dies(seed: u64) -> Result<()> {
    let mut chaos = Chaos::start(seed)?;
    chaos.run(duration())?;
    chaos.finish()
}

#[test]
fn pipelines_survive_the_deaths_of_nodes_hosts_and_sources() {
    everything_dies(711).unwrap();
}
