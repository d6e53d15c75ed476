//! The log with tasks in place of threads, as the simulator runs it.

use std::sync::Arc;
use std::time::Duration;

use tailwater_kafka::{
    Client, ClientConfig, Node, Offset, PartitionId, ProducerConfig, ReaderConfig, TopicPartition,
    TopicSpec, Transport,
};
use tailwater_log::{Config, DiskTime, Log, Workers};

/// A disk that takes its time.
#[derive(Debug)]
struct Slow;

impl DiskTime for Slow {
    fn next(&self) -> Duration {
        Duration::from_millis(7)
    }
}

async fn open(folder: &std::path::Path) -> (Arc<Log>, Client) {
    let workers = Workers::Tasks(Arc::new(Slow));
    let log = Log::open(Config { workers, ..Config::new(folder) }).await.unwrap();
    let node = Arc::clone(&log) as Arc<dyn Node>;
    let way = Transport::in_process(node);
    let client = Client::connect(ClientConfig::default(), way).await.unwrap();
    (log, client)
}

#[tokio::test]
async fn tasks_keep_what_they_acknowledge() {
    let folder = tempfile::tempdir().unwrap();
    let partition = TopicPartition::new("t", PartitionId::new(0));
    let (log, client) = open(folder.path()).await;
    let spec = TopicSpec::new("t", 1, 1);
    client.create_topic(&spec).await.unwrap();
    let config = ProducerConfig { transactional_id: Some("one".to_owned()), ..Default::default() };
    let mut producer = client.producer(config).await.unwrap();
    let to = producer.register(&partition);
    for number in 0..100_u64 {
        producer.append(to, None, &[&number.to_be_bytes()], 0).unwrap();
    }
    producer.close().await.unwrap();
    client.commit_offsets("g", &[(partition.clone(), Offset::new(9))]).await.unwrap();
    drop(client);
    log.close().await.unwrap();
    drop(log);

    let (log, client) = open(folder.path()).await;
    let kept = client.fetch_offsets("g", std::slice::from_ref(&partition)).await.unwrap();
    assert_eq!(kept, [Some(Offset::new(9))]);
    let mut reader = client.reader(ReaderConfig::new(partition, Offset::ZERO));
    while reader.position() < Offset::new(100) {
        reader.next().await.unwrap();
    }
    log.close().await.unwrap();
}
