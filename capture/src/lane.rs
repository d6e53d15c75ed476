//! One partition of the changes topic, as its writer sees it.

use tailwater_change::Place;
use tailwater_kafka::PartitionHandle;

/// What is in the partition, and what waits to be.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) to: PartitionHandle,
    /// Rows at or below this are in it already.
    pub(crate) held: Option<Place>,
    pub(crate) pending: Pending,
    /// Rows of the open transaction that are in it, by this writer or the one before it.
    pub(crate) rows: u64,
    /// Up to where this writer has told it everything.
    told: Place,
    told_at_ms: i64,
}

/// The row that waits for what follows it.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) there: bool,
    pub(crate) key: Vec<u8>,
    pub(crate) has_key: bool,
    pub(crate) value: Vec<u8>,
}

impl Lane {
    pub(crate) fn new(to: PartitionHandle, held: Option<Place>, now_ms: i64) -> Self {
        Self {
            to,
            held,
            pending: Pending::default(),
            rows: 0,
            told: Place::default(),
            told_at_ms: now_ms,
        }
    }

    pub(crate) fn holds(&self, place: Place) -> bool {
        self.held.is_some_and(|held| place <= held)
    }

    /// Whether a reader of the partition knows that there is nothing more for him up to `place`.
    pub(crate) fn knows(&self, place: Place) -> bool {
        self.told >= place || self.holds(place)
    }

    /// A record says where the partition is.
    pub(crate) fn tell(&mut self, place: Place, now_ms: i64) {
        self.told = self.told.max(place);
        self.told_at_ms = now_ms;
    }

    /// How long nothing was told, in milliseconds.
    pub(crate) fn silent_ms(&self, now_ms: i64) -> i64 {
        now_ms.saturating_sub(self.told_at_ms)
    }
}
