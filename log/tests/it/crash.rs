//! A node that is killed while it is written to, over and over: nothing acknowledged is lost.
//!
//! The node runs in a child process: this test binary again, running only [`child_node`]. The
//! parent writes idempotently over TCP, kills the child at a random moment, starts it again on the
//! same folder, repeats what was not acknowledged, and in the end compares.

use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tailwater_kafka::wire::{ErrorCode, produce_request as p, produce_response};
use tailwater_log::{Config, Log};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support::{Writer, create_topic, init_producer, name, open, read_all, values};

const TOPIC: &str = "t";
const FOLDER: &str = "TAILWATER_LOG_TEST_CHILD";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child process of the crash test; alone it does nothing"]
async fn child_node() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config { segment_bytes: 64 << 10, ..Config::new(Path::new(&folder)) };
    let log = Log::open(config).await.unwrap();
    println!("\nserving {}", listener.local_addr().unwrap());
    log.serve(listener, CancellationToken::new()).await;
}

fn start(folder: &Path) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child_node", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = lines
        .find_map(|line| line.unwrap().strip_prefix("serving ").map(str::to_owned))
        .expect("the child serves");
    (child, address)
}

/// One Produce request of version 9, as bytes: what a client of somebody else's would send.
fn frame(records: &Bytes, number: i32) -> Bytes {
    let data = p::PartitionProduceData::default().with_index(0).with_records(Some(records.clone()));
    let topic =
        p::TopicProduceData::default().with_name(name(TOPIC)).with_partition_data(vec![data]);
    let request = p::ProduceRequestData::default()
        .with_acks(-1)
        .with_timeout_ms(30_000)
        .with_topic_data(vec![topic]);
    let mut body = BytesMut::new();
    body.put_i16(0);
    body.put_i16(9);
    body.put_i32(number);
    body.put_i16(-1);
    body.put_u8(0);
    request.write(&mut body, 9).unwrap();
    let mut frame = BytesMut::new();
    frame.put_i32(i32::try_from(body.len()).unwrap());
    frame.extend_from_slice(&body);
    frame.freeze()
}

async fn answer(stream: &mut TcpStream) -> std::io::Result<ErrorCode> {
    let length = stream.read_u32().await?;
    let mut body = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut body).await?;
    let mut body = Bytes::from(body);
    body.advance(5);
    let response = produce_response::ProduceResponseData::read(&mut body, 9).unwrap();
    Ok(response.responses[0].partition_responses[0].error_code.into())
}

/// Writes batches from `next` on, five in flight, until the node dies; returns the first number
/// that is not acknowledged.
async fn write_until_death(address: &str, writer: Writer, mut next: i32) -> i32 {
    let Ok(mut stream) = TcpStream::connect(address).await else { return next };
    let mut sent = next;
    loop {
        while sent < next + 5 {
            let text = sent.to_string();
            let records = values(&[&text], Writer { sequence: sent, ..writer });
            if stream.write_all(&frame(&records, sent)).await.is_err() {
                return next;
            }
            sent += 1;
        }
        match answer(&mut stream).await {
            Ok(ErrorCode::None) => next += 1,
            Ok(other) => panic!("batch {next} was refused: {other:?}"),
            Err(_) => return next,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_doubled_when_the_node_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path(), |_| {}).await;
    create_topic(&log, TOPIC, &[]).await;
    let writer = init_producer(&log, Some("role")).await;
    log.close().await.unwrap();
    drop(log);

    let seed = RandomState::new().hash_one(0);
    println!("seed {seed}");
    let mut next = 0;
    for round in 0..8 {
        let (mut child, address) = start(folder.path());
        // A linear congruential generator's high bits: anywhere in a flush will do.
        let draw = seed.wrapping_add(round).wrapping_mul(6_364_136_223_846_793_005) >> 33;
        let life = Duration::from_millis(5 + draw % 300);
        let killing = tokio::spawn(async move {
            tokio::time::sleep(life).await;
            child.kill().unwrap();
            child.wait().unwrap();
        });
        next = write_until_death(&address, writer, next).await;
        killing.await.unwrap();
    }
    let log = open(folder.path(), |config| config.segment_bytes = 64 << 10).await;
    let all = read_all(&log, TOPIC).await;
    assert!(next > 0, "something was acknowledged");
    assert!(i64::from(next) <= i64::try_from(all.len()).unwrap(), "{next} acknowledged");
    for (number, (offset, text)) in all.iter().enumerate() {
        assert_eq!((*offset, text), (i64::try_from(number).unwrap(), &number.to_string()));
    }
    log.close().await.unwrap();
}
