//! What the registry can fail with.

use tailwater_change::{Disposition, SchemaId};

/// Why a schema could not be registered or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log did not do its part.
    #[error("{operation} on the schema topic failed")]
    Log {
        /// What was being done.
        operation: &'static str,
        /// The client's error.
        #[source]
        source: Box<tailwater_kafka::Error>,
    },
    /// No record of the topic has this id.
    #[error("schema {0} is not in the registry: its records cannot be read")]
    Unknown(SchemaId),
    /// The topic holds what is not a schema record.
    #[error("record at offset {offset} of the schema topic does not parse")]
    Record {
        /// Where.
        offset: i64,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
    /// Every id is given.
    #[error("the registry has no id left")]
    Exhausted,
}

impl Error {
    /// What the caller does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Log { source, .. } => disposition(source),
            Self::Unknown(_) | Self::Record { .. } | Self::Exhausted => Disposition::Operator,
        }
    }
}

fn disposition(error: &tailwater_kafka::Error) -> Disposition {
    match error.disposition() {
        // Fenced by another writer of schemas, not by another capture: our turn comes again.
        tailwater_kafka::Disposition::Retry | tailwater_kafka::Disposition::Fenced => {
            Disposition::Retry
        }
        tailwater_kafka::Disposition::Operator => Disposition::Operator,
        tailwater_kafka::Disposition::Bug => Disposition::Bug,
    }
}
