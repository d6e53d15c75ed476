//! What a source can fail with, and what happens next.

use tailwater_change::{Disposition, Problem};

/// Why a source cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The server is away, restarting or overloaded: it may come back.
    #[error("{operation} failed")]
    Unavailable {
        /// What was being done, on what.
        operation: String,
        /// The driver's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something on the server must be changed by a person: a setting, a privilege, a table.
    #[error("{0}")]
    Refused(Problem),
    /// The source no longer has what the log still lacks.
    #[error("cannot continue after {after}: {problem}")]
    PositionLost {
        /// What the log holds.
        after: String,
        /// What is missing and how to repair it.
        problem: Problem,
    },
    /// Another capture process reads this source.
    #[error("{0} is in use by another process")]
    InUse(String),
    /// The server sent what its protocol does not allow, or what we do not understand. Going on
    /// could lose a row.
    #[error("{operation}: {detail}")]
    Protocol {
        /// What was being decoded.
        operation: String,
        /// What was wrong with it; no row values.
        detail: String,
    },
}

impl SourceError {
    /// What capture does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Unavailable { .. } | Self::InUse(_) => Disposition::Retry,
            Self::Refused(_) | Self::PositionLost { .. } => Disposition::Operator,
            Self::Protocol { .. } => Disposition::Bug,
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
