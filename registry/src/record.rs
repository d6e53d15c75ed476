//! The topic's records: Confluent's, in JSON.
//!
//! | key `keytype` | key's other fields | value |
//! |---|---|---|
//! | `SCHEMA` | `subject`, `version`, `magic` 1 | [`SchemaValue`]; null: deleted for good |
//! | `NOOP` | `magic` 0 | null |
//! | anything else | | not ours: kept, not read |

use serde::{Deserialize, Serialize};
use tailwater_change::SchemaId;

/// A record's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) keytype: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<u32>,
    pub(crate) magic: u32,
}

impl Key {
    pub(crate) fn schema(subject: &str, version: u32) -> Self {
        Self {
            keytype: "SCHEMA".into(),
            subject: Some(subject.into()),
            version: Some(version),
            magic: 1,
        }
    }

    pub(crate) fn noop() -> Self {
        Self { keytype: "NOOP".into(), subject: None, version: None, magic: 0 }
    }
}

/// A `SCHEMA` record's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SchemaValue {
    pub(crate) subject: String,
    pub(crate) version: u32,
    pub(crate) id: SchemaId,
    /// Absent for AVRO.
    #[serde(rename = "schemaType", default, skip_serializing_if = "Option::is_none")]
    pub(crate) schema_type: Option<String>,
    pub(crate) schema: String,
    #[serde(default)]
    pub(crate) deleted: bool,
}
