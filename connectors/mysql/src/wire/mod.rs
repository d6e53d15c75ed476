//! A connection whose packets stay where they were read.
//!
//! The driver gives rows and binlog events as vectors of its own; streams and snapshots read
//! millions of them. This is the same protocol with nothing in between: login (the plugins are
//! `mysql_common`'s), statements without parameters, and packets as slices of the read buffer. What
//! is asked once (catalog, settings) goes through the driver.
//!
//! Reading is cancel-safe: bytes already read stay in the buffer.
//!
//! <https://dev.mysql.com/doc/dev/mysql-server/latest/PAGE_PROTOCOL.html>

mod login;
mod tls;

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::connect::{Endpoint, SESSION, in_time};

pub(crate) use self::login::Greeting;

/// A frame carries at most this many bytes; a packet that fills one goes on in the next.
const FRAME_BYTES: usize = 0xFF_FFFF;

/// What one read asks for: large enough that a busy stream costs few system calls.
const READ_BYTES: usize = 256 << 10;

/// A frame above this does not leave its room behind: one large row must not hold its size.
const KEPT_BYTES: usize = 1 << 20;

const COM_QUERY: u8 = 0x03;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// The network.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The server said no.
    #[error("error {code}: {message}")]
    Server { code: u16, message: String },
    /// The server cannot be spoken to.
    #[error("{0}")]
    Login(String),
    /// Bytes that the protocol does not allow.
    #[error("the server broke the protocol: {0}")]
    Protocol(&'static str),
}

/// What a connection runs over.
trait Link: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Link for T {}

/// A connection after login.
pub(crate) struct Wire {
    link: Box<dyn Link>,
    buffer: BytesMut,
    /// Earlier frames of a packet that fills more than one.
    joined: BytesMut,
    sequence: u8,
    greeting: Greeting,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wire({:?})", self.greeting)
    }
}

impl Wire {
    /// Connects, logs in and sets the session contract, in reasonable time or not at all.
    pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Self, WireError> {
        in_time(Self::connect_now(endpoint), WireError::Io).await
    }

    async fn connect_now(endpoint: &Endpoint) -> Result<Self, WireError> {
        let mut wire = login::login(endpoint).await?;
        for statement in SESSION {
            wire.execute(statement).await?;
        }
        Ok(wire)
    }

    /// The session's number on the server.
    pub(crate) fn connection_id(&self) -> u32 {
        self.greeting.connection_id
    }

    /// Runs a statement that gives no rows.
    pub(crate) async fn execute(&mut self, sql: &str) -> Result<(), WireError> {
        self.command(COM_QUERY, sql.as_bytes()).await?;
        let packet = self.read_packet().await?;
        match packet.first() {
            Some(0) => Ok(()),
            _ => Err(refusal(&packet)),
        }
    }

    /// Runs a statement that gives rows; they follow by [`next_row`](Self::next_row).
    pub(crate) async fn query(&mut self, sql: &str) -> Result<usize, WireError> {
        self.command(COM_QUERY, sql.as_bytes()).await?;
        let packet = self.read_packet().await?;
        let Some(1..=0xFA | 0xFC) = packet.first() else { return Err(refusal(&packet)) };
        let count = take_length(&mut &packet[..])?;
        let count = usize::try_from(count).map_err(|_| WireError::Protocol("column count"))?;
        for _ in 0..count {
            self.read_packet().await?;
        }
        match self.read_packet().await?.first() {
            Some(0xFE) => Ok(count),
            _ => Err(WireError::Protocol("the columns do not end")),
        }
    }

    /// The next row of a result, or its end.
    pub(crate) async fn next_row(&mut self) -> Result<Option<TextRow>, WireError> {
        let packet = self.read_packet().await?;
        TextRow::of(packet)
    }

    /// The next row of a result if it is here already.
    pub(crate) fn buffered_row(&mut self) -> Result<Option<Option<TextRow>>, WireError> {
        self.buffered_packet()?.map(TextRow::of).transpose()
    }

    /// All rows of a statement: for results known to be small.
    pub(crate) async fn rows(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, WireError> {
        self.query(sql).await?;
        let mut rows = Vec::new();
        while let Some(row) = self.next_row().await? {
            let mut values = Vec::new();
            let mut fields = row.fields();
            while let Some(field) = fields.next()? {
                values.push(field.map(|bytes| String::from_utf8_lossy(bytes).into_owned()));
            }
            rows.push(values);
        }
        Ok(rows)
    }

    /// Sends a command.
    pub(crate) async fn command(&mut self, command: u8, body: &[u8]) -> Result<(), WireError> {
        self.sequence = 0;
        self.send(&[&[command], body].concat()).await
    }

    /// The packet after those already taken, if all of it has been read.
    pub(crate) fn buffered_packet(&mut self) -> Result<Option<Bytes>, WireError> {
        loop {
            let [a, b, c, sequence, ..] = self.buffer[..] else { return Ok(None) };
            let length = usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
            if self.buffer.len() < 4 + length {
                return Ok(None);
            }
            if sequence != self.sequence {
                return Err(WireError::Protocol("packets out of order"));
            }
            self.sequence = sequence.wrapping_add(1);
            drop(self.buffer.split_to(4));
            let frame = self.buffer.split_to(length);
            if length > KEPT_BYTES {
                // The room of a large frame goes with it.
                let mut fresh = BytesMut::with_capacity(self.buffer.len().max(READ_BYTES));
                fresh.extend_from_slice(&self.buffer);
                self.buffer = fresh;
            }
            if length < FRAME_BYTES && self.joined.is_empty() {
                return Ok(Some(frame.freeze()));
            }
            self.joined.extend_from_slice(&frame);
            if length < FRAME_BYTES {
                return Ok(Some(std::mem::take(&mut self.joined).freeze()));
            }
        }
    }

    /// Waits for more bytes. Cancel-safe.
    pub(crate) async fn fill(&mut self) -> Result<(), WireError> {
        let wanted = match self.buffer[..] {
            [a, b, c, ..] => usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16,
            _ => 0,
        };
        self.buffer.reserve(READ_BYTES.max((wanted + 4).saturating_sub(self.buffer.len())));
        if self.link.read_buf(&mut self.buffer).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
    }

    /// Waits for the next packet. Cancel-safe.
    pub(crate) async fn read_packet(&mut self) -> Result<Bytes, WireError> {
        loop {
            if let Some(packet) = self.buffered_packet()? {
                return Ok(packet);
            }
            self.fill().await?;
        }
    }

    async fn send(&mut self, mut packet: &[u8]) -> Result<(), WireError> {
        loop {
            let (frame, rest) = packet.split_at(packet.len().min(FRAME_BYTES));
            let [a, b, c, ..] = u32::try_from(frame.len()).unwrap_or(0).to_le_bytes();
            self.link.write_all(&[&[a, b, c, self.sequence], frame].concat()).await?;
            self.sequence = self.sequence.wrapping_add(1);
            packet = rest;
            if frame.len() < FRAME_BYTES {
                return Ok(self.link.flush().await?);
            }
        }
    }
}

/// A row as the text protocol sends it.
#[derive(Debug)]
pub(crate) struct TextRow(Bytes);

impl TextRow {
    fn of(packet: Bytes) -> Result<Option<Self>, WireError> {
        match packet.first() {
            Some(0xFE) if packet.len() < 9 => Ok(None),
            Some(0xFF) => Err(refusal(&packet)),
            _ => Ok(Some(Self(packet))),
        }
    }

    /// Its values, in order.
    pub(crate) fn fields(&self) -> TextFields<'_> {
        TextFields(&self.0)
    }
}

/// The values of a row: NULL, or the server's text.
#[derive(Debug)]
pub(crate) struct TextFields<'b>(&'b [u8]);

impl<'b> TextFields<'b> {
    /// The next value; `None` after the last.
    pub(crate) fn next(&mut self) -> Result<Option<Option<&'b [u8]>>, WireError> {
        match self.0.first() {
            None => Ok(None),
            Some(0xFB) => {
                self.0 = &self.0[1..];
                Ok(Some(None))
            }
            Some(_) => {
                let length = usize::try_from(take_length(&mut self.0)?)
                    .map_err(|_| WireError::Protocol("a value's length"))?;
                let (value, rest) = self
                    .0
                    .split_at_checked(length)
                    .ok_or(WireError::Protocol("a value ends behind its row"))?;
                self.0 = rest;
                Ok(Some(Some(value)))
            }
        }
    }
}

/// Takes a length-encoded integer off the front.
fn take_length(bytes: &mut &[u8]) -> Result<u64, WireError> {
    let short = WireError::Protocol("a length is cut off");
    let Some((&first, rest)) = bytes.split_first() else { return Err(short) };
    let width = match first {
        0..=0xFA => {
            *bytes = rest;
            return Ok(u64::from(first));
        }
        0xFC => 2,
        0xFD => 3,
        0xFE => 8,
        _ => return Err(WireError::Protocol("a length begins with 0xFF or NULL")),
    };
    let (number, rest) = rest.split_at_checked(width).ok_or(short)?;
    *bytes = rest;
    Ok(number.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// The error in a packet that is not what was expected.
pub(crate) fn refusal(packet: &[u8]) -> WireError {
    let [0xFF, low, high, rest @ ..] = packet else {
        return WireError::Protocol("a packet that was not expected");
    };
    // `#` and five characters of SQLSTATE stand before the message, but for errors before login.
    let message = match rest {
        [b'#', _, _, _, _, _, message @ ..] => message,
        message => message,
    };
    WireError::Server {
        code: u16::from_le_bytes([*low, *high]),
        message: String::from_utf8_lossy(message).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The time limit is the virtual clock's, which passes when nothing else happens.
    #[tokio::test(start_paused = true)]
    async fn a_server_that_takes_a_connection_and_says_nothing_is_given_up() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoint = Endpoint::parse(&format!("mysql://root@127.0.0.1:{port}")).unwrap();
        let error = Wire::connect(&endpoint).await.unwrap_err();
        let WireError::Io(error) = error else { panic!("{error:?}") };
        assert!(error.to_string().contains("did not answer within 15 s"), "{error}");
        let error = endpoint.connect().await.unwrap_err();
        assert!(error.to_string().contains("did not answer within 15 s"), "{error}");
    }
}
