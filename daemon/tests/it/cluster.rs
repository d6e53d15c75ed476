//! Three nodes, as their clients see them: who leads what, and who is in sync.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value as Json;
use tailwater_kafka::{Client, ClientConfig, TopicSpec, Transport};
use tailwater_scratch::{Cluster, wait_until};

/// How long anything may take on a loaded machine; no test waits for it to pass.
const LIMIT: Duration = Duration::from_secs(180);

/// How many nodes these tests have.
pub(crate) const NODES: u8 = 3;

/// The partitions of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// For each partition the node that leads it, counted from 0; `None` while there is no leader.
    pub(crate) leaders: Vec<Option<usize>>,
    /// For each partition how many replicas are in sync.
    pub(crate) in_sync: Vec<usize>,
}

impl Layout {
    /// What the first of `addresses` that answers says of `topic`.
    pub(crate) fn ask(addresses: &[String], topic: &str) -> Result<Layout> {
        let mut kcat = Command::new("kcat");
        kcat.args(["-L", "-J", "-m", "20", "-t", topic, "-b", &addresses.join(",")]);
        let output = kcat.output().context("run kcat (Debian and Ubuntu: kcat)")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kcat: {errors}");
        let said: Json = serde_json::from_slice(&output.stdout).context("kcat's JSON")?;
        let partitions = said["topics"][0]["partitions"].as_array().context("partitions")?;
        let leader = |partition: &Json| {
            let id = partition["leader"].as_u64()?;
            usize::try_from(id).ok()?.checked_sub(1)
        };
        Ok(Layout {
            leaders: partitions.iter().map(leader).collect(),
            in_sync: partitions
                .iter()
                .map(|partition| partition["isrs"].as_array().map_or(0, Vec::len))
                .collect(),
        })
    }

    /// The nodes that lead something.
    pub(crate) fn leading(&self) -> Vec<usize> {
        self.leaders.iter().flatten().copied().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// What `node` leads.
    pub(crate) fn led_by(&self, node: usize) -> Vec<i32> {
        let led = (0..).zip(&self.leaders).filter(|(_, leader)| **leader == Some(node));
        led.map(|(partition, _)| partition).collect()
    }
}

/// Makes a topic with a replica on each node.
pub(crate) fn create_topic(cluster: &Cluster, topic: &str, partitions: i32) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let transport = Transport::tcp(cluster.addresses());
        let client = Client::connect(ClientConfig::default(), transport).await?;
        client.create_topic(&TopicSpec::new(topic, partitions, i16::from(NODES))).await?;
        Ok(())
    })
}

/// Waits until every partition of `topic` has all its replicas in sync.
pub(crate) fn until_in_sync(cluster: &Cluster, topic: &str) -> Result<Layout> {
    let mut last = None;
    wait_until(LIMIT, "every replica in sync", || {
        // A node that just starts may not answer yet.
        let Ok(layout) = Layout::ask(&cluster.addresses(), topic) else { return Ok(None) };
        let all = layout.in_sync.iter().all(|count| *count == usize::from(NODES));
        let all = all && !layout.leaders.is_empty() && layout.leaders.iter().all(Option::is_some);
        let layout = last.insert(layout);
        Ok(all.then(|| layout.clone()))
    })
    .with_context(|| format!("{last:?}\n{}", logs(cluster)))
}

/// Ends every node at once; then every replica of every partition of `topic` has the same bytes.
pub(crate) fn replicas_are_equal(cluster: &mut Cluster, topic: &str) -> Result<()> {
    for number in 0..cluster.len() {
        cluster.node_mut(number).kill()?;
    }
    let of_first = partitions(&cluster.folder(0), topic)?;
    ensure!(!of_first.is_empty(), "no partition of {topic} in {}", cluster.folder(0).display());
    for number in 1..cluster.len() {
        let others = partitions(&cluster.folder(number), topic)?;
        ensure!(others.len() == of_first.len(), "node {number} lacks partitions of {topic}");
        for ((name, first), (_, other)) in of_first.iter().zip(&others) {
            let differs = first.iter().zip(other).position(|(one, other)| one != other);
            let (here, there) = (first.len(), other.len());
            ensure!(
                first == other,
                "{topic}-{name}: {here} bytes on node 0, {there} on node {number}, which differ \
                 from {differs:?} on"
            );
        }
    }
    Ok(())
}

/// The segments of each partition, one after the other.
fn partitions(folder: &Path, topic: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let mut partitions = Vec::new();
    for entry in std::fs::read_dir(folder.join("topics").join(topic))? {
        let mut segments = Vec::new();
        let partition = entry?;
        for file in std::fs::read_dir(partition.path())? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                segments.push(path);
            }
        }
        // Their names are numbers of one width.
        segments.sort_unstable();
        let bytes: std::io::Result<Vec<_>> = segments.iter().map(std::fs::read).collect();
        partitions.push((partition.file_name().to_string_lossy().into_owned(), bytes?.concat()));
    }
    partitions.sort_unstable();
    Ok(partitions)
}

/// The end of what each node has logged.
pub(crate) fn logs(cluster: &Cluster) -> String {
    let of_node = |number| {
        let log = cluster.node(number).log();
        let lines: Vec<&str> = log.lines().collect();
        format!("node {number}:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
    };
    (0..cluster.len()).map(of_node).collect::<Vec<_>>().join("\n")
}
