//! librdkafka reads what we write and writes what we read, in every codec.
//!
//! Through `kcat`, which has to be installed; where it is not, the run says so and proves nothing.

use std::process::Stdio;

use tailwater_kafka::{
    Client, Compression, Limits, Offset, ProducerConfig, ReaderConfig, test_util::MemoryNode,
};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::harness::{Harness, at, read_all};

const CODECS: [(Compression, &str); 5] = [
    (Compression::None, "none"),
    (Compression::Gzip, "gzip"),
    (Compression::Snappy, "snappy"),
    (Compression::Lz4, "lz4"),
    (Compression::Zstd, "zstd"),
];

/// Runs kcat with `input`; `None` if it is not installed.
async fn kcat(harness: &Harness, arguments: &[&str], input: &str) -> Option<String> {
    let text = format!("{:?}", harness.transport);
    let broker = text.split('"').nth(1).unwrap();
    let spawned = Command::new("kcat")
        .args(["-b", broker, "-q"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
            println!("kcat is not installed: librdkafka was not tried");
            return None;
        }
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    let output = tokio::time::timeout(std::time::Duration::from_secs(30), child.wait_with_output());
    let output = output.await.expect("kcat ends").unwrap();
    assert!(output.status.success(), "{}", output.status);
    Some(String::from_utf8(output.stdout).unwrap())
}

fn values() -> Vec<String> {
    (0..500).map(|n| format!("{n} {}", "compressible ".repeat(n % 7))).collect()
}

/// Whether any of the batches is compressed so; one of a single short record never is.
async fn uses(client: &Client, topic: &str, codec: Compression) -> bool {
    let mut reader = client.reader(ReaderConfig::new(at(topic, 0), Offset::ZERO));
    let mut found = false;
    while reader.position() < Offset::new(500) {
        for batch in reader.next().await.unwrap() {
            assert!(batch.records(Limits::default()).unwrap().all(|record| record.is_ok()));
            found |= batch.compression() == codec;
        }
    }
    found
}

#[tokio::test]
async fn librdkafka_reads_every_codec_of_ours() {
    let harness = Harness::tcp(MemoryNode::new()).await;
    for (compression, name) in CODECS {
        let client = harness.topic(name, 1).await;
        let config = ProducerConfig { compression, ..ProducerConfig::default() };
        let mut producer = client.producer(config).await.unwrap();
        let handle = producer.register(&at(name, 0));
        for value in values() {
            producer.append(handle, Some(b"key"), &[value.as_bytes()], 1).unwrap();
        }
        producer.close().await.unwrap();
        assert!(uses(&client, name, compression).await, "{name}");
        let arguments = ["-C", "-t", name, "-p", "0", "-o", "beginning", "-e", "-f", "%k=%s\n"];
        let Some(output) = kcat(&harness, &arguments, "").await else { return };
        let wanted: String = values().iter().map(|value| format!("key={value}\n")).collect();
        assert_eq!(output, wanted, "{name}");
    }
    harness.end().await;
}

#[tokio::test]
async fn we_read_every_codec_of_librdkafka() {
    let harness = Harness::tcp(MemoryNode::new()).await;
    for (compression, name) in CODECS {
        let client = harness.topic(name, 1).await;
        let input = values().join("\n");
        let arguments = ["-P", "-t", name, "-p", "0", "-z", name];
        if kcat(&harness, &arguments, &input).await.is_none() {
            return;
        }
        assert_eq!(read_all(&client, &at(name, 0)).await, values());
        // Not silently uncompressed, as librdkafka does where it mistakes the broker for an old one.
        assert!(uses(&client, name, compression).await, "{name}");
    }
    harness.end().await;
}
