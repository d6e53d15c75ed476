//! The stream: a replication connection in CopyBoth mode and the decoder behind it.
//!
//! Reading and decoding happen in [`next`](Stream::next) alone; there is no task behind it. What
//! was read and not yet decoded, and what is to be sent and not yet written, lies in the
//! connection's buffers, so dropping `next` or `confirm` at any await loses nothing.
//!
//! Positions: a transaction is at the LSN where its commit record starts (what `Begin` names). The
//! server skips what starts below the position that we flushed, so "everything up to and including
//! X" is, to the server, X + 1.

use std::time::Duration;

use async_trait::async_trait;
use tailwater_capture::{Changes, Event, ServerIdentity, SourceError, SourceState, Stream};
use tailwater_change::Commit;

use crate::connect::{literal, quote};
use crate::source::decoder::Decoder;
use crate::source::position_lost;
use crate::source::silence::{Heard, Silence};
use crate::source::state::State;
use crate::source::wire::{Connection, WireError, frame, server_error, unexpected};

const OPERATION: &str = "reading the replication stream";

/// `undefined_object`, `undefined_file`.
const GONE: [&str; 2] = ["42704", "58P01"];

/// More unsent status than this means that the server does not read: another adds nothing.
const STATUS_BYTES: usize = 4 << 10;

/// Silence after which the connection is taken for dead: `wal_receiver_timeout` of a replica.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// A stream of transactions.
#[derive(Debug)]
pub(crate) struct PostgresStream {
    connection: Connection,
    silence: Silence,
    decoder: Decoder,
    server: ServerIdentity,
    state: SourceState,
    /// Where a stream without a resume begins: said before anything else.
    began: Option<Commit>,
    /// What the server may forget: the first position that the log does not hold, exclusive end.
    flushed: u64,
}

impl PostgresStream {
    /// Starts the stream at `from`: transactions whose commit record starts there or later.
    ///
    /// # Errors
    /// The server does not let us.
    pub(crate) async fn start(
        mut connection: Connection,
        state: &State,
        decoder: Decoder,
        from: u64,
    ) -> Result<Self, SourceError> {
        let sql = format!(
            "START_REPLICATION SLOT {} LOGICAL {} (proto_version '1', publication_names {})",
            quote(&state.slot),
            Commit::lsn(from),
            literal(&quote(&state.publication)),
        );
        connection.start_copy(&sql).await.map_err(|error| match error {
            WireError::Server { code, .. } if code == "55006" => {
                SourceError::InUse(format!("the replication slot {}", state.slot))
            }
            // Looked at a moment ago, and gone since: the slot, or the WAL that it kept.
            WireError::Server { code, message } if GONE.contains(&code.as_str()) => {
                position_lost(Commit::lsn(from.saturating_sub(1)), message)
            }
            other => other.into_source_error("starting replication"),
        })?;
        connection.gather();
        Ok(Self {
            connection,
            silence: Silence::new(SILENCE_LIMIT),
            decoder,
            server: state.system.identity(),
            state: state.to_source_state()?,
            began: None,
            flushed: from,
        })
    }

    /// Lets the stream begin with an `Idle` that says where: for those who do not know yet.
    pub(crate) fn announced(mut self) -> Self {
        self.began = Some(Commit::lsn(self.flushed.saturating_sub(1)));
        self
    }

    /// Decodes what has been read, until `out` holds `bytes`.
    fn decode(&mut self, out: &mut Changes, bytes: usize) -> Result<(), SourceError> {
        let mut done = 0;
        let mut result = Ok(());
        while result.is_ok() && self.decoder.stopped().is_none() && out.bytes() < bytes {
            match frame(&self.connection.input()[done..]) {
                Ok(None) => break,
                Err(error) => result = Err(error.into_source_error(OPERATION)),
                Ok(Some(frame)) => {
                    let (tag, body, total) = (frame.tag, frame.body, frame.total);
                    // `body` borrows the connection, so a reply is asked for, not queued.
                    match handle(&mut self.decoder, tag, body, out) {
                        Ok(Reply::None) => {}
                        Ok(Reply::Wanted) => {
                            done += total;
                            self.connection.consume(std::mem::take(&mut done));
                            self.queue_status(false);
                            continue;
                        }
                        Err(error) => result = Err(error),
                    }
                    done += total;
                }
            }
        }
        self.connection.consume(done);
        result?;
        self.decoder.finish_round(out);
        Ok(())
    }

    fn queue_status(&mut self, reply: bool) {
        if self.connection.unsent_bytes() > STATUS_BYTES {
            return;
        }
        let mut status = [0; 34];
        status[0] = b'r';
        // Written, flushed, applied: for us one thing. The clock after them is for show: zero.
        for position in status[1..25].as_chunks_mut::<8>().0 {
            *position = self.flushed.to_be_bytes();
        }
        status[33] = u8::from(reply);
        self.connection.queue_copy_data(&status);
    }

    async fn flush(&mut self) -> Result<(), SourceError> {
        self.connection.flush().await.map_err(|error| SourceError::unavailable(OPERATION, error))
    }
}

/// Whether the server waits for a sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    None,
    Wanted,
}

/// Takes one message of the stream.
fn handle(
    decoder: &mut Decoder,
    tag: u8,
    body: &[u8],
    out: &mut Changes,
) -> Result<Reply, SourceError> {
    let short = || WireError::Protocol("a replication message that ends early".into());
    match (tag, body.first()) {
        (b'd', Some(b'w')) => {
            // Start, end and clock of the WAL: Begin and Commit say what matters.
            let message = body.get(25..).ok_or_else(|| short().into_source_error(OPERATION))?;
            decoder.message(message, out)?;
            Ok(Reply::None)
        }
        (b'd', Some(b'k')) => {
            let fields = body[1..].split_first_chunk::<8>();
            let wanted = body.get(17).copied();
            let (Some((wal_end, _)), Some(wanted)) = (fields, wanted) else {
                return Err(short().into_source_error(OPERATION));
            };
            decoder.keepalive(u64::from_be_bytes(*wal_end));
            Ok(if wanted == 1 { Reply::Wanted } else { Reply::None })
        }
        // NoticeResponse, ParameterStatus.
        (b'N' | b'S', _) => Ok(Reply::None),
        (b'E', _) => Err(server_error(body).into_source_error(OPERATION)),
        (b'c' | b'C' | b'Z', _) => {
            Err(SourceError::unavailable(OPERATION, "the server ended the stream"))
        }
        (tag, _) => Err(unexpected(tag).into_source_error(OPERATION)),
    }
}

#[async_trait]
impl Stream for PostgresStream {
    fn server(&self) -> ServerIdentity {
        self.server.clone()
    }

    fn state(&self) -> SourceState {
        self.state.clone()
    }

    async fn next(&mut self, out: &mut Changes, bytes: usize) -> Result<(), SourceError> {
        if let Some(through) = self.began.take() {
            out.push(Event::Idle { through });
            return Ok(());
        }
        let before = out.events().len();
        loop {
            // Nothing was added yet, so waiting here may be given up.
            self.flush().await?;
            if let Some(problem) = self.decoder.stopped() {
                return Err(SourceError::Refused(problem.clone()));
            }
            self.decode(out, bytes)?;
            if out.events().len() > before {
                return Ok(());
            }
            if self.connection.unsent_bytes() == 0 {
                match self.silence.end(self.connection.fill()).await {
                    Heard::Sign(filled) => {
                        filled.map_err(|error| SourceError::unavailable(OPERATION, error))?;
                    }
                    Heard::Ask => self.queue_status(true),
                    Heard::Nothing => {
                        let silence = "the server has not answered for a minute";
                        return Err(SourceError::unavailable(OPERATION, silence));
                    }
                }
            }
        }
    }

    async fn confirm(&mut self, through: Commit) -> Result<(), SourceError> {
        self.flushed = self.flushed.max(through.position().saturating_add(1));
        self.queue_status(false);
        self.flush().await
    }

    async fn probe(&mut self) -> Result<(), SourceError> {
        self.queue_status(true);
        self.flush().await
    }
}
