//! One partition of the changes topic, as its writer sees it.

use tailwater_change::Place;
use tailwater_kafka::PartitionHandle;

/// What is in the partition, and what waits to be.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) to: PartitionHandle,
    /// Rows at or below this are in it already.
    pub(super) held: Option<Place>,
    pub(super) pending: Pending,
    /// Rows of the open transaction that are in it, by this writer or the one before it.
    pub(super) rows: u64,
    /// Up to where this writer has told it everything.
    told: Place,
    told_at_ms: i64,
}

/// The row that waits for what follows it.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) there: bool,
    pub(super) key: Vec<u8>,
    pub(super) has_key: bool,
    pub(super) value: Vec<u8>,
}

impl Lane {
    pub(super) fn new(to: PartitionHandle, held: Option<Place>, now_ms: i64) -> Self {
        Self {
            to,
            held,
            pending: Pending::default(),
            rows: 0,
            told: Place::default(),
            told_at_ms: now_ms,
        }
    }

    pub(super) fn holds(&self, place: Place) -> bool {
        self.held.is_some_and(|held| place <= held)
    }

    /// Whether a reader of the partition knows that there is nothing more for him up to `place`.
    pub(super) fn knows(&self, place: Place) -> bool {
        self.told >= place || self.holds(place)
    }

    /// A record says where the partition is.
    pub(super) fn tell(&mut self, place: Place, now_ms: i64) {
        self.told = self.told.max(place);
        self.told_at_ms = now_ms;
    }

    /// How long nothing was told, in milliseconds.
    pub(super) fn silent_ms(&self, now_ms: i64) -> i64 {
        now_ms.saturating_sub(self.told_at_ms)
    }
}
