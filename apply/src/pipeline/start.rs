//! Where a session begins to read: behind its progress, where the log is the one it was read from;
//! else at the place, which that log has to show.

use tailwater_change::Place;
use tailwater_kafka::Offset;

use super::lookout::Superseded;
use super::state::SavedState;
use super::{Error, LogIdentity};
use crate::{Position, Progress, Resume};

/// What the first thing read has to show, so that nothing is missing between the progress and it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Continuity {
    /// Read by offset from the same log, or shown.
    Certain,
    /// The log must have the transaction up to which all is applied, or begin a snapshot beyond
    /// it. Older ones show nothing: a log that began anew, of a source whose positions went back,
    /// has such places too, and all of it would be taken for applied.
    ByPlace,
}

/// Where reading begins.
pub(super) struct Start {
    /// By the partition's number.
    pub(super) at: Vec<Position>,
    pub(super) resume: Resume,
    /// Whom the writer there reads.
    pub(super) server: Option<String>,
    pub(super) continuity: Continuity,
}

impl Start {
    pub(super) fn of(
        progress: &Progress,
        state: &SavedState,
        identity: &LogIdentity,
        log_start: &[Offset],
    ) -> Result<Self, Error> {
        let same =
            progress.cluster_id == identity.cluster_id && progress.topic_id == identity.topic_id;
        let untouched = progress.place == Place::default() && *state == SavedState::default();
        let from_start = |applied| Self {
            at: unread(log_start),
            resume: Resume { applied, writer: None, snapshot: None },
            server: None,
            continuity: Continuity::ByPlace,
        };
        if untouched {
            let mut start = from_start(progress.place);
            if log_start.iter().all(|start| *start == Offset::ZERO) {
                start.continuity = Continuity::Certain;
            }
            return Ok(start);
        }
        if !same {
            tracing::warn!(
                place = %progress.place,
                "another log than the one this pipeline has read: looking for the place in it"
            );
            return Ok(from_start(progress.place));
        }
        let next_offset = Offset::new(progress.next_offset);
        let mut at = vec![Position { next_offset, writer: state.writer }];
        at.extend(state.others.iter().map(|other| Position::from(*other)));
        if at.len() != log_start.len() {
            return Err(Error::Partitions { read: at.len(), found: log_start.len() });
        }
        for (position, &log_start) in at.iter().zip(log_start) {
            if position.next_offset < log_start {
                return Err(Error::OffsetOutOfRange { wanted: position.next_offset, log_start });
            }
        }
        Ok(Self {
            at,
            resume: Resume {
                applied: progress.place,
                writer: state.writer,
                snapshot: state.snapshot,
            },
            server: state.source.clone(),
            continuity: Continuity::Certain,
        })
    }

    /// At a snapshot that replaces what is before it.
    pub(super) fn at(snapshot: &Superseded, progress: &Progress, state: &SavedState) -> Self {
        tracing::info!(
            snapshot = %snapshot.snapshot,
            applied = %progress.place,
            "going on with a later snapshot"
        );
        Self {
            at: snapshot.at.clone(),
            resume: Resume {
                applied: progress.place,
                writer: snapshot.at.first().and_then(|first| first.writer),
                snapshot: state.snapshot,
            },
            server: snapshot.server.clone(),
            continuity: Continuity::Certain,
        }
    }
}

/// Partitions of which nothing is known.
pub(super) fn unread(starts: &[Offset]) -> Vec<Position> {
    starts.iter().map(|&next_offset| Position { next_offset, writer: None }).collect()
}
