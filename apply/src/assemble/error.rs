//! A log that cannot be read: never skipped, since a row would be lost.

use tailwater_change::{ChunkError, DecodeError, FrameError, Place};
use tailwater_kafka::{BatchError, Offset};

/// Why a partition cannot be read beyond a record.
#[derive(Debug, thiserror::Error)]
#[error("record at offset {offset}{}: {problem}", of_partition(*partition))]
pub struct AssembleError {
    /// Which, if there are several.
    pub partition: Option<usize>,
    /// The record.
    pub offset: Offset,
    /// What is wrong with it.
    #[source]
    pub problem: AssembleProblem,
}

fn of_partition(partition: Option<usize>) -> String {
    partition.map_or_else(String::new, |partition| format!(" of partition {partition}"))
}

impl AssembleError {
    pub(super) fn new(offset: Offset, problem: AssembleProblem) -> Self {
        Self { partition: None, offset, problem }
    }

    pub(super) fn of(self, partition: usize) -> Self {
        Self { partition: Some(partition), ..self }
    }
}

/// What is wrong with a record.
#[derive(Debug, thiserror::Error)]
pub enum AssembleProblem {
    /// The batch it is in is damaged.
    #[error("damaged record batch")]
    Batch(#[source] BatchError),
    /// A record without a value: nothing of ours.
    #[error("a record without a value was not written by capture")]
    NoValue,
    /// Not framed as ours.
    #[error("not written by capture")]
    Frame(#[source] FrameError),
    /// Framed as ours, but not a message of ours.
    #[error("the message cannot be read")]
    Decode(#[source] DecodeError),
    /// A row larger than memory allows.
    #[error("a row is too large")]
    Chunk(#[source] ChunkError),
    /// A chunked record that is itself a chunk.
    #[error("a chunk within a chunk")]
    NestedChunk,
    /// A place behind an unfinished transaction, which no source gives.
    #[error("place {found} stands after {open}, which is later and unfinished")]
    OutOfOrder {
        /// The unfinished transaction.
        open: Place,
        /// The record's.
        found: Place,
    },
    /// A snapshot's row or table outside of a snapshot.
    #[error("a row of a snapshot at {0} that has not begun")]
    NoSnapshot(Place),
    /// Two snapshots at one place: their rows cannot be told apart.
    #[error("a second snapshot begins at {0}")]
    SnapshotAgain(Place),
    /// A marker that every partition has, and that one of them has not.
    #[error(
        "the marker at {place} is missing in partition {partition}, which its writer has written on"
    )]
    Unmatched {
        /// The marker's.
        place: Place,
        /// The partition that lacks it.
        partition: usize,
    },
    /// A TRUNCATE that one partition has been applied beyond.
    #[error(
        "the TRUNCATE at {place} is missing in partition {partition}, of which more is applied: \
         an older version has written this log"
    )]
    Overtaken {
        /// The row's.
        place: Place,
        /// The partition that lacks it.
        partition: usize,
    },
    /// An image that the operation needs is missing.
    #[error("a {operation} without its {image} image")]
    NoImage {
        /// The operation.
        operation: &'static str,
        /// What is missing.
        image: &'static str,
    },
}
