//! What capture remembers in `<source>.state`: two keys in a compacted topic of one partition.
//!
//! | key | value | written |
//! |---|---|---|
//! | `open` | the framed open marker | at each take-over, before the topic is read |
//! | `state` | [`State`] as JSON | at take-over, at both ends of a snapshot, when it changes |
//!
//! The tail of the changes topic wins where it is newer: `place` here is a lower bound of what the
//! log holds, what remains when retention has emptied that topic.

use serde::{Deserialize, Serialize};
use tailwater_change::{Epoch, Place};

use crate::{ServerIdentity, SourceState};

/// The key of the open marker.
pub(crate) const OPEN_KEY: &[u8] = b"open";
/// The key of the state.
pub(crate) const STATE_KEY: &[u8] = b"state";

/// Which half of a source's life it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// The first snapshot is not complete.
    Snapshot,
    /// The stream goes on after `place`.
    Streaming,
}

/// The state, version 1. Unknown fields are an error: a newer Tailwater wrote them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// 1.
    pub(crate) version: u32,
    /// The epoch of the places that are written.
    pub(crate) epoch: Epoch,
    /// Snapshot or stream.
    pub(crate) phase: Phase,
    /// Whom the connector reads.
    pub(crate) server: ServerIdentity,
    /// What the connector remembers.
    pub(crate) source_state: SourceState,
    /// Partitions of the changes topic: fixed for an epoch.
    pub(crate) partitions: i32,
    /// The tables filter that was in force.
    pub(crate) filter: String,
    /// The log holds everything up to this place.
    pub(crate) place: Place,
    /// Whether the transaction at `place` is whole.
    pub(crate) whole: bool,
    /// Where in the changes topic the writer that wrote this opened.
    pub(crate) open_offset: i64,
    /// Its producer id.
    pub(crate) producer_id: u64,
    /// Its producer epoch.
    pub(crate) producer_epoch: u64,
}

/// The version that is written.
pub(crate) const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use tailwater_change::{Commit, Ordinal};

    use super::*;

    #[test]
    fn version_1_is_read_as_it_was_written() {
        let json = r#"{"version":1,"epoch":2,"phase":"streaming","server":"7 1","source_state":"{}","partitions":1,"filter":"public.*","place":{"epoch":2,"commit":{"file":0,"position":77},"ordinal":3},"whole":false,"open_offset":12,"producer_id":4,"producer_epoch":1}"#;
        let state: State = serde_json::from_str(json).unwrap();
        assert_eq!(state.place, Place::new(Epoch::new(2), Commit::lsn(77), Ordinal::new(3)));
        assert_eq!(serde_json::to_string(&state).unwrap(), json);
        assert!(serde_json::from_str::<State>(&json.replace("whole", "half")).is_err());
    }
}
