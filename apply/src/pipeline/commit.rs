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
    /// The offsets below which all is committed, if not all of that is flushed.
    owed: Option<Vec<Offset>>,
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
        self.state.others = mark.positions().skip(1).map(Into::into).collect();
        self.state.source.clone_from(&self.server);
        self.state.streaming |= !self.state.is_loading();
        if self.state.floors.iter().all(|floor| *floor <= mark.place) {
            self.state.floors.clear();
        }
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
        let offsets = mark.positions().map(|position| position.next_offset).collect();
        if is_safe {
            self.note_safe(offsets);
        } else {
            self.safe.owed = Some(offsets);
        }
        let resume =
            Resume { applied: mark.place, writer: mark.writer, snapshot: self.state.snapshot };
        let trial = &mut self.context.trial;
        trial.passed(&mark);
        trial.stands_at(mark.positions().collect(), resume);
        self.show();
        Ok(())
    }

    /// The target can no longer lose what stands below these offsets: the log may.
    fn note_safe(&mut self, offsets: Vec<Offset>) {
        self.safe = Safe::new();
        self.group.note(offsets);
    }

    /// Whether the target is to be made to flush. A transaction that is open there will do that
    /// itself.
    pub(super) fn owes(&self) -> bool {
        self.safe.owed.is_some() && self.large.is_none()
    }

    /// Has the target flush what it has not yet.
    pub(super) async fn make_safe(&mut self) -> Result<(), Error> {
        if self.owes() { self.save().await } else { Ok(()) }
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
        if let Some(offsets) = self.safe.owed.take() {
            self.note_safe(offsets);
        }
        Ok(())
    }

    fn state_text(&self) -> Result<String, Error> {
        serde_json::to_string(&self.state)
            .map_err(|source| Error::State { pipeline: self.progress.pipeline.clone(), source })
    }
}
