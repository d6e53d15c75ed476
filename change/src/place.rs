//! Where a change stands in the order of its source: `(epoch, commit, ordinal)`.
//!
//! The order of places is the order of the source's commits, and of rows within one. It is never
//! a bare LSN: several rows share one, and restarting between them would lose or repeat rows.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which stream of the source a commit belongs to. Rises only when a new stream continues after
/// everything the log holds (failover, new slot, reset numbering) or with a resync.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(u32);

impl Epoch {
    /// The epoch of a source's first stream.
    pub const FIRST: Self = Self(1);

    /// The epoch with this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The epoch's number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The epoch after this one.
    ///
    /// # Panics
    /// After four thousand million failovers.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("an epoch rises by a failover, not by a row"))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The source's commit position as an ordered number of 128 bits.
///
/// PostgreSQL: the commit LSN, `file` being 0. MySQL and MariaDB: the binlog file's number and
/// the position of the transaction's first event in it, in bytes, as 64 bits (the 32 bits of an
/// event header wrap).
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Commit {
    file: u64,
    position: u64,
}

impl Commit {
    /// Before every commit.
    pub const ZERO: Self = Self { file: 0, position: 0 };

    /// A PostgreSQL commit LSN.
    pub const fn lsn(lsn: u64) -> Self {
        Self { file: 0, position: lsn }
    }

    /// The binlog file's number and the byte position in it.
    pub const fn binlog(file: u64, position: u64) -> Self {
        Self { file, position }
    }

    /// The binlog file's number; 0 on PostgreSQL.
    pub const fn file(self) -> u64 {
        self.file
    }

    /// The LSN, or the byte position within the binlog file.
    pub const fn position(self) -> u64 {
        self.position
    }
}

impl fmt::Display for Commit {
    /// As the database prints it: `0/16B3748` for an LSN, `000042:1234` for a binlog position.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.file == 0 {
            write!(f, "{:X}/{:X}", self.position >> 32, self.position & 0xFFFF_FFFF)
        } else {
            write!(f, "{:06}:{}", self.file, self.position)
        }
    }
}

/// The row's number within its transaction, from 0, counting every row the source sends, before
/// our filters.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Ordinal(u64);

impl Ordinal {
    /// A transaction's first row.
    pub const ZERO: Self = Self(0);
    /// After every row: with it, a place says "this whole transaction".
    pub const END: Self = Self(u64::MAX);

    /// The ordinal with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The ordinal's number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The ordinal after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The ordinal before this one; none before the first.
    #[must_use]
    pub const fn before(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }
}

impl fmt::Display for Ordinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::END { f.write_str("end") } else { self.0.fmt(f) }
    }
}

/// The place of one change. Compared by epoch, then commit, then ordinal.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Place {
    /// The stream.
    pub epoch: Epoch,
    /// The transaction's commit position.
    pub commit: Commit,
    /// The row within it.
    pub ordinal: Ordinal,
}

impl Place {
    /// The place of the row `ordinal` of the transaction at `(epoch, commit)`.
    pub const fn new(epoch: Epoch, commit: Commit, ordinal: Ordinal) -> Self {
        Self { epoch, commit, ordinal }
    }

    /// The place after every row of the transaction at `(epoch, commit)`.
    pub const fn end_of(epoch: Epoch, commit: Commit) -> Self {
        Self { epoch, commit, ordinal: Ordinal::END }
    }

    /// Whether both belong to the same transaction.
    pub fn same_transaction(&self, other: &Self) -> bool {
        self.epoch == other.epoch && self.commit == other.commit
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}#{}", self.epoch, self.commit, self.ordinal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_order_by_epoch_then_commit_then_ordinal() {
        let place = |e, f, p, o| Place::new(Epoch::new(e), Commit::binlog(f, p), Ordinal::new(o));
        let ordered =
            [place(1, 1, 4, 0), place(1, 1, 4, 1), place(1, 1, 900, 0), place(1, 2, 4, 0)];
        assert!(ordered.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(place(2, 0, 0, 0) > place(1, u64::MAX, u64::MAX, u64::MAX));
        assert!(Place::end_of(Epoch::new(1), Commit::binlog(1, 4)) > place(1, 1, 4, 7));
    }

    #[test]
    fn commits_print_as_the_database_prints_them() {
        assert_eq!(Commit::lsn(0x116B_3748).to_string(), "0/116B3748");
        assert_eq!(Commit::lsn(0x2_0000_0010).to_string(), "2/10");
        assert_eq!(Commit::binlog(42, 1234).to_string(), "000042:1234");
    }
}
