//! Bugs of the system, planted to show that the oracles see them.

use clap::ValueEnum;

/// What is wrong in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Plant {
    /// Batches are acknowledged before they are flushed.
    AcksBeforeFlush,
    /// The disk says that it has flushed, and has not.
    DiskLies,
    /// Nobody checks in which epoch a follower's last record was written: what it has and its leader
    /// has not stays.
    FollowersKeepWhatDiverged,
    /// Followers say that they have one record more than they have.
    FollowersClaimMore,
    /// Followers cut their log at the high watermark that they know when another leads, as before
    /// KIP-101.
    FollowersCutAtHighWatermark,
    /// What a replica outside of the ISR has counts for the members.
    LeadersCountAnybody,
    /// What an earlier incarnation of a broker said counts for the present one, as before KIP-903.
    LeadersForgetTheFence,
    /// The target sees each step at once, not whole transactions.
    CommitsEachStep,
    /// The target's progress is written now and then, beside the rows.
    SavesProgressAside,
}
