//! What is committed on the target, and what of that it can no longer lose.
//!
//! Far behind, a target need not flush each commit: a crash of its then takes back data and
//! progress together, and what it took back is read again. So the log keeps what is not flushed;
//! about once a second, and as soon as nothing more comes, all is.

use std::time::Duration;

use tailwater_change::is_far_behind;
use tailwater_kafka::Offset;
use tokio::time::Instant;

use super::Error;
use super::session::Session;
use crate::{Mark, Progress, Resume};

/// How often the target flushes at least: what a crash of its would have read again, in time.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// When nothing more has come for this long since the last batch began, it flushes at once.
pub(super) const QUIET: Duration = Duration::from_millis(100);

/// How far what is committed on the target is flushed there.
#[derive(Debug)]
pub(super) struct Safe {
    /// When it last was to the end.
    at: Instant,
    /// The offset below which all is committed, if not all of that is flushed.
    owed: Option<Offset>,
}

impl Safe {
    pub(super) fn new() -> Self {
        Self { at: Instant::now(), owed: None }
    }
}

impl Session<'_> {
    /// Commits the open transaction with the progress `mark`. `newest_us`: when the source
    /// committed the last of what it holds.
    pub(super) async fn commit(&mut self, mark: Mark, newest_us: Option<i64>) -> Result<(), Error> {
        self.state.writer = mark.writer;
        self.state.source.clone_from(&self.server);
        self.state.streaming |= !self.state.is_loading();
        let progress = Progress {
            cluster_id: self.identity.cluster_id.clone(),
            topic_id: self.identity.topic_id.clone(),
            next_offset: mark.next_offset.get(),
            place: mark.place,
            state: self.state_text()?,
            ..self.progress.clone()
        };
        let soon = self.is_far_behind(newest_us) && self.safe.at.elapsed() < FLUSH_INTERVAL;
        let is_safe = if soon {
            self.target.commit_soon(&progress).await?
        } else {
            self.target.commit(&progress).await?;
            true
        };
        self.progress = progress;
        if is_safe {
            self.note_safe(mark.next_offset);
        } else {
            self.safe.owed = Some(mark.next_offset);
        }
        let (writer, snapshot) = (mark.writer, self.state.snapshot);
        let trial = &mut self.context.trial;
        trial.passed(mark);
        trial.stands_at(mark.next_offset, Resume { applied: mark.place, writer, snapshot });
        self.show();
        Ok(())
    }

    /// The target can no longer lose what stands below `next_offset`: the log may.
    fn note_safe(&mut self, next_offset: Offset) {
        self.safe = Safe::new();
        self.group.note(next_offset);
    }

    /// The offset up to which the target is to be made to flush. A transaction that is open there
    /// will do that itself.
    pub(super) fn owed(&self) -> Option<Offset> {
        self.safe.owed.filter(|_offset| self.large.is_none())
    }

    /// Has the target flush what it has not yet.
    pub(super) async fn make_safe(&mut self) -> Result<(), Error> {
        if self.owed().is_some() { self.save().await } else { Ok(()) }
    }

    pub(super) fn is_far_behind(&self, newest_us: Option<i64>) -> bool {
        is_far_behind((self.context.config.clock)(), newest_us)
    }

    /// Commits what is to be remembered, at the place where we are, and flushes.
    pub(super) async fn save(&mut self) -> Result<(), Error> {
        let progress = Progress { state: self.state_text()?, ..self.progress.clone() };
        self.target.begin().await?;
        self.target.commit(&progress).await?;
        self.progress = progress;
        if let Some(next_offset) = self.safe.owed {
            self.note_safe(next_offset);
        }
        Ok(())
    }

    fn state_text(&self) -> Result<String, Error> {
        serde_json::to_string(&self.state)
            .map_err(|source| Error::State { pipeline: self.progress.pipeline.clone(), source })
    }
}
