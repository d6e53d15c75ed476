//! A first snapshot that broke off goes on: what of it is complete in the log is not read again.
//!
//! ```text
//!   read at P0: T1 T2 T3…  ✗   cut ─► stream through P1, rows of T1 T2 ─► rest: T3 T4 at P1 ─► stream
//! ```
//!
//! The first part was read at the consistent point P0, and the stream after it is still to be had.
//! What is missing is read at a point P1 of its own; up to there the finished tables are brought by
//! the stream, whose rows of the others are left out: as they were at P1, those tables have them. So
//! at the rest's end every table is at P1, as if all had been read there. It may break off again,
//! anywhere: the next attempt finds its place in the log's tail, and the finished tables in the
//! state. If nothing was finished, or the source cannot go on, everything is read again under
//! another epoch.
//!
//! A source on which nothing happened may give P1 = P0. The snapshot in the log is then still the
//! same: its rows are numbered on, and nothing is cut.

use tailwater_change::{Epoch, Place, TableId};
use tokio_util::sync::CancellationToken;

use crate::capture::{Capture, Position, confirmable, held, still_the_same};
use crate::error::Error;
use crate::session::{Why, unless_told};
use crate::state::{Phase, State};
use crate::status::CaptureState;
use crate::tail::Tail;
use crate::take_over::TakenOver;
use crate::writer::Limit;
use crate::{Rest, Resume, Snapshot, SourceError};

/// A snapshot that can go on.
#[derive(Debug)]
pub(crate) struct BrokenOff {
    epoch: Epoch,
    /// Whether the log ends inside it; else behind a cut.
    inside: bool,
    /// Where the log ends: the place of the next row if `inside`.
    place: Place,
    /// Whether the transaction there has its end.
    whole: bool,
    /// From where its finished tables follow the stream.
    resume: Resume,
    finished: Vec<TableId>,
}

impl BrokenOff {
    /// `None`: nothing of it is complete.
    pub(crate) fn of(state: &State, tail: Tail) -> Option<Self> {
        let (place, whole, inside) = match tail {
            Tail::Snapshot { next } => (next, true, true),
            Tail::At { place, whole } => (place, whole, false),
            Tail::Unknown | Tail::Loaded { .. } => return None,
        };
        if state.finished.is_empty() || place.epoch != state.epoch {
            return None;
        }
        Some(Self {
            epoch: state.epoch,
            inside,
            place,
            whole,
            resume: Resume {
                after: place.commit,
                again: !whole,
                state: state.source_state.clone(),
            },
            finished: state.finished.clone(),
        })
    }

    /// What the log has of it and of the stream behind it.
    fn held(&self) -> Place {
        held((self.place, self.whole))
    }

    /// Whether this is the rest of it. A point before what the log holds would be one of a server
    /// that lost what it had.
    fn is_continued_by(&self, rest: &dyn Snapshot) -> bool {
        rest.commit() > self.place.commit || self.is_at(rest)
    }

    /// Whether nothing has happened on the source since.
    fn is_at(&self, rest: &dyn Snapshot) -> bool {
        self.inside && rest.commit() == self.place.commit
    }
}

impl Capture {
    /// Reads what `broken` lacks, and streams.
    pub(crate) async fn rest_of_snapshot(
        &self,
        taken: TakenOver,
        broken: BrokenOff,
        shutdown: &CancellationToken,
    ) -> Result<Why, Error> {
        self.handle.set(CaptureState::Snapshot, None);
        self.handle.kept(broken.finished.len());
        self.handle.writes(broken.epoch);
        let taking = self.connector.snapshot_rest(&broken.resume, &broken.finished);
        let rest = match unless_told(&self.handle, shutdown, taking).await {
            Ok(rest) => rest,
            Err(why) => return Ok(why),
        };
        let void = match rest {
            Ok(Rest::Snapshot(rest)) if broken.is_continued_by(&*rest) => {
                return self.go_on(taken, broken, rest, shutdown).await;
            }
            Ok(Rest::Snapshot(rest)) => {
                format!("the source is at {}, before what the log holds", rest.commit())
            }
            Ok(Rest::Void(why)) => why,
            Err(SourceError::PositionLost { problem, .. }) => problem.what,
            Err(error) => return Err(error.into()),
        };
        // Nothing is lost by it but time, and no person could do better.
        tracing::warn!(
            source = self.config.source,
            tables = broken.finished.len(),
            why = void,
            "the snapshot that broke off cannot go on: it begins anew"
        );
        self.snapshot(taken, broken.epoch.next(), None, shutdown).await
    }

    async fn go_on(
        &self,
        mut taken: TakenOver,
        broken: BrokenOff,
        mut rest: Box<dyn Snapshot>,
        shutdown: &CancellationToken,
    ) -> Result<Why, Error> {
        let (epoch, through) = (broken.epoch, rest.commit());
        let connector = (rest.server(), rest.state());
        still_the_same(&taken.server, &connector.0)?;
        let position = Position { epoch, place: broken.place, whole: broken.whole };
        let finished = &broken.finished;
        let state =
            self.write_state(&mut taken, Phase::Snapshot, &connector, position, finished).await?;
        tracing::info!(
            source = self.config.source,
            tables = finished.len(),
            at = %broken.place,
            point = %through,
            "the snapshot that broke off goes on"
        );
        let same = broken.is_at(&*rest);
        let (mut session, taken) = self.session(taken, epoch, !same);
        session.keep(state);
        if same {
            session.writer().snapshot_again(broken.place)?;
        } else {
            if broken.inside {
                session.writer().snapshot_cut(broken.place.commit).await?;
            }
            session.held(confirmable(broken.held()));
            let mut stream = self.connector.stream(Some(&broken.resume)).await?;
            still_the_same(&connector.0, &stream.server())?;
            let limit = Limit { through, tables: finished.iter().cloned().collect() };
            let ended = session.catch_up(stream.as_mut(), epoch, limit, shutdown).await?;
            if let Some(why) = ended {
                return Ok(why);
            }
            drop(stream);
            session.writer().snapshot_rest(through).await?;
        }
        if let Some(why) = session.snapshot(rest.as_mut(), shutdown).await? {
            return Ok(why);
        }
        self.loaded(session, taken, rest, epoch, shutdown).await
    }
}
