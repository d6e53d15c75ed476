//! A network that fails on demand: a TCP proxy in front of a server.
//!
//! What pulling a server's plug cannot show: a connection that breaks between a COMMIT and its
//! answer, a peer that falls silent, a host that refuses while its server lives. It looks at bytes
//! only, so patterns are found on connections without TLS.
//!
//! One thread accepts; two per connection carry bytes, one each way. They end with their sockets.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::port::free_port;
use crate::wait::wait_until;

/// A loopback port behind which a server lies, until told otherwise.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

/// When a connection breaks, seen from the bytes that a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// Before the server gets them: it did not happen.
    Before(Vec<u8>),
    /// After the server has answered, before the client hears of it: it happened.
    After(Vec<u8>),
}

impl Cut {
    fn pattern(&self) -> &[u8] {
        match self {
            Cut::Before(pattern) | Cut::After(pattern) => pattern,
        }
    }
}

impl Proxy {
    /// Starts a proxy for the server on `server_port` of this host.
    ///
    /// # Errors
    /// If its port cannot be had.
    pub fn start(server_port: u16) -> Result<Proxy> {
        let port = free_port();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("bind a proxy")?;
        let shared = Arc::new(Shared::default());
        let acceptor = Arc::clone(&shared);
        std::thread::spawn(move || accept(&listener, server_port, &acceptor));
        Ok(Proxy { port, shared })
    }

    /// The port that stands for the server's.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Breaks every connection there is; new ones work.
    pub fn cut(&self) {
        self.shared.lock().cut_all();
    }

    /// Breaks every connection and each new one, until [`Proxy::flow`].
    pub fn refuse(&self) {
        let mut state = self.shared.lock();
        state.refusing = true;
        state.cut_all();
    }

    /// Lets no byte through, either way, on connections that stay open, until [`Proxy::flow`].
    pub fn stall(&self) {
        self.shared.lock().stalled = true;
    }

    /// Ends [`Proxy::refuse`] and [`Proxy::stall`].
    pub fn flow(&self) {
        let mut state = self.shared.lock();
        state.refusing = false;
        state.stalled = false;
        self.shared.changed.notify_all();
    }

    /// Breaks, once, the connection on which the client next sends the pattern.
    pub fn cut_on(&self, cut: Cut) {
        self.shared.lock().cut_on = Some(cut);
    }

    /// Waits until what [`Proxy::cut_on`] asked for has happened.
    ///
    /// # Errors
    /// If it does not within `limit`.
    pub fn wait_for_cut(&self, limit: Duration) -> Result<()> {
        wait_until(limit, "the connection's cut", || {
            let state = self.shared.lock();
            Ok((state.cut_on.is_none() && state.cuts_pending == 0).then_some(()))
        })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.cut_all();
        self.shared.changed.notify_all();
        drop(state);
        // Wakes the acceptor, which sees that it is over and frees the port.
        let _woken = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when `stalled` or `closed` changes.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    refusing: bool,
    stalled: bool,
    closed: bool,
    cut_on: Option<Cut>,
    /// Connections whose pattern has gone to the server and whose answer is awaited.
    cuts_pending: usize,
    connections: Vec<Arc<Connection>>,
}

#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: TcpStream,
    /// The server's next answer is not for the client: the connection breaks instead.
    cut_at_answer: Mutex<bool>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under this lock")
    }

    /// Waits while nothing may flow; false when it is over.
    fn may_flow(&self) -> bool {
        let state = self.lock();
        let wait = self.changed.wait_while(state, |state| state.stalled && !state.closed);
        !wait.expect("nothing panics under this lock").closed
    }
}

impl State {
    fn cut_all(&mut self) {
        for connection in self.connections.drain(..) {
            connection.cut();
        }
    }
}

impl Connection {
    fn cut(&self) {
        for stream in [&self.client, &self.server] {
            // The other side may have closed it already, which is what is wanted.
            let _closed = stream.shutdown(Shutdown::Both);
        }
    }

    fn cut_at_answer(&self) -> MutexGuard<'_, bool> {
        self.cut_at_answer.lock().expect("nothing panics under this lock")
    }
}

fn accept(listener: &TcpListener, server_port: u16, shared: &Arc<Shared>) {
    for client in listener.incoming().flatten() {
        let mut state = shared.lock();
        if state.closed {
            return;
        }
        if state.refusing {
            continue;
        }
        // No server: the client's connection closes, as it does when a host is up without one.
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server_port)) else { continue };
        let prompt = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
        if prompt.is_err() {
            continue;
        }
        let connection = Arc::new(Connection { client, server, cut_at_answer: Mutex::new(false) });
        state.connections.push(Arc::clone(&connection));
        drop(state);
        for carry in [carry_up, carry_down] {
            let (connection, shared) = (Arc::clone(&connection), Arc::clone(shared));
            std::thread::spawn(move || {
                // An error is a connection that broke, on purpose or not; so is its end.
                let _ended = carry(&connection, &shared);
                connection.cut();
                shared.lock().connections.retain(|other| !Arc::ptr_eq(other, &connection));
            });
        }
    }
}

/// From the client to the server, looking for the pattern to cut on.
fn carry_up(connection: &Connection, shared: &Shared) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    // The end of what went before, in which the pattern may have begun.
    let mut seen: Vec<u8> = Vec::new();
    loop {
        let count = (&connection.client).read(&mut buffer)?;
        if count == 0 || !shared.may_flow() {
            return Ok(());
        }
        let bytes = &buffer[..count];
        seen.extend_from_slice(bytes);
        let mut state = shared.lock();
        let cut = state.cut_on.take_if(|cut| contains(&seen, cut.pattern()));
        match cut {
            Some(Cut::Before(_)) => return Ok(()),
            Some(Cut::After(_)) => {
                state.cuts_pending += 1;
                *connection.cut_at_answer() = true;
            }
            None => {}
        }
        let keep = state.cut_on.as_ref().map_or(0, |cut| cut.pattern().len().saturating_sub(1));
        drop(state);
        seen.drain(..seen.len().saturating_sub(keep));
        (&connection.server).write_all(bytes)?;
    }
}

/// From the server to the client, unless the answer is the one to be lost.
fn carry_down(connection: &Connection, shared: &Shared) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = (&connection.server).read(&mut buffer);
        if *connection.cut_at_answer() {
            // Cut first: who waits for it may rely on the client not having been answered.
            connection.cut();
            shared.lock().cuts_pending -= 1;
            return Ok(());
        }
        let count = read?;
        if count == 0 || !shared.may_flow() {
            return Ok(());
        }
        (&connection.client).write_all(&buffer[..count])?;
    }
}

fn contains(bytes: &[u8], pattern: &[u8]) -> bool {
    pattern.is_empty() || bytes.windows(pattern.len()).any(|window| window == pattern)
}
