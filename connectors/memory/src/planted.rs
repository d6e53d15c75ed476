//! Bugs of a target, planted to show that a test can see them.
//!
//! Each is one that real tools have. A contract suite or an oracle that stays green with one of
//! these in place proves nothing.

use crate::Cell;

/// What is wrong with a [`MemoryDatabase`](crate::MemoryDatabase).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// A commit does not look at the fence.
    ForgetsFence,
    /// The progress is written now and then, beside the data, as a checkpoint is.
    SavesProgressAside,
    /// A commit that a crash takes back is said to be flushed.
    ClaimsToFlush,
    /// Each step is visible at once.
    CommitsEachStep,
    /// An insert passes over rows that are there, as `LOAD DATA LOCAL` does.
    SkipsDuplicates,
    /// Spaces at the end of a text are not kept, as in a `CHAR`.
    TrimsText,
    /// A conflict is repaired although it was to stop.
    RepairsUnasked,
}

impl Planted {
    /// Whether progress is kept by the commit after `commits` others.
    pub(crate) fn saves_progress(self, commits: u64) -> bool {
        self != Self::SavesProgressAside || commits % 2 == 1
    }

    /// A row as it is stored.
    pub(crate) fn row(self, mut row: Vec<Cell>) -> Vec<Cell> {
        if self == Self::TrimsText {
            for cell in &mut row {
                if let Cell::Text(text) = cell {
                    text.truncate(text.trim_end_matches(' ').len());
                }
            }
        }
        row
    }
}
