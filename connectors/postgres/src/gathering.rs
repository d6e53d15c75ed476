//! How to read a stream that comes in thousands of small pieces.
//!
//! The walsender writes every row to its socket by itself. A runtime that watches the socket is
//! woken for every few hundred bytes, whether anybody reads or not, and on a machine that both
//! share takes the time away from the server that it waits for; everything behind, from the log's
//! flushes to the target's commits, then comes in small pieces, too. So while much comes the socket
//! is not watched: it is read after a rest of a millisecond, however much the last read brought. What
//! has no room on our side meanwhile waits on the server's, where the kernel joins small pieces for
//! next to nothing. While little comes it is watched as any other.

use std::io::{self, Read as _, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes in a millisecond that are much: some eight rows, eight system calls. Not more: a server
/// that gets too little of the machine because of us looks as if it had little to say.
const MUCH_BYTES: u128 = 2 << 10;
/// What is gathered for. Not longer: a fast server would fill the buffers of both sides and wait.
const REST: Duration = Duration::from_millis(1);
/// How long it is counted before it is judged: long enough that one row is not a flood.
const WINDOW: Duration = Duration::from_millis(4);

/// A socket that lets what it reads gather, once it is told to.
#[derive(Debug)]
pub(crate) struct Gathering {
    socket: Held,
    /// `None`: it was not told to.
    pace: Option<Pace>,
}

#[derive(Debug)]
enum Held {
    /// The runtime says when it can be read.
    Watched(TcpStream),
    /// It is read when the rest is over.
    Resting(std::net::TcpStream, Pin<Box<Sleep>>),
    /// Changing from one to the other failed: the connection is gone.
    Lost,
}

impl Gathering {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self { socket: Held::Watched(socket), pace: None }
    }

    /// From here on, lets what comes gather while much does.
    pub(crate) fn gather(&mut self) {
        self.pace = Some(Pace::new());
    }

    /// The socket, watched: for whoever has to wait for it.
    fn watched(&mut self) -> io::Result<&mut TcpStream> {
        if let Held::Resting(..) = self.socket
            && let Held::Resting(socket, _rest) = std::mem::replace(&mut self.socket, Held::Lost)
        {
            self.socket = Held::Watched(TcpStream::from_std(socket)?);
        }
        match &mut self.socket {
            Held::Watched(socket) => Ok(socket),
            Held::Resting(..) | Held::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Stops watching for as long as the pace says.
    fn rest(&mut self) -> io::Result<()> {
        let Some(pace) = &self.pace else { return Ok(()) };
        match std::mem::replace(&mut self.socket, Held::Lost) {
            Held::Watched(socket) if pace.rest.is_zero() => self.socket = Held::Watched(socket),
            Held::Watched(socket) => {
                let rest = Box::pin(sleep_until(pace.until));
                self.socket = Held::Resting(socket.into_std()?, rest);
            }
            Held::Resting(socket, mut rest) => {
                rest.as_mut().reset(pace.until);
                self.socket = Held::Resting(socket, rest);
            }
            Held::Lost => {}
        }
        Ok(())
    }
}

impl AsyncRead for Gathering {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Held::Resting(socket, rest) = &mut this.socket {
            ready!(rest.as_mut().poll(cx));
            match socket.read(buf.initialize_unfilled()) {
                Ok(bytes) => {
                    buf.advance(bytes);
                    if let Some(pace) = &mut this.pace {
                        pace.note(bytes);
                        if pace.rest.is_zero() {
                            this.watched()?;
                        } else {
                            this.rest()?;
                        }
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    this.pace = Some(Pace::new());
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let before = buf.filled().len();
        ready!(Pin::new(this.watched()?).poll_read(cx, buf))?;
        if let Some(pace) = &mut this.pace {
            pace.note(buf.filled().len() - before);
            this.rest()?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gathering {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Held::Resting(socket, _rest) = &mut this.socket {
            match socket.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
        Pin::new(this.watched()?).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A TCP socket keeps nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().watched()?).poll_shutdown(cx)
    }
}

/// Counts what comes.
#[derive(Debug)]
struct Pace {
    since: Instant,
    bytes: usize,
    /// After each read.
    rest: Duration,
    /// When the rest after the last read is over.
    until: Instant,
}

impl Pace {
    fn new() -> Self {
        let now = Instant::now();
        Self { since: now, bytes: 0, rest: Duration::ZERO, until: now }
    }

    /// Takes note of `bytes` that were read.
    fn note(&mut self, bytes: usize) {
        self.note_at(Instant::now(), bytes);
    }

    fn note_at(&mut self, now: Instant, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        let elapsed = now - self.since;
        if elapsed >= WINDOW {
            let per_ms = self.bytes as u128 * 1000 / elapsed.as_micros();
            self.rest = if per_ms >= MUCH_BYTES { REST } else { Duration::ZERO };
            self.since = now;
            self.bytes = 0;
        }
        self.until = now + self.rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_flood_is_gathered() {
        let mut pace = Pace::new();
        let mut now = pace.since;
        let mut after = |pace: &mut Pace, micros: u64, bytes: usize| {
            now += Duration::from_micros(micros);
            pace.note_at(now, bytes);
            !pace.rest.is_zero()
        };
        assert!(!after(&mut pace, 10, 1 << 20), "one large row is not judged at once");
        for _row in 0..1000 {
            after(&mut pace, 5, 250);
        }
        assert_eq!(pace.rest, REST, "200,000 rows a second");
        assert!(after(&mut pace, 4_000, 128 << 10), "it comes in larger pieces now");
        for _transaction in 0..10 {
            after(&mut pace, 1_000, 400);
        }
        assert!(pace.rest.is_zero(), "1,000 small transactions a second wait for nothing");
        assert!(!after(&mut pace, 10_000_000, 400), "nor does what comes after silence");
    }

    /// Writes `pieces` of 100 bytes to `to`, each by itself; returns how many bytes came back.
    async fn flood(to: TcpStream, pieces: usize) -> usize {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        to.set_nodelay(true).unwrap();
        let (mut back, mut to) = to.into_split();
        let came = tokio::spawn(async move {
            let mut all = Vec::new();
            back.read_to_end(&mut all).await.unwrap()
        });
        for piece in 0..pieces {
            to.write_all(&[u8::try_from(piece % 251).unwrap(); 100]).await.unwrap();
        }
        to.shutdown().await.unwrap();
        came.await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_byte_comes_in_order_through_floods_and_silences() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (theirs, _address) = listener.accept().await.unwrap();
        let mut gathering = Gathering::new(ours);
        gathering.gather();
        let writer = tokio::spawn(flood(theirs, 50_000));
        let (mut reads, mut rests, mut said, mut all) = (0, 0, 0, Vec::new());
        loop {
            let mut piece = vec![0; 128 << 10];
            // Waits that are given up lose nothing and do not keep it from coming.
            let read = tokio::time::timeout(Duration::from_millis(1), gathering.read(&mut piece));
            match read.await {
                Ok(Ok(0)) => break,
                Ok(Ok(bytes)) => all.extend_from_slice(&piece[..bytes]),
                Ok(Err(error)) => panic!("{error}"),
                Err(_elapsed) => {}
            }
            rests += usize::from(matches!(gathering.socket, Held::Resting(..)));
            reads += 1;
            said += gathering.write(&[1]).await.unwrap();
        }
        drop(gathering);
        assert_eq!(writer.await.unwrap(), said);
        assert!(all.iter().enumerate().all(|(at, &byte)| usize::from(byte) == at / 100 % 251));
        assert_eq!(all.len(), 5_000_000);
        assert!(rests > 0, "{reads} reads, none of them after a rest");
    }
}
