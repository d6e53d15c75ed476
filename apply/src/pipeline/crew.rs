//! Several processes share the partitions of one pipeline: `consistency = "key"`.
//!
//! Nobody shares them out. Each process takes a **seat**, a lock on the target that ends with its
//! session; there are as many as partitions. Who sees which seats are taken knows how many
//! processes there are and which of them it is, and so which partitions it is to have
//! ([`share`]): for those it waits for the lock, those of others it gives up. Views may differ for
//! a moment; the locks and the fences of the partitions decide what is applied, this only who tries.
//!
//! ```text
//!   Crew ─┬─ leader (the pipeline's lock; one of all processes applies, the others stand by)
//!         ├─ part 0 ┐
//!         ├─ part 2 ├ pipelines of one partition each (a lock, a row, a session)
//!         └─ …      ┘
//! ```
//!
//! A pause is the pipeline's, not the process's: it stands in a row of the target that everybody
//! reads, until somebody resumes.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tailwater_change::{Disposition, Place};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::apart::{Role, read, read_parts};
use super::commands::{Command, Order};
use super::hold::{STANDBY_INTERVAL, in_time};
use super::log::OnePartition;
use super::parts::{self, row_name, seat_name, share};
use super::run::Pipeline;
use super::{
    ChangeLog, CommandError, Error, Failure, PipelineConfig, PipelineHandle, SchemaSource, State,
    Status,
};
use crate::{Metrics, Progress, Target, TargetConnector};

/// How often a process looks at the others, at least.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What a look at one more partition's row costs the target: many are looked at less often.
const LOOK_EACH: Duration = Duration::from_millis(10);

/// How often a process makes sure that it reaches the log: who does not leaves its partitions to
/// those who do.
const LOG_INTERVAL: Duration = Duration::from_secs(3);

/// How long the log may take for an answer.
const LOG_PATIENCE: Duration = Duration::from_secs(5);

/// How long its own sessions may take to obey: the seat is not to be lost over it.
const OBEY_PATIENCE: Duration = Duration::from_secs(3);

/// What the row of all processes says.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Shared {
    #[serde(default)]
    paused: bool,
}

fn shared_name(pipeline: &str) -> String {
    format!("{pipeline}#crew")
}

/// The progress rows that the partitions of a pipeline have besides its own.
pub fn rows_of_partitions(pipeline: &str, partitions: usize) -> Vec<String> {
    (0..partitions).map(|partition| row_name(pipeline, partition)).collect()
}

/// This process's part in a pipeline.
pub(super) struct Crew {
    config: PipelineConfig,
    log: Arc<dyn ChangeLog>,
    schemas: Arc<dyn SchemaSource>,
    connector: Arc<dyn TargetConnector>,
    status: watch::Sender<Status>,
    metrics: Arc<Metrics>,
    commands: mpsc::Receiver<Command>,
    leader: Option<Member>,
    parts: BTreeMap<usize, Member>,
    /// Those that were told to end, too.
    tasks: JoinSet<Option<usize>>,
    ending: BTreeSet<usize>,
    paused: bool,
    /// How many the log has.
    partitions: usize,
}

/// A pipeline within.
struct Member {
    handle: PipelineHandle,
    stop: CancellationToken,
}

/// What a look at the target shows.
struct View {
    share: BTreeSet<usize>,
    paused: bool,
    parted: bool,
    loading: bool,
    place: Option<Place>,
}

impl Crew {
    pub(super) fn of(pipeline: Pipeline) -> Self {
        let Pipeline { context, commands, .. } = pipeline;
        Self {
            config: context.config,
            log: context.log,
            schemas: context.schemas.source(),
            connector: context.connector,
            status: context.status,
            metrics: context.metrics,
            commands,
            leader: None,
            parts: BTreeMap::new(),
            tasks: JoinSet::new(),
            ending: BTreeSet::new(),
            paused: false,
            partitions: 1,
        }
    }

    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let error = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                ended = self.sit() => match ended {
                    Ok(never) => match never {},
                    Err(error) => error,
                },
            };
            tracing::warn!(error = error.reason(), "this process gives up its partitions for now");
            self.show_failure(&error);
            self.end_all();
            let again = Instant::now() + STANDBY_INTERVAL;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = self.refuse_until(again, "the pipeline is retrying") => {}
            }
        }
        self.end_all();
        while self.tasks.join_next().await.is_some() {}
    }

    /// Takes a seat and does what comes with it, until something is lost.
    async fn sit(&mut self) -> Result<Infallible, Error> {
        let identity = self.log.identity().await?;
        let partitions = identity.partitions.max(1);
        self.partitions = partitions;
        let mut target = self.connector.connect().await?;
        let mine = self.take_seat(target.as_mut(), partitions).await?;
        tracing::info!(seat = mine, partitions, "sharing the partitions");
        let interval = LOOK_INTERVAL
            .max(LOOK_EACH.saturating_mul(u32::try_from(partitions).unwrap_or(u32::MAX)));
        let log = Arc::clone(&self.log);
        let mut lost = std::pin::pin!(lost(log.as_ref(), partitions));
        loop {
            let view = self.look(target.as_mut(), partitions, mine).await?;
            self.follow(&view).await;
            self.show(&view);
            let next = Instant::now() + interval;
            loop {
                tokio::select! {
                    biased;
                    error = &mut lost => return Err(error),
                    Some(command) = self.commands.recv() => {
                        self.obey(command, target.as_mut()).await?;
                    }
                    Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                        self.note_end(ended);
                    }
                    () = sleep_until(next) => break,
                }
            }
        }
    }

    async fn take_seat(&mut self, target: &mut dyn Target, seats: usize) -> Result<usize, Error> {
        loop {
            for seat in 0..seats {
                let name = seat_name(&self.config.name, seat);
                if in_time(target.try_lock(&name)).await? {
                    return Ok(seat);
                }
            }
            self.end_all();
            self.stand_by(seats);
            let again = Instant::now() + STANDBY_INTERVAL;
            self.refuse_until(again, "other processes apply all partitions of this pipeline").await;
        }
    }

    async fn look(
        &mut self,
        target: &mut dyn Target,
        partitions: usize,
        mine: usize,
    ) -> Result<View, Error> {
        let name = self.config.name.as_str();
        let seats: Vec<_> = (0..partitions).map(|seat| seat_name(name, seat)).collect();
        let held = in_time(target.held(&seats)).await?;
        let share = if partitions > 1 { share(partitions, &held, mine) } else { BTreeSet::new() };
        let shared = in_time(target.progress(&shared_name(name))).await?;
        let shared: Shared = shared
            .map(|row| serde_json::from_str(&row.state))
            .transpose()
            .map_err(|source| Error::State { pipeline: shared_name(name), source })?
            .unwrap_or_default();
        let main = read(target, name).await?;
        let mut view =
            View { share, paused: shared.paused, parted: false, loading: false, place: None };
        if let Some(main) = main {
            let rows = read_parts(target, &main).await?;
            let place = parts::place(&main, &rows);
            view.place = (place != Place::default()).then_some(place);
            view.parted = main.state.parted.is_some();
            view.loading = main.state.is_loading() || !main.state.streaming;
        }
        Ok(view)
    }

    /// Begins and ends what is applied here.
    async fn follow(&mut self, view: &View) {
        if view.paused != self.paused {
            self.paused = view.paused;
            self.tell(view.paused).await;
        }
        let gone: Vec<usize> =
            self.parts.keys().copied().filter(|part| !view.share.contains(part)).collect();
        for partition in gone {
            self.end(partition);
        }
        if self.paused {
            return;
        }
        if self.leader.is_none() {
            let member = self.spawn(Role::Leader, Arc::clone(&self.log));
            self.leader = Some(member);
        }
        for &partition in &view.share {
            if !self.parts.contains_key(&partition) && !self.ending.contains(&partition) {
                let log = OnePartition { log: Arc::clone(&self.log), partition };
                let member = self.spawn(Role::Part(partition), Arc::new(log));
                self.parts.insert(partition, member);
            }
        }
    }

    fn spawn(&mut self, role: Role, log: Arc<dyn ChangeLog>) -> Member {
        let mut config = self.config.clone();
        // The leader's half, or a part of the other: all of them may be at work at once.
        let (share, partition) = match role {
            Role::Whole | Role::Leader => (2, None),
            Role::Part(partition) => (2 * self.partitions, Some(partition)),
        };
        config.memory_bytes /= share;
        let (pipeline, handle) = Pipeline::of(
            role,
            config,
            log,
            Arc::clone(&self.schemas),
            Arc::clone(&self.connector),
            Arc::clone(&self.metrics),
        );
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        self.tasks.spawn(async move {
            pipeline.run_alone(stopped).await;
            partition
        });
        Member { handle, stop }
    }

    fn end(&mut self, partition: usize) {
        if let Some(member) = self.parts.remove(&partition) {
            member.stop.cancel();
            self.ending.insert(partition);
        }
    }

    fn end_all(&mut self) {
        if let Some(member) = self.leader.take() {
            member.stop.cancel();
        }
        let all: Vec<usize> = self.parts.keys().copied().collect();
        for partition in all {
            self.end(partition);
        }
    }

    fn note_end(&mut self, ended: Result<Option<usize>, tokio::task::JoinError>) {
        match ended {
            Ok(Some(partition)) => {
                self.ending.remove(&partition);
            }
            Ok(None) => {}
            // A bug in one of them is one of the whole, as without partitions.
            Err(error) => {
                if let Ok(panic) = error.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }

    /// Tells all of them to pause or to go on; those that do so already refuse.
    async fn tell(&self, pause: bool) {
        let members = self.parts.values().chain(&self.leader);
        let mut told = JoinSet::new();
        for member in members {
            let handle = member.handle.clone();
            told.spawn(
                async move { if pause { handle.pause().await } else { handle.resume().await } },
            );
        }
        let all = async { while told.join_next().await.is_some() {} };
        if timeout(OBEY_PATIENCE, all).await.is_err() {
            tracing::warn!(pause, "not all partitions have obeyed yet: they will");
        }
    }

    async fn obey(&mut self, command: Command, target: &mut dyn Target) -> Result<(), Error> {
        let pause = match &command.order {
            Order::Pause => true,
            Order::Resume if self.paused => false,
            Order::Resume => {
                let answer = self.ask_leader(|leader| async move { leader.resume().await }).await;
                command.answer(answer);
                return Ok(());
            }
            Order::Skip(position) => {
                let position = position.clone();
                let asked = |leader: PipelineHandle| async move { leader.skip(position).await };
                let answer = self.ask_leader(asked).await;
                command.answer(answer);
                return Ok(());
            }
        };
        self.write_shared(target, Shared { paused: pause }).await?;
        self.paused = pause;
        self.tell(pause).await;
        command.answer(Ok(()));
        Ok(())
    }

    async fn ask_leader<F>(&self, ask: impl FnOnce(PipelineHandle) -> F) -> Result<(), CommandError>
    where
        F: Future<Output = Result<(), CommandError>>,
    {
        let leader = self.leader.as_ref().ok_or(CommandError::Ended)?;
        let asked = timeout(OBEY_PATIENCE, ask(leader.handle.clone())).await;
        asked.unwrap_or_else(|_elapsed| {
            Err(CommandError::Refused("it takes long to obey: look at its status".into()))
        })
    }

    async fn write_shared(&self, target: &mut dyn Target, shared: Shared) -> Result<(), Error> {
        let pipeline = shared_name(&self.config.name);
        let text = |pipeline: &str| {
            serde_json::to_string(&shared)
                .map_err(|source| Error::State { pipeline: pipeline.to_owned(), source })
        };
        let initial = Progress {
            state: text(&pipeline)?,
            pipeline,
            cluster_id: String::new(),
            topic_id: String::new(),
            next_offset: 0,
            place: Place::default(),
            fence: 0,
        };
        let taken = target.take_over(&initial).await?;
        target.begin().await?;
        target.commit(&Progress { state: initial.state, ..taken }).await?;
        Ok(())
    }

    async fn refuse_until(&mut self, until: Instant, why: &str) {
        loop {
            tokio::select! {
                biased;
                Some(command) = self.commands.recv() => command.refuse(why),
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    self.note_end(ended);
                }
                () = sleep_until(until) => return,
            }
        }
    }

    fn stand_by(&self, seats: usize) {
        let reason = format!("{seats} other processes apply this pipeline's {seats} partitions");
        let failure = Failure::new(reason, String::new());
        self.status.send_modify(|status| {
            status.state = State::Standby;
            status.caught_up = false;
            status.partitions.clear();
            status.failure = Some(failure);
        });
    }

    fn show_failure(&self, error: &Error) {
        let is_passing = matches!(error.disposition(), Disposition::Retry | Disposition::Fenced);
        let state = if is_passing { State::Retrying } else { State::Stopped };
        let failure = Failure::new(error.reason(), error.remedy());
        self.status.send_modify(|status| {
            status.state = state;
            status.caught_up = false;
            status.partitions.clear();
            status.failure = Some(failure);
        });
    }

    /// One status of all that runs here, and of what the target says of the rest.
    fn show(&self, view: &View) {
        let leader = self.leader.as_ref().map(|leader| leader.handle.status());
        let leads = leader.as_ref().filter(|leader| leader.state != State::Standby);
        let parts: Vec<Status> = self.parts.values().map(|part| part.handle.status()).collect();
        let troubled = leads
            .into_iter()
            .chain(&parts)
            .find(|status| matches!(status.state, State::Stopped | State::Retrying));
        let state = match (troubled, leads) {
            _ if self.paused => State::Paused,
            (Some(status), _) => status.state,
            (None, Some(leader)) if !view.parted => leader.state,
            _ if view.place.is_none() => State::Starting,
            _ if view.loading => State::Snapshot,
            _ => State::Streaming,
        };
        let working: Vec<&Status> =
            if view.parted { parts.iter().collect() } else { leads.into_iter().collect() };
        let caught_up = !working.is_empty() && working.iter().all(|status| status.caught_up);
        // What lags behind the most; of all that have everything, the newest.
        let behind = working.iter().filter(|status| !status.caught_up);
        let oldest = behind.filter_map(|status| status.committed_at_us).min();
        let newest = working.iter().filter_map(|status| status.committed_at_us).max();
        self.status.send_if_modified(|status| {
            let before = status.clone();
            status.state = state;
            status.place = view.place;
            status.caught_up = caught_up;
            status.committed_at_us = oldest.or(newest).or(status.committed_at_us);
            status.partitions =
                if view.parted { self.parts.keys().copied().collect() } else { Vec::new() };
            status.failure = troubled.and_then(|status| status.failure.clone());
            *status != before
        });
    }
}

/// Waits until the log cannot be reached, or is not what it was.
async fn lost(log: &dyn ChangeLog, partitions: usize) -> Error {
    loop {
        tokio::time::sleep(LOG_INTERVAL).await;
        match timeout(LOG_PATIENCE, log.identity()).await {
            Ok(Ok(identity)) if identity.partitions.max(1) == partitions => {}
            Ok(Ok(identity)) => {
                return Error::Partitions { read: partitions, found: identity.partitions };
            }
            Ok(Err(error)) => return error,
            Err(_elapsed) => return Error::Silent(LOG_PATIENCE),
        }
    }
}
