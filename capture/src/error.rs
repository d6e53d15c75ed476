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

/// Why capture of a source stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The log.
    #[error("{operation} failed")]
    Log {
        /// What was being done.
        operation: &'static str,
        /// The client's error.
        #[source]
        source: Box<tailwater_kafka::Error>,
    },
    /// The registry.
    #[error("cannot register the schema of {subject}")]
    Registry {
        /// Which.
        subject: String,
        /// Its error.
        #[source]
        source: Box<tailwater_registry::Error>,
    },
    /// A table's schema has no text.
    #[error("cannot write the schema of {table}")]
    Schema {
        /// Which.
        table: tailwater_change::TableId,
        /// Why.
        #[source]
        source: tailwater_change::SchemaTextError,
    },
    /// What the log holds of this source cannot be read.
    #[error(
        "record at offset {offset} of {topic} cannot be read: restore the topic, or take a new \
         snapshot beyond it: `tailwater resync`"
    )]
    Tail {
        /// The topic.
        topic: String,
        /// The offset.
        offset: i64,
        /// Why.
        #[source]
        source: crate::TailError,
    },
    /// The state topic cannot be read.
    #[error(
        "the state in {topic} does not parse: run the version of Tailwater that wrote it, or take a \
         new snapshot: `tailwater resync`"
    )]
    State {
        /// The topic.
        topic: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Rows would go to other partitions than those that have their past.
    #[error(
        "the rows of this source are spread over the partitions by {found:?}, and the configuration \
         says {wanted:?}: set partition_by back, or take a new snapshot with it: `tailwater resync`"
    )]
    PartitionBy {
        /// What the log has.
        found: crate::PartitionBy,
        /// What is configured.
        wanted: crate::PartitionBy,
    },
    /// The connector broke its contract.
    #[error("the connector sent {0}")]
    Contract(&'static str),
    /// A captured table changed.
    #[error(
        "{table} changed its definition: {description}; make the same change on the targets, then \
         take a new snapshot: `tailwater resync`"
    )]
    SchemaChange {
        /// The table.
        table: tailwater_change::TableId,
        /// What differs.
        description: String,
    },
}

impl Error {
    /// What capture does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Source(error) => error.disposition(),
            Self::Log { source, .. } => match source.disposition() {
                tailwater_kafka::Disposition::Retry => Disposition::Retry,
                tailwater_kafka::Disposition::Operator => Disposition::Operator,
                tailwater_kafka::Disposition::Fenced => Disposition::Fenced,
                tailwater_kafka::Disposition::Bug => Disposition::Bug,
            },
            Self::Registry { source, .. } => source.disposition(),
            Self::Tail { .. }
            | Self::State { .. }
            | Self::PartitionBy { .. }
            | Self::SchemaChange { .. } => Disposition::Operator,
            Self::Schema { .. } | Self::Contract(_) => Disposition::Bug,
        }
    }
}

/// Puts the operation around a client's error.
pub(crate) fn log(operation: &'static str) -> impl Fn(tailwater_kafka::Error) -> Error {
    move |source| Error::Log { operation, source: Box::new(source) }
}
