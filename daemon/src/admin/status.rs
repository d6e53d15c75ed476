//! The status, in the shape that `status --json` promises.

use serde::{Deserialize, Serialize};
use tailwater_change::Commit;

use crate::app::{App, PipelineRole, SourceRole};

/// Everything that runs in the process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) sources: Vec<SourceStatus>,
    pub(crate) pipelines: Vec<PipelineStatus>,
}

/// One source.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SourceStatus {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) position: Option<String>,
    pub(crate) lag_bytes: Option<u64>,
    pub(crate) error: Option<String>,
}

/// One pipeline.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PipelineStatus {
    pub(crate) name: String,
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) state: String,
    pub(crate) position: Option<String>,
    pub(crate) lag_seconds: Option<f64>,
    pub(crate) rows_applied: u64,
    pub(crate) error: Option<String>,
}

impl Status {
    /// The roles that do not run yet, or not any more.
    pub(crate) fn not_running(&self) -> Vec<String> {
        let runs = |state: &str| matches!(state, "snapshot" | "streaming" | "standby" | "paused");
        let sources = self.sources.iter().filter(|source| !runs(&source.state));
        let pipelines = self.pipelines.iter().filter(|pipeline| !runs(&pipeline.state));
        sources
            .map(|source| format!("source {} ({})", source.name, source.state))
            .chain(
                pipelines
                    .map(|pipeline| format!("pipeline {} ({})", pipeline.name, pipeline.state)),
            )
            .collect()
    }
}

/// The status now.
pub(crate) fn status(app: &App) -> Status {
    let now_ms = (app.clock)();
    Status {
        sources: app.sources.iter().map(|(name, role)| source(name, role)).collect(),
        pipelines: app
            .pipelines
            .iter()
            .map(|(name, role)| pipeline(name, role, app.sources.get(&role.source), now_ms))
            .collect(),
    }
}

fn source(name: &str, role: &SourceRole) -> SourceStatus {
    let status = role.handle.status();
    let lag = lag_bytes(status.place.map(|place| place.commit), status.seen);
    let alarm = lag.zip(role.max_lag).filter(|(lag, limit)| lag > limit).map(|(lag, limit)| {
        format!(
            "a lag of {lag} bytes is above max_slot_lag ({limit}): the source keeps its log for us"
        )
    });
    SourceStatus {
        name: name.to_owned(),
        state: status.state.as_str().to_owned(),
        position: status.place.map(|place| place.commit.to_string()),
        lag_bytes: lag,
        error: status.error.or(alarm),
    }
}

/// Bytes of the source's log between what ours holds and what the source has told of. Across two
/// binlog files the first one's size is not known, so only the bytes in the newer one count.
pub(crate) fn lag_bytes(held: Option<Commit>, seen: Option<Commit>) -> Option<u64> {
    let held = held?;
    let seen = seen.unwrap_or(held).max(held);
    Some(if seen.file() == held.file() {
        seen.position() - held.position()
    } else {
        seen.position()
    })
}

fn pipeline(
    name: &str,
    role: &PipelineRole,
    source: Option<&SourceRole>,
    now_ms: i64,
) -> PipelineStatus {
    let status = role.handle.status();
    let caught_up = source.is_some_and(|source| {
        let captured = source.handle.status();
        captured.place.is_some() && captured.place <= status.place
    });
    PipelineStatus {
        name: name.to_owned(),
        source: role.source.clone(),
        target: role.target.clone(),
        state: status.state.as_str().to_owned(),
        position: status.place.map(|place| place.to_string()),
        lag_seconds: lag_seconds(&role.handle, caught_up, now_ms),
        rows_applied: role.handle.metrics().snapshot().rows,
        error: status.failure.as_ref().map(failure_text),
    }
}

/// The reason, where to skip, and the remedy, on one line.
fn failure_text(failure: &tailwater_apply::Failure) -> String {
    let mut text = failure.reason.clone();
    if let Some(position) = &failure.position {
        text.push_str(&format!(" (at {position})"));
    }
    if !failure.remedy.is_empty() {
        text.push_str("; ");
        text.push_str(&failure.remedy);
    }
    text
}

/// How long ago the newest applied transaction committed on the source; 0 when caught up, since
/// the age of the last change of an idle source is no lag.
pub(crate) fn lag_seconds(
    handle: &tailwater_apply::PipelineHandle,
    caught_up: bool,
    now_ms: i64,
) -> Option<f64> {
    let status = handle.status();
    if caught_up || status.caught_up {
        return Some(0.0);
    }
    let committed_at_ms = status.committed_at_us? / 1_000;
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of lag fit 52 bits")]
    Some((now_ms - committed_at_ms).max(0) as f64 / 1_000.0)
}
