//! The loop between one connection to the source and one writer.
//!
//! `select` waits, one call acts. Between two waits nothing is half done: rows that were decoded
//! are in the writer, and what the writer has appended is counted.

use std::time::Duration;

use tailwater_change::{Commit, Disposition, Epoch, Place};
use tailwater_kafka::{Acknowledged, PartitionId, TopicPartition};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::{Error, log};
use crate::state::{Phase, State};
use crate::status::{CaptureHandle, Resyncs};
use crate::writer::{Limit, Writer};
use crate::{Changes, Snapshot, Stream};

/// The sign of life to the source, and how soon an idle position can go to the log.
const TICK: Duration = Duration::from_secs(1);
/// How often the log is told that nothing happened. Each marker is a record that every reader
/// reads; more often gains nothing but a fresher slot.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);
/// How often the state topic is renewed while the stream moves.
const STATE_INTERVAL: Duration = Duration::from_secs(10);
/// How long an end waits for the log to acknowledge what was appended.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// Why a session ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    Shutdown,
    Paused,
    /// Another process captures the source.
    Standby,
    /// A snapshot without a stream is complete.
    Done,
    /// A new snapshot is asked for.
    Resync,
}

/// One connection's worth of capture.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    config: &'a Config,
    handle: &'a CaptureHandle,
    writer: Writer,
    acknowledged: watch::Receiver<Acknowledged>,
    changes: Changes,
    rows_reported: u64,
    idle: Idle,
    confirmed: Commit,
    saved: Option<Saved>,
    /// The stream has come as far as it is wanted.
    reached_limit: bool,
}

/// The state as it was last appended to the state topic.
#[derive(Debug)]
struct Saved {
    to: TopicPartition,
    state: State,
    at: Instant,
}

/// The idle position: known, told to the log, and when.
#[derive(Debug)]
struct Idle {
    known: Option<Commit>,
    told: Commit,
    told_at: Instant,
    /// Someone waits for it: tell at once.
    wanted: bool,
}

enum Next {
    Changes,
    Acknowledged,
    Tick,
    Probe,
    End(Why),
}

impl<'a> Session<'a> {
    pub(crate) fn new(config: &'a Config, handle: &'a CaptureHandle, mut writer: Writer) -> Self {
        let acknowledged = writer.producer().acknowledged();
        Self {
            config,
            handle,
            writer,
            acknowledged,
            changes: Changes::new(),
            rows_reported: 0,
            idle: Idle { known: None, told: Commit::ZERO, told_at: Instant::now(), wanted: false },
            confirmed: Commit::ZERO,
            saved: None,
            reached_limit: false,
        }
    }

    /// The state that the take-over wrote: renewed now and then while streaming.
    pub(crate) fn keep(&mut self, state: State) {
        let to = TopicPartition::new(self.config.state_topic(), PartitionId::new(0));
        self.writer.keep(state.finished.clone());
        self.saved = Some(Saved { to, state, at: Instant::now() });
    }

    /// The log holds everything up to and including `through`: what the source is told until there
    /// is more.
    pub(crate) fn held(&mut self, through: Commit) {
        self.confirmed = through;
    }

    pub(crate) fn writer(&mut self) -> &mut Writer {
        &mut self.writer
    }

    pub(crate) fn into_writer(self) -> Writer {
        self.writer
    }

    /// Reads a snapshot that has begun into the log; `None` once all of it is acknowledged. However
    /// it ends, what was appended is in the log first, and which tables are finished with it.
    pub(crate) async fn snapshot(
        &mut self,
        snapshot: &mut dyn Snapshot,
        shutdown: &CancellationToken,
    ) -> Result<Option<Why>, Error> {
        let ended = self.load(snapshot, shutdown).await;
        if matches!(ended, Ok(Some(_)) | Err(Error::Source(_))) {
            self.drain().await?;
        }
        ended
    }

    async fn load(
        &mut self,
        snapshot: &mut dyn Snapshot,
        shutdown: &CancellationToken,
    ) -> Result<Option<Why>, Error> {
        loop {
            self.writer.producer().ready().await.map_err(log("append"))?;
            let next = snapshot.next(&mut self.changes, self.config.decode_bytes);
            match unless_told(self.handle, shutdown, next).await {
                Ok(read) => read?,
                Err(why) => return Ok(Some(why)),
            }
            let written = self.writer.write(&self.changes).await?;
            self.changes.clear();
            self.writer.producer().flush();
            self.report_rows();
            if written.snapshot_ended {
                self.writer.producer().drain().await.map_err(log("append"))?;
                return Ok(None);
            }
            self.remember_finished().await?;
        }
    }

    /// Writes to the state topic which tables are complete, once the log has them. Where the state
    /// is large, not for each of many small tables: those are soon read again.
    async fn remember_finished(&mut self) -> Result<(), Error> {
        let (Some(saved), Some(place)) = (&mut self.saved, self.writer.snapshot_place()) else {
            return Ok(());
        };
        let soon = saved.state.is_large() && saved.at.elapsed() < TICK;
        if saved.state.finished.len() == self.writer.finished().len() || soon {
            return Ok(());
        }
        self.writer.producer().drain().await.map_err(log("append"))?;
        saved.state.finished = self.writer.finished().to_vec();
        saved.state.reached(place, true);
        saved.at = Instant::now();
        self.writer.state(&saved.to, &saved.state)?;
        self.writer.producer().flush();
        self.handle.kept(saved.state.finished.len());
        Ok(())
    }

    /// Streams as far as `limit` says into the log; `None` once that is appended.
    pub(crate) async fn catch_up(
        &mut self,
        stream: &mut dyn Stream,
        epoch: Epoch,
        limit: Limit,
        shutdown: &CancellationToken,
    ) -> Result<Option<Why>, Error> {
        self.writer.limit(Some(limit));
        // So that the end is told even if nothing more happens.
        stream.probe().await?;
        let ended = self.follow(stream, epoch, shutdown).await?;
        self.writer.limit(None);
        Ok(ended)
    }

    /// Streams into the log until told otherwise.
    pub(crate) async fn stream(
        &mut self,
        stream: &mut dyn Stream,
        epoch: Epoch,
        tell_first_position: bool,
        shutdown: &CancellationToken,
    ) -> Result<Why, Error> {
        self.idle.wanted = tell_first_position;
        let ended = self.follow(stream, epoch, shutdown).await?;
        ended.ok_or(Error::Contract("the limit of a stream that has none"))
    }

    /// Streams until told otherwise, or to the limit.
    async fn follow(
        &mut self,
        stream: &mut dyn Stream,
        epoch: Epoch,
        shutdown: &CancellationToken,
    ) -> Result<Option<Why>, Error> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut paused, mut resyncs) = (self.handle.paused(), self.handle.resyncs());
        loop {
            let room = self.writer.producer();
            let next = tokio::select! {
                biased;
                () = shutdown.cancelled() => Ok(Next::End(Why::Shutdown)),
                Ok(_paused) = paused.wait_for(|paused| *paused) => Ok(Next::End(Why::Paused)),
                Ok(_pending) = resyncs.wait_for(Resyncs::is_pending) => Ok(Next::End(Why::Resync)),
                Ok(()) = self.acknowledged.changed() => Ok(Next::Acknowledged),
                _at = tick.tick() => Ok(Next::Tick),
                () = self.handle.probed() => Ok(Next::Probe),
                read = read(room, stream, &mut self.changes, self.config.decode_bytes) => {
                    read.map(|()| Next::Changes)
                }
            };
            let next = match next {
                Ok(next) => next,
                Err(error) => return Err(self.last(error).await),
            };
            // A read that lost the race may have decoded something already.
            if !self.changes.is_empty() {
                self.write().await?;
            }
            match next {
                Next::Changes => {}
                Next::Acknowledged => self.confirm(stream, epoch).await?,
                Next::Tick => self.tick(stream, epoch).await?,
                Next::Probe => {
                    self.idle.wanted = true;
                    stream.probe().await?;
                }
                Next::End(why) => {
                    self.end(stream, epoch).await?;
                    return Ok(Some(why));
                }
            }
            if self.reached_limit {
                self.end(stream, epoch).await?;
                return Ok(None);
            }
            self.tell_idle().await?;
        }
    }

    async fn write(&mut self) -> Result<(), Error> {
        let written = self.writer.write(&self.changes).await?;
        self.changes.clear();
        if !written.is_far_behind {
            self.writer.producer().flush();
        }
        self.report_rows();
        if written.began {
            self.idle.known = None;
        }
        if let Some(through) = written.idle_through {
            self.idle.known = Some(through);
        }
        self.reached_limit |= written.reached_limit;
        self.show_seen();
        Ok(())
    }

    /// What the source said of its idleness counts once the log has what came before.
    fn show_seen(&self) {
        if let Some(through) = self.idle.known
            && self.writer.is_settled()
        {
            self.handle.seen(through);
        }
    }

    /// Tells the source what the log has acknowledged.
    async fn confirm(&mut self, stream: &mut dyn Stream, epoch: Epoch) -> Result<(), Error> {
        let (below, failed) = {
            let acknowledged = self.acknowledged.borrow_and_update();
            (acknowledged.below, acknowledged.failed.is_some())
        };
        if failed {
            // The producer's own call says why, with the cause.
            self.writer.producer().ready().await.map_err(log("append"))?;
        }
        let Some((commit, transactions)) = self.writer.confirmed(below) else { return Ok(()) };
        self.confirmed = self.confirmed.max(commit);
        self.handle.confirmed(Place::end_of(epoch, commit), transactions);
        self.show_seen();
        stream.confirm(commit).await?;
        Ok(())
    }

    async fn tick(&mut self, stream: &mut dyn Stream, epoch: Epoch) -> Result<(), Error> {
        if self.writer.is_limited() {
            stream.probe().await?;
        }
        if self.confirmed == Commit::ZERO {
            return Ok(());
        }
        // Also without progress: the source's time-out must not take silence for death.
        stream.confirm(self.confirmed).await?;
        self.save(stream, epoch)
    }

    /// Renews the state: the lower bound that remains when retention has emptied the topic.
    fn save(&mut self, stream: &mut dyn Stream, epoch: Epoch) -> Result<(), Error> {
        let Some(saved) = self.saved.as_mut().filter(|saved| saved.state.phase == Phase::Streaming)
        else {
            return Ok(());
        };
        let place = Place::end_of(epoch, self.confirmed);
        if saved.at.elapsed() < STATE_INTERVAL || saved.state.place == place {
            return Ok(());
        }
        saved.state.reached(place, false);
        saved.state.server = stream.server();
        saved.state.source_state = stream.state();
        saved.at = Instant::now();
        self.writer.state(&saved.to, &saved.state)?;
        self.writer.producer().flush();
        Ok(())
    }

    /// Says in the log that the source had nothing for us, so that it may be confirmed: at once if
    /// someone waits for it, else now and then.
    async fn tell_idle(&mut self) -> Result<(), Error> {
        let Some(known) = self.idle.known else { return Ok(()) };
        let due = self.idle.wanted || self.idle.told_at.elapsed() >= IDLE_INTERVAL;
        if !due || self.writer.in_transaction() {
            return Ok(());
        }
        if known <= self.idle.told || known <= self.confirmed {
            // Nothing new: whoever waits is answered by what the log already says.
            self.idle.known = None;
            return Ok(());
        }
        self.writer.idle(known).await?;
        self.writer.producer().flush();
        self.idle = Idle { known: None, told: known, told_at: Instant::now(), wanted: false };
        Ok(())
    }

    /// Makes what was appended durable, and confirms it.
    async fn end(&mut self, stream: &mut dyn Stream, epoch: Epoch) -> Result<(), Error> {
        self.drain().await?;
        self.confirm(stream, epoch).await
    }

    /// What a person must see to is said when the log holds all that came before it: who looks at
    /// the targets then sees where the source stands.
    async fn last(&mut self, error: Error) -> Error {
        match error.disposition() {
            Disposition::Retry | Disposition::Fenced => return error,
            Disposition::Operator | Disposition::Bug => {}
        }
        self.drain().await.err().unwrap_or(error)
    }

    /// Waits until the log has what was appended, but not for ever.
    async fn drain(&mut self) -> Result<(), Error> {
        let drained = tokio::time::timeout(DRAIN_DEADLINE, self.writer.producer().drain()).await;
        drained.unwrap_or(Ok(())).map_err(log("append"))
    }

    fn report_rows(&mut self) {
        let rows = self.writer.rows();
        self.handle.add_rows(rows - self.rows_reported);
        self.rows_reported = rows;
    }
}

/// What `waiting` gives, unless it is told first that this ends: snapshots wait for long.
pub(crate) async fn unless_told<T>(
    handle: &CaptureHandle,
    shutdown: &CancellationToken,
    waiting: impl Future<Output = T>,
) -> Result<T, Why> {
    let (mut paused, mut resyncs) = (handle.paused(), handle.resyncs());
    tokio::select! {
        biased;
        () = shutdown.cancelled() => Err(Why::Shutdown),
        Ok(_paused) = paused.wait_for(|paused| *paused) => Err(Why::Paused),
        Ok(_pending) = resyncs.wait_for(Resyncs::is_pending) => Err(Why::Resync),
        done = waiting => Ok(done),
    }
}

/// Waits for room in flight, then for the source: nothing is decoded that the log cannot take.
async fn read(
    producer: &mut tailwater_kafka::Producer,
    stream: &mut dyn Stream,
    changes: &mut Changes,
    bytes: usize,
) -> Result<(), Error> {
    producer.ready().await.map_err(log("append"))?;
    Ok(stream.next(changes, bytes).await?)
}
