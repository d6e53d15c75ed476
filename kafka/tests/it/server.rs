//! The server's side of a connection, byte by byte.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tailwater_kafka::{
    BatchBuilder, BatchStamp, BrokerId, Client, Node, ProducerConfig, RequestContext, ServerConfig,
    serve,
    test_util::MemoryNode,
    wire::{
        ApiKey, ApiRange, KafkaString, Request, RequestHeader, Response,
        api_versions_request::ApiVersionsRequestData,
        decode_response, encode_request,
        fetch_request::FetchRequestData,
        metadata_request::MetadataRequestData,
        produce_request::{PartitionProduceData, ProduceRequestData, TopicProduceData},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use crate::harness::{Harness, at, quick, read_all};

async fn connect(harness: &Harness) -> TcpStream {
    let text = format!("{:?}", harness.transport);
    let address = text.split('"').nth(1).unwrap();
    TcpStream::connect(address).await.unwrap()
}

fn header(api: ApiKey, version: i16, correlation_id: i32) -> RequestHeader {
    RequestHeader {
        api,
        version,
        correlation_id,
        client_id: Some(KafkaString::from_static("test")),
    }
}

async fn send(stream: &mut TcpStream, header: &RequestHeader, request: impl Into<Request>) {
    for part in encode_request(header, &request.into()).unwrap() {
        stream.write_all(&part).await.unwrap();
    }
}

async fn receive(stream: &mut TcpStream, header: &RequestHeader) -> Response {
    let length = stream.read_i32().await.unwrap();
    let mut frame = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut frame).await.unwrap();
    decode_response(header, frame.into()).unwrap()
}

fn produce_request(acks: i16, value: &[u8]) -> ProduceRequestData {
    let mut batch = BatchBuilder::with_capacity(0);
    batch.append(None, Some(&[value]), 1, &[]);
    let batch = batch.finish(BatchStamp::default()).unwrap();
    let partition = PartitionProduceData::default().with_records(Some(batch));
    let topic = TopicProduceData::default()
        .with_name(KafkaString::from_static("shop"))
        .with_partition_data(vec![partition]);
    ProduceRequestData::default().with_acks(acks).with_timeout_ms(1000).with_topic_data(vec![topic])
}

#[tokio::test]
async fn api_versions_from_the_future_are_answered_in_version_0() {
    let harness = Harness::tcp(MemoryNode::new()).await;
    let mut stream = connect(&harness).await;
    // Key 18, version 99, correlation id 7, and a body nobody knows.
    let body = [0, 18, 0, 99, 0, 0, 0, 7, 0xde, 0xad, 0xbe, 0xef];
    stream.write_i32(i32::try_from(body.len()).unwrap()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    let Response::ApiVersions(answer) =
        receive(&mut stream, &header(ApiKey::ApiVersions, 0, 7)).await
    else {
        panic!("another response")
    };
    assert_eq!(answer.error_code, 35);
    let produce = answer.api_keys.iter().find(|api| api.api_key == 0).unwrap();
    assert_eq!((produce.min_version, produce.max_version), (0, 12));

    // And the connection is of use still.
    let again = header(ApiKey::ApiVersions, 3, 8);
    send(&mut stream, &again, ApiVersionsRequestData::default()).await;
    let Response::ApiVersions(answer) = receive(&mut stream, &again).await else {
        panic!("another response")
    };
    assert_eq!((answer.error_code, answer.finalized_features_epoch), (0, 0));
    harness.end().await;
}

#[tokio::test]
async fn a_client_negotiates_with_a_broker_of_old_versions() {
    let node = MemoryNode::with_apis(vec![
        ApiRange::new(ApiKey::Produce, 3, 7),
        ApiRange::new(ApiKey::Fetch, 4, 10),
        ApiRange::new(ApiKey::ListOffsets, 1, 4),
        ApiRange::new(ApiKey::Metadata, 0, 7),
        ApiRange::new(ApiKey::FindCoordinator, 0, 2),
        ApiRange::new(ApiKey::ApiVersions, 0, 2),
        ApiRange::new(ApiKey::CreateTopics, 2, 3),
        ApiRange::new(ApiKey::InitProducerId, 0, 1),
    ]);
    let harness = Harness::tcp(node).await;
    let client = harness.topic("shop", 1).await;
    assert_eq!(client.topic("shop").await.unwrap().unwrap().id, None);
    let mut producer = client.producer(ProducerConfig::default()).await.unwrap();
    let handle = producer.register(&at("shop", 0));
    producer.append(handle, None, &[b"value"], 1).unwrap();
    producer.close().await.unwrap();
    assert_eq!(read_all(&client, &at("shop", 0)).await, ["value"]);
    harness.end().await;
}

#[tokio::test]
async fn a_produce_without_acknowledgement_gets_no_response() {
    let harness = Harness::tcp(MemoryNode::new()).await;
    let client = harness.topic("shop", 1).await;
    let mut stream = connect(&harness).await;
    send(&mut stream, &header(ApiKey::Produce, 9, 1), produce_request(0, b"unheard")).await;
    let metadata = header(ApiKey::Metadata, 9, 2);
    send(&mut stream, &metadata, MetadataRequestData::default()).await;
    // The next response is Metadata's: decoding checks the correlation id.
    receive(&mut stream, &metadata).await;
    assert_eq!(read_all(&client, &at("shop", 0)).await, ["unheard"]);
    harness.end().await;
}

#[tokio::test]
async fn a_failed_produce_without_acknowledgement_ends_the_connection() {
    let harness = Harness::tcp(MemoryNode::new()).await;
    let mut stream = connect(&harness).await;
    send(&mut stream, &header(ApiKey::Produce, 9, 1), produce_request(0, b"nowhere")).await;
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    harness.end().await;
}

#[tokio::test]
async fn nonsense_ends_the_connection_and_costs_nothing() {
    let harness = Harness::tcp(MemoryNode::new()).await;
    let frames: [&[u8]; 5] = [
        // 2 GiB of Metadata.
        &[0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 9],
        // A negative length.
        &[0xff, 0xff, 0xff, 0xff, 0, 3, 0, 9],
        // An API that does not exist.
        &[0, 0, 0, 8, 0x7f, 0xff, 0, 0, 0, 0, 0, 1],
        // Metadata of a version that does not exist.
        &[0, 0, 0, 8, 0, 3, 0, 99, 0, 0, 0, 1],
        // A frame shorter than a header.
        &[0, 0, 0, 2, 0, 3],
    ];
    for frame in frames {
        let mut stream = connect(&harness).await;
        stream.write_all(frame).await.unwrap();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0; 1])).await;
        assert_eq!(read.expect("it ends").unwrap_or(0), 0, "{frame:?}");
    }
    harness.end().await;
}

/// Holds every Produce until it is let go, and counts how many wait.
struct Gate {
    inner: MemoryNode,
    waiting: Semaphore,
    go: Semaphore,
}

#[async_trait]
impl Node for Gate {
    fn node_id(&self) -> BrokerId {
        self.inner.node_id()
    }

    fn supported_apis(&self) -> &[ApiRange] {
        self.inner.supported_apis()
    }

    async fn handle(
        &self,
        context: &RequestContext,
        header: &RequestHeader,
        request: Request,
    ) -> Response {
        if !matches!(request, Request::Produce(_)) {
            return self.inner.handle(context, header, request).await;
        }
        let response = self.inner.handle(context, header, request).await;
        self.waiting.add_permits(1);
        self.go.acquire().await.unwrap().forget();
        response
    }
}

#[tokio::test]
async fn produces_run_side_by_side_answers_keep_their_order_and_shutdown_waits_for_them() {
    let gate = Arc::new(Gate {
        inner: MemoryNode::new(),
        waiting: Semaphore::new(0),
        go: Semaphore::new(0),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let node = Arc::clone(&gate) as Arc<dyn Node>;
    let server = tokio::spawn(serve(node, listener, ServerConfig::default(), shutdown.clone()));

    let mut stream = TcpStream::connect(address).await.unwrap();
    let headers = [1, 2, 3].map(|n| header(ApiKey::Produce, 9, n));
    for header in &headers {
        send(&mut stream, header, produce_request(-1, b"value")).await;
    }
    let metadata = header(ApiKey::Metadata, 9, 4);
    send(&mut stream, &metadata, MetadataRequestData::default()).await;
    // All three are being handled at once.
    drop(gate.waiting.acquire_many(3).await.unwrap());
    shutdown.cancel();
    gate.go.add_permits(3);
    for header in &headers {
        receive(&mut stream, header).await;
    }
    server.await.unwrap();
    // What had not started was not answered.
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_peer_that_does_not_read_its_answers_does_not_hold_up_the_others() {
    let harness = Harness::tcp(MemoryNode::new()).await;
    let client = harness.topic("shop", 1).await;
    let mut producer = client.producer(ProducerConfig::default()).await.unwrap();
    let handle = producer.register(&at("shop", 0));
    for _ in 0..40 {
        producer.append(handle, None, &[&[b'x'; 900_000]], 1).unwrap();
        producer.ready().await.unwrap();
    }
    producer.drain().await.unwrap();

    let mut deaf = connect(&harness).await;
    for correlation_id in 0..50 {
        let mut fetch = FetchRequestData::default().with_max_bytes(i32::MAX);
        fetch.topics.push(
            tailwater_kafka::wire::fetch_request::FetchTopic::default()
                .with_topic(KafkaString::from_static("shop"))
                .with_partitions(vec![
                    tailwater_kafka::wire::fetch_request::FetchPartition::default()
                        .with_partition_max_bytes(i32::MAX),
                ]),
        );
        send(&mut deaf, &header(ApiKey::Fetch, 11, correlation_id), fetch).await;
    }
    producer.append(handle, None, &[b"still"], 1).unwrap();
    producer.close().await.unwrap();
    let other = Client::connect(quick(), harness.transport.clone()).await.unwrap();
    assert_eq!(read_all(&other, &at("shop", 0)).await.len(), 41);
    drop(deaf);
    harness.end().await;
}

#[tokio::test]
async fn frames_may_come_in_single_bytes() {
    let harness = Harness::tcp(MemoryNode::new()).await;
    let mut stream = connect(&harness).await;
    stream.set_nodelay(true).unwrap();
    let header = header(ApiKey::Metadata, 12, 5);
    let parts = encode_request(&header, &MetadataRequestData::default().into()).unwrap();
    let whole: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
    for byte in whole {
        stream.write_u8(byte).await.unwrap();
        tokio::task::yield_now().await;
    }
    receive(&mut stream, &header).await;
    harness.end().await;
}

/// A server of a broker in memory with these settings.
async fn serving(config: ServerConfig) -> (std::net::SocketAddr, Arc<MemoryNode>, impl FnOnce()) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let node = Arc::new(MemoryNode::new());
    let served = Arc::clone(&node) as Arc<dyn Node>;
    tokio::spawn(serve(served, listener, config, shutdown.clone()));
    (address, node, move || shutdown.cancel())
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed_and_one_that_is_heard_of_is_not() {
    // The clock goes by our steps alone: with such a task it does not run ahead to the next timer
    // while everybody waits for a socket.
    let (release, held) = tokio::sync::oneshot::channel::<()>();
    let standing = tokio::task::spawn_blocking(move || held.blocking_recv());
    let idle = Duration::from_secs(60);
    let (address, _node, stop) = serving(ServerConfig { idle, ..ServerConfig::default() }).await;
    let silent = TcpStream::connect(address).await.unwrap();
    let mut half = TcpStream::connect(address).await.unwrap();
    half.write_all(&[0, 0]).await.unwrap();
    let mut heard = TcpStream::connect(address).await.unwrap();
    let metadata = header(ApiKey::Metadata, 9, 4);
    let mut talk = async || {
        send(&mut heard, &metadata, MetadataRequestData::default()).await;
        receive(&mut heard, &metadata).await;
    };
    // Who came later is answered: the two before it are connected as well.
    talk().await;
    let closed = |stream: &TcpStream| matches!(stream.try_read(&mut [0; 1]), Ok(0));
    let mut quarters = 0;
    while !closed(&silent) || !closed(&half) {
        tokio::time::advance(idle / 4).await;
        talk().await;
        quarters += 1;
        assert!(quarters < 1000, "still open");
    }
    assert!(quarters >= 4, "closed before its time");
    talk().await;
    stop();
    drop(release);
    assert!(standing.await.unwrap().is_err());
}

#[tokio::test]
async fn large_requests_wait_for_room_and_small_ones_pass_them() {
    let config = ServerConfig { request_bytes: 1 << 20, ..ServerConfig::default() };
    let (address, _node, stop) = serving(config).await;
    let request = header(ApiKey::Produce, 9, 1);
    let parts = encode_request(&request, &produce_request(-1, &[b'x'; 800_000]).into()).unwrap();
    let whole: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
    let (begun, rest) = whole.split_at(300_000);

    // Has room, and does not end.
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(begun).await.unwrap();
    // Has none: what it sends stays in the sockets.
    let mut second = TcpStream::connect(address).await.unwrap();
    let (again, waiting) = (request.clone(), whole.clone());
    let answered = tokio::spawn(async move {
        second.write_all(&waiting).await.unwrap();
        receive(&mut second, &again).await
    });
    // Small requests of others are answered meanwhile.
    let mut third = TcpStream::connect(address).await.unwrap();
    let metadata = header(ApiKey::Metadata, 9, 4);
    for _ in 0..20 {
        send(&mut third, &metadata, MetadataRequestData::default()).await;
        receive(&mut third, &metadata).await;
    }
    assert!(!answered.is_finished());
    first.write_all(rest).await.unwrap();
    receive(&mut first, &request).await;
    answered.await.unwrap();
    // Larger than all the room there is: alone it goes through.
    let request = header(ApiKey::Produce, 9, 2);
    send(&mut third, &request, produce_request(-1, &[b'x'; 3_000_000])).await;
    receive(&mut third, &request).await;
    stop();
}
