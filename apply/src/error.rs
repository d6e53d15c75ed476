//! What a target can fail with, and what happens next.

use tailwater_change::{Disposition, Problem, TableId};

/// Why a target did not do it.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The server is away, restarting, out of disk, or gave up our transaction for another
    /// (deadlock, serialization failure): roll back, reconnect if need be, read the progress,
    /// try again.
    #[error("{operation} failed")]
    Unavailable {
        /// What was being done, on what.
        operation: String,
        /// The driver's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection was lost in COMMIT: whether it took effect says the progress row, which is
    /// read again on reconnect.
    #[error("connection lost while committing: the outcome is in the progress row")]
    UnknownOutcome(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A person must change something on the server.
    #[error("{0}")]
    Refused(Problem),
    /// The target's row is not what the source's change says it was, and the policy or the change
    /// itself (columns that were not sent) does not let it be repaired.
    #[error("conflict on {table}: {detail}")]
    Conflict {
        /// The target's table.
        table: TableId,
        /// What was found, and the key.
        detail: String,
    },
    /// The progress row carries another fence: another process applies this pipeline.
    #[error("another process has taken over this pipeline (fence {ours} is no longer in force)")]
    Fenced {
        /// The fence we held.
        ours: i64,
    },
    /// Our own mistake.
    #[error("{operation}: {detail}")]
    Bug {
        /// What was being done.
        operation: String,
        /// What is wrong; no row values.
        detail: String,
    },
}

impl TargetError {
    /// What apply does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Unavailable { .. } | Self::UnknownOutcome(_) => Disposition::Retry,
            Self::Refused(_) | Self::Conflict { .. } => Disposition::Operator,
            Self::Fenced { .. } => Disposition::Fenced,
            Self::Bug { .. } => Disposition::Bug,
        }
    }

    /// `operation` failed because of `source`, which may pass.
    pub fn unavailable(
        operation: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Unavailable { operation: operation.into(), source: source.into() }
    }
}
