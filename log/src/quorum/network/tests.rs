//! Real sockets.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use std::sync::{Arc, Mutex};
use tailwater_kafka::BrokerId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::frame::{Envelope, MAX_FRAME_BYTES, encode};
use super::{TcpNetwork, serve};
use crate::metadata::Record;
use crate::quorum::messages::{
    ControllerHandler, ControllerMessage, ControllerReply, QuorumNetwork,
};
use crate::quorum::{Quorum, QuorumConfig, QuorumTimeouts, SNAPSHOT_AFTER, SNAPSHOT_PART_BYTES};
use crate::storage::FileSystem;
use crate::storage::partition::lock;

/// Answers each question with itself, after as many milliseconds as it says.
struct Echo;

#[async_trait]
impl ControllerHandler for Echo {
    async fn handle(&self, message: ControllerMessage) -> ControllerReply {
        let ControllerMessage::Controller(value) = message else {
            return ControllerReply::Refused { reason: "not for an echo".to_owned() };
        };
        let wait = value.as_u64().unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        ControllerReply::Controller(value)
    }
}

struct Server {
    address: String,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(address: &str, handler: Arc<dyn ControllerHandler>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(listener, handler, shutdown.clone()));
        Self { address, shutdown, task }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

async fn echo(network: &TcpNetwork, address: &str, number: u64) -> Result<u64, String> {
    let message = ControllerMessage::Controller(json!(number));
    match network.call(address, message).await {
        Ok(ControllerReply::Controller(value)) => Ok(value.as_u64().unwrap()),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

#[tokio::test]
async fn many_calls_share_a_connection_and_are_answered_in_any_order() {
    let server = Server::start("127.0.0.1:0", Arc::new(Echo)).await;
    let network = Arc::new(TcpNetwork::new());
    let mut calls = JoinSet::new();
    for number in 0..40 {
        let (network, address) = (Arc::clone(&network), server.address.clone());
        calls.spawn(async move { (number, echo(&network, &address, 40 - number).await) });
    }
    for (number, answer) in calls.join_all().await {
        assert_eq!(answer, Ok(40 - number));
    }
    network.close().await;
    server.stop().await;
}

#[tokio::test]
async fn a_peer_that_comes_back_is_reached_again() {
    let server = Server::start("127.0.0.1:0", Arc::new(Echo)).await;
    let address = server.address.clone();
    let network = TcpNetwork::new();
    assert_eq!(echo(&network, &address, 1).await, Ok(1));
    server.stop().await;
    let error = echo(&network, &address, 2).await.unwrap_err();
    assert!(error.contains(&address), "{error}");
    let server = Server::start(&address, Arc::new(Echo)).await;
    // The old connection may be noticed as dead only by this call.
    if echo(&network, &address, 3).await.is_err() {
        assert_eq!(echo(&network, &address, 3).await, Ok(3));
    }
    network.close().await;
    server.stop().await;
}

#[tokio::test]
async fn a_listener_survives_any_bytes() {
    let server = Server::start("127.0.0.1:0", Arc::new(Echo)).await;
    let valid = encode(&Envelope { id: 1, body: ControllerMessage::Controller(json!(0)) }).unwrap();
    let deep = [&u32::try_from(100_000).unwrap().to_be_bytes()[..], &[b'['; 100_000]].concat();
    let mut garbage: Vec<Vec<u8>> = vec![
        vec![],
        vec![0],
        vec![0, 0, 0, 0],
        vec![0xff; 64],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"\0\0\0\x02{}".to_vec(),
        b"\0\0\0\x04null".to_vec(),
        b"\0\0\0\x03\xff\xfe\xfd".to_vec(),
        u32::try_from(MAX_FRAME_BYTES).unwrap().to_be_bytes().to_vec(),
        u32::try_from(MAX_FRAME_BYTES + 1).unwrap().to_be_bytes().to_vec(),
        deep,
        [&valid[..], &[0xff; 9]].concat(),
    ];
    for cut in 1..valid.len() {
        garbage.push(valid[..cut].to_vec());
    }
    for position in 4..valid.len() {
        let mut damaged = valid.clone();
        damaged[position] ^= 0x11;
        garbage.push(damaged);
    }
    for bytes in garbage {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        // The other end may close before all of it is sent.
        drop(stream.write_all(&bytes).await);
        drop(stream.shutdown().await);
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        drop(tokio::time::timeout(Duration::from_secs(5), read).await.expect("it hangs up"));
    }
    let network = TcpNetwork::new();
    assert_eq!(echo(&network, &server.address, 5).await, Ok(5));
    network.close().await;
    server.stop().await;
}

/// A quorum that is opened after its listener.
#[derive(Default)]
struct Later(Mutex<Option<Quorum>>);

#[async_trait]
impl ControllerHandler for Later {
    async fn handle(&self, message: ControllerMessage) -> ControllerReply {
        let quorum = lock(&self.0).clone();
        match (quorum, message) {
            (Some(quorum), ControllerMessage::Quorum(message)) => {
                ControllerReply::Quorum(quorum.handle(message).await)
            }
            _ => ControllerReply::Refused { reason: "not yet".to_owned() },
        }
    }
}

#[tokio::test]
async fn three_members_agree_over_tcp() {
    let mut controllers = BTreeMap::new();
    let mut servers = Vec::new();
    let mut handlers = Vec::new();
    for node in 1..=3 {
        let handler = Arc::new(Later::default());
        let server =
            Server::start("127.0.0.1:0", Arc::clone(&handler) as Arc<dyn ControllerHandler>).await;
        controllers.insert(BrokerId::new(node), server.address.clone());
        servers.push(server);
        handlers.push(handler);
    }
    let folder = tempfile::tempdir().unwrap();
    let mut members = Vec::new();
    for (node, address) in &controllers {
        let network = Arc::new(TcpNetwork::new());
        let config = QuorumConfig {
            node: *node,
            address: address.clone(),
            directory: folder.path().join(format!("{node}/metadata")),
            controllers: controllers.clone(),
            disk: Arc::new(FileSystem),
            timeouts: QuorumTimeouts {
                election_least: Duration::from_millis(400),
                election_most: Duration::from_millis(600),
                heartbeat: Duration::from_millis(50),
            },
            snapshot_after: SNAPSHOT_AFTER,
            snapshot_part_bytes: SNAPSHOT_PART_BYTES,
        };
        let quorum =
            Quorum::open(config, Arc::clone(&network) as Arc<dyn QuorumNetwork>).await.unwrap();
        *lock(&handlers[members.len()].0) = Some(quorum.clone());
        members.push((quorum, network));
    }
    let records = vec![Record::ProducerIds { next: 7 }];
    tokio::time::timeout(Duration::from_secs(30), async {
        // Whoever leads takes it, also if that changes meanwhile.
        'proposed: loop {
            for (quorum, _) in &members {
                if quorum.watch().borrow().is_active()
                    && quorum.propose(records.clone()).await.is_ok()
                {
                    break 'proposed;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        while !members.iter().all(|(quorum, _)| quorum.image().next_producer_id() == 7) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("agreed in time");
    for (quorum, network) in members {
        quorum.close().await;
        network.close().await;
    }
    for server in servers {
        server.stop().await;
    }
}
