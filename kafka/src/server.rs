//! The TCP side of a [`Node`]: accept, read frames, answer in order.
//!
//! One task per connection owns everything of it:
//!
//! ```text
//! socket → frames → decode → Node::handle … (side by side) → encode → outbox → socket
//! ```
//!
//! - Responses leave in the order of their requests. Consecutive Produce requests run side by side,
//!   so that a pipelining producer shares flushes; any other request runs alone, as in Kafka, so
//!   that a connection's requests see each other's effects and one long poll bounds what it holds.
//! - Nothing blocks the polling of a running request, neither a reader that does not read nor
//!   a frame that does not end: a request may hold a lock that others wait for.
//! - What a peer announces costs nothing, only what it sends does; and a large frame is read only
//!   once there is room for it among those of the connection and of the node ([`Room`]).
//! - Who is silent is let go.
//!
//! Shutdown: no new connections, no new requests, the running ones are answered, and after
//! [`ServerConfig::grace`] the rest is dropped.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesOrdered,
};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    node::{Node, RequestContext},
    outbox::Outbox,
    wire::{
        ApiKey, Decoded, Request, RequestHeader, Response, WireError, check_request_length,
        decode_request, encode_response, supports, unsupported_api_versions,
    },
};

/// How connections are served.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Produce requests of one connection that run side by side. Clients keep at most 5 in flight.
    pub max_in_flight: usize,
    /// Connections at a time; the next one is closed at once.
    pub max_connections: usize,
    /// Bytes of large requests that are read and handled at a time, all connections together. One
    /// that is larger than that waits until it is alone.
    pub request_bytes: usize,
    /// How long a connection may be silent in both directions before it is closed. Many peers die
    /// without a word: Kafka's `connections.max.idle.ms`.
    pub idle: Duration,
    /// How long running requests may take to finish at shutdown.
    pub grace: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_in_flight: 16,
            max_connections: 4096,
            request_bytes: 128 << 20,
            idle: Duration::from_mins(10),
            grace: Duration::from_secs(5),
        }
    }
}

/// Serves `node` on `listener` until `shutdown`.
///
/// # Panics
/// If handling a request panics.
pub async fn serve(
    node: Arc<dyn Node>,
    listener: TcpListener,
    config: ServerConfig,
    shutdown: CancellationToken,
) {
    let mut connections = JoinSet::new();
    let room = Room::new(config.request_bytes);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) if connections.len() < config.max_connections => {
                    let connection =
                        Connection::new(Arc::clone(&node), peer, &config, room.clone());
                    connections.spawn(connection.run(stream, shutdown.clone()));
                }
                Ok((_, peer)) => {
                    tracing::warn!(%peer, "too many connections, closed the newest");
                }
                Err(error) => {
                    // Out of file descriptors, most of the time: others must end first.
                    tracing::warn!(%error, "accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(ended) = connections.join_next() => raise(ended),
        }
    }
    drop(listener);
    let drain = async {
        while let Some(ended) = connections.join_next().await {
            raise(ended);
        }
    };
    if tokio::time::timeout(config.grace, drain).await.is_err() {
        tracing::info!(connections = connections.len(), "dropped connections at shutdown");
        connections.shutdown().await;
    }
}

/// A panic in a connection is a mistake of ours: it ends the server, not only its connection.
fn raise(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}

/// Unwritten response bytes above which a connection's next request waits.
const OUTBOX_BYTES: usize = 1 << 20;

/// Bytes read ahead of the frame that is waiting to be complete.
const READ_AHEAD_BYTES: usize = 64 << 10;

/// Buffer growth at a time while a large frame arrives.
const READ_STEP_BYTES: usize = 1 << 20;

/// Large requests of one connection that are read and handled at a time, in bytes.
const CONNECTION_BYTES: usize = 32 << 20;

/// A frame that has room is waited for so long: others wait for that room.
const STALLED_FRAME: Duration = Duration::from_secs(60);

/// Room in memory for large requests.
#[derive(Debug, Clone)]
struct Room {
    free: Arc<Semaphore>,
    bytes: usize,
}

impl Room {
    fn new(bytes: usize) -> Self {
        let bytes = bytes.clamp(1, u32::MAX as usize / 2);
        Self { free: Arc::new(Semaphore::new(bytes)), bytes }
    }

    /// Waits for so many bytes, or for all there are; first come first served.
    async fn take(self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(bytes.min(self.bytes)).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        self.free.acquire_many_owned(wanted).await.ok()
    }
}

/// The room of a request: the connection's, then the node's. Given back when it is handled.
type Taken = (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>);

/// A request, and the room it takes.
type Arrived = (RequestHeader, Request, Option<Taken>);

struct Connection {
    node: Arc<dyn Node>,
    context: RequestContext,
    peer: SocketAddr,
    max_in_flight: usize,
    idle: Duration,
    /// For this connection's large requests, and for all of them.
    rooms: [Room; 2],
    /// The wait for room for the frame at the front of the inbox.
    asking: Option<BoxFuture<'static, Taken>>,
    /// The room of the frame at the front of the inbox.
    taken: Option<Taken>,
    inbox: BytesMut,
    outbox: Outbox,
    running: FuturesOrdered<BoxFuture<'static, Answer>>,
    /// Whether a request runs that is to run alone.
    alone: bool,
    /// The next request, while it must wait for the running ones.
    next: Option<Arrived>,
}

enum Answer {
    Parts(Vec<Bytes>),
    /// Nothing to say: a Produce with `acks = 0`.
    Silence,
    /// The connection ends: the only way to tell a producer with `acks = 0` of an error.
    Close(&'static str),
    Failed(WireError),
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("read or write")]
    Io(#[source] std::io::Error),
    #[error("bad request")]
    Wire(#[source] WireError),
    #[error("{0:?} version {1} is not served here")]
    Unsupported(ApiKey, i16),
    #[error("{0}")]
    Close(&'static str),
}

impl Connection {
    fn new(node: Arc<dyn Node>, peer: SocketAddr, config: &ServerConfig, room: Room) -> Self {
        Self {
            node,
            context: RequestContext { peer: Some(peer) },
            peer,
            max_in_flight: config.max_in_flight,
            idle: config.idle,
            rooms: [Room::new(CONNECTION_BYTES), room],
            asking: None,
            taken: None,
            inbox: BytesMut::new(),
            outbox: Outbox::default(),
            running: FuturesOrdered::new(),
            alone: false,
            next: None,
        }
    }

    async fn run(mut self, stream: TcpStream, shutdown: CancellationToken) {
        match self.exchange(stream, shutdown).await {
            Ok(()) => tracing::debug!(peer = %self.peer, "connection closed"),
            Err(end) => {
                let error: &dyn std::error::Error = &end;
                tracing::debug!(peer = %self.peer, error, "connection ended");
            }
        }
    }

    async fn exchange(
        &mut self,
        mut stream: TcpStream,
        shutdown: CancellationToken,
    ) -> Result<(), End> {
        stream.set_nodelay(true).map_err(End::Io)?;
        let (mut reader, mut writer) = stream.split();
        let mut draining = false;
        let mut last = Instant::now();
        let silence = tokio::time::sleep_until(last + self.patience());
        tokio::pin!(silence);
        loop {
            if !draining {
                self.start_requests()?;
            }
            if draining && self.running.is_empty() && self.outbox.is_empty() {
                return Ok(());
            }
            let room = self.reserve();
            tokio::select! {
                Some(answer) = self.running.next(), if !self.running.is_empty() => {
                    last = Instant::now();
                    self.alone = false;
                    match answer {
                        Answer::Parts(parts) => self.outbox.push(parts),
                        Answer::Silence => {}
                        Answer::Close(why) => return Err(End::Close(why)),
                        Answer::Failed(error) => {
                            tracing::error!(%error, peer = %self.peer, "encode a response");
                            return Err(End::Wire(error));
                        }
                    }
                }
                written = self.outbox.write_some(&mut writer), if !self.outbox.is_empty() => {
                    last = Instant::now();
                    written.map_err(End::Io)?;
                }
                read = reader.read_buf(&mut self.inbox), if room && !draining => {
                    last = Instant::now();
                    if read.map_err(End::Io)? == 0 {
                        return Ok(());
                    }
                }
                taken = wait_for(&mut self.asking), if self.asking.is_some() => {
                    last = Instant::now();
                    self.asking = None;
                    self.taken = Some(taken);
                    // Less patience from here on.
                    silence.as_mut().reset(last + self.patience());
                }
                () = silence.as_mut() => {
                    let busy = !self.running.is_empty() || self.asking.is_some();
                    let until = if busy { Instant::now() } else { last } + self.patience();
                    if until <= Instant::now() {
                        return Err(End::Close("nothing was heard of the peer for too long"));
                    }
                    silence.as_mut().reset(until);
                }
                () = shutdown.cancelled(), if !draining => draining = true,
            }
        }
    }

    /// Starts the requests that have arrived, as far as the order allows.
    fn start_requests(&mut self) -> Result<(), End> {
        while self.outbox.bytes() < OUTBOX_BYTES {
            let next = match self.next.take() {
                Some(next) => next,
                None => match self.next_request()? {
                    Some(next) => next,
                    None => return Ok(()),
                },
            };
            let produce = matches!(next.1, Request::Produce(_));
            let may_start = self.running.is_empty()
                || (produce && !self.alone && self.running.len() < self.max_in_flight);
            if !may_start {
                self.next = Some(next);
                return Ok(());
            }
            self.alone = !produce;
            self.start(next);
        }
        Ok(())
    }

    fn start(&mut self, (header, request, taken): Arrived) {
        let node = Arc::clone(&self.node);
        let context = self.context;
        let silent = matches!(&request, Request::Produce(produce) if produce.acks == 0);
        self.running.push_back(
            async move {
                let response = node.handle(&context, &header, request).await;
                drop(taken);
                if silent {
                    return match response {
                        Response::Produce(produce) if has_error(&produce) => {
                            Answer::Close("a produce without acknowledgement failed")
                        }
                        _ => Answer::Silence,
                    };
                }
                encode_response(&header, &response).map_or_else(Answer::Failed, Answer::Parts)
            }
            .boxed(),
        );
    }

    /// How long the peer may be silent.
    fn patience(&self) -> Duration {
        if self.taken.is_some() { self.idle.min(STALLED_FRAME) } else { self.idle }
    }

    /// The next whole request in the inbox.
    fn next_request(&mut self) -> Result<Option<Arrived>, End> {
        while let Some(frame) = self.next_frame().map_err(End::Wire)? {
            let taken = self.taken.take();
            match decode_request(frame).map_err(End::Wire)? {
                Decoded::Request(header, request) => {
                    if supports(self.node.supported_apis(), header.api, header.version) {
                        return Ok(Some((header, request, taken)));
                    }
                    if header.api != ApiKey::ApiVersions {
                        return Err(End::Unsupported(header.api, header.version));
                    }
                    self.refuse_api_versions(header.correlation_id);
                }
                Decoded::UnsupportedApiVersions { correlation_id } => {
                    self.refuse_api_versions(correlation_id);
                }
            }
        }
        Ok(None)
    }

    fn refuse_api_versions(&mut self, correlation_id: i32) {
        let header =
            RequestHeader { api: ApiKey::ApiVersions, version: 0, correlation_id, client_id: None };
        let response = Response::ApiVersions(unsupported_api_versions(self.node.supported_apis()));
        let answer = encode_response(&header, &response).map_or_else(Answer::Failed, Answer::Parts);
        self.running.push_back(std::future::ready(answer).boxed());
    }

    fn next_frame(&mut self) -> Result<Option<Bytes>, WireError> {
        let Some(length) = self.announced()? else {
            return Ok(None);
        };
        if self.inbox.len() < 4 + length {
            return Ok(None);
        }
        self.inbox.advance(4);
        Ok(Some(self.inbox.split_to(length).freeze()))
    }

    /// The length of the frame at the front of the inbox, checked, once it can be known.
    fn announced(&self) -> Result<Option<usize>, WireError> {
        let (Some(length), Some(key)) = (self.inbox.get(..4), self.inbox.get(4..6)) else {
            return Ok(None);
        };
        let length = i32::from_be_bytes([length[0], length[1], length[2], length[3]]);
        check_request_length(length, i16::from_be_bytes([key[0], key[1]])).map(Some)
    }

    /// Makes room to read into; `false` if enough is read for now.
    fn reserve(&mut self) -> bool {
        let missing = match self.announced() {
            Ok(Some(length)) => (4 + length).saturating_sub(self.inbox.len()),
            Ok(None) => READ_AHEAD_BYTES,
            Err(_) => 0,
        };
        if missing == 0 && self.inbox.len() >= READ_AHEAD_BYTES {
            return false;
        }
        if missing > READ_AHEAD_BYTES && self.taken.is_none() {
            if self.asking.is_none() {
                let [own, all] = self.rooms.clone();
                let bytes = missing + self.inbox.len();
                self.asking =
                    Some(async move { (own.take(bytes).await, all.take(bytes).await) }.boxed());
            }
            return false;
        }
        self.inbox.reserve(missing.clamp(READ_AHEAD_BYTES, READ_STEP_BYTES));
        true
    }
}

/// Waits for what is asked for; for ever if nothing is.
async fn wait_for<T>(asking: &mut Option<BoxFuture<'static, T>>) -> T {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

fn has_error(produce: &crate::wire::produce_response::ProduceResponseData) -> bool {
    let partitions = produce.responses.iter().flat_map(|topic| &topic.partition_responses);
    partitions.into_iter().any(|partition| partition.error_code != 0)
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}
