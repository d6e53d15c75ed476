//! The life of one source's capture: lock, take over, snapshot, stream, and what follows an error.
//!
//! ```text
//!   lock ─► take over ─► snapshot, or what one that broke off lacks (`rest`) ─► stream ──┐
//!    ▲  (standby: another holds it)                                     retry: backoff   │
//!    └────────────────────────────── operator: stopped until `resume` or `resync` ───────┘
//! ```
//!
//! A `resync` ends whatever is being done and begins again with a snapshot, under a later epoch.
//!
//! Every way back leads through a take-over, also from oneself: there is one path by which a
//! position is found, and it is the one that a crash takes.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use tailwater_change::{
    Commit, Disposition, Epoch, Ordinal, Place, SchemaId, TableId, name_source,
};
use tailwater_kafka::{Client, Offset, Producer, TopicPartition};
use tailwater_registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, SnapshotMode};
use crate::error::{Error, log};
use crate::rest::BrokenOff;
use crate::session::{Session, Why, unless_told};
use crate::state::{PartitionState, Phase, STATE_KEY, State, VERSION};
use crate::status::{CaptureHandle, CaptureState, ResyncOrder, Resyncs};
use crate::tail::Tail;
use crate::tails::Tails;
use crate::take_over::{TakenOver, identity, take_over};
use crate::writer::Writer;
use crate::{
    Resume, ServerIdentity, Snapshot, SourceConnector, SourceError, SourceLock, SourceState,
};

/// How often a standby looks whether its turn has come.
pub(crate) const STANDBY_INTERVAL: Duration = Duration::from_secs(1);
/// The longest wait of one who is fenced and finds the lock free all the same. Whoever fences him
/// holds another lock: one of another server, to which the same URL has led. Until a person sees
/// that, they must not keep each other from all work.
const LONGEST_TRUCE: Duration = Duration::from_secs(60);
/// The first and the longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Captures one source.
#[derive(Debug)]
pub struct Capture {
    pub(crate) config: Config,
    client: Client,
    pub(crate) registry: Registry,
    pub(crate) connector: Arc<dyn SourceConnector>,
    pub(crate) handle: CaptureHandle,
}

impl Capture {
    /// Capture of `connector` into the log behind `client`.
    pub fn new(
        config: Config,
        client: Client,
        registry: Registry,
        connector: Arc<dyn SourceConnector>,
    ) -> (Self, CaptureHandle) {
        let handle = CaptureHandle::new();
        (Self { config, client, registry, connector, handle: handle.clone() }, handle)
    }

    /// Runs until `shutdown`: everything that was read is then in the log.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut waits = Waits { retry: BACKOFF.0, truce: STANDBY_INTERVAL };
        let mut resyncs = self.handle.resyncs();
        let mut lock = None;
        while !shutdown.is_cancelled() {
            let before = self.handle.status().place;
            // One that is asked for from here on ends a wait; one that this attempt cannot begin
            // does not make the next come sooner.
            resyncs.mark_unchanged();
            let ended = self.attempt(&mut lock, &shutdown).await;
            if self.handle.status().place != before {
                waits.retry = BACKOFF.0;
            }
            let wait = match ended {
                Ok(Why::Shutdown) => return,
                Ok(Why::Resync) => None,
                Ok(Why::Paused) => self.paused(&mut lock, &shutdown).await,
                Ok(Why::Done) => {
                    self.stopped("the snapshot is complete", &mut resyncs, &shutdown).await
                }
                Ok(Why::Standby) => {
                    waits.truce = STANDBY_INTERVAL;
                    Some(STANDBY_INTERVAL)
                }
                Err(error) => {
                    let failed = self.failed(&error, &mut waits, &mut resyncs, &shutdown);
                    failed.await
                }
            };
            if let Some(wait) = wait {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = shutdown.cancelled() => {}
                    _asked = resyncs.changed() => {}
                }
            }
        }
    }

    async fn failed(
        &self,
        error: &Error,
        waits: &mut Waits,
        resyncs: &mut watch::Receiver<Resyncs>,
        shutdown: &CancellationToken,
    ) -> Option<Duration> {
        let source = self.config.source.as_str();
        let text = name_source(&with_causes(error), source);
        match error.disposition() {
            Disposition::Retry => {
                tracing::warn!(source, error = %text, "capture failed, trying again");
                self.handle.set(CaptureState::Retrying, Some(text));
                let wait = waits.retry;
                waits.retry = (wait * 2).min(BACKOFF.1);
                Some(wait)
            }
            Disposition::Fenced => {
                tracing::info!(source, "another process has taken over this source");
                self.handle.set(CaptureState::Standby, Some(text));
                let wait = waits.truce;
                waits.truce = (wait * 2).min(LONGEST_TRUCE);
                Some(wait)
            }
            Disposition::Operator | Disposition::Bug => {
                tracing::error!(source, error = %text, "capture stopped");
                self.stopped(&text, resyncs, shutdown).await
            }
        }
    }

    async fn stopped(
        &self,
        why: &str,
        resyncs: &mut watch::Receiver<Resyncs>,
        shutdown: &CancellationToken,
    ) -> Option<Duration> {
        // Listens before it says that it stopped: who answers that is heard.
        let mut resumed = std::pin::pin!(self.handle.resumed());
        resumed.as_mut().enable();
        self.handle.set(CaptureState::Stopped, Some(why.to_owned()));
        tokio::select! {
            () = resumed => {}
            _asked = resyncs.changed() => {}
            () = shutdown.cancelled() => {}
        }
        None
    }

    /// Waits for the end of the pause. With the lock: that one process pauses is no reason for
    /// another to go on.
    async fn paused(
        &self,
        lock: &mut Option<SourceLock>,
        shutdown: &CancellationToken,
    ) -> Option<Duration> {
        self.handle.set(CaptureState::Paused, None);
        let mut paused = self.handle.paused();
        let stop = CancellationToken::new();
        let resumed = async {
            // Its sender is ours.
            let _changed = paused.wait_for(|paused| !paused).await;
            stop.cancel();
        };
        tokio::select! {
            ((), ()) = async { tokio::join!(resumed, self.keep(lock, &stop)) } => {}
            () = shutdown.cancelled() => {}
        }
        None
    }

    /// One try: from the log and the lock to whatever ends it. `lock` is the session in which it waits for the
    /// lock, and in which it pauses.
    async fn attempt(
        &self,
        lock: &mut Option<SourceLock>,
        shutdown: &CancellationToken,
    ) -> Result<Why, Error> {
        if *self.handle.paused().borrow() {
            return Ok(Why::Paused);
        }
        if self.handle.status().state != CaptureState::Standby {
            self.handle.set(CaptureState::Starting, self.handle.status().error);
        }
        if lock.is_none() {
            // Whoever is cut off from the log leaves the lock to those who are not.
            let reached = self.client.topic(&self.config.topic()).await;
            reached.map_err(log("reach the log"))?;
        }
        let Some(mut held) = self.take_lock(lock).await? else { return Ok(Why::Standby) };
        let ended = self.under(&mut held, Box::pin(self.locked(shutdown))).await;
        if matches!(ended, Ok(Why::Paused)) {
            *lock = Some(held);
        }
        ended
    }

    /// As the one who captures the source.
    async fn locked(&self, shutdown: &CancellationToken) -> Result<Why, Error> {
        let server = self.connector.server().await?;
        let order = self.handle.resync_order();
        let (config, client, registry) = (&self.config, &self.client, &self.registry);
        let taken = take_over(config, client, registry, server, order.is_some()).await?;
        let epoch = taken.epoch();
        let start = match order {
            Some(order) => Start::Snapshot(taken.later_epoch(order.above)),
            None => self.start(&taken),
        };
        tracing::info!(source = self.config.source, ?start, tail = ?taken.tail, "took over");
        match start {
            Start::Snapshot(epoch) => {
                let ended = self.snapshot(taken, epoch, order, shutdown).await;
                self.give_up_snapshot(&ended).await;
                ended
            }
            Start::Rest(broken) => {
                let ended = self.rest_of_snapshot(taken, broken, shutdown).await;
                self.give_up_snapshot(&ended).await;
                ended
            }
            Start::Now(epoch) => self.stream(taken, epoch, None, shutdown).await,
            Start::After(resume) => self.stream(taken, epoch, Some(resume), shutdown).await,
            Start::Nothing => Ok(Why::Done),
        }
    }

    /// What the log says is to be done.
    fn start(&self, taken: &TakenOver) -> Start {
        let Some(state) = &taken.state else {
            let epoch = taken.later_epoch(Epoch::new(0));
            return match self.config.snapshot {
                SnapshotMode::Initial | SnapshotMode::Only => Start::Snapshot(epoch),
                SnapshotMode::Never => Start::Now(epoch),
            };
        };
        if state.phase == Phase::Snapshot && !matches!(taken.tail, Tail::Loaded { .. }) {
            return match BrokenOff::of(state, taken.tail) {
                Some(broken) => Start::Rest(broken),
                // Its rows are void: the next attempt may find them in another order at the same
                // position, so it must not have the same places.
                None => Start::Snapshot(state.epoch.next()),
            };
        }
        match taken.tail.position() {
            Some(_) if self.config.snapshot == SnapshotMode::Only => Start::Nothing,
            Some((place, whole)) => Start::After(Resume {
                after: place.commit,
                again: !whole,
                state: state.source_state.clone(),
            }),
            None if matches!(taken.tail, Tail::Snapshot { .. }) => {
                Start::Snapshot(state.epoch.next())
            }
            // `never`, and it ended before the first position was in the log: nothing was told.
            None => Start::Now(state.epoch),
        }
    }

    /// A snapshot of which no table is complete is void, and may not be repeated soon: the source
    /// must not keep its log for it meanwhile. It does keep it for one that can go on: somebody
    /// who pauses for a minute must not lose the work of hours; who gives it up asks for a resync.
    async fn give_up_snapshot(&self, ended: &Result<Why, Error>) {
        let waits = match ended {
            Ok(why) => *why == Why::Paused,
            Err(error) => matches!(error.disposition(), Disposition::Operator | Disposition::Bug),
        };
        if !waits || self.handle.status().state != CaptureState::Snapshot {
            return;
        }
        let tables = self.handle.kept_tables();
        if tables > 0 {
            let source = self.config.source.as_str();
            tracing::info!(source, tables, "the source keeps its log: the snapshot can go on");
            return;
        }
        if let Err(error) = self.connector.release().await {
            let error = error.to_string();
            tracing::warn!(
                source = self.config.source,
                error,
                "the source may keep its log for us"
            );
        }
    }

    pub(crate) async fn snapshot(
        &self,
        mut taken: TakenOver,
        epoch: Epoch,
        order: Option<ResyncOrder>,
        shutdown: &CancellationToken,
    ) -> Result<Why, Error> {
        self.handle.set(CaptureState::Snapshot, None);
        self.handle.kept(0);
        // Before anything is taken on the source: a crash in it must find that a snapshot began.
        let begun = Position { epoch, place: Place::default(), whole: true };
        let none = (ServerIdentity(String::new()), SourceState(String::new()));
        self.write_state(&mut taken, Phase::Snapshot, &none, begun, &[]).await?;
        self.handle.writes(epoch);
        if let Some(order) = order {
            self.handle.resync_begun(order);
        }
        // Taking it can wait for transactions of others.
        let taking = self.connector.snapshot();
        let mut snapshot = match unless_told(&self.handle, shutdown, taking).await {
            Ok(snapshot) => snapshot?,
            Err(why) => return Ok(why),
        };
        let connector = (snapshot.server(), snapshot.state());
        still_the_same(&taken.server, &connector.0)?;
        let state = self.write_state(&mut taken, Phase::Snapshot, &connector, begun, &[]).await?;
        let (mut session, taken) = self.session(taken, epoch, false);
        session.keep(state);
        session.writer().snapshot_begin(snapshot.commit()).await?;
        if let Some(why) = session.snapshot(snapshot.as_mut(), shutdown).await? {
            return Ok(why);
        }
        self.loaded(session, taken, snapshot, epoch, shutdown).await
    }

    /// A session with the taken-over writer, and what remains of the take-over. `goes_on`: what the
    /// log has of the stream is not wanted again.
    pub(crate) fn session(
        &self,
        taken: TakenOver,
        epoch: Epoch,
        goes_on: bool,
    ) -> (Session<'_>, Taken) {
        let TakenOver { producer, control, tails, open_offsets, server, .. } = taken;
        let registry = self.registry.clone();
        let held = if goes_on { tails.held() } else { vec![None; tails.len()] };
        let writer = Writer::new(&self.config, registry, producer, control, epoch, &held);
        (Session::new(&self.config, &self.handle, writer), Taken { control, open_offsets, server })
    }

    /// Every table is in the log: the stream goes on behind the snapshot.
    pub(crate) async fn loaded(
        &self,
        session: Session<'_>,
        taken: Taken,
        snapshot: Box<dyn Snapshot>,
        epoch: Epoch,
        shutdown: &CancellationToken,
    ) -> Result<Why, Error> {
        let commit = snapshot.commit();
        let connector = (snapshot.server(), snapshot.state());
        let place = Place::end_of(epoch, commit);
        self.handle.confirmed(place, 1);
        let producer = session.into_writer().into_producer();
        let mut taken = TakenOver {
            producer,
            control: taken.control,
            state: None,
            tail: Tail::At { place, whole: true },
            tails: Tails::all(Tail::At { place, whole: true }, taken.open_offsets.len()),
            open_offsets: taken.open_offsets,
            earlier_epoch: None,
            server: taken.server,
        };
        let position = Position { epoch, place, whole: true };
        self.write_state(&mut taken, Phase::Streaming, &connector, position, &[]).await?;
        drop(snapshot);
        if self.config.snapshot == SnapshotMode::Only {
            return Ok(Why::Done);
        }
        let resume = Resume { after: commit, again: false, state: connector.1 };
        self.stream(taken, epoch, Some(resume), shutdown).await
    }

    async fn stream(
        &self,
        mut taken: TakenOver,
        epoch: Epoch,
        resume: Option<Resume>,
        shutdown: &CancellationToken,
    ) -> Result<Why, Error> {
        let mut stream = self.connector.stream(resume.as_ref()).await?;
        let tail = taken.tail.position();
        let (place, whole) = tail.unwrap_or((Place::default(), true));
        let position = Position { epoch, place, whole };
        let connector = (stream.server(), stream.state());
        still_the_same(&taken.server, &connector.0)?;
        let state =
            self.write_state(&mut taken, Phase::Streaming, &connector, position, &[]).await?;
        let held = tail.map(held);
        if let Some(held) = held {
            self.handle.confirmed(held, 0);
        }
        self.handle.writes(epoch);
        self.handle.set(CaptureState::Streaming, None);
        let (mut session, _) = self.session(taken, epoch, held.is_some());
        session.keep(state);
        session.held(held.map_or(Commit::ZERO, confirmable));
        // From now, without a position: the first one goes to the log at once.
        session.stream(stream.as_mut(), epoch, resume.is_none(), shutdown).await
    }

    pub(crate) async fn write_state(
        &self,
        taken: &mut TakenOver,
        phase: Phase,
        connector: &(ServerIdentity, SourceState),
        position: Position,
        finished: &[TableId],
    ) -> Result<State, Error> {
        let (producer_id, producer_epoch) = identity(&taken.producer);
        let several = taken.open_offsets.len() > 1;
        let inside = matches!(taken.tail, Tail::Snapshot { .. }) && !finished.is_empty();
        let state = State {
            version: VERSION,
            epoch: position.epoch,
            phase,
            server: connector.0.clone(),
            source_state: connector.1.clone(),
            partitions: i32::try_from(taken.open_offsets.len()).unwrap_or(i32::MAX),
            filter: self.config.filter.clone(),
            place: position.place,
            whole: position.whole,
            open_offset: taken.open_offsets.first().map_or(0, |offset| offset.get()),
            producer_id,
            producer_epoch,
            finished: finished.to_vec(),
            inside,
            partition_by: several.then_some(self.config.partition_by),
            each: if several { each(taken, position, inside) } else { Vec::new() },
        };
        write_state(&self.config, &mut taken.producer, &state).await?;
        Ok(state)
    }
}

/// How long it waits next.
#[derive(Debug)]
struct Waits {
    /// After a failure that may pass.
    retry: Duration,
    /// After it was fenced.
    truce: Duration,
}

/// What each of several partitions has, where all of them have everything up to `position`.
fn each(taken: &TakenOver, position: Position, inside: bool) -> Vec<PartitionState> {
    let begun = position.place != Place::default();
    let of = |(tail, open_offset): (Tail, &Offset)| {
        let (place, whole) = match tail.position() {
            // A snapshot that begins makes nothing of what is before it.
            Some((place, whole)) if begun && !inside && place > position.place => (place, whole),
            _ => (position.place, position.whole),
        };
        PartitionState { open_offset: open_offset.get(), place, whole, inside }
    };
    taken.tails.iter().zip(&taken.open_offsets).map(of).collect()
}

/// What a take-over leads to.
#[derive(Debug)]
enum Start {
    Snapshot(Epoch),
    Rest(BrokenOff),
    Now(Epoch),
    After(Resume),
    Nothing,
}

/// How far the log holds the source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Position {
    pub(crate) epoch: Epoch,
    pub(crate) place: Place,
    pub(crate) whole: bool,
}

/// What outlives a session of a take-over: who writes is in the session's writer.
#[derive(Debug)]
pub(crate) struct Taken {
    control: SchemaId,
    open_offsets: Vec<Offset>,
    server: ServerIdentity,
}

/// What of the transaction at the log's end is not wanted again. Whole: all of it, even its end.
pub(crate) fn held((place, whole): (Place, bool)) -> Place {
    if whole { Place::end_of(place.epoch, place.commit) } else { place }
}

/// Up to where the source may forget what it has, when the log holds everything up to `held`.
pub(crate) fn confirmable(held: Place) -> Commit {
    match held.ordinal {
        Ordinal::END => held.commit,
        // The transaction there is not whole: everything before it is.
        _ => Commit::binlog(held.commit.file(), held.commit.position().saturating_sub(1)),
    }
}

async fn write_state(config: &Config, producer: &mut Producer, state: &State) -> Result<(), Error> {
    let topic = config.state_topic();
    let json = serde_json::to_vec(state)
        .map_err(|source| Error::State { topic: topic.clone(), source })?;
    let to = TopicPartition::new(topic, tailwater_kafka::PartitionId::new(0));
    let to = producer.register(&to);
    producer
        .append(to, Some(STATE_KEY), &[&json], (config.clock)())
        .map_err(log("append the state"))?;
    producer.drain().await.map_err(log("append the state"))
}

/// The open marker names whom its writer reads; a fail-over in between takes over again.
pub(crate) fn still_the_same(opened: &ServerIdentity, reads: &ServerIdentity) -> Result<(), Error> {
    if opened == reads {
        return Ok(());
    }
    let what = format!("{} answers, a moment ago it was {}", reads.0, opened.0);
    Err(SourceError::unavailable("begin to read", what).into())
}

/// An error and its causes on one line.
fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
