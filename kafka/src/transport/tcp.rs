//! A TCP connection to a broker.
//!
//! Two tasks: one writes requests in order, one reads responses, which come in the same order. They
//! are apart because a broker may wait for us to read before it reads on. When either ends, both
//! do, and every waiting call is told so.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Settings, security::Secured};
use crate::{
    error::Error,
    outbox::Outbox,
    wire::{
        KafkaString, Request, RequestHeader, Response, WireError, check_response_length,
        decode_response, encode_request,
    },
};

/// Requests between call and socket: enough that callers rarely wait for each other; what bounds
/// memory are the callers' own limits.
const QUEUE: usize = 64;

/// Requests that wait for a response. A caller has few; a producer five per partition.
const UNANSWERED: usize = 4096;

/// Buffer growth at a time while a large response arrives.
const READ_STEP_BYTES: usize = 1 << 20;

/// Read ahead of the response that is waiting to be complete: most have come whole with their length.
const READ_AHEAD_BYTES: usize = 8 << 10;

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

#[derive(Debug)]
pub(super) struct Tcp {
    address: Arc<str>,
    client_id: KafkaString,
    request_timeout: Duration,
    next_correlation_id: AtomicI32,
    requests: mpsc::Sender<(Vec<Bytes>, Waiting)>,
    closed: CancellationToken,
    /// Aborted when the connection is dropped.
    _tasks: JoinSet<()>,
}

/// A call that waits for its response.
#[derive(Debug)]
struct Waiting {
    header: RequestHeader,
    answer: oneshot::Sender<Response>,
}

impl Tcp {
    pub(super) async fn connect(
        address: &str,
        secured: &Secured,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let failed = |source| Error::Connect { address: address.to_owned(), source };
        let connected = timeout(settings.connect_timeout, async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            secured.encrypt(address, stream).await
        });
        let connected = connected
            .await
            .map_err(|_| failed(std::io::ErrorKind::TimedOut.into()))?
            .map_err(failed)?;
        let (reader, writer): (Reader, Writer) = match connected {
            Ok(encrypted) => {
                let (reader, writer) = tokio::io::split(encrypted);
                (Box::new(reader), Box::new(writer))
            }
            Err(plain) => {
                let (reader, writer) = plain.into_split();
                (Box::new(reader), Box::new(writer))
            }
        };
        let (requests, to_write) = mpsc::channel(QUEUE);
        let (unanswered, to_answer) = mpsc::channel(UNANSWERED);
        let closed = CancellationToken::new();
        let address: Arc<str> = address.into();

        let mut tasks = JoinSet::new();
        let ended = closed.clone();
        let writes = write_requests(writer, to_write, unanswered);
        tasks.spawn(until_closed(ended, Arc::clone(&address), writes));
        let ended = closed.clone();
        let reads = read_responses(reader, to_answer);
        tasks.spawn(until_closed(ended, Arc::clone(&address), reads));
        Ok(Self {
            address,
            client_id: settings.client_id.clone(),
            request_timeout: settings.request_timeout,
            next_correlation_id: AtomicI32::new(0),
            requests,
            closed,
            _tasks: tasks,
        })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    pub(super) async fn call(&self, version: i16, request: &Request) -> Result<Response, Error> {
        let header = RequestHeader {
            api: request.api(),
            version,
            correlation_id: self.next_correlation_id.fetch_add(1, Ordering::Relaxed),
            client_id: Some(self.client_id.clone()),
        };
        let parts = encode_request(&header, request)
            .map_err(|source| Error::Encode { address: self.address.to_string(), source })?;
        let (answer, answered) = oneshot::channel();
        let exchange = async {
            self.requests.send((parts, Waiting { header, answer })).await.map_err(|_| ())?;
            answered.await.map_err(|_| ())
        };
        match timeout(self.request_timeout, exchange).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(())) => Err(Error::ConnectionLost { address: self.address.to_string() }),
            Err(_) => {
                // What comes later would answer nobody: the connection is of no more use.
                self.closed.cancel();
                Err(Error::RequestTimeout {
                    address: self.address.to_string(),
                    api: request.api(),
                    after: self.request_timeout,
                })
            }
        }
    }
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the client is done")]
    Done,
    #[error("read or write")]
    Io(#[from] std::io::Error),
    #[error("bad response")]
    Wire(#[from] WireError),
    #[error("a response without a request")]
    Unasked,
}

async fn until_closed(
    closed: CancellationToken,
    address: Arc<str>,
    half: impl Future<Output = End>,
) {
    tokio::select! {
        () = closed.cancelled() => {}
        end = half => {
            let error: &dyn std::error::Error = &end;
            tracing::debug!(%address, error, "connection to broker ended");
            closed.cancel();
        }
    }
}

async fn write_requests(
    mut writer: Writer,
    mut requests: mpsc::Receiver<(Vec<Bytes>, Waiting)>,
    unanswered: mpsc::Sender<Waiting>,
) -> End {
    let mut outbox = Outbox::default();
    while let Some((parts, waiting)) = requests.recv().await {
        // First in the queue, then on the wire: its response finds it there.
        if unanswered.send(waiting).await.is_err() {
            return End::Done;
        }
        outbox.push(parts);
        // TLS keeps the end of what was written until it is told to send it.
        let written = async {
            outbox.write_all(&mut writer).await?;
            writer.flush().await
        };
        if let Err(error) = written.await {
            return End::Io(error);
        }
    }
    End::Done
}

async fn read_responses(mut reader: Reader, mut unanswered: mpsc::Receiver<Waiting>) -> End {
    let mut inbox = BytesMut::new();
    loop {
        let frame = match read_frame(&mut reader, &mut inbox).await {
            Ok(frame) => frame,
            Err(end) => return end,
        };
        let Ok(waiting) = unanswered.try_recv() else {
            return End::Unasked;
        };
        match decode_response(&waiting.header, frame) {
            // Nobody waits any more: the call was dropped.
            Ok(response) => drop(waiting.answer.send(response)),
            Err(error) => {
                tracing::warn!(%error, "bad response from a broker");
                return End::Wire(error);
            }
        }
    }
}

async fn read_frame(reader: &mut Reader, inbox: &mut BytesMut) -> Result<Bytes, End> {
    let mut missing = 4;
    loop {
        if let Some(length) = inbox.first_chunk::<4>() {
            let length = check_response_length(i32::from_be_bytes(*length))?;
            if inbox.len() >= 4 + length {
                drop(inbox.split_to(4));
                return Ok(inbox.split_to(length).freeze());
            }
            missing = 4 + length - inbox.len();
        }
        inbox.reserve(missing.clamp(READ_AHEAD_BYTES, READ_STEP_BYTES));
        if reader.read_buf(inbox).await? == 0 {
            return Err(End::Io(std::io::ErrorKind::UnexpectedEof.into()));
        }
    }
}
