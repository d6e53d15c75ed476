//! Our own client over the real log, in the same process and over TCP.

use std::sync::Arc;

use tailwater_kafka::{
    Client, ClientConfig, Disposition, Limits, Node, Offset, OffsetAt, PartitionId, ProducerConfig,
    ReaderConfig, TopicPartition, TopicSpec, Transport,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::Scratch;

const TOPIC: &str = "shop";
const RECORDS: usize = 20_000;

fn partition() -> TopicPartition {
    TopicPartition::new(TOPIC, PartitionId::new(0))
}

async fn connect(transport: Transport) -> Client {
    let client = Client::connect(ClientConfig::default(), transport).await.unwrap();
    let spec = TopicSpec::new(TOPIC, 1, 1);
    client.create_topic(&spec).await.unwrap();
    client
}

fn role() -> ProducerConfig {
    ProducerConfig {
        transactional_id: Some("tailwater.shop".to_owned()),
        batch_bytes: 64 << 10,
        ..ProducerConfig::default()
    }
}

async fn writes_reads_and_commits(client: &Client) {
    let mut producer = client.producer(role()).await.unwrap();
    let handle = producer.register(&partition());
    for number in 0..RECORDS {
        let value = format!("{number:0160}");
        producer.append(handle, Some(b"key"), &[value.as_bytes()], 1000).unwrap();
        if number % 100 == 0 {
            producer.ready().await.unwrap();
        }
    }
    producer.drain().await.unwrap();
    let end = client.list_offsets(TOPIC, PartitionId::new(0), OffsetAt::Latest).await.unwrap();
    assert_eq!(end.get(), i64::try_from(RECORDS).unwrap());

    let mut reader = client.reader(ReaderConfig::new(partition(), Offset::ZERO));
    let mut next = 0;
    while next < RECORDS {
        for batch in reader.next().await.unwrap() {
            for record in batch.records(Limits::default()).unwrap() {
                let record = record.unwrap();
                assert_eq!(record.value.unwrap(), format!("{next:0160}"));
                next += 1;
            }
        }
    }

    let group = "tailwater.copy";
    client.commit_offsets(group, &[(partition(), end)]).await.unwrap();
    let other = TopicPartition::new(TOPIC, PartitionId::new(0));
    assert_eq!(client.fetch_offsets(group, &[other]).await.unwrap(), [Some(end)]);

    // Another one takes over: the first is fenced where that one writes, for good.
    let mut newer = client.producer(role()).await.unwrap();
    assert!(newer.producer_epoch() > producer.producer_epoch());
    let newer_handle = newer.register(&partition());
    newer.append(newer_handle, None, &[b"open"], 1000).unwrap();
    newer.drain().await.unwrap();
    producer.append(handle, None, &[b"late"], 1000).unwrap();
    let fenced = producer.drain().await.unwrap_err();
    assert_eq!(fenced.disposition(), Disposition::Fenced, "{fenced}");
    let after = client.list_offsets(TOPIC, PartitionId::new(0), OffsetAt::Latest).await.unwrap();
    assert_eq!(after, end.next());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_client_works_in_the_same_process() {
    let scratch = Scratch::new().await;
    let node: Arc<dyn Node> = Arc::<tailwater_log::Log>::clone(&scratch.log);
    let client = connect(Transport::in_process(node)).await;
    writes_reads_and_commits(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_client_works_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let scratch = Scratch::with(|config| config.advertised_port = address.port()).await;
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(Arc::clone(&scratch.log).serve(listener, shutdown.clone()));
    let client = connect(Transport::tcp(vec![address.to_string()])).await;
    writes_reads_and_commits(&client).await;
    shutdown.cancel();
    serving.await.unwrap();
}
