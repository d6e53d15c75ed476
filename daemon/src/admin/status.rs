//! The status, in the shape that `status --json` promises.

use serde::{Deserialize, Serialize};
use tailwater_apply::Status as Applied;
use tailwater_capture::CaptureStatus;
use tailwater_change::RoleState;

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
    /// Those that this process applies on their own: `consistency = "key"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) partitions: Vec<usize>,
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
    let lag = status.lag_bytes;
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

fn pipeline(
    name: &str,
    role: &PipelineRole,
    source: Option<&SourceRole>,
    now_ms: i64,
) -> PipelineStatus {
    let status = role.handle.status();
    PipelineStatus {
        name: name.to_owned(),
        source: role.source.clone(),
        target: role.target.clone(),
        state: status.state.as_str().to_owned(),
        position: status.place.map(|place| place.to_string()),
        lag_seconds: lag_seconds(role, source, now_ms),
        rows_applied: role.handle.metrics().snapshot().rows,
        error: status.failure.as_ref().map(failure_text),
        partitions: status.partitions,
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

/// For how long a source's word that there is nothing more is taken for news: it is asked every
/// second, and may take a while to answer.
const FRESH_MS: i64 = 5_000;

/// How old what the target has is: 0 while it has all that the source has, as the source says
/// itself; else the time since the newest transaction on the target committed on the source, or
/// since the target was last known to have everything. `None`: neither is known.
pub(crate) fn lag_seconds(
    role: &PipelineRole,
    source: Option<&SourceRole>,
    now_ms: i64,
) -> Option<f64> {
    let captured = source.map(|source| source.handle.status());
    // Who stands by knows nothing of the source.
    let captured = captured.filter(|captured| captured.state != RoleState::Standby);
    lag(&role.handle.status(), captured.as_ref(), now_ms)
}

fn lag(applied: &Applied, captured: Option<&CaptureStatus>, now_ms: i64) -> Option<f64> {
    let committed_at_ms = applied.committed_at_us.map(|us| us / 1_000);
    let as_of_ms = match captured {
        // Of a source that another process captures, the log is all we see.
        None if applied.caught_up => return Some(0.0),
        None => committed_at_ms,
        Some(captured) => {
            let has_all =
                applied.caught_up || (captured.place.is_some() && captured.place <= applied.place);
            let current_at_ms = captured.current_at_ms.filter(|_| has_all);
            let fresh = current_at_ms.is_some_and(|at| now_ms - at <= FRESH_MS);
            if captured.lag_bytes == Some(0) && fresh {
                return Some(0.0);
            }
            committed_at_ms.max(current_at_ms)
        }
    }?;
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of lag fit 52 bits")]
    Some((now_ms - as_of_ms).max(0) as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use tailwater_apply::State;
    use tailwater_change::{Commit, Epoch, Place};

    use super::*;

    fn captured(lag_bytes: Option<u64>, current_at_ms: Option<i64>) -> CaptureStatus {
        let place = Some(Place::end_of(Epoch::FIRST, Commit::lsn(100)));
        CaptureStatus { place, lag_bytes, current_at_ms, ..CaptureStatus::default() }
    }

    fn applied(commit: u64, caught_up: bool) -> Applied {
        Applied {
            name: "p".into(),
            state: State::Streaming,
            place: Some(Place::end_of(Epoch::FIRST, Commit::lsn(commit))),
            next_offset: Some(1),
            committed_at_us: Some(20_000_000),
            caught_up,
            partitions: Vec::new(),
            failure: None,
        }
    }

    #[test]
    fn a_lag_is_0_only_while_the_source_has_nothing_more() {
        let now_ms = 60_000;
        let check = |applied: &Applied, captured: &CaptureStatus, expected: Option<f64>| {
            assert_eq!(lag(applied, Some(captured), now_ms), expected);
        };
        let (all, half) = (applied(100, true), applied(90, false));
        check(&all, &captured(Some(0), Some(59_500)), Some(0.0));
        // Capture has not read it yet, or does not know.
        check(&all, &captured(Some(7), Some(58_000)), Some(2.0));
        check(&all, &captured(None, Some(50_000)), Some(10.0));
        check(&all, &captured(None, None), Some(40.0));
        // The source has not answered for long.
        check(&all, &captured(Some(0), Some(30_000)), Some(30.0));
        // In our log, not on the target.
        check(&half, &captured(Some(0), Some(59_500)), Some(40.0));
        let unknown = Applied { committed_at_us: None, ..applied(100, true) };
        check(&unknown, &captured(Some(7), None), None);
        assert_eq!(lag(&all, None, now_ms), Some(0.0));
        assert_eq!(lag(&half, None, now_ms), Some(40.0));
    }
}
