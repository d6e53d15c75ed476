//! What outlives a session for the sake of the next: which transaction is under suspicion, what the
//! operator has said, and where to go on.

use tailwater_change::Place;
use tailwater_kafka::Offset;

use super::batch::Suspect;
use super::lookout::{Stand, Superseded};
use crate::{Mark, Position, Resume};

/// What is known from earlier sessions about transactions that cannot be applied.
#[derive(Debug, Default)]
pub(super) struct Trial {
    /// What the session was applying when it ended.
    pub(super) suspect: Option<Suspect>,
    /// A batch failed: transactions go one by one until here, so that the one is found.
    pub(super) one_by_one: Option<Place>,
    /// What the operator has told us to leave out. Several may stand in one transaction, so each
    /// is kept until a commit has passed it.
    pub(super) skips: Vec<Skip>,
    /// Where the last session stood.
    pub(super) stand: Option<Stand>,
    /// Of a partition that is applied on its own: what it cannot apply, or something before it; the
    /// offset of the last record that it has seen, or -1.
    pub(super) waits: Option<i64>,
    /// A snapshot to go on with, whatever is before it; kept until a commit has passed its begin.
    pub(super) superseded: Option<Superseded>,
}

/// What is to be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Skip {
    /// The rows of a transaction.
    Transaction(Place),
    /// A change of a definition, and where the log says so.
    SchemaChange(Place, Offset),
}

impl Trial {
    /// A commit has passed this place.
    pub(super) fn passed(&mut self, mark: &Mark) {
        let place = mark.place;
        self.suspect = None;
        self.superseded.take_if(|snapshot| snapshot.from() < mark.next_offset);
        if self.one_by_one.is_some_and(|until| until <= place) {
            self.one_by_one = None;
        }
        self.skips.retain(|skip| match skip {
            Skip::Transaction(skip) | Skip::SchemaChange(skip, _) => *skip > place,
        });
    }

    pub(super) fn stands_at(&mut self, at: Vec<Position>, resume: Resume) {
        if let Some(stand) = &mut self.stand {
            (stand.at, stand.resume) = (at, resume);
            stand.epoch = stand.epoch.max(resume.applied.epoch);
        }
    }

    pub(super) fn met_snapshot(&mut self, snapshot: Place) {
        if let Some(stand) = &mut self.stand {
            stand.epoch = stand.epoch.max(snapshot.epoch);
        }
    }
}
