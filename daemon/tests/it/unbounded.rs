//! A pipeline in a process of its own: with bounds, or, planted, with none, so that it holds a
//! whole transaction in memory. What measures the program must tell the two apart.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use tailwater_apply::{
    ChangeLog, Error, KafkaLog, LogIdentity, LogReader, Pipeline, PipelineConfig, State,
};
use tailwater_kafka::{Client, ClientConfig, Offset, Transport};
use tailwater_registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::world::World;

/// The process, until it is dropped.
#[derive(Debug)]
pub(crate) struct Applier {
    child: Child,
}

impl Applier {
    /// Applies what `world` captures to `database`, beside its own target, and returns once the
    /// snapshot is in. `memory`: the pipeline's bound in bytes.
    pub(crate) fn start(world: &World, database: &str, memory: Option<usize>) -> Result<Applier> {
        let child = Command::new(std::env::current_exe()?)
            .args(["--exact", "unbounded::the_process", "--ignored", "--nocapture"])
            // As the program does for itself: see daemon/src/memory.rs.
            .envs([
                ("MALLOC_MMAP_THRESHOLD_", "4194304"),
                ("MALLOC_TRIM_THRESHOLD_", "2097152"),
                ("MALLOC_TOP_PAD_", "524288"),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start a pipeline's process")?;
        let mut applier = Applier { child };
        let (brokers, topic) = (world.tailwater.brokers(), &world.from.1);
        let (url, memory) = (world.to.0.url(database), memory.unwrap_or_default());
        let input = applier.child.stdin.as_mut().context("its input")?;
        writeln!(input, "{brokers} {topic} {url} {database} {memory}")?;
        let mut output = BufReader::new(applier.child.stdout.as_mut().context("its output")?);
        let (mut line, mut said) = (String::new(), String::new());
        while line.trim() != READY {
            line.clear();
            ensure!(output.read_line(&mut line)? > 0, "the pipeline's process ended: {said}");
            said.push_str(&line);
        }
        Ok(applier)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Applier {
    fn drop(&mut self) {
        // Failing that, the end of its input ends it.
        let _killed = self.child.kill();
        let _waited = self.child.wait();
    }
}

const READY: &str = "the snapshot is in";

/// Reads ahead as a pipeline with bounds does: only what it holds is planted.
#[derive(Debug)]
struct Ahead(KafkaLog);

const AHEAD_BYTES: usize = 4 << 20;

#[async_trait]
impl ChangeLog for Ahead {
    async fn identity(&self) -> Result<LogIdentity, Error> {
        self.0.identity().await
    }

    async fn start(&self) -> Result<Vec<Offset>, Error> {
        self.0.start().await
    }

    fn reader(&self, partition: usize, from: Offset, _prefetch: usize) -> Box<dyn LogReader> {
        self.0.reader(partition, from, AHEAD_BYTES)
    }

    async fn commit(&self, group: &str, offsets: &[(usize, Offset)]) -> Result<(), Error> {
        self.0.commit(group, offsets).await
    }
}

#[tokio::test]
#[ignore = "no test: the process that `Applier::start` starts"]
async fn the_process() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let Ok([brokers, topic, url, name, memory]) = <[&str; 5]>::try_from(words) else { return };
    let client = Client::connect(ClientConfig::default(), Transport::tcp(vec![brokers.into()]));
    let client = client.await.unwrap();
    let schemas =
        tailwater_registry::Config { topic: "_schemas".into(), replication_factor: 1, clock: || 0 };
    let registry = Registry::open(client.clone(), schemas).await.unwrap();
    let target = tailwater_postgres::target::TargetConfig { name: name.into(), url: url.into() };
    let target = tailwater_postgres::target::connector(target).unwrap();
    let mut config = PipelineConfig::new(name, || 0);
    match memory.parse().unwrap() {
        0 => {
            config.memory_bytes = usize::MAX;
            config.batch.rows = usize::MAX;
            config.batch.bytes = usize::MAX;
        }
        bytes => config.memory_bytes = bytes,
    }
    let log = Ahead(KafkaLog::new(client, topic));
    let (pipeline, handle) =
        Pipeline::new(config, Arc::new(log), Arc::new(registry), Arc::new(target)).unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(pipeline.run(shutdown.clone()));
    let mut status = handle.watch();
    let loaded = status.wait_for(|now| now.state == State::Streaming && now.caught_up);
    drop(loaded.await.unwrap());
    println!("{READY}");
    let end = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    end.await.unwrap().unwrap();
    shutdown.cancel();
    running.await.unwrap();
}
