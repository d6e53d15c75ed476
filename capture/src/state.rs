//! What capture remembers in `<source>.state`: two keys in a compacted topic of one partition.
//!
//! | key | value | written |
//! |---|---|---|
//! | `open` | the framed open marker | at each take-over, before the topic is read |
//! | `state` | [`State`] as JSON | at take-over, at both ends of a snapshot, when a table of it is complete, when it changes |
//!
//! The tail of the changes topic wins where it is newer: `place` here is a lower bound of what the
//! log holds, what remains when retention has emptied that topic.

use serde::{Deserialize, Serialize};
use tailwater_change::{Epoch, Place, TableId};

use crate::tail::Tail;
use crate::{PartitionBy, ServerIdentity, SourceState};

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
    /// What the connector remembers: text, or `{"zlib": base64}` where it is long. A record has
    /// room for the schemas of some hundred tables as they are, of thousands when compressed.
    #[serde(with = "packed")]
    pub(crate) source_state: SourceState,
    /// Partitions of the changes topic: fixed for an epoch.
    pub(crate) partitions: i32,
    /// The tables filter that was in force.
    pub(crate) filter: String,
    /// The log holds everything up to this place; with `inside`, everything before it.
    pub(crate) place: Place,
    /// Whether the transaction at `place` is whole.
    pub(crate) whole: bool,
    /// Where in the changes topic the writer that wrote this opened.
    pub(crate) open_offset: i64,
    /// Its producer id.
    pub(crate) producer_id: u64,
    /// Its producer epoch.
    pub(crate) producer_epoch: u64,
    /// Of a snapshot that is not complete: tables whose rows the log has, to their end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) finished: Vec<TableId>,
    /// Whether `place` is that of the next row of a snapshot that has begun and not ended, rather
    /// than in the stream.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) inside: bool,
    /// What decides about the partition of a row, where there are several: fixed for an epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) partition_by: Option<PartitionBy>,
    /// Where there are several partitions: what the fields above say of all of them, for each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) each: Vec<PartitionState>,
}

/// How far one of several partitions is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartitionState {
    pub(crate) open_offset: i64,
    pub(crate) place: Place,
    pub(crate) whole: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) inside: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde calls")]
fn is_false(value: &bool) -> bool {
    !value
}

impl State {
    /// How far a partition is if nothing stands in it behind what this says.
    pub(crate) fn partition(&self, number: usize) -> PartitionState {
        self.each.get(number).copied().unwrap_or(PartitionState {
            open_offset: self.open_offset,
            place: self.place,
            whole: self.whole,
            inside: self.inside,
        })
    }

    /// Every partition has everything up to this place; with `inside`, everything before it. Some
    /// may have more.
    pub(crate) fn reached(&mut self, place: Place, inside: bool) {
        (self.place, self.whole, self.inside) = (place, true, inside);
        for partition in &mut self.each {
            if inside || partition.inside || partition.place < place {
                (partition.place, partition.whole, partition.inside) = (place, true, inside);
            }
        }
    }

    /// Whether it takes more than a moment to write it.
    pub(crate) fn is_large(&self) -> bool {
        self.source_state.0.len() >= LARGE
    }
}

impl PartitionState {
    /// Where the partition ends.
    pub(crate) fn tail(&self) -> Tail {
        if self.place == Place::default() {
            Tail::Unknown
        } else if self.inside {
            Tail::Snapshot { next: self.place }
        } else {
            Tail::At { place: self.place, whole: self.whole }
        }
    }
}

/// A source's state shorter than this, in bytes, stays readable text.
const LARGE: usize = 64 << 10;

/// A long text in little room.
mod packed {
    use std::io::{Read, Write};

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use flate2::Compression;
    use flate2::read::ZlibDecoder;
    use flate2::write::ZlibEncoder;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

    use super::LARGE;
    use crate::SourceState;

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Packed {
        Text(String),
        Zlib { zlib: String },
    }

    pub(super) fn serialize<S: Serializer>(
        state: &SourceState,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        if state.0.len() < LARGE {
            return serializer.serialize_str(&state.0);
        }
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        let packed = encoder.write_all(state.0.as_bytes()).and_then(|()| encoder.finish());
        let zlib = STANDARD.encode(packed.map_err(ser::Error::custom)?);
        Packed::Zlib { zlib }.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SourceState, D::Error> {
        match Packed::deserialize(deserializer)? {
            Packed::Text(text) => Ok(SourceState(text)),
            Packed::Zlib { zlib } => {
                let bytes = STANDARD.decode(zlib).map_err(de::Error::custom)?;
                let mut text = String::new();
                ZlibDecoder::new(bytes.as_slice())
                    .read_to_string(&mut text)
                    .map_err(de::Error::custom)?;
                Ok(SourceState(text))
            }
        }
    }
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
        assert_eq!(state.partition(0).tail(), Tail::At { place: state.place, whole: false });
    }

    #[test]
    fn what_a_snapshot_has_complete_comes_back() {
        let json = r#"{"version":1,"epoch":1,"phase":"snapshot","server":"7 1","source_state":"{}","partitions":1,"filter":"public.*","place":{"epoch":1,"commit":{"file":0,"position":77},"ordinal":3},"whole":true,"open_offset":12,"producer_id":4,"producer_epoch":1,"finished":[{"schema":"public","name":"t"}],"inside":true}"#;
        let state: State = serde_json::from_str(json).unwrap();
        assert_eq!(state.finished, [TableId::new("public", "t")]);
        assert_eq!(state.partition(0).tail(), Tail::Snapshot { next: state.place });
        assert_eq!(serde_json::to_string(&state).unwrap(), json);
    }

    #[test]
    fn the_schemas_of_thousands_of_tables_fit_one_record() {
        let json = r#"{"version":1,"epoch":2,"phase":"streaming","server":"7 1","source_state":"{}","partitions":1,"filter":"public.*","place":{"epoch":2,"commit":{"file":0,"position":77},"ordinal":3},"whole":false,"open_offset":12,"producer_id":4,"producer_epoch":1}"#;
        let mut state: State = serde_json::from_str(json).unwrap();
        let column =
            |n: usize| format!("{{\"name\":\"column_{n}\",\"field\":{n},\"kind\":\"text\"}}");
        state.source_state = SourceState((0..60_000).map(column).collect());
        assert!(state.source_state.0.len() > 2 << 20);
        let written = serde_json::to_string(&state).unwrap();
        assert!(written.len() < 1 << 19, "{}", written.len());
        assert_eq!(serde_json::from_str::<State>(&written).unwrap(), state);
    }
}
