//! What a stream must know to go on: kept in the state topic as JSON.
//!
//! Rows are decoded by the schemas that stand here, not by the catalog of the day: the catalog may
//! be ahead of the binlog by any number of definitions.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tailwater_capture::{ServerIdentity, SourceError, SourceState};
use tailwater_change::TableSchema;

/// The state of a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The server's uuid; MariaDB: its id and GTID domain.
    pub(crate) server: String,
    /// What binlog files are called.
    pub(crate) base: String,
    /// Transactions that the server has executed: those that were read, up to a while ago.
    pub(crate) gtids: String,
    /// When the binlog files read last were made: their numbers, and seconds since 1970. Tells a
    /// binlog that was reset from the one that was read.
    #[serde(default)]
    pub(crate) files: Vec<(u64, u32)>,
    /// The captured tables as rows are decoded.
    #[serde(serialize_with = "write_schemas", deserialize_with = "read_schemas")]
    pub(crate) schemas: Vec<Arc<TableSchema>>,
}

impl State {
    /// Reads it back.
    ///
    /// # Errors
    /// It is not what we wrote.
    pub(crate) fn read(state: &SourceState) -> Result<Self, SourceError> {
        serde_json::from_str(&state.0).map_err(|error| SourceError::Protocol {
            operation: "read the source's state".into(),
            detail: error.to_string(),
        })
    }

    /// As it is kept.
    pub(crate) fn write(&self) -> SourceState {
        SourceState(serde_json::to_string(self).expect("a state has only text as keys"))
    }

    /// The server and its binlog.
    pub(crate) fn identity(&self) -> ServerIdentity {
        identity(&self.server, &self.base)
    }
}

/// A server and what its binlog files are called.
pub(crate) fn identity(server: &str, base: &str) -> ServerIdentity {
    ServerIdentity(format!("{server}/{base}"))
}

fn write_schemas<S: Serializer>(
    schemas: &[Arc<TableSchema>],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(schemas.iter().map(|schema| &**schema))
}

fn read_schemas<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Arc<TableSchema>>, D::Error> {
    let schemas = Vec::<TableSchema>::deserialize(deserializer)?;
    Ok(schemas.into_iter().map(Arc::new).collect())
}
