//! `tailwater cluster` against real processes, as docs/operations.md describes each step.

#![expect(
    clippy::disallowed_methods,
    reason = "the longest pause of other processes' service is measured"
)]

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use tailwater_kafka::{
    Client, ClientConfig, Limits, Offset, OffsetAt, PartitionId, ProducerConfig, ReaderConfig,
    TopicPartition, TopicSpec, Transport,
};
use tailwater_scratch::{Ran, Tailwater, free_port, wait_until};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(90);

/// A node: its process, which may be stopped, and its ports, which stay.
struct Node {
    id: i32,
    process: Tailwater,
    port: u16,
    controller_port: u16,
    data: tempfile::TempDir,
}

/// Processes that are one log. The first so many are its controllers.
struct Nodes {
    nodes: Vec<Node>,
    controllers: usize,
}

impl Nodes {
    fn new(controllers: usize) -> Self {
        Self { nodes: Vec::new(), controllers }
    }

    /// A process for one more node, not started.
    fn add(&mut self) -> usize {
        let id = i32::try_from(self.nodes.len()).unwrap() + 1;
        let binary = Path::new(env!("CARGO_BIN_EXE_tailwater"));
        self.nodes.push(Node {
            id,
            process: Tailwater::prepare_whole(binary, "").unwrap(),
            port: free_port(),
            controller_port: free_port(),
            data: tempfile::tempdir().unwrap(),
        });
        self.nodes.len() - 1
    }

    /// Starts a node as one of the cluster.
    fn start(&mut self, at: usize) {
        let controllers: Vec<String> = self
            .nodes
            .iter()
            .take(self.controllers)
            .map(|node| format!("\"{}@127.0.0.1:{}\"", node.id, node.controller_port))
            .collect();
        let node = &self.nodes[at];
        let listen = if at < self.controllers {
            format!("controller_listen = \"127.0.0.1:{}\"\n", node.controller_port)
        } else {
            String::new()
        };
        let more = format!(
            "{listen}controllers = [{}]\nreplication_factor = 3\nmin_insync_replicas = 2\n",
            controllers.join(", ")
        );
        self.start_with(at, &more);
    }

    fn start_with(&mut self, at: usize, more: &str) {
        let node = &mut self.nodes[at];
        let text = format!(
            "[log]\ndata_dir = \"{}\"\nnode_id = {}\nlisten = \"127.0.0.1:{}\"\n{more}",
            node.data.path().display(),
            node.id,
            node.port
        );
        node.process.configure(&text).unwrap();
        node.process.start_again().unwrap();
    }

    fn address(&self, at: usize) -> String {
        format!("127.0.0.1:{}", self.nodes[at].port)
    }

    fn addresses(&self) -> Vec<String> {
        (0..self.nodes.len()).map(|at| self.address(at)).collect()
    }

    /// `tailwater cluster`, asking whichever node answers.
    fn cluster(&self, arguments: &[&str]) -> Ran {
        cluster(&self.addresses(), arguments)
    }

    /// Waits until `cluster status` says that all is well with so many nodes.
    fn until_well(&self, nodes: usize) -> Ran {
        until(&format!("{nodes} nodes that are well"), || {
            let ran = self.cluster(&["status"]);
            let status = self.status();
            let all = status["nodes"].as_array().is_some_and(|all| all.len() == nodes);
            if ran.code == Some(0) && all { Ok(ran) } else { Err(format!("{ran:?}")) }
        })
    }

    fn status(&self) -> Json {
        let ran = self.cluster(&["status", "--json"]);
        serde_json::from_str(&ran.out).unwrap_or_default()
    }

    async fn client(&self) -> Client {
        let config = ClientConfig { call_timeout: PATIENCE, ..ClientConfig::default() };
        Client::connect(config, Transport::tcp(self.addresses())).await.unwrap()
    }
}

fn cluster(brokers: &[String], arguments: &[&str]) -> Ran {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tailwater"));
    command.arg("cluster").args(arguments).arg("--brokers").arg(brokers.join(","));
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end().to_owned();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let mut last = String::new();
    let looking = wait_until(PATIENCE, what, || match look() {
        Ok(found) => Ok(Some(found)),
        Err(seen) => {
            last = seen;
            Ok(None)
        }
    });
    looking.unwrap_or_else(|error| panic!("{error:#}; last seen: {last}"))
}

/// Prints what a person would see, for the page.
fn shown(ran: &Ran, arguments: &str) {
    println!("$ tailwater cluster {arguments}   # exit {:?}\n{}\n{}", ran.code, ran.out, ran.err);
}

fn done(ran: &Ran, arguments: &str) {
    shown(ran, arguments);
    assert_eq!(ran.code, Some(0), "{arguments}: {ran:?}");
}

fn of(topic: &str) -> TopicPartition {
    TopicPartition::new(topic, PartitionId::new(0))
}

async fn create(client: &Client, topic: &str, replicas: i16, configs: &[(&str, &str)]) {
    let configs = configs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let spec = TopicSpec {
        name: topic.to_owned(),
        partitions: 1,
        replication_factor: replicas,
        configs: configs.collect(),
    };
    client.create_topic(&spec).await.unwrap();
}

/// Writes numbers until told to stop: how many, all acknowledged, and the longest wait for one.
/// `written` goes along.
async fn write_numbers(
    client: Client,
    topic: &'static str,
    written: watch::Sender<usize>,
    stop: CancellationToken,
) -> (usize, Duration) {
    let config = ProducerConfig {
        transactional_id: Some(format!("writer.{topic}")),
        ..ProducerConfig::default()
    };
    let mut producer = client.producer(config).await.unwrap();
    let handle = producer.register(&of(topic));
    let (mut count, mut longest) = (0, Duration::ZERO);
    while !stop.is_cancelled() {
        let began = Instant::now();
        producer.ready().await.unwrap();
        producer.append(handle, None, &[count.to_string().as_bytes()], 1000).unwrap();
        producer.drain().await.unwrap();
        longest = longest.max(began.elapsed());
        count += 1;
        written.send_replace(count);
        // A pace: the nodes are to have the cores.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    (count, longest)
}

async fn values(client: &Client, topic: &str) -> Vec<String> {
    let end = client.list_offsets(topic, PartitionId::new(0), OffsetAt::Latest).await.unwrap();
    let mut reader = client.reader(ReaderConfig::new(of(topic), Offset::ZERO));
    let mut values = Vec::new();
    while reader.position() < end {
        for batch in reader.next().await.unwrap() {
            for record in batch.records(Limits::default()).unwrap() {
                values.push(String::from_utf8(record.unwrap().value.unwrap().to_vec()).unwrap());
            }
        }
    }
    values
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

async fn write_some(client: &Client, topic: &'static str, least: usize) -> usize {
    let stop = CancellationToken::new();
    let (count, mut written) = watch::channel(0);
    let writing = tokio::spawn(write_numbers(client.clone(), topic, count, stop.clone()));
    let reached = tokio::time::timeout(PATIENCE, written.wait_for(|count| *count >= least)).await;
    drop(reached.expect("so many written in time").unwrap());
    stop.cancel();
    writing.await.unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_grows_to_three_and_the_first_dies_and_is_replaced() {
    let mut nodes = Nodes::new(3);
    let first = nodes.add();
    nodes.start_with(first, "");
    let ran = nodes.until_well(1);
    shown(&ran, "status");
    let client = nodes.client().await;
    create(&client, "shop", 1, &[]).await;
    client.commit_offsets("g", &[(of("shop"), Offset::new(5))]).await.unwrap();
    let count = write_some(&client, "shop", 50).await;

    // Three processes with the same controllers, the first on its old folder.
    nodes.nodes[first].process.stop().unwrap();
    for _ in 0..2 {
        nodes.add();
    }
    for at in 0..3 {
        nodes.start(at);
    }
    shown(&nodes.until_well(3), "status");
    let too_many = nodes.cluster(&["reassign", "--all", "--replication-factor", "4"]);
    shown(&too_many, "reassign --all --replication-factor 4");
    assert_eq!(too_many.code, Some(2));
    assert!(too_many.err.contains("only 3 nodes are in service"), "{too_many:?}");
    let grow = ["reassign", "--all", "--replication-factor", "3", "--wait"];
    let dry = nodes.cluster(&["reassign", "--all", "--replication-factor", "3", "--dry-run"]);
    assert!(dry.out.contains("shop-0: 1 -> 1, "), "{dry:?}");
    done(&nodes.cluster(&grow), &grow.join(" "));
    let again = nodes.cluster(&grow);
    assert_eq!((again.code, again.out.as_str()), (Some(0), "nothing has to move"));
    done(&nodes.cluster(&["reassign", "--balance", "--wait"]), "reassign --balance --wait");
    done(&nodes.cluster(&["elect"]), "elect");
    done(&nodes.until_well(3), "status");
    let status = nodes.status();
    let partitions = status["partitions"].as_array().unwrap();
    assert!(partitions.iter().any(|one| one["topic"] == "__consumer_offsets"));
    assert!(partitions.iter().all(|one| one["in_sync"].as_array().unwrap().len() == 3));

    nodes.nodes[first].process.kill().unwrap();
    let ill = until("status that names the dead node", || {
        let ran = nodes.cluster(&["status"]);
        let named = ran.out.contains("! node 1 at") && ran.out.contains("! controller 1 has not");
        if ran.code == Some(1) && named { Ok(ran) } else { Err(format!("{ran:?}")) }
    });
    shown(&ill, "status");
    let client = nodes.client().await;
    assert_eq!(values(&client, "shop").await, numbers(count));
    let committed = client.fetch_offsets("g", &[of("shop")]).await.unwrap();
    assert_eq!(committed, [Some(Offset::new(5))]);

    // Its disk is lost: the same id, an empty folder.
    nodes.nodes[first].data = tempfile::tempdir().unwrap();
    nodes.start(first);
    done(&nodes.until_well(3), "status");
    for at in [1, 2] {
        nodes.nodes[at].process.stop().unwrap();
        nodes.start(at);
        nodes.until_well(3);
    }
    assert_eq!(values(&nodes.client().await, "shop").await, numbers(count));
    // A process that only uses the log finds it by `brokers`.
    let binary = Path::new(env!("CARGO_BIN_EXE_tailwater"));
    let user = format!("[log]\nbrokers = [\"{}\"]\n", nodes.address(2));
    let user = Tailwater::prepare_whole(binary, &user).unwrap();
    let asked = user.command(&["cluster", "status"]).unwrap();
    assert_eq!(asked.code, Some(0), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_restart_leave_and_lose_everything_under_a_producer() {
    let mut nodes = Nodes::new(3);
    for _ in 0..4 {
        nodes.add();
    }
    for at in 0..4 {
        nodes.start(at);
    }
    nodes.until_well(4);
    let client = nodes.client().await;
    create(&client, "shop", 3, &[]).await;
    create(&client, "risky", 2, &[("min.insync.replicas", "1")]).await;
    let stop = CancellationToken::new();
    let (count, _) = watch::channel(0);
    let writing = tokio::spawn(write_numbers(client.clone(), "shop", count, stop.clone()));

    // One after the other, waiting until all is well.
    for at in 0..4 {
        nodes.nodes[at].process.stop().unwrap();
        let ill = nodes.cluster(&["status"]);
        assert_eq!(ill.code, Some(1), "{ill:?}");
        if at == 1 {
            shown(&ill, "status");
        }
        nodes.start(at);
        nodes.until_well(4);
    }
    done(&nodes.cluster(&["elect"]), "elect");

    // The last resort: the only complete replica is gone, an older one is there.
    let to = ["reassign", "risky", "--to", "4,3", "--wait"];
    done(&nodes.cluster(&to), &to.join(" "));
    let kept = write_some(&client, "risky", 10).await;
    let unneeded = nodes.cluster(&["elect", "--unclean", "risky-0", "--accept-lost-records"]);
    assert_eq!(unneeded.code, Some(2), "{unneeded:?}");
    nodes.nodes[2].process.kill().unwrap();
    until("node 3 out of sync", || {
        let status = nodes.status();
        let in_sync =
            |one: &Json| one["topic"] == "risky" && one["in_sync"] == serde_json::json!([4]);
        let found = status["partitions"].as_array().is_some_and(|all| all.iter().any(in_sync));
        if found { Ok(()) } else { Err(status.to_string()) }
    });
    write_more(&client, "risky").await;
    nodes.nodes[3].process.kill().unwrap();
    nodes.start(2);
    let leaderless = until("risky without a leader", || {
        let ran = nodes.cluster(&["elect", "--unclean", "risky-0"]);
        let is_there = ran.out.contains("of which 3 in service");
        if is_there { Ok(ran) } else { Err(format!("{ran:?}")) }
    });
    shown(&leaderless, "elect --unclean risky-0");
    assert_eq!(leaderless.code, Some(2));
    assert!(leaderless.err.contains("--accept-lost-records"), "{leaderless:?}");
    let refused = nodes.cluster(&["decommission", "3", "--timeout", "5s"]);
    shown(&refused, "decommission 3");
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.err.contains("cannot leave"), "{refused:?}");
    let unclean = ["elect", "--unclean", "risky-0", "--accept-lost-records"];
    done(&nodes.cluster(&unclean), &unclean.join(" "));
    let left = values(&nodes.client().await, "risky").await;
    assert_eq!(left[..kept], numbers(kept));

    // Too few nodes for what there is, until the fourth is back.
    let refused = nodes.cluster(&["decommission", "2", "--timeout", "5s"]);
    shown(&refused, "decommission 2");
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.err.contains("start another node first"), "{refused:?}");
    nodes.start(3);
    nodes.until_well(4);

    // A node leaves, with its vote; the command is interrupted on the way and given again.
    let early = nodes.cluster(&["decommission", "2", "--timeout", "1ms"]);
    assert_eq!(early.code, Some(1), "{early:?}");
    let asked = nodes.addresses();
    let leaving = std::thread::spawn(move || cluster(&asked, &["decommission", "2"]));
    until("a node without a vote", || {
        let status = nodes.status();
        let controllers = status["quorum"]["controllers"].as_array().cloned().unwrap_or_default();
        let votes = controllers.iter().any(|one| one["id"] == 2);
        if controllers.is_empty() || votes { Err(status.to_string()) } else { Ok(()) }
    });
    nodes.nodes[1].process.stop().unwrap();
    done(&leaving.join().unwrap(), "decommission 2");
    let ran = nodes.until_well(3);
    done(&ran, "status");
    let status = nodes.status();
    assert_eq!(status["quorum"]["controllers"].as_array().unwrap().len(), 2);
    let again = nodes.cluster(&["decommission", "2"]);
    assert!(again.code == Some(0) && again.out.contains("nothing is left to do"), "{again:?}");

    stop.cancel();
    let (count, longest) = writing.await.unwrap();
    assert!(longest < Duration::from_secs(15), "no write for {longest:?}");
    assert_eq!(values(&nodes.client().await, "shop").await, numbers(count));
}

/// Writes twenty more to a topic.
async fn write_more(client: &Client, topic: &'static str) {
    let mut producer = client.producer(ProducerConfig::default()).await.unwrap();
    let handle = producer.register(&of(topic));
    for number in 0..20 {
        producer.ready().await.unwrap();
        producer.append(handle, None, &[format!("later {number}").as_bytes()], 1000).unwrap();
    }
    producer.drain().await.unwrap();
}
