//! The calling end: one task per peer owns the connection to it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::frame::{Envelope, FrameError, FrameReader, encode};
use crate::quorum::messages::{ControllerMessage, ControllerReply, NetworkError, QuorumNetwork};
use crate::storage::partition::lock;

/// Calls to one peer that wait to be sent: more than a member ever makes at once.
const WAITING_CALLS: usize = 64;

/// A peer that is there accepts at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection on which a call has waited so long, and nothing came, is dead: after a power cut
/// or a cut cable nobody says so.
const SILENCE: Duration = Duration::from_secs(10);

/// Controllers over TCP.
#[derive(Debug, Default)]
pub(crate) struct TcpNetwork {
    peers: Mutex<HashMap<String, mpsc::Sender<Call>>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

struct Call {
    message: ControllerMessage,
    answer: Answer,
}

type Answer = oneshot::Sender<Result<ControllerReply, NetworkError>>;

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").finish_non_exhaustive()
    }
}

impl TcpNetwork {
    /// A network without connections; they are made when they are needed.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Ends all connections. Calls that wait have no answer.
    #[cfg(test)]
    pub(crate) async fn close(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn peer(&self, address: &str) -> mpsc::Sender<Call> {
        let mut peers = lock(&self.peers);
        if let Some(peer) = peers.get(address).filter(|peer| !peer.is_closed()) {
            return peer.clone();
        }
        let (calls, incoming) = mpsc::channel(WAITING_CALLS);
        let peer = Peer { address: address.to_owned(), incoming };
        let stopping = self.stopping.clone();
        self.tasks.spawn(async move { stopping.run_until_cancelled(peer.run()).await });
        peers.insert(address.to_owned(), calls.clone());
        calls
    }
}

#[async_trait]
impl QuorumNetwork for TcpNetwork {
    async fn call(
        &self,
        address: &str,
        message: ControllerMessage,
    ) -> Result<ControllerReply, NetworkError> {
        let lost = || NetworkError::new(address, "the connection was lost");
        let (answer, outcome) = oneshot::channel();
        self.peer(address).send(Call { message, answer }).await.map_err(|_| lost())?;
        outcome.await.unwrap_or_else(|_| Err(lost()))
    }
}

/// The owner of the connection to one peer.
struct Peer {
    address: String,
    incoming: mpsc::Receiver<Call>,
}

impl Peer {
    async fn run(mut self) {
        while let Some(first) = self.incoming.recv().await {
            let connecting =
                tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.address));
            let reason = match connecting.await {
                Ok(Ok(stream)) => {
                    self.converse(stream, first).await;
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "it does not accept a connection".to_owned(),
            };
            self.refuse(first, &reason);
        }
    }

    /// Answers a call, and all that waited with it.
    fn refuse(&mut self, first: Call, reason: &str) {
        let mut next = Some(first);
        while let Some(call) = next {
            // Who asked may have stopped waiting.
            drop(call.answer.send(Err(NetworkError::new(&self.address, reason))));
            next = self.incoming.try_recv().ok();
        }
    }

    /// Sends calls and takes answers until the connection ends.
    async fn converse(&mut self, stream: TcpStream, first: Call) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "answers may be slow");
        }
        let (read, write) = stream.into_split();
        let pending = Pending::default();
        let sending = send_calls(write, first, &mut self.incoming, &pending, &self.address);
        let outcome = tokio::select! {
            biased;
            outcome = receive(read, &pending) => outcome,
            outcome = sending => outcome,
        };
        if let Err(error) = outcome {
            tracing::debug!(address = %self.address, %error, "connection to a controller ended");
        }
    }
}

/// Calls that were sent and have no answer yet, by id.
#[derive(Default)]
struct Pending(Mutex<HashMap<u64, (Instant, Answer)>>);

impl Pending {
    fn oldest(&self) -> Option<Instant> {
        lock(&self.0).values().map(|(sent, _)| *sent).min()
    }
}

async fn send_calls(
    mut stream: OwnedWriteHalf,
    first: Call,
    incoming: &mut mpsc::Receiver<Call>,
    pending: &Pending,
    address: &str,
) -> Result<(), FrameError> {
    let mut id = 0;
    let mut next = Some(first);
    while let Some(call) = next {
        // Who asked may have stopped waiting before it was its turn.
        if !call.answer.is_closed() {
            id += 1;
            match encode(&Envelope { id, body: &call.message }) {
                Ok(frame) => {
                    lock(&pending.0).insert(id, (Instant::now(), call.answer));
                    stream.write_all(&frame).await?;
                }
                Err(error) => {
                    drop(call.answer.send(Err(NetworkError::new(address, error))));
                }
            }
        }
        next = incoming.recv().await;
    }
    Ok(())
}

async fn receive(stream: OwnedReadHalf, pending: &Pending) -> Result<(), FrameError> {
    let mut frames = FrameReader::new(stream);
    loop {
        let Ok(frame) = tokio::time::timeout(SILENCE, frames.next::<ControllerReply>()).await
        else {
            if pending.oldest().is_some_and(|sent| sent.elapsed() >= SILENCE) {
                return Ok(());
            }
            continue;
        };
        let Some(Envelope { id, body }) = frame? else { return Ok(()) };
        if let Some((_, answer)) = lock(&pending.0).remove(&id) {
            drop(answer.send(Ok(body)));
        }
    }
}
