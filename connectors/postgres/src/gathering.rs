//! How to read a stream that comes in thousands of small pieces.
//!
//! The walsender writes every row to its socket by itself. A runtime that watches the socket is
//! woken for every few hundred bytes, whether anybody reads or not, and on a machine that both
//! share takes the time away from the server that it waits for; everything behind, from the log's
//! flushes to the target's commits, then comes in small pieces, too. So while much comes the socket
//! is not watched: it is read until little is left, and again after a rest of a millisecond.
//!
//! A row that the server writes while our side has room goes through the whole of TCP by itself;
//! one that has to wait is joined with those before it for next to nothing. So on one machine our
//! side has little room: most rows of a rest wait on the server's. Between machines the room is
//! left to the kernel: it has to hold what is on its way, and the network card joins rows by itself.
//!
//! A server that is ahead of us fills that room in every rest, and would wait for us. Then the socket
//! is watched again, until no more than that is there: what comes are large pieces already.

use std::io::{self, Read as _, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::sockopt::set_socket_recv_buffer_size;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes in a millisecond that are much: some eight rows, eight system calls. Not more: a server
/// that gets too little of the machine because of us looks as if it had little to say.
const MUCH_BYTES: u128 = 2 << 10;
/// What is gathered for. Not longer: a fast server would fill the buffers of both sides and wait,
/// and then look as if it had no more to say.
const REST: Duration = Duration::from_millis(1);
/// How long it is counted before it is judged: long enough that one row is not a flood.
const WINDOW: Duration = Duration::from_millis(4);
/// The room that our side has on one machine. The kernel doubles it, for its own needs.
const ROOM_BYTES: usize = 64 << 10;
/// What is read at once: what the room can hold.
const PIECE_BYTES: usize = 64 << 10;
/// A read that brought as much left more behind: the server's side has it ready.
const MORE_BYTES: usize = PIECE_BYTES / 2;
/// After so many rests in a row that ended with our room full the server is ahead.
const FULL_RESTS: u8 = 4;

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
        if let Held::Watched(socket) = &self.socket
            && is_on_this_machine(socket)
            && let Err(error) = set_socket_recv_buffer_size(socket, ROOM_BYTES)
        {
            // Only a matter of speed.
            tracing::debug!(%error, "the room for the replication stream stays as it is");
        }
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

    /// Does as the pace says: watches the socket, or leaves it alone until then.
    fn follow(&mut self, next: Next) -> io::Result<()> {
        let Next::At(until) = next else { return self.watched().map(|_socket| ()) };
        self.socket = match std::mem::replace(&mut self.socket, Held::Lost) {
            Held::Watched(socket) => {
                Held::Resting(socket.into_std()?, Box::pin(sleep_until(until)))
            }
            Held::Resting(socket, mut rest) => {
                rest.as_mut().reset(until);
                Held::Resting(socket, rest)
            }
            Held::Lost => Held::Lost,
        };
        Ok(())
    }

    /// What comes after a read of `bytes`; `None`: nothing was there.
    fn note(&mut self, bytes: Option<usize>) -> io::Result<()> {
        let Some(pace) = &mut self.pace else { return Ok(()) };
        let next = pace.note(Instant::now(), bytes);
        self.follow(next)
    }
}

/// Whether the other end of `socket` is a process of this machine.
fn is_on_this_machine(socket: &TcpStream) -> bool {
    let (Ok(ours), Ok(theirs)) = (socket.local_addr(), socket.peer_addr()) else { return false };
    theirs.ip().is_loopback() || theirs.ip() == ours.ip()
}

impl AsyncRead for Gathering {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while let Held::Resting(socket, rest) = &mut this.socket {
            ready!(rest.as_mut().poll(cx));
            let piece = buf.remaining().min(PIECE_BYTES);
            match socket.read(buf.initialize_unfilled_to(piece)) {
                Ok(bytes) => {
                    buf.advance(bytes);
                    return Poll::Ready(this.note(Some(bytes)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => this.note(None)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let before = buf.filled().len();
        ready!(Pin::new(this.watched()?).poll_read(cx, buf))?;
        Poll::Ready(this.note(Some(buf.filled().len() - before)))
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

/// When the socket is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// When the runtime says that something is there.
    Watched,
    /// When a rest is over.
    At(Instant),
}

/// Counts what comes.
#[derive(Debug)]
struct Pace {
    since: Instant,
    bytes: usize,
    /// Whether much came when it was judged last.
    floods: bool,
    /// Whether a rest lies before the next read.
    rests: bool,
    /// How many rests in a row ended with our room full.
    full_rests: u8,
}

impl Pace {
    fn new() -> Self {
        Self { since: Instant::now(), bytes: 0, floods: false, rests: false, full_rests: 0 }
    }

    /// Takes note of a read at `now` that brought `bytes`; `None`: nothing was there.
    fn note(&mut self, now: Instant, bytes: Option<usize>) -> Next {
        let Some(bytes) = bytes else { return self.nothing(now) };
        self.bytes = self.bytes.saturating_add(bytes);
        let elapsed = now - self.since;
        if elapsed >= WINDOW {
            let per_ms = self.bytes as u128 * 1000 / elapsed.as_micros();
            self.floods = per_ms >= MUCH_BYTES;
            (self.since, self.bytes) = (now, 0);
        }
        if !self.floods {
            return Next::Watched;
        }
        if bytes < MORE_BYTES {
            self.full_rests = 0;
            self.rests = true;
            return Next::At(now + REST);
        }
        self.full_rests = self.full_rests.saturating_add(u8::from(self.rests));
        self.rests = false;
        Next::At(now)
    }

    /// As [`note`](Self::note), where nothing was there.
    fn nothing(&mut self, now: Instant) -> Next {
        if self.rests {
            // All through a rest: the flood is over.
            *self = Self { since: now, ..Self::new() };
            return Next::Watched;
        }
        if self.full_rests >= FULL_RESTS {
            return Next::Watched;
        }
        self.rests = true;
        Next::At(now + REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_flood_is_gathered() {
        let mut pace = Pace::new();
        let mut now = pace.since;
        // How many milliseconds the next read is put off.
        let mut after = |pace: &mut Pace, micros: u64, bytes: Option<usize>| {
            now += Duration::from_micros(micros);
            match pace.note(now, bytes) {
                Next::Watched => None,
                Next::At(until) => Some((until - now).as_millis()),
            }
        };
        assert_eq!(
            after(&mut pace, 10, Some(1 << 20)),
            None,
            "one large row is not judged at once"
        );
        for _row in 0..1000 {
            after(&mut pace, 5, Some(250));
        }
        assert_eq!(after(&mut pace, 5, Some(250)), Some(1), "200,000 rows a second");
        for _rest in 0..3 {
            assert_eq!(after(&mut pace, 1_000, Some(56 << 10)), Some(0), "more is ready");
            assert_eq!(after(&mut pace, 20, None), Some(1), "it was not");
        }
        assert_eq!(after(&mut pace, 1_000, Some(56 << 10)), Some(0));
        for _piece in 0..10 {
            assert_eq!(after(&mut pace, 20, None), None, "the server is ahead");
            assert_eq!(after(&mut pace, 50, Some(56 << 10)), Some(0));
        }
        assert_eq!(after(&mut pace, 20, Some(300)), Some(1), "no longer");
        assert_eq!(after(&mut pace, 1_000, Some(56 << 10)), Some(0));
        assert_eq!(after(&mut pace, 20, None), Some(1), "one full rest is not yet a queue");
        assert_eq!(after(&mut pace, 2_000, Some(20 << 10)), Some(1));
        assert_eq!(after(&mut pace, 2_000, None), None, "a rest in which nothing came ends it");
        for _row in 0..1000 {
            after(&mut pace, 10, Some(25));
        }
        assert_eq!(after(&mut pace, 10, Some(25)), Some(1), "2,500 bytes in a millisecond");
        for _transaction in 0..10 {
            after(&mut pace, 1_000, Some(400));
        }
        let small = after(&mut pace, 1_000, Some(400));
        assert_eq!(small, None, "1,000 small transactions a second wait for nothing");
        assert_eq!(after(&mut pace, 10_000_000, Some(400)), None, "nor does what follows silence");
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
