//! Apache Kafka's own AdminClient, for what operators do.

use std::path::Path;
use std::sync::Arc;

use tailwater_scratch::Kafka;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::Scratch;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafkas_admin_client_operates_the_log() {
    if Kafka::available().is_err() && Kafka::prepare().is_err() {
        // No java or no mvn here: `cargo xtask test` says in its closing line what that leaves out.
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let scratch = Scratch::with(|config| config.advertised_port = port).await;
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(Arc::clone(&scratch.log).serve(listener, shutdown.clone()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/Operate.java");
    let ran = tokio::task::spawn_blocking(move || {
        Kafka::run_source(&source, &[&format!("127.0.0.1:{port}")])
    });
    let out = ran.await.unwrap().unwrap();
    shutdown.cancel();
    serving.await.unwrap();
    scratch.log.close().await.unwrap();
    let expected = [
        "partitions 3",
        "retention.ms 60000 DYNAMIC_TOPIC_CONFIG",
        "cleanup.policy delete,compact",
        "min.insync.replicas 1 DEFAULT_CONFIG",
        "unknown InvalidConfigurationException",
        "invalid InvalidPartitionsException",
        "quorum leader 1 voters [1]",
        "reassigned",
        "reassigning {}",
        "none NoReassignmentInProgressException",
        "elected {}",
        "not needed ElectionNotNeededException",
        "alive InvalidRequestException",
        "only InvalidRequestException",
    ];
    assert_eq!(out.lines().collect::<Vec<_>>(), expected);
}
