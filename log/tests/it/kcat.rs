//! A foreign client: kcat lists, writes and reads.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::{Scratch, batches, create_topic_with, fetch, read_all};

const KCAT: &str = "/usr/bin/kcat";

struct Served {
    scratch: Scratch,
    address: String,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn start() -> Self {
        assert!(
            Path::new(KCAT).exists(),
            "this test needs kcat at {KCAT}: install the package (Debian and Ubuntu: kcat)"
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let scratch = Scratch::with(|config| config.advertised_port = port).await;
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(Arc::clone(&scratch.log).serve(listener, shutdown.clone()));
        Self { scratch, address: format!("127.0.0.1:{port}"), shutdown, serving }
    }

    async fn kcat(&self, arguments: &[&str], input: &str) -> String {
        let mut command = Command::new(KCAT);
        command.args(["-b", &self.address]).args(arguments);
        let input = input.to_owned();
        let output = tokio::task::spawn_blocking(move || run(command, &input)).await.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kcat {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.serving.await.unwrap();
        self.scratch.log.close().await.unwrap();
    }
}

fn run(mut command: Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kcat_lists_writes_and_reads() {
    let served = Served::start().await;
    create_topic_with(&served.scratch.log, "listed", 3, &[]).await;
    let listing = served.kcat(&["-L"], "").await;
    assert!(listing.contains("topic \"listed\" with 3 partitions"), "{listing}");
    assert!(listing.contains(&format!("broker 1 at {}", served.address)), "{listing}");

    // The topic is made by writing to it.
    let lines: Vec<String> = (0..1000).map(|number| format!("key{number}:value{number}")).collect();
    let input = format!("{}\n", lines.join("\n"));
    served.kcat(&["-P", "-t", "made", "-K:"], &input).await;
    let output = served.kcat(&["-C", "-t", "made", "-e", "-q", "-f", "%o:%k:%s\\n"], "").await;
    let expected: Vec<String> =
        lines.iter().enumerate().map(|(offset, line)| format!("{offset}:{line}")).collect();
    assert_eq!(output.lines().collect::<Vec<_>>(), expected);
    let tail = served.kcat(&["-C", "-t", "made", "-o", "-3", "-e", "-q", "-f", "%o\\n"], "").await;
    assert_eq!(tail, "997\n998\n999\n");
    let found = served.kcat(&["-Q", "-t", "made:0:-1"], "").await;
    assert!(found.contains("offset 1000"), "{found}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kcat_writes_and_reads_every_codec_and_idempotently() {
    let served = Served::start().await;
    let line = "the same again and again ".repeat(20);
    let input = format!("{}\n", vec![line.clone(); 200].join("\n"));
    for codec in ["gzip", "snappy", "lz4", "zstd"] {
        let arguments = ["-P", "-t", codec, "-z", codec, "-X", "enable.idempotence=true"];
        served.kcat(&arguments, &input).await;
        // What is kept is compressed: the broker made the client believe that it may.
        let stored = batches(fetch(&served.scratch.log, codec, 0).await.records);
        let size: usize = stored.iter().map(|batch| batch.bytes().len()).sum();
        assert!(size < input.len() / 5, "{codec}: {size} bytes");
        assert!(stored[0].producer_id().get() >= 0, "{codec}: of an idempotent producer");
        let output = served.kcat(&["-C", "-t", codec, "-e", "-q"], "").await;
        assert_eq!(output, input, "{codec}");
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kcat_wrote_is_there_after_a_restart() {
    let served = Served::start().await;
    served.kcat(&["-P", "-t", "t"], "a\nb\nc\n").await;
    served.shutdown.cancel();
    served.serving.await.unwrap();
    let scratch = served.scratch.restart(|_| {}).await;
    let texts: Vec<_> =
        read_all(&scratch.log, "t").await.into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, ["a", "b", "c"]);
}
