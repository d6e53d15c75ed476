//! PostgreSQL's protocol as far as tokio-postgres does not go: replication, and bulk reading
//! without a copy or an allocation per row.
//!
//! A [`Connection`] owns a socket and two buffers. [`fill`](Connection::fill) reads more bytes,
//! [`frame`] looks at the messages where they lie, [`consume`](Connection::consume) forgets them;
//! what is to be sent is queued and flushed. Dropping a future of `fill` or `flush` loses nothing:
//! whatever was read or written so far is in the buffers.
//! <https://www.postgresql.org/docs/current/protocol.html>

use std::io;

use bytes::{Buf, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tailwater_capture::{LOCK_LEASE, SourceError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::connect::{ConnectError, SESSION, Server, is_passing, refused};
use crate::tls::Socket;

/// What a read asks the kernel for: large enough that a busy stream needs few system calls.
const READ_BYTES: usize = 128 << 10;

/// A buffer above this is given back with what it held: one large row must not hold its size.
const KEPT_BYTES: usize = 1 << 20;

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Replication commands, in one database.
    Replication,
    /// SQL.
    Sql,
}

/// A session of our own framing.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Socket,
    input: BytesMut,
    output: BytesMut,
    unflushed: bool,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// The server says so.
    #[error("{message} ({code})")]
    Server {
        /// SQLSTATE.
        code: String,
        /// In the server's words.
        message: String,
    },
    /// The connection is gone.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Bytes that the protocol does not allow here.
    #[error("{0}")]
    Protocol(String),
}

impl WireError {
    /// What became of `operation`.
    pub(crate) fn into_source_error(self, operation: &str) -> SourceError {
        match self {
            Self::Server { code, message } if !is_passing(&code) => {
                refused(operation, &code, &message)
            }
            Self::Protocol(detail) => {
                SourceError::Protocol { operation: operation.to_owned(), detail }
            }
            passing => SourceError::unavailable(operation, passing),
        }
    }
}

/// A result row of a simple query.
pub(crate) type TextRow = Vec<Option<String>>;

/// One message at the front of a buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    /// Its type.
    pub(crate) tag: u8,
    /// What it holds.
    pub(crate) body: &'a [u8],
    /// Its length with tag and length.
    pub(crate) total: usize,
}

/// The message at the front of `bytes`; `None` while it is not all there.
///
/// # Errors
/// A length that no message has.
pub(crate) fn frame(bytes: &[u8]) -> Result<Option<Frame<'_>>, WireError> {
    let Some((&[tag, a, b, c, d], _)) = bytes.split_first_chunk::<5>() else { return Ok(None) };
    let length = i32::from_be_bytes([a, b, c, d]);
    let total = usize::try_from(length).ok().filter(|&length| length >= 4).map(|length| length + 1);
    let Some(total) = total else {
        return Err(WireError::Protocol(format!("a message of length {length}")));
    };
    Ok(bytes.get(5..total).map(|body| Frame { tag, body, total }))
}

impl Connection {
    /// Opens a session.
    ///
    /// # Errors
    /// As [`Server::connect`].
    pub(crate) async fn open(
        server: &Server,
        application_name: &str,
        mode: Mode,
    ) -> Result<Self, ConnectError> {
        const LIMIT: std::time::Duration = std::time::Duration::from_secs(15);
        let opened = tokio::time::timeout(LIMIT, async {
            let socket = server.open_socket().await?;
            let mut connection = Self {
                socket,
                input: BytesMut::with_capacity(READ_BYTES),
                output: BytesMut::new(),
                unflushed: false,
            };
            match connection.begin(server, application_name, mode).await {
                Ok(()) => Ok(connection),
                Err(WireError::Server { code, message }) => Err(server.refusal(&code, &message)),
                Err(error) => Err(server.unavailable(error)),
            }
        });
        opened.await.unwrap_or_else(|elapsed| Err(server.unavailable(elapsed)))
    }

    async fn begin(
        &mut self,
        server: &Server,
        application_name: &str,
        mode: Mode,
    ) -> Result<(), WireError> {
        // The slot must be free for a standby soon after we are gone without a word, or hang; while
        // we live, the server hears from us every second.
        let lease = LOCK_LEASE.as_millis().to_string();
        let mut parameters = vec![
            ("user", server.user()),
            ("database", server.database()),
            ("application_name", application_name),
        ];
        if mode == Mode::Replication {
            parameters.push(("replication", "database"));
            parameters.push(("wal_sender_timeout", &lease));
        }
        if let Some(options) = server.options() {
            parameters.push(("options", options));
        }
        parameters.extend_from_slice(SESSION);
        frontend::startup_message(parameters, &mut self.output)?;
        self.flush().await?;
        self.authenticate(server).await?;
        loop {
            match self.message().await? {
                Message::ReadyForQuery(_) => return Ok(()),
                Message::ParameterStatus(_)
                | Message::BackendKeyData(_)
                | Message::NoticeResponse(_) => {}
                _ => return Err(WireError::Protocol("an unexpected message at the start".into())),
            }
        }
    }

    async fn authenticate(&mut self, server: &Server) -> Result<(), WireError> {
        let password = || {
            server.password().ok_or_else(|| WireError::Server {
                code: "28P01".into(),
                message: "the server asks for a password, and `url` has none".into(),
            })
        };
        loop {
            match self.message().await? {
                Message::AuthenticationOk => return Ok(()),
                Message::AuthenticationCleartextPassword => {
                    frontend::password_message(password()?, &mut self.output)?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(server.user().as_bytes(), password()?, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut self.output)?;
                }
                Message::AuthenticationSasl(body) => {
                    let known = body.mechanisms().any(|name| Ok(name == sasl::SCRAM_SHA_256))?;
                    if !known {
                        return Err(unsupported("no SASL mechanism that we know"));
                    }
                    self.scram(password()?).await?;
                }
                Message::NoticeResponse(_) => {}
                _ => return Err(unsupported("an authentication that we do not know")),
            }
            self.flush().await?;
        }
    }

    async fn scram(&mut self, password: &[u8]) -> Result<(), WireError> {
        let mut scram = sasl::ScramSha256::new(password, sasl::ChannelBinding::unsupported());
        frontend::sasl_initial_response(sasl::SCRAM_SHA_256, scram.message(), &mut self.output)?;
        self.flush().await?;
        let Message::AuthenticationSaslContinue(body) = self.message().await? else {
            return Err(unsupported("an authentication that breaks off"));
        };
        scram.update(body.data())?;
        frontend::sasl_response(scram.message(), &mut self.output)?;
        self.flush().await?;
        let Message::AuthenticationSaslFinal(body) = self.message().await? else {
            return Err(unsupported("an authentication that breaks off"));
        };
        scram.finish(body.data())?;
        Ok(())
    }

    /// The next message as postgres-protocol knows it; an error of the server is an error.
    async fn message(&mut self) -> Result<Message, WireError> {
        loop {
            if let Some(frame) = frame(&self.input)? {
                if frame.tag == b'E' {
                    return Err(server_error(frame.body));
                }
                if let Some(message) = Message::parse(&mut self.input)? {
                    return Ok(message);
                }
            }
            self.fill().await?;
        }
    }

    /// Runs a command and gives its rows.
    ///
    /// # Errors
    /// The server refuses it, or is gone.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<Vec<TextRow>, WireError> {
        frontend::query(sql, &mut self.output)?;
        self.flush().await?;
        let (mut rows, mut failed) = (Vec::new(), None);
        loop {
            let Some(frame) = frame(&self.input)? else {
                self.fill().await?;
                continue;
            };
            let (tag, total) = (frame.tag, frame.total);
            match tag {
                b'D' => rows.push(text_row(frame.body)?),
                b'E' => failed = Some(server_error(frame.body)),
                _ => {}
            }
            self.consume(total);
            if tag == b'Z' {
                return failed.map_or(Ok(rows), Err);
            }
        }
    }

    /// Starts a COPY; its data follows as messages `d`.
    ///
    /// # Errors
    /// The server refuses it, or is gone.
    pub(crate) async fn start_copy(&mut self, sql: &str) -> Result<(), WireError> {
        frontend::query(sql, &mut self.output)?;
        self.flush().await?;
        loop {
            let Some(frame) = frame(&self.input)? else {
                self.fill().await?;
                continue;
            };
            let (tag, total) = (frame.tag, frame.total);
            match tag {
                // CopyOutResponse, CopyBothResponse.
                b'H' | b'W' => {
                    self.consume(total);
                    return Ok(());
                }
                b'E' => return Err(server_error(frame.body)),
                b'N' | b'S' | b'T' => self.consume(total),
                tag => return Err(unexpected(tag)),
            }
        }
    }

    /// From here on, lets what comes gather while much does.
    pub(crate) fn gather(&mut self) {
        self.socket.gather();
    }

    /// What has been read and not consumed.
    pub(crate) fn input(&self) -> &[u8] {
        &self.input
    }

    /// Forgets the first `length` bytes of the input.
    pub(crate) fn consume(&mut self, length: usize) {
        self.input.advance(length);
        if length > KEPT_BYTES || (self.input.is_empty() && self.input.capacity() > KEPT_BYTES) {
            // What was consumed still takes its room, in front of what `capacity` tells of.
            let mut fresh = BytesMut::with_capacity(self.input.len().max(READ_BYTES));
            fresh.extend_from_slice(&self.input);
            self.input = fresh;
        }
    }

    /// Reads more. Cancel-safe.
    ///
    /// # Errors
    /// The connection is gone.
    pub(crate) async fn fill(&mut self) -> io::Result<()> {
        if self.input.capacity() - self.input.len() < READ_BYTES / 2 {
            // Grows with what has come, not with what a length announces.
            self.input.reserve(self.input.len().max(READ_BYTES));
        }
        match self.socket.read_buf(&mut self.input).await? {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server closed the connection",
            )),
            _bytes => Ok(()),
        }
    }

    /// What is queued and not yet written.
    pub(crate) fn unsent_bytes(&self) -> usize {
        self.output.len()
    }

    /// Queues a CopyData message.
    pub(crate) fn queue_copy_data(&mut self, data: &[u8]) {
        let length = u32::try_from(data.len() + 4).expect("ours are a few dozen bytes");
        self.output.extend_from_slice(b"d");
        self.output.extend_from_slice(&length.to_be_bytes());
        self.output.extend_from_slice(data);
    }

    /// Sends what is queued. Cancel-safe.
    ///
    /// # Errors
    /// The connection is gone.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            self.unflushed = true;
            self.socket.write_buf(&mut self.output).await?;
        }
        if self.unflushed {
            self.socket.flush().await?;
            self.unflushed = false;
        }
        Ok(())
    }
}

fn unsupported(what: &str) -> WireError {
    WireError::Server { code: "0A000".into(), message: format!("the server asks for {what}") }
}

/// A message that has no place where it came.
pub(crate) fn unexpected(tag: u8) -> WireError {
    WireError::Protocol(format!("an unexpected message of type {:?}", char::from(tag)))
}

/// What an ErrorResponse says.
pub(crate) fn server_error(body: &[u8]) -> WireError {
    let (mut code, mut message, mut detail) = (String::new(), String::new(), String::new());
    for field in body.split(|&byte| byte == 0) {
        let Some((kind, text)) = field.split_first() else { continue };
        let text = String::from_utf8_lossy(text).into_owned();
        match kind {
            b'C' => code = text,
            b'M' => message = text,
            // Hints of the server's, such as which setting is too low.
            b'H' => detail = text,
            _ => {}
        }
    }
    if !detail.is_empty() {
        message = format!("{message}: {detail}");
    }
    WireError::Server { code, message }
}

fn text_row(mut body: &[u8]) -> Result<TextRow, WireError> {
    let cut = || WireError::Protocol("a row that ends early".into());
    let count = body.try_get_u16().map_err(|_| cut())?;
    let mut row = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let length = body.try_get_i32().map_err(|_| cut())?;
        let Ok(length) = usize::try_from(length) else {
            row.push(None);
            continue;
        };
        let (text, rest) = body.split_at_checked(length).ok_or_else(cut)?;
        row.push(Some(String::from_utf8_lossy(text).into_owned()));
        body = rest;
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_framed_or_refused(bytes in any::<Vec<u8>>()) {
            if let Ok(Some(frame)) = frame(&bytes) {
                assert!(frame.total <= bytes.len());
                assert_eq!(frame.body.len() + 5, frame.total);
            }
            let _any = text_row(&bytes);
            let _any = server_error(&bytes);
        }
    }

    #[test]
    fn an_error_keeps_code_message_and_hint() {
        let error = server_error(b"SERROR\0C53400\0Mall slots are in use\0HFree one.\0\0");
        assert_eq!(error.to_string(), "all slots are in use: Free one. (53400)");
    }
}
