//! The answering end: whatever bytes come, it goes on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::frame::{Envelope, FrameError, FrameReader, encode};
use crate::quorum::messages::{ControllerHandler, ControllerMessage, ControllerReply};

/// Connections at a time: every node of a large cluster, and some that are not yet known dead.
const MAX_CONNECTIONS: usize = 1024;

/// Requests of one connection that are answered at the same time.
const IN_FLIGHT: usize = 64;

/// Until a connection is accepted again after the system refused.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Answers controllers that connect, until `shutdown`; then all connections are ended.
pub(crate) async fn serve(
    listener: TcpListener,
    handler: Arc<dyn ControllerHandler>,
    shutdown: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &room) => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, permit)) => {
                let handler = Arc::clone(&handler);
                connections.spawn(async move {
                    let _permit = permit;
                    converse(stream, handler).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "connection of a controller not accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
    connections.shutdown().await;
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

async fn converse(stream: TcpStream, handler: Arc<dyn ControllerHandler>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "answers may be slow");
    }
    let (read, write) = stream.into_split();
    let (replies, outgoing) = mpsc::channel(IN_FLIGHT);
    let outcome = tokio::select! {
        biased;
        outcome = send_replies(write, outgoing) => outcome,
        outcome = take_requests(read, handler, replies) => outcome,
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection of a controller ended");
    }
}

async fn take_requests(
    stream: OwnedReadHalf,
    handler: Arc<dyn ControllerHandler>,
    replies: mpsc::Sender<Envelope<ControllerReply>>,
) -> Result<(), FrameError> {
    let mut frames = FrameReader::new(stream);
    let room = Arc::new(Semaphore::new(IN_FLIGHT));
    // Who asked and is gone needs no answer: with the connection its requests are dropped.
    let mut requests = JoinSet::new();
    while let Some(Envelope { id, body }) = frames.next::<ControllerMessage>().await? {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { break };
        while requests.try_join_next().is_some() {}
        let (handler, replies) = (Arc::clone(&handler), replies.clone());
        requests.spawn(async move {
            let body = handler.handle(body).await;
            // The connection may have ended.
            drop(replies.send(Envelope { id, body }).await);
            drop(permit);
        });
    }
    Ok(())
}

async fn send_replies(
    mut stream: OwnedWriteHalf,
    mut outgoing: mpsc::Receiver<Envelope<ControllerReply>>,
) -> Result<(), FrameError> {
    while let Some(reply) = outgoing.recv().await {
        stream.write_all(&encode(&reply)?).await?;
    }
    Ok(())
}
