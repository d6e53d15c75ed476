//! What outlives a session: the pipeline's state, its errors and what the operator wants.

use std::sync::Arc;
use std::time::Duration;

use tailwater_change::{Disposition, Problem, name_source};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::apart::{ASIDE_INTERVAL, Role, has_news};
use super::commands::{Command, Order};
use super::crew::Crew;
use super::hold::{STANDBY_INTERVAL, keep_lock, locked_target};
use super::lookout::{Lookout, Superseded};
use super::schemas::Schemas;
use super::session::{Context, Ending, Opened, Session, transaction_position};
use super::trial::{Skip, Trial};
use super::{
    ChangeLog, Consistency, Error, Failure, PipelineConfig, PipelineHandle, SchemaSource, State,
    Status,
};
use crate::{Metrics, Target, TargetConnector};

/// Commands waiting to be taken: people and the admin API send them, one at a time.
const COMMANDS: usize = 8;
/// The longest wait of one who is fenced and finds the lock free all the same. Whoever fences him
/// holds another lock: one of another server, to which the same URL has led. Until a person sees
/// that, they must not keep each other from all work.
const LONGEST_TRUCE: Duration = Duration::from_secs(60);
/// The first wait after an error that may pass; it doubles up to [`LONGEST_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// A server that restarts is back within seconds: waiting longer would only add to the lag.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// A pipeline from a log to a target.
pub struct Pipeline {
    pub(super) context: Context,
    pub(super) commands: mpsc::Receiver<Command>,
    /// A session that has its lock and has nothing to apply before what it waits for.
    kept: Option<Box<dyn Target>>,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").field("config", &self.context.config).finish_non_exhaustive()
    }
}

/// How long it waits next.
struct Waits {
    /// After a failure that may pass.
    retry: Duration,
    /// After it was fenced.
    truce: Duration,
}

/// Why a session is not running.
enum Halt {
    Shutdown,
    Again,
    /// With the target, whose lock is kept.
    Paused(Option<Box<dyn Target>>),
    /// With the target, whose lock is kept.
    Aside(Box<dyn Target>),
    Failed(Error),
}

impl Pipeline {
    /// A pipeline, and the handle to it.
    ///
    /// # Errors
    /// Everything that is wrong with `config`.
    pub fn new(
        config: PipelineConfig,
        log: Arc<dyn ChangeLog>,
        schemas: Arc<dyn SchemaSource>,
        connector: Arc<dyn TargetConnector>,
    ) -> Result<(Self, PipelineHandle), Vec<Problem>> {
        let problems = config.validate();
        if !problems.is_empty() {
            return Err(problems);
        }
        let metrics = Arc::new(Metrics::default());
        Ok(Self::of(Role::Whole, config, log, schemas, connector, metrics))
    }

    /// What `role` says of a pipeline.
    pub(super) fn of(
        role: Role,
        config: PipelineConfig,
        log: Arc<dyn ChangeLog>,
        schemas: Arc<dyn SchemaSource>,
        connector: Arc<dyn TargetConnector>,
        metrics: Arc<Metrics>,
    ) -> (Self, PipelineHandle) {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (status, watched) = watch::channel(Status::new(config.name.clone()));
        let handle =
            PipelineHandle { commands: sender, status: watched, metrics: Arc::clone(&metrics) };
        let context = Context {
            config,
            log,
            connector,
            schemas: Schemas::new(schemas),
            status,
            metrics,
            trial: Trial::default(),
            role,
            seen: None,
            known: Vec::new(),
        };
        (Self { context, commands, kept: None }, handle)
    }

    /// Applies until `shutdown`, through errors and restarts of everything around it. Dropping the
    /// future is safe at any time.
    pub async fn run(self, shutdown: CancellationToken) {
        if self.context.config.consistency == Consistency::Key {
            Crew::of(self).run(shutdown).await;
        } else {
            self.run_alone(shutdown).await;
        }
    }

    /// As [`run`](Self::run), what is applied here and nothing else.
    pub(super) async fn run_alone(mut self, shutdown: CancellationToken) {
        let mut waits = Waits { retry: FIRST_BACKOFF, truce: STANDBY_INTERVAL };
        loop {
            let commits = self.context.metrics.commits();
            let halt = self.attempt(&mut waits, &shutdown).await;
            if self.context.metrics.commits() > commits {
                waits.retry = FIRST_BACKOFF;
            }
            let halt = match halt {
                Halt::Aside(target) => self.stand_aside(target, &shutdown).await,
                halt => halt,
            };
            let on = match halt {
                Halt::Shutdown => false,
                Halt::Aside(_) => true,
                Halt::Again => !shutdown.is_cancelled(),
                Halt::Paused(target) => self.pause(target, &shutdown).await,
                Halt::Failed(error) => self.settle(&error, &mut waits, &shutdown).await,
            };
            if !on {
                return;
            }
        }
    }

    async fn attempt(&mut self, waits: &mut Waits, shutdown: &CancellationToken) -> Halt {
        self.context.trial.suspect = None;
        // Whoever is cut off from the log leaves the lock to those who are not.
        let reached = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Halt::Shutdown,
            reached = self.context.log.identity() => reached,
        };
        if let Err(error) = reached {
            return Halt::Failed(error);
        }
        let target = match self.kept.take() {
            Some(target) => target,
            None => {
                let locked = locked_target(&mut self.context, &mut self.commands, || {
                    waits.truce = STANDBY_INTERVAL;
                });
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return Halt::Shutdown,
                    locked = locked => match locked {
                        Ok(Some(target)) => target,
                        Ok(None) => return Halt::Paused(None),
                        Err(error) => return Halt::Failed(error),
                    },
                }
            }
        };
        let opened = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Halt::Shutdown,
            opened = Session::open(&mut self.context, target) => opened,
        };
        let mut session = match opened {
            Ok(Opened::Session(session)) => session,
            Ok(Opened::Aside(target)) => return Halt::Aside(target),
            Err(error) => return Halt::Failed(error),
        };
        let ending = session.run(shutdown, &mut self.commands).await;
        match ending {
            Ok(Ending::Shutdown) => {
                session.close().await;
                Halt::Shutdown
            }
            Ok(Ending::Paused) => Halt::Paused(Some(session.close().await)),
            Ok(Ending::Restart) => Halt::Again,
            Ok(Ending::Aside) => Halt::Aside(session.close().await),
            Err(error) => {
                session.note_failure(&error);
                Halt::Failed(error)
            }
        }
    }

    /// Keeps the lock until there is something to apply.
    async fn stand_aside(
        &mut self,
        mut target: Box<dyn Target>,
        shutdown: &CancellationToken,
    ) -> Halt {
        self.show(State::Streaming, None);
        loop {
            match has_news(&self.context, target.as_mut()).await {
                Ok(false) => {}
                Ok(true) => {
                    self.kept = Some(target);
                    return Halt::Again;
                }
                Err(error) => return Halt::Failed(error),
            }
            let command = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Halt::Shutdown,
                Some(command) = self.commands.recv() => command,
                () = tokio::time::sleep(ASIDE_INTERVAL) => continue,
            };
            match command.order {
                Order::Pause => {
                    command.answer(Ok(()));
                    return Halt::Paused(Some(target));
                }
                Order::Resume | Order::Skip(_) => {
                    command.refuse("the pipeline is running: nothing keeps it from going on");
                }
            }
        }
    }

    /// Waits until told to go on; `false`: shutdown. Meanwhile the target is kept for its lock.
    async fn pause(
        &mut self,
        target: Option<Box<dyn Target>>,
        shutdown: &CancellationToken,
    ) -> bool {
        self.show(State::Paused, None);
        let connector = Arc::clone(&self.context.connector);
        let name = self.context.row_name();
        let mut kept = std::pin::pin!(keep_lock(target, connector.as_ref(), &name));
        loop {
            let command = tokio::select! {
                biased;
                () = shutdown.cancelled() => return false,
                Some(command) = self.commands.recv() => command,
                never = &mut kept => match never {},
                else => return false,
            };
            match command.order {
                Order::Pause => command.answer(Ok(())),
                Order::Resume => {
                    self.show(State::Starting, None);
                    command.answer(Ok(()));
                    return true;
                }
                Order::Skip(_) => command.refuse("the pipeline is paused, not stopped"),
            }
        }
    }

    /// Decides what follows an error; `false`: shutdown.
    async fn settle(
        &mut self,
        error: &Error,
        waits: &mut Waits,
        shutdown: &CancellationToken,
    ) -> bool {
        match error.disposition() {
            Disposition::Retry => self.retry(error, &mut waits.retry, shutdown).await,
            // It was called in: nothing is wrong.
            Disposition::Fenced if self.context.role.is_part() => {
                sleep(ASIDE_INTERVAL, shutdown).await
            }
            // Together with the others it may be applied, or somebody is told.
            Disposition::Operator | Disposition::Bug if self.context.role.is_part() => {
                self.context.trial.waits.get_or_insert(-1);
                self.retry(error, &mut waits.retry, shutdown).await
            }
            Disposition::Fenced => {
                tracing::warn!(error = error.reason(), "standing by");
                self.show(State::Standby, None);
                let truce = waits.truce;
                waits.truce = (truce * 2).min(LONGEST_TRUCE);
                sleep(truce, shutdown).await
            }
            Disposition::Operator | Disposition::Bug => {
                if self.narrow_down() {
                    return true;
                }
                self.stop(error, shutdown).await
            }
        }
    }

    /// A batch of several transactions failed: next time they go one by one.
    fn narrow_down(&mut self) -> bool {
        let trial = &mut self.context.trial;
        match trial.suspect.take() {
            Some(suspect) if suspect.transactions > 1 => {
                trial.one_by_one = Some(suspect.last);
                true
            }
            suspect => {
                trial.suspect = suspect;
                false
            }
        }
    }

    async fn retry(
        &mut self,
        error: &Error,
        backoff: &mut Duration,
        shutdown: &CancellationToken,
    ) -> bool {
        tracing::warn!(error = error.reason(), retry_in = ?backoff, "trying again");
        self.context.metrics.note_retry();
        let remedy = self.remedy(error);
        let failure = Failure::new(error.reason(), remedy);
        self.show(State::Retrying, Some(failure));
        let until = tokio::time::Instant::now() + *backoff;
        *backoff = (*backoff * 2).min(LONGEST_BACKOFF);
        loop {
            let command = tokio::select! {
                biased;
                () = shutdown.cancelled() => return false,
                Some(command) = self.commands.recv() => command,
                () = tokio::time::sleep_until(until) => return true,
            };
            match command.order {
                Order::Pause => {
                    command.answer(Ok(()));
                    return self.pause(None, shutdown).await;
                }
                Order::Resume => {
                    command.answer(Ok(()));
                    return true;
                }
                Order::Skip(_) => {
                    command.refuse("the pipeline is retrying what may pass by itself");
                }
            }
        }
    }

    /// What a person can do, with the name of our source.
    fn remedy(&self, error: &Error) -> String {
        name_source(&error.remedy(), &self.context.config.source)
    }

    /// Waits for a person, or for a snapshot that replaces what the pipeline stopped at; `false`:
    /// shutdown.
    async fn stop(&mut self, error: &Error, shutdown: &CancellationToken) -> bool {
        let skip = self.what_to_skip(error);
        let position = skip.map(|skip| match skip {
            Skip::Transaction(place) => transaction_position(place),
            Skip::SchemaChange(place, _) => place.to_string(),
        });
        let remedy = self.remedy(error);
        tracing::error!(error = error.reason(), remedy, position, "the pipeline has stopped");
        let stand = self.context.trial.stand.clone();
        let epoch = stand.as_ref().map(|stand| stand.epoch);
        let failure = Failure { reason: error.reason(), position: position.clone(), remedy, epoch };
        self.show(State::Stopped, Some(failure));
        let mut lookout =
            stand.map(|stand| Lookout::new(&self.context.log, &self.context.config, stand));
        loop {
            let command = tokio::select! {
                biased;
                () = shutdown.cancelled() => return false,
                Some(command) = self.commands.recv() => command,
                found = look_out(&mut lookout, &mut self.context.schemas) => {
                    self.context.trial.suspect = None;
                    self.context.trial.superseded = Some(found);
                    self.show(State::Starting, None);
                    return true;
                }
            };
            match &command.order {
                Order::Pause => {
                    command.answer(Ok(()));
                    return self.pause(None, shutdown).await;
                }
                Order::Skip(wanted) if position.as_ref() != Some(wanted) => {
                    command.refuse(&match &position {
                        Some(position) => format!("the pipeline has stopped at {position}"),
                        None => "what stopped the pipeline cannot be skipped".into(),
                    });
                    continue;
                }
                Order::Skip(_) => self.context.trial.skips.extend(skip),
                Order::Resume => {}
            }
            self.context.trial.suspect = None;
            self.show(State::Starting, None);
            command.answer(Ok(()));
            return true;
        }
    }

    fn what_to_skip(&self, error: &Error) -> Option<Skip> {
        match error {
            Error::SchemaChange { place, offset, .. } => Some(Skip::SchemaChange(*place, *offset)),
            Error::Target(_) => {
                let suspect = self.context.trial.suspect.filter(|suspect| suspect.transactions > 0);
                suspect.map(|suspect| Skip::Transaction(suspect.first))
            }
            _ => None,
        }
    }

    fn show(&self, state: State, failure: Option<Failure>) {
        self.context.status.send_modify(|status| {
            status.state = state;
            status.caught_up = false;
            if failure.is_some() {
                status.failure = failure;
            }
        });
    }
}

async fn look_out(lookout: &mut Option<Lookout>, schemas: &mut Schemas) -> Superseded {
    match lookout {
        Some(lookout) => lookout.found(schemas).await,
        None => std::future::pending().await,
    }
}

/// `false`: shutdown.
async fn sleep(time: Duration, shutdown: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = shutdown.cancelled() => false,
        () = tokio::time::sleep(time) => true,
    }
}
