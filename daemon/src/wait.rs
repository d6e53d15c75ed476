//! Waiting until a pipeline has applied what had committed on its source.

use std::time::Duration;

use tailwater_apply::{State, Status};
use tailwater_capture::{CaptureState, written_epoch};
use tailwater_change::Commit;
use tokio::time::Instant;

use crate::app::{App, PipelineRole, SourceRole};

/// How a wait ended; the command's exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Waited {
    /// 0: everything is there.
    Reached,
    /// 1: not in time.
    TimedOut(String),
    /// 2: it cannot get there.
    Cannot(String),
}

/// How often the source is asked where it is while nothing moves.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// Who stands by for longer than this does not take over soon: another process lives. Shorter, it
/// may wait for the end of its own last session, after a restart.
const STANDBY_PATIENCE: Duration = Duration::from_secs(10);

/// Waits until all that has committed on the source of `pipeline` by now is committed on its
/// target, `timeout` at most.
pub(crate) async fn wait(app: &App, pipeline: &str, timeout: Duration) -> Waited {
    let Some(role) = app.pipelines.get(pipeline) else {
        return Waited::Cannot(format!("there is no pipeline {pipeline:?} in this process"));
    };
    let Some(source) = app.sources.get(&role.source) else {
        return Waited::Cannot(format!(
            "source {:?} is captured by another process: ask that one",
            role.source
        ));
    };
    let deadline = Instant::now() + timeout;
    let goal = loop {
        match source.connector.current().await {
            Ok(goal) => break goal,
            Err(error) if Instant::now() >= deadline => {
                return Waited::TimedOut(format!("the source cannot be asked: {error}"));
            }
            Err(_) => tokio::time::sleep(PROBE_INTERVAL).await,
        }
    };
    reach(app, role, source, goal, deadline).await
}

/// Why a pipeline does nothing here, if it stands by.
pub(crate) fn standby(status: &Status) -> Option<String> {
    let why = status.failure.as_ref().map(|failure| failure.reason.clone());
    (status.state == State::Standby).then(|| elsewhere("pipeline", &status.name, why))
}

/// What a command says of a role that waits here while another process has it.
pub(crate) fn elsewhere(what: &str, name: &str, why: Option<String>) -> String {
    let why = why.unwrap_or_else(|| "another process has it".to_owned());
    format!("{what} {name:?} stands by in this process: {why}; ask that process")
}

/// Waits until `pipeline` has applied everything up to `goal`.
pub(crate) async fn reach(
    app: &App,
    role: &PipelineRole,
    source: &SourceRole,
    goal: Commit,
    deadline: Instant,
) -> Waited {
    let mut changed = role.handle.watch();
    let patient_until = Instant::now() + STANDBY_PATIENCE;
    loop {
        let status = role.handle.status();
        if applied(&status, goal) && in_epoch(app, role, source, &status).await {
            return Waited::Reached;
        }
        if let Some(why) = hopeless(role, source) {
            return Waited::Cannot(why);
        }
        let standby = standby(&status);
        if Instant::now() >= patient_until
            && let Some(why) = standby
        {
            return Waited::Cannot(why);
        }
        if Instant::now() >= deadline {
            if let Some(why) = standby {
                return Waited::TimedOut(why);
            }
            return Waited::TimedOut(format!(
                "pipeline is {} at {}, the source at {goal}",
                status.state.as_str(),
                status.place.map_or_else(|| "no place".to_owned(), |place| place.to_string()),
            ));
        }
        source.handle.probe();
        let until = deadline.min(Instant::now() + PROBE_INTERVAL);
        let _elapsed_or_changed = tokio::time::timeout_at(until, changed.changed()).await;
    }
}

fn applied(status: &Status, goal: Commit) -> bool {
    status.state == State::Streaming && status.place.is_some_and(|place| place.commit >= goal)
}

/// Whether the pipeline is in the epoch that is being written. A target that is in a later one has
/// read another log.
async fn in_epoch(app: &App, role: &PipelineRole, source: &SourceRole, status: &Status) -> bool {
    let captured = source.handle.status();
    let epoch = match captured.state {
        CaptureState::Standby => written_epoch(&app.client, &role.source).await.ok().flatten(),
        _ => captured.epoch,
    };
    epoch.is_some() && status.place.map(|place| place.epoch) == epoch
}

/// Why it will never get there without a person.
fn hopeless(role: &PipelineRole, source: &SourceRole) -> Option<String> {
    let pipeline = role.handle.status();
    let captured = source.handle.status();
    let stopped_at = pipeline.failure.as_ref().and_then(|failure| failure.epoch);
    // A snapshot that is being taken ends a stop in an epoch before it.
    let goes_on = stopped_at.is_some() && stopped_at < captured.epoch;
    if pipeline.state == State::Paused || (pipeline.state == State::Stopped && !goes_on) {
        let why = pipeline.failure.map(|failure| failure.reason).unwrap_or_default();
        return Some(format!("the pipeline is {}: {why}", pipeline.state));
    }
    if matches!(captured.state, CaptureState::Paused | CaptureState::Stopped) {
        let why = captured.error.unwrap_or_default();
        return Some(format!("the source is {}: {why}", captured.state.as_str()));
    }
    None
}
