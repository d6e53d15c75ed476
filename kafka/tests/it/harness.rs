//! A broker in memory and a way to it; each contract test runs over both.

use std::{sync::Arc, time::Duration};

use tailwater_kafka::{
    Client, ClientConfig, Error, Limits, Node, Offset, PartitionId, PartitionReader, ReaderConfig,
    TopicPartition, TopicSpec, Transport,
    test_util::{MemoryNode, serve_on_loopback},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) struct Harness {
    pub(crate) node: Arc<MemoryNode>,
    pub(crate) transport: Transport,
    server: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Harness {
    pub(crate) fn in_process(node: MemoryNode) -> Self {
        let node = Arc::new(node);
        let transport = Transport::in_process(Arc::clone(&node) as Arc<dyn Node>);
        Self { node, transport, server: None }
    }

    pub(crate) async fn tcp(node: MemoryNode) -> Self {
        let node = Arc::new(node);
        let shutdown = CancellationToken::new();
        let (port, server) = serve_on_loopback(&node, shutdown.clone()).await.unwrap();
        let transport = Transport::tcp(vec![format!("127.0.0.1:{port}")]);
        Self { node, transport, server: Some((shutdown, server)) }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(quick(), self.transport.clone()).await.unwrap()
    }

    pub(crate) async fn topic(&self, name: &str, partitions: i32) -> Client {
        let client = self.client().await;
        client.create_topic(&spec(name, partitions)).await.unwrap();
        client
    }

    pub(crate) async fn end(self) {
        if let Some((shutdown, server)) = self.server {
            shutdown.cancel();
            server.await.unwrap();
        }
    }
}

/// Runs `test` over both transports.
pub(crate) async fn over_both(test: impl AsyncFn(&Harness)) {
    for harness in [Harness::in_process(MemoryNode::new()), Harness::tcp(MemoryNode::new()).await] {
        println!("over {:?}", harness.transport);
        tokio::time::timeout(Duration::from_secs(60), test(&harness)).await.expect("in a minute");
        harness.end().await;
    }
}

/// A client that gives up soon.
pub(crate) fn quick() -> ClientConfig {
    ClientConfig {
        connect_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_secs(5),
        call_timeout: Duration::from_secs(5),
        ..ClientConfig::default()
    }
}

pub(crate) fn spec(name: &str, partitions: i32) -> TopicSpec {
    TopicSpec::new(name, partitions, 1)
}

pub(crate) fn at(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition::new(topic, PartitionId::new(partition))
}

/// Reads values until there are `count` of them.
pub(crate) async fn read(reader: &mut PartitionReader, count: usize) -> Result<Vec<String>, Error> {
    let mut values = Vec::new();
    while values.len() < count {
        for batch in reader.next().await? {
            for record in batch.records(Limits::default()).unwrap() {
                let value = record.unwrap().value.unwrap_or_default();
                values.push(String::from_utf8(value.to_vec()).unwrap());
            }
        }
    }
    Ok(values)
}

/// All values of a partition.
pub(crate) async fn read_all(client: &Client, of: &TopicPartition) -> Vec<String> {
    let end = client
        .list_offsets(&of.topic, of.partition, tailwater_kafka::OffsetAt::Latest)
        .await
        .unwrap();
    let mut reader = client.reader(ReaderConfig::new(of.clone(), Offset::ZERO));
    read(&mut reader, usize::try_from(end.get()).unwrap()).await.unwrap()
}
