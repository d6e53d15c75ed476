//! The network between hosts: it delays, stalls in one direction or both, and breaks connections.
//!
//! A connection is in order, as TCP's are. What is cut is not lost at once: it waits, as what TCP
//! sends again, and arrives when the way is open again, unless somebody has lost patience before.
//! So a request may reach a broker long after its client has given it up. A broker whose power went
//! says so to some connections and to others nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tailwater_kafka::wire::{ApiKey, ApiRange, Request, RequestHeader, Response, supports};
use tailwater_kafka::{Line, Node, RequestContext};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::dice::{Dice, ms};
use crate::trace::Trace;
use crate::wire::ControllerEnd;

/// Requests of one connection that are not sent yet.
const QUEUE: usize = 64;

/// How likely a message is the last of its connection, while things go wrong.
const BREAK: f64 = 0.004;

/// The network. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Rises whenever a way opens.
    opened: watch::Sender<u64>,
    dice: Dice,
    trace: Trace,
    lines: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct State {
    brokers: BTreeMap<String, Broker>,
    controllers: BTreeMap<String, ControllerEnd>,
    /// From host, to host.
    cuts: BTreeSet<(String, String)>,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    is_healed: bool,
}

#[derive(Debug)]
struct Connection {
    client: String,
    broker: String,
    broken: CancellationToken,
}

#[derive(Clone)]
struct Broker {
    node: Arc<dyn Node>,
    off: CancellationToken,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("off", &self.off).finish_non_exhaustive()
    }
}

impl Network {
    pub(crate) fn new(dice: Dice, trace: Trace) -> Self {
        let shared = Shared {
            state: Mutex::default(),
            opened: watch::Sender::new(0),
            dice,
            trace,
            lines: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// What a process on `host` calls over, until it is `off`.
    pub(crate) fn end(
        &self,
        host: &str,
        off: CancellationToken,
    ) -> Arc<dyn tailwater_kafka::Network> {
        Arc::new(NetworkEnd { network: self.clone(), host: host.to_owned(), off })
    }

    /// A broker can be reached at `address` until it is `off`.
    pub(crate) fn attach(&self, address: &str, node: Arc<dyn Node>, off: CancellationToken) {
        self.state().brokers.insert(address.to_owned(), Broker { node, off });
    }

    /// A controller can be reached at `address`.
    pub(crate) fn attach_controller(&self, address: &str, end: ControllerEnd) {
        self.state().controllers.insert(address.to_owned(), end);
    }

    /// Nobody can be reached at `address` any more.
    pub(crate) fn detach(&self, address: &str) {
        let mut state = self.state();
        state.brokers.remove(address);
        state.controllers.remove(address);
    }

    /// The controller at `address`, if it works.
    pub(crate) fn controller(&self, address: &str) -> Option<ControllerEnd> {
        let end = self.state().controllers.get(address).cloned();
        end.filter(|end| !end.off.is_cancelled())
    }

    /// Notes a connection of `client`, which breaks when the token is cancelled.
    pub(crate) fn register(&self, client: &str, broker: &str) -> (u64, CancellationToken) {
        let broken = CancellationToken::new();
        let connection = Connection {
            client: client.to_owned(),
            broker: broker.to_owned(),
            broken: broken.clone(),
        };
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.connections.insert(id, connection);
        (id, broken)
    }

    /// A connection is over.
    pub(crate) fn forget(&self, id: u64) {
        self.state().connections.remove(&id);
    }

    /// Does something on the network's own account.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut lines = lock(&self.shared.lines);
        while lines.try_join_next().is_some() {}
        lines.spawn(task);
    }

    /// Whether something of this probability happens.
    pub(crate) fn chance(&self, probability: f64) -> bool {
        self.shared.dice.chance(probability)
    }

    /// A message that arrived.
    pub(crate) fn tell(&self, way: std::fmt::Arguments<'_>, contents: &dyn std::fmt::Debug) {
        self.shared.trace.message(way, contents);
    }

    /// Nothing comes from one host to another.
    pub(crate) fn cut(&self, from: &str, to: &str) {
        self.note(format_args!("cut {from} -> {to}"));
        self.state().cuts.insert((from.to_owned(), to.to_owned()));
    }

    /// Everything comes through again.
    pub(crate) fn reconnect(&self, from: &str, to: &str) {
        self.note(format_args!("open {from} -> {to}"));
        self.state().cuts.remove(&(from.to_owned(), to.to_owned()));
        self.shared.opened.send_modify(|count| *count += 1);
    }

    /// Breaks all connections between two hosts.
    pub(crate) fn break_connections(&self, client: &str, broker: &str) {
        self.note(format_args!("break {client} -> {broker}"));
        for connection in self.state().connections.values() {
            if connection.client == client && connection.broker == broker {
                connection.broken.cancel();
            }
        }
    }

    /// From now on everything comes through and nothing breaks.
    pub(crate) fn heal(&self) {
        {
            let mut state = self.state();
            state.cuts.clear();
            state.is_healed = true;
        }
        self.shared.opened.send_modify(|count| *count += 1);
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.shared.trace.note("network", what);
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        self.state().cuts.contains(&(from.to_owned(), to.to_owned()))
    }

    /// Waits until `at`, and on until something comes through.
    pub(crate) async fn arrival(&self, at: Option<Instant>, from: &str, to: &str) {
        let Some(at) = at else { return std::future::pending().await };
        tokio::time::sleep_until(at).await;
        let mut opened = self.shared.opened.subscribe();
        while self.is_cut(from, to) {
            if opened.changed().await.is_err() {
                return;
            }
        }
    }

    /// When a message sent now arrives behind one that arrives at `behind`.
    pub(crate) fn arrives(&self, behind: Option<Instant>) -> Instant {
        let delay = self.shared.dice.time(std::time::Duration::from_micros(100)..ms(20));
        behind.map_or(Instant::now() + delay, |behind| behind.max(Instant::now() + delay))
    }

    /// Whether a message is the last of its connection.
    pub(crate) fn breaks(&self) -> bool {
        !self.state().is_healed && self.shared.dice.chance(BREAK)
    }

    fn connect(
        &self,
        client: &str,
        client_off: CancellationToken,
        address: &str,
    ) -> io::Result<SimLine> {
        let broker = self.state().brokers.get(address).cloned();
        let broker = broker.filter(|broker| !broker.off.is_cancelled());
        let broker = broker.ok_or(io::ErrorKind::ConnectionRefused)?;
        let (requests, incoming) = mpsc::channel(QUEUE);
        let closed = CancellationToken::new();
        let apis = broker.node.supported_apis().to_vec();
        let host = host_of(address).to_owned();
        let (id, broken) = self.register(client, &host);
        self.note(format_args!("connect {client} -> {host} ({id})"));
        let driver = Driver {
            network: self.clone(),
            id,
            client: client.to_owned(),
            host,
            node: Some(broker.node),
            off: broker.off,
            client_off,
            broken,
            closed: closed.clone(),
            to_broker: VecDeque::new(),
            running: FuturesOrdered::new(),
            to_client: VecDeque::new(),
        };
        self.spawn(driver.run(incoming));
        Ok(SimLine { apis, requests, closed })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }
}

#[derive(Debug)]
struct NetworkEnd {
    network: Network,
    host: String,
    off: CancellationToken,
}

#[async_trait]
impl tailwater_kafka::Network for NetworkEnd {
    async fn connect(&self, address: &str) -> io::Result<Arc<dyn Line>> {
        let host = host_of(address);
        for (from, to) in [(self.host.as_str(), host), (host, self.host.as_str())] {
            let at = self.network.arrives(None);
            self.network.arrival(Some(at), from, to).await;
        }
        if self.off.is_cancelled() {
            return Err(io::ErrorKind::NetworkDown.into());
        }
        Ok(Arc::new(self.network.connect(&self.host, self.off.clone(), address)?))
    }
}

#[derive(Debug)]
struct SimLine {
    apis: Vec<ApiRange>,
    requests: mpsc::Sender<Call>,
    closed: CancellationToken,
}

#[derive(Debug)]
struct Call {
    header: RequestHeader,
    request: Request,
    answer: oneshot::Sender<Response>,
}

#[async_trait]
impl Line for SimLine {
    fn supported_apis(&self) -> Vec<ApiRange> {
        self.apis.clone()
    }

    async fn call(&self, header: RequestHeader, request: Request) -> io::Result<Response> {
        let (answer, answered) = oneshot::channel();
        let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
        let exchange = async {
            self.requests.send(Call { header, request, answer }).await.map_err(|_| reset())?;
            answered.await.map_err(|_| reset())
        };
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(reset()),
            outcome = exchange => outcome,
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    fn close(&self) {
        self.closed.cancel();
    }
}

type Answering = BoxFuture<'static, (ApiKey, Response, oneshot::Sender<Response>)>;

/// Carries what goes over one connection.
struct Driver {
    network: Network,
    id: u64,
    client: String,
    host: String,
    /// `None` once its power is off.
    node: Option<Arc<dyn Node>>,
    off: CancellationToken,
    client_off: CancellationToken,
    broken: CancellationToken,
    /// By the client.
    closed: CancellationToken,
    to_broker: VecDeque<(Instant, Call)>,
    running: FuturesOrdered<Answering>,
    to_client: VecDeque<(Instant, ApiKey, Response, oneshot::Sender<Response>)>,
}

/// Why a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Broken,
    PowerOff,
    ClientGone,
}

enum Event {
    Over(Over),
    Called(Call),
    Arrived,
    Answered(ApiKey, Response, oneshot::Sender<Response>),
    Returned,
}

impl Driver {
    async fn run(mut self, mut incoming: mpsc::Receiver<Call>) {
        let over = loop {
            match self.next(&mut incoming).await {
                Event::Over(over) => break over,
                Event::Called(call) => {
                    let at = self.network.arrives(self.to_broker.back().map(|(at, _)| *at));
                    self.to_broker.push_back((at, call));
                }
                Event::Arrived if self.network.breaks() => break Over::Broken,
                Event::Arrived => self.deliver(),
                Event::Answered(api, response, answer) => {
                    let at = self.network.arrives(self.to_client.back().map(|(at, ..)| *at));
                    self.to_client.push_back((at, api, response, answer));
                }
                Event::Returned if self.network.breaks() => break Over::Broken,
                Event::Returned => self.give_back(),
            }
        };
        self.network
            .note(format_args!("end {} -> {} ({}): {over:?}", self.client, self.host, self.id));
        self.network.forget(self.id);
        if over == Over::PowerOff {
            self.running.clear();
            self.node = None;
        }
        match over {
            Over::ClientGone => {
                self.closed.cancel();
                self.linger().await;
            }
            Over::Broken => self.closed.cancel(),
            // Nobody is there to say that nobody is there.
            Over::PowerOff if self.network.shared.dice.chance(0.3) => {
                let mut kept = Vec::new();
                while let Event::Called(call) = next_call(&self.closed, &mut incoming).await {
                    kept.push(call);
                }
            }
            Over::PowerOff => {
                tokio::time::sleep(self.network.shared.dice.time(ms(1)..ms(50))).await;
                self.closed.cancel();
            }
        }
    }

    async fn next(&mut self, incoming: &mut mpsc::Receiver<Call>) -> Event {
        let Self { network, client, host, .. } = self;
        let arrives = self.to_broker.front().map(|(at, _)| *at);
        let returns = self.to_client.front().map(|(at, ..)| *at);
        tokio::select! {
            biased;
            () = self.off.cancelled() => Event::Over(Over::PowerOff),
            () = self.broken.cancelled() => Event::Over(Over::Broken),
            () = self.client_off.cancelled() => Event::Over(Over::ClientGone),
            event = next_call(&self.closed, incoming) => event,
            Some((api, response, answer)) = self.running.next(), if !self.running.is_empty() => {
                Event::Answered(api, response, answer)
            }
            () = network.arrival(arrives, client, host) => Event::Arrived,
            () = network.arrival(returns, host, client) => Event::Returned,
        }
    }

    fn deliver(&mut self) {
        let Some((_, Call { header, request, answer })) = self.to_broker.pop_front() else {
            return;
        };
        let way = format_args!("{} -> {} ({}) {:?}", self.client, self.host, self.id, header.api);
        self.network.shared.trace.message(way, &request);
        let Some(node) = self.node.clone() else { return };
        self.running.push_back(Box::pin(async move {
            debug_assert!(supports(node.supported_apis(), header.api, header.version));
            let peer = SocketAddr::from(([127, 0, 0, 1], 1));
            let context = RequestContext { peer: Some(peer) };
            let response = node.handle(&context, &header, request).await;
            (header.api, response, answer)
        }));
    }

    fn give_back(&mut self) {
        let Some((_, api, response, answer)) = self.to_client.pop_front() else { return };
        let way = format_args!("{} <- {} ({}) {api:?}", self.client, self.host, self.id);
        self.network.shared.trace.message(way, &response);
        // Nobody waits any more: the call was dropped.
        drop(answer.send(response));
    }

    /// What was sent before the client went may still arrive.
    async fn linger(mut self) {
        if self.network.shared.dice.chance(0.3) {
            return;
        }
        while let Some((at, _)) = self.to_broker.front() {
            let arrival = self.network.arrival(Some(*at), &self.client, &self.host);
            tokio::select! {
                biased;
                () = self.off.cancelled() => return,
                () = arrival => self.deliver(),
            }
            // The broker hears of the end a little later.
            let grace = self.network.shared.dice.time(ms(1)..ms(30));
            let answered = async { while self.running.next().await.is_some() {} };
            tokio::select! {
                biased;
                () = self.off.cancelled() => return,
                () = answered => {}
                () = tokio::time::sleep(grace) => {}
            }
        }
    }
}

async fn next_call(closed: &CancellationToken, incoming: &mut mpsc::Receiver<Call>) -> Event {
    tokio::select! {
        biased;
        () = closed.cancelled() => Event::Over(Over::ClientGone),
        call = incoming.recv() => call.map_or(Event::Over(Over::ClientGone), Event::Called),
    }
}

/// The host of `host:port`.
pub(crate) fn host_of(address: &str) -> &str {
    address.split(':').next().unwrap_or(address)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
