//! A connection to the target and everything that dies with it.
//!
//! The loop waits in one place (`wait`) and acts in another (`take`). Whatever it has not
//! committed when it is dropped is read again from the progress in the target.

use std::collections::HashMap;
use std::sync::Arc;

use tailwater_change::{Place, SchemaId};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::apart::{Role, begin};
use super::batch::Batch;
use super::commands::{Command, Order};
use super::commit::{QUIET, Safe};
use super::group::Group;
use super::hold::{PING_INTERVAL, ping};
use super::intake::Intake;
use super::lookout::Stand;
use super::parts::Row;
use super::schemas::Schemas;
use super::start::{Continuity, Start, unread};
use super::state::{Parted, SavedState, SavedTable};
use super::trial::{Skip, Trial};
use super::{ChangeLog, Error, LogIdentity, PipelineConfig, State, Status};
use crate::{Item, Metrics, Part, Progress, Resume, Table, Target, TargetConnector};

/// What a session needs and leaves behind.
pub(super) struct Context {
    pub(super) config: PipelineConfig,
    pub(super) log: Arc<dyn ChangeLog>,
    pub(super) connector: Arc<dyn TargetConnector>,
    pub(super) schemas: Schemas,
    pub(super) status: watch::Sender<Status>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) trial: Trial,
    /// What of the pipeline is applied here.
    pub(super) role: Role,
    /// Of a partition: whether the pipeline was parted when it was last looked at.
    pub(super) seen: Option<Parted>,
    /// Of a partition: the tables that the pipeline knew when it parted.
    pub(super) known: Vec<SavedTable>,
}

/// How a session ended without an error.
#[derive(Debug)]
pub(super) enum Ending {
    Shutdown,
    /// The target is held on to, and with it the lock.
    Paused,
    /// From the progress again, at once.
    Restart,
    /// The target is held on to: what is next, others have to do.
    Aside,
}

/// Whether the loop goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    On,
    Restart,
    Aside,
}

/// What became of taking over.
pub(super) enum Opened<'a> {
    Session(Box<Session<'a>>),
    /// Nothing is to be applied now.
    Aside(Box<dyn Target>),
}

enum Event {
    /// More from the log.
    Read,
    /// Nothing more to be had right now.
    Nothing,
    Command(Command),
    Shutdown,
    /// This partition is no longer applied on its own.
    Called,
}

pub(super) struct Session<'a> {
    pub(super) context: &'a mut Context,
    pub(super) target: Box<dyn Target>,
    pub(super) progress: Progress,
    pub(super) state: SavedState,
    pub(super) tables: HashMap<SchemaId, Arc<Table>>,
    pub(super) batch: Batch,
    /// When the one before it began to be applied.
    began_at: Instant,
    pub(super) safe: Safe,
    /// Rows of the transaction that is being streamed into an open transaction of the target.
    pub(super) large: Option<usize>,
    /// `None` only while it gathers beside the target's work.
    pub(super) intake: Option<Intake>,
    pub(super) identity: LogIdentity,
    /// Whom the writer reads that counts where we are.
    pub(super) server: Option<String>,
    pub(super) continuity: Continuity,
    /// That the partitions stay together, since a table's rows need the source's order.
    pub(super) stays_together: bool,
    pub(super) group: Group,
}

impl<'a> Session<'a> {
    /// Takes the pipeline over, on a target that holds its lock.
    pub(super) async fn open(
        context: &'a mut Context,
        mut target: Box<dyn Target>,
    ) -> Result<Opened<'a>, Error> {
        let identity = context.log.identity().await?;
        let log_start = context.log.start().await?;
        let initial = Progress {
            pipeline: context.row_name(),
            cluster_id: identity.cluster_id.clone(),
            topic_id: identity.topic_id.clone(),
            next_offset: log_start.first().map_or(0, |start| start.get()),
            place: Place::default(),
            fence: 0,
            state: "{}".into(),
        };
        let begun = begin(context, target.as_mut(), &initial, &identity).await?;
        let Some(Row { progress, state }) = begun else { return Ok(Opened::Aside(target)) };
        let superseded = context.trial.superseded.take();
        context.trial.superseded =
            superseded.filter(|snapshot| snapshot.is_ahead(&progress, &identity));
        context.trial.stand = Some(Stand {
            log: identity.clone(),
            at: unread(&log_start),
            resume: Resume { applied: progress.place, writer: None, snapshot: None },
            epoch: state.snapshot.unwrap_or_default().max(progress.place).epoch,
        });
        let start = match &context.trial.superseded {
            Some(snapshot) => Start::at(snapshot, &progress, &state),
            None => Start::of(&progress, &state, &identity, &log_start)?,
        };
        context.trial.stands_at(start.at.clone(), start.resume);
        let (prefetch, bounds) = (context.config.prefetch_bytes(), context.config.part_bounds());
        let mut intake = Intake::new(&*context.log, start.resume, &start.at, prefetch, bounds);
        intake.assembler = intake.assembler.with_floors(&state.floors);
        let offsets: Vec<_> = start.at.iter().map(|position| position.next_offset).collect();
        tracing::info!(
            place = %progress.place,
            next_offset = ?offsets,
            fence = progress.fence,
            "applying"
        );
        let group = Group::new(Arc::clone(&context.log), &context.config.name, offsets);
        let mut session = Self {
            intake: Some(intake),
            target,
            progress,
            state,
            tables: HashMap::new(),
            batch: Batch::default(),
            began_at: Instant::now(),
            safe: Safe::new(),
            large: None,
            identity,
            server: start.server,
            continuity: start.continuity,
            stays_together: false,
            group,
            context,
        };
        if !session.state.is_loading() && session.state.tables.iter().any(|table| table.unfinished)
        {
            session.finish_all().await?;
            session.save().await?;
        }
        session.show();
        Ok(Opened::Session(Box::new(session)))
    }

    /// Applies until something ends it.
    pub(super) async fn run(
        &mut self,
        shutdown: &CancellationToken,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<Ending, Error> {
        loop {
            match self.intake().next_item() {
                Ok(Some(item)) => {
                    self.look_for_place()?;
                    match self.take(item).await? {
                        Flow::On => {}
                        Flow::Restart => return Ok(Ending::Restart),
                        Flow::Aside => return Ok(Ending::Aside),
                    }
                    if !self.batch.is_empty() {
                        continue;
                    }
                }
                Ok(None) => self.look_for_place()?,
                Err(error) => {
                    // What stands before it is whole.
                    self.flush().await?;
                    return Err(error.into());
                }
            }
            if self.may_part().await? {
                self.part().await?;
                return Ok(Ending::Aside);
            }
            match self.wait(shutdown, commands).await? {
                Event::Read => {}
                Event::Called => {
                    // Its locks would keep the leader from these rows.
                    self.abandon_large().await?;
                    return Ok(Ending::Aside);
                }
                Event::Nothing => self.flush_and_gather().await?,
                Event::Shutdown => {
                    self.rest().await?;
                    return Ok(Ending::Shutdown);
                }
                Event::Command(command) => {
                    if self.obey(command).await? {
                        return Ok(Ending::Paused);
                    }
                }
            }
        }
    }

    pub(super) fn intake(&mut self) -> &mut Intake {
        intake(&mut self.intake)
    }

    /// Applies and commits what the batch holds, and takes the next one ahead while the target
    /// works. Only where no item is in hand: what is taken ahead comes after it.
    async fn flush_and_gather(&mut self) -> Result<(), Error> {
        // Beside one that is larger than the bound there is no room for another.
        let room = self.context.config.held_bytes();
        let room = if self.batch.bytes() > room { 0 } else { room };
        self.began_at = Instant::now();
        let Some(mut intake) = self.intake.take() else { return self.flush().await };
        let flushed = tokio::select! {
            biased;
            flushed = self.flush() => flushed,
            never = intake.gather(room) => match never {},
        };
        self.intake = Some(intake);
        flushed
    }

    /// Tells the log how far we are, and gives the target back.
    pub(super) async fn close(self) -> Box<dyn Target> {
        self.group.close().await;
        self.target
    }

    /// Commits what is whole and undoes what is not.
    pub(super) async fn rest(&mut self) -> Result<(), Error> {
        self.abandon_large().await?;
        self.flush().await?;
        self.make_safe().await
    }

    /// `true`: pause.
    async fn obey(&mut self, command: Command) -> Result<bool, Error> {
        match command.order {
            Order::Pause => {
                self.rest().await?;
                command.answer(Ok(()));
                Ok(true)
            }
            Order::Resume => {
                command.refuse("the pipeline is running");
                Ok(false)
            }
            Order::Skip(_) => {
                command.refuse("the pipeline is running: nothing keeps it from going on");
                Ok(false)
            }
        }
    }

    /// The one place where the session waits for the world.
    async fn wait(
        &mut self,
        shutdown: &CancellationToken,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<Event, Error> {
        // While there is something to do, look but do not wait.
        let drained = self.intake().is_drained();
        let busy = !self.batch.is_empty() || !drained;
        let linger = self.linger().filter(|_until| drained);
        let event = tokio::select! {
            biased;
            () = shutdown.cancelled() => Event::Shutdown,
            Some(command) = commands.recv() => Event::Command(command),
            read = self.intake().read(), if drained => match read {
                Ok(()) => Event::Read,
                Err(error) => return self.reader_failed(error).await,
            },
            () = passed(linger) => Event::Nothing,
        };
        if busy || !matches!(event, Event::Nothing) {
            return Ok(event);
        }
        let mut ping_at = Instant::now() + PING_INTERVAL;
        loop {
            self.check_place_was_found()?;
            self.show_caught_up();
            let flush = self.owes().then(|| self.began_at + QUIET);
            return Ok(tokio::select! {
                biased;
                () = shutdown.cancelled() => Event::Shutdown,
                Some(command) = commands.recv() => Event::Command(command),
                read = intake(&mut self.intake).read() => match read {
                    Ok(()) => Event::Read,
                    Err(error) => return self.reader_failed(error).await,
                },
                () = passed(flush), if flush.is_some() => {
                    self.make_safe().await?;
                    continue;
                }
                () = sleep_until(ping_at) => {
                    ping(self.target.as_mut()).await?;
                    if self.is_called().await? {
                        return Ok(Event::Called);
                    }
                    ping_at = Instant::now() + PING_INTERVAL;
                    continue;
                }
                () = self.group.tick() => continue,
            });
        }
    }

    /// Until when a batch that is not full waits for more.
    fn linger(&self) -> Option<Instant> {
        let behind = self.is_far_behind(self.batch.newest_us());
        behind.then(|| self.began_at + self.context.config.batch.linger)
    }

    /// What was read before stands for itself.
    async fn reader_failed(&mut self, error: Error) -> Result<Event, Error> {
        self.flush().await?;
        self.context.trial.suspect = None;
        Err(error)
    }

    async fn take(&mut self, item: Item) -> Result<Flow, Error> {
        if self.concerns_others(&item) {
            return self.wait_for_others().await;
        }
        match item {
            Item::Schema(id) => {
                let learned = self.learn(id).await;
                if learned.is_err() && self.large.is_none() {
                    // What stands before it is whole and has nothing to do with it.
                    self.flush().await?;
                }
                return learned;
            }
            Item::Opened { server } => {
                if self.server.as_ref() != Some(&server) {
                    // What is committed from here on is his.
                    self.flush().await?;
                    self.server = Some(server);
                }
            }
            Item::Part(part) => self.take_part(part).await?,
            Item::Voided { transaction, snapshot } => {
                tracing::warn!(%transaction, snapshot, "unfinished in the log, and superseded");
                self.abandon_large().await?;
                if snapshot {
                    self.flush().await?;
                    self.state.void_snapshot(transaction);
                }
            }
            Item::Idle(mark) => {
                self.check_follows(mark.place)?;
                self.batch.pass(mark);
            }
            Item::SnapshotBegin { snapshot, mark } => {
                self.continuity = Continuity::Certain;
                self.begin_snapshot(snapshot, mark).await?;
                self.context.trial.met_snapshot(snapshot);
            }
            Item::TableBegin { schema, begin, mark } => {
                self.begin_table(schema, begin, mark).await?;
            }
            Item::TableEnd { schema, mark } => self.end_table(schema, mark).await?,
            Item::SnapshotEnd(mark) => self.end_snapshot(mark).await?,
            Item::SnapshotCut(mark) => self.cut_snapshot(mark).await?,
            Item::SnapshotRest { snapshot, mark } => self.begin_rest(snapshot, mark).await?,
            Item::SchemaChange { table, description, place, offset } => {
                if self.continuity == Continuity::ByPlace && place == self.progress.place {
                    // It stands before what is applied, if that is in this log at all.
                    return Ok(Flow::On);
                }
                self.check_follows(place)?;
                if self.context.trial.skips.contains(&Skip::SchemaChange(place, offset)) {
                    tracing::warn!(%place, %table, "schema change skipped on command");
                    self.context.metrics.note_skip();
                } else {
                    self.rest().await?;
                    self.context.trial.suspect = None;
                    return Err(Error::SchemaChange { table, description, place, offset });
                }
            }
        }
        Ok(Flow::On)
    }

    async fn take_part(&mut self, mut part: Part) -> Result<(), Error> {
        if !part.snapshot {
            self.check_follows(part.mark.place)?;
            self.skip_if_told(&mut part);
        }
        if part.snapshot || (part.first && part.end && self.large.is_none()) {
            self.batch.add(part);
            if self.is_batch_full() {
                self.flush_and_gather().await?;
            }
            return Ok(());
        }
        self.stream(part).await
    }

    fn is_batch_full(&self) -> bool {
        let config = &self.context.config;
        self.batch.is_full(config.batch, config.held_bytes())
            || (self.context.trial.one_by_one.is_some() && self.batch.transactions() > 0)
    }

    fn skip_if_told(&mut self, part: &mut Part) {
        let place = part.mark.place;
        let told = |skip: &Skip| match skip {
            Skip::Transaction(skip) => skip.same_transaction(&place),
            Skip::SchemaChange(..) => false,
        };
        if self.context.trial.skips.iter().any(told) {
            tracing::warn!(
                position = transaction_position(place),
                rows = part.changes.len(),
                "transaction skipped on command"
            );
            part.changes.clear();
            if part.end {
                self.context.metrics.note_skip();
            }
        }
    }

    /// That nothing is missing between what is applied and `place`.
    pub(super) fn check_follows(&mut self, place: Place) -> Result<(), Error> {
        if let Some(snapshot) = self.state.given_up {
            return Err(Error::SnapshotGivenUp(snapshot));
        }
        if self.continuity == Continuity::ByPlace {
            return Err(Error::Gap { applied: self.progress.place, found: place });
        }
        Ok(())
    }

    /// In a log that is read for the first time: whether what is applied has been met, as a place
    /// of the same server.
    fn look_for_place(&mut self) -> Result<(), Error> {
        if self.continuity == Continuity::Certain || !self.intake().assembler.has_met_applied() {
            return Ok(());
        }
        if let Some(known) = &self.state.source
            && self.server.as_ref() != Some(known)
        {
            return Err(Error::OtherSource {
                applied: self.progress.place,
                known: known.clone(),
                found: self.server.clone().unwrap_or_else(|| "that it does not name".into()),
            });
        }
        tracing::info!(place = %self.progress.place, "found in this log: going on from there");
        self.continuity = Continuity::Certain;
        self.show();
        Ok(())
    }

    /// At the log's end. A log that names no place yet may still begin a snapshot, or be on its
    /// way here.
    fn check_place_was_found(&self) -> Result<(), Error> {
        let Some(intake) = &self.intake else { return Ok(()) };
        if self.continuity == Continuity::Certain || !intake.is_log_at_end() {
            return Ok(());
        }
        match intake.assembler.last_met() {
            Some(last) => Err(Error::NotInLog { applied: self.progress.place, last }),
            None => Ok(()),
        }
    }

    /// What was committed, for the numbers.
    pub(super) fn note_applied(&self, rows: usize, transactions: usize, committed_at_us: &[i64]) {
        let metrics = &self.context.metrics;
        metrics.note_commit(rows, transactions);
        if committed_at_us.is_empty() {
            return;
        }
        let now = (self.context.config.clock)();
        for at in committed_at_us {
            metrics.note_latency(now.saturating_sub(*at));
        }
        let last = committed_at_us.last().copied();
        self.context.status.send_modify(|status| status.committed_at_us = last);
    }

    /// Shows where we are.
    pub(super) fn show(&self) {
        let untouched = self.progress.place == Place::default();
        let state = match self.state.is_loading() {
            _ if self.continuity == Continuity::ByPlace => State::Starting,
            true => State::Snapshot,
            false if self.state.given_up.is_some() => State::Snapshot,
            false if untouched && !self.state.streaming => State::Starting,
            false => State::Streaming,
        };
        let place = (!untouched).then_some(self.progress.place);
        let next_offset = Some(self.progress.next_offset);
        self.context.status.send_modify(|status| {
            status.state = state;
            status.place = place;
            status.next_offset = next_offset;
            status.caught_up = false;
            status.failure = None;
        });
    }

    fn show_caught_up(&self) {
        let caught_up = self.continuity == Continuity::Certain
            && !self.owes()
            && self.intake.as_ref().is_some_and(Intake::is_at_end);
        self.context.status.send_if_modified(|status| {
            std::mem::replace(&mut status.caught_up, caught_up) != caught_up
        });
    }
}

/// Until `at` has passed.
async fn passed(at: Option<Instant>) {
    if let Some(at) = at {
        sleep_until(at).await;
    }
}

/// The intake of a session that is not flushing.
fn intake(intake: &mut Option<Intake>) -> &mut Intake {
    intake.as_mut().expect("it is away only while the session flushes beside it")
}

/// How status and commands name a transaction.
pub(super) fn transaction_position(place: Place) -> String {
    format!("{}@{}", place.epoch, place.commit)
}
