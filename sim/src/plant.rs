//! Bugs of the system, planted to show that the oracles see them.

use clap::ValueEnum;

/// What is wrong in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Plant {
    /// Batches are acknowledged before they are flushed.
    AcksBeforeFlush,
    /// The disk says that it has flushed, and has not.
    DiskLies,
    /// The target sees each step at once, not whole transactions.
    CommitsEachStep,
    /// The target's progress is written now and then, beside the rows.
    SavesProgressAside,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::AcksBeforeFlush, Self::DiskLies, Self::CommitsEachStep, Self::SavesProgressAside];
}
