//! Bugs of the system, planted to show that the oracles see them.

use clap::ValueEnum;
use tailwater_kafka::wire::Request;

/// What is wrong in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Plant {
    /// Batches are acknowledged before they are flushed.
    AcksBeforeFlush,
    /// The disk says that it has flushed, and has not.
    DiskLies,
    /// Followers do not say in which epoch their last record was written: what they have and their
    /// leader has not stays.
    FollowersKeepWhatDiverged,
    /// Followers say that they have one record more than they have.
    FollowersClaimMore,
    /// The target sees each step at once, not whole transactions.
    CommitsEachStep,
    /// The target's progress is written now and then, beside the rows.
    SavesProgressAside,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::AcksBeforeFlush,
        Self::DiskLies,
        Self::FollowersKeepWhatDiverged,
        Self::FollowersClaimMore,
        Self::CommitsEachStep,
        Self::SavesProgressAside,
    ];

    /// What becomes of a request on its way to a broker.
    pub(crate) fn change(self, request: &mut Request) {
        let Request::Fetch(fetch) = request else { return };
        if fetch.replica_state.replica_id < 0 {
            return;
        }
        for partition in fetch.topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
            match self {
                Self::FollowersKeepWhatDiverged => partition.last_fetched_epoch = -1,
                Self::FollowersClaimMore => partition.fetch_offset += 1,
                _ => {}
            }
        }
    }
}
