//! The producer against brokers that refuse, answer wrongly late, and connections that end
//! anywhere: each record is in the log once and in order.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use tailwater_kafka::{
    Client, Compression, ProducerConfig, Transport,
    test_util::{MemoryNode, ProduceFault},
    wire::ErrorCode,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::harness::{Harness, at, quick, read_all};

const PARTITIONS: i32 = 3;
const RECORDS: usize = 600;
const SEEDS: u64 = 12;

/// A way to a broker whose connections end after a random number of bytes in either direction:
/// requests are lost, or half sent, or done while their responses are lost.
async fn flaky_proxy(to: u16, seed: u64) -> (u16, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (client, _) = listener.accept().await.unwrap();
            // Enough for a handshake and a little work, most of the time.
            let up = rng.random_range(100..12_000);
            let down = rng.random_range(300..3_000);
            connections.spawn(async move {
                let Ok(broker) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                let (client_in, client_out) = client.into_split();
                let (broker_in, broker_out) = broker.into_split();
                tokio::select! {
                    () = copy(client_in, broker_out, up) => {}
                    () = copy(broker_in, client_out, down) => {}
                }
            });
        }
    });
    (port, tasks)
}

async fn copy(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut budget: usize,
) {
    let mut buf = [0; 1024];
    while budget > 0 {
        let room = budget.min(buf.len());
        match from.read(&mut buf[..room]).await {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                if to.write_all(&buf[..read]).await.is_err() {
                    return;
                }
                budget -= read;
            }
        }
    }
}

fn config(rng: &mut SmallRng) -> ProducerConfig {
    ProducerConfig {
        batch_bytes: rng.random_range(250..2000),
        in_flight_bytes: rng.random_range(1000..20_000),
        max_in_flight: rng.random_range(1..=5),
        linger: Duration::from_millis(rng.random_range(0..3)),
        compression: if rng.random_bool(0.3) { Compression::Lz4 } else { Compression::None },
        ..ProducerConfig::default()
    }
}

/// Appends records with random sizes, partitions and flushes; gives what each partition is to hold.
async fn produce(client: &Client, rng: &mut SmallRng) -> Vec<Vec<String>> {
    let mut producer = client.producer(config(rng)).await.unwrap();
    let handles: Vec<_> = (0..PARTITIONS).map(|n| producer.register(&at("shop", n))).collect();
    let mut wanted = vec![Vec::new(); handles.len()];
    for n in 0..RECORDS {
        let to = rng.random_range(0..handles.len());
        let value = format!("{n}:{}", "x".repeat(rng.random_range(0..120)));
        producer.ready().await.unwrap();
        producer.append(handles[to], None, &[value.as_bytes()], 1).unwrap();
        wanted[to].push(value);
        if rng.random_bool(0.05) {
            producer.flush();
        }
    }
    producer.drain().await.unwrap();
    let below = producer.acknowledged().borrow().below.get();
    assert_eq!(below, u64::try_from(RECORDS).unwrap());
    producer.close().await.unwrap();
    wanted
}

async fn check(harness: &Harness, wanted: &[Vec<String>]) {
    harness.node.fail_produce(Box::new(|_| ProduceFault::None));
    let client = harness.client().await;
    for (partition, wanted) in wanted.iter().enumerate() {
        let of = at("shop", i32::try_from(partition).unwrap());
        assert_eq!(&read_all(&client, &of).await, wanted);
    }
}

#[tokio::test]
async fn connections_that_end_anywhere_lose_and_repeat_nothing() {
    for seed in 0..SEEDS {
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let harness = Harness::tcp(MemoryNode::new()).await;
        let client = harness.topic("shop", PARTITIONS).await;
        drop(client);
        let address = harness.transport.clone();
        let port: u16 = format!("{address:?}")
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse().ok())
            .next_back()
            .unwrap();
        let (proxy, _tasks) = flaky_proxy(port, seed).await;
        harness.node.advertise("127.0.0.1", proxy);
        let transport = Transport::tcp(vec![format!("127.0.0.1:{proxy}")]);
        let mut client = Client::connect(quick(), transport.clone()).await;
        while client.is_err() {
            client = Client::connect(quick(), transport.clone()).await;
        }
        let run = produce(client.as_ref().unwrap(), &mut rng);
        let wanted = tokio::time::timeout(Duration::from_secs(60), run).await.unwrap();
        harness.node.advertise("127.0.0.1", port);
        check(&harness, &wanted).await;
        harness.end().await;
    }
}

#[tokio::test]
async fn refusals_and_lost_answers_lose_and_repeat_nothing() {
    for seed in 0..SEEDS {
        for tcp in [false, true] {
            println!("seed {seed}, tcp {tcp}");
            let mut rng = SmallRng::seed_from_u64(seed);
            let harness = if tcp {
                Harness::tcp(MemoryNode::new()).await
            } else {
                Harness::in_process(MemoryNode::new())
            };
            let client = harness.topic("shop", PARTITIONS).await;
            let faults = Arc::new(Mutex::new(SmallRng::seed_from_u64(seed + 1000)));
            harness.node.fail_produce(Box::new(move |_| {
                let mut rng = faults.lock().unwrap();
                match rng.random_range(0..20) {
                    0 => ProduceFault::Refuse(ErrorCode::NotLeaderOrFollower),
                    1 => ProduceFault::Refuse(ErrorCode::NotEnoughReplicas),
                    2 => ProduceFault::AppendThenSay(ErrorCode::RequestTimedOut),
                    3 => ProduceFault::AppendThenSay(ErrorCode::NotLeaderOrFollower),
                    4 => ProduceFault::AppendThenSay(ErrorCode::NotEnoughReplicasAfterAppend),
                    _ => ProduceFault::None,
                }
            }));
            let run = produce(&client, &mut rng);
            let wanted = tokio::time::timeout(Duration::from_secs(60), run).await.unwrap();
            check(&harness, &wanted).await;
            harness.end().await;
        }
    }
}

/// The test can fail: a broker that forgets sequences repeats what is sent again.
#[tokio::test]
async fn without_sequences_a_lost_answer_repeats_a_record() {
    let harness = Harness::in_process(MemoryNode::new());
    let client = harness.topic("shop", 1).await;
    let mut producer = client.producer(ProducerConfig::default()).await.unwrap();
    let handle = producer.register(&at("shop", 0));
    let mut first = true;
    harness.node.forget_producers();
    harness.node.fail_produce(Box::new(move |_| {
        if std::mem::take(&mut first) {
            ProduceFault::AppendThenSay(ErrorCode::RequestTimedOut)
        } else {
            ProduceFault::None
        }
    }));
    producer.append(handle, None, &[b"once"], 1).unwrap();
    producer.drain().await.unwrap();
    assert_eq!(read_all(&client, &at("shop", 0)).await, ["once", "once"]);
}
