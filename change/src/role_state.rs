//! What a source or a pipeline is doing: one word, the same in `status`, the API and the metrics.

use std::fmt;

use serde::Serialize;

/// What a role is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RoleState {
    /// Connecting and taking over.
    #[default]
    Starting,
    /// A snapshot is read, or loaded: the target shows parts of it.
    Snapshot,
    /// The stream is read, or applied: every commit of the target is at the end of a source's
    /// transaction.
    Streaming,
    /// Waiting to try again after an error that may pass.
    Retrying,
    /// Another process has this role.
    Standby,
    /// Told to wait.
    Paused,
    /// Waiting for a person.
    Stopped,
}

impl RoleState {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Snapshot => "snapshot",
            Self::Streaming => "streaming",
            Self::Retrying => "retrying",
            Self::Standby => "standby",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for RoleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
