//! What a pipeline remembers in its progress row besides the place: JSON, written by every commit.
//!
//! | field | what |
//! |---|---|
//! | `writer` | who writes the log from `next_offset` on |
//! | `others` | where reading goes on in the partitions after the first, and who writes them |
//! | `source` | the server whose changes are applied, as the log's open marker names it |
//! | `snapshot` | the snapshot being loaded |
//! | `cut` | the snapshot whose tables are loaded as far as they had their end, and whose rest is to come |
//! | `given_up` | a snapshot that was voided and not yet replaced |
//! | `streaming` | whether a snapshot was ever loaded to its end, or none was needed |
//! | `tables` | target tables that this pipeline writes |
//! | `parted` | since when, and whether still, partitions are applied each on its own: [`parts`](super::parts) |
//! | `generation` | the last that `parted` has had |
//! | `floors` | how far each partition was alone, while all together are not as far |
//! | `until` | the records that all partitions together have to pass before they part again |
//! | `apart` | in the row of a partition: of which generation it is, and whether it waits |

use serde::{Deserialize, Serialize};
use tailwater_change::{Place, SchemaId, TableId};
use tailwater_kafka::Offset;

use crate::{Position, Writer};

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedState {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) writer: Option<Writer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) others: Vec<SavedPosition>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) snapshot: Option<Place>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cut: Option<Place>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) given_up: Option<Place>,
    #[serde(default)]
    pub(super) streaming: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) tables: Vec<SavedTable>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) parted: Option<Parted>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) generation: i64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) floors: Vec<Place>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) until: Vec<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) apart: Option<Apart>,
}

/// Partitions are applied each on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Parted {
    /// Which rows of partitions count: those that name it.
    pub(super) generation: i64,
    /// They are being called in: none may begin any more.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) called: bool,
}

/// What the row of a partition says of being alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Apart {
    /// While which the partition was applied so far.
    pub(super) generation: i64,
    /// It waits for all to be called in; the offset of a record that they have to pass together, or
    /// -1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) waits: Option<i64>,
}

/// Where reading of a partition goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedPosition {
    pub(super) next_offset: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) writer: Option<Writer>,
}

impl From<Position> for SavedPosition {
    fn from(position: Position) -> Self {
        Self { next_offset: position.next_offset.get(), writer: position.writer }
    }
}

impl From<SavedPosition> for Position {
    fn from(saved: SavedPosition) -> Self {
        Self { next_offset: Offset::new(saved.next_offset), writer: saved.writer }
    }
}

/// A target table that this pipeline writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedTable {
    pub(super) table: TableId,
    /// By which schema its rows were last loaded or described.
    pub(super) schema: SchemaId,
    /// Whether indexes and foreign keys are still ours to make.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) unfinished: bool,
    /// Whether it had rows before us that are to be kept.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) merged: bool,
    /// Whether its rows come from a snapshot that was given up.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) void: bool,
    /// Whether its rows come from the snapshot that is being loaded.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) loading: bool,
    /// Whether all of those are in.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) ended: bool,
}

/// Whether a progress row's `state` says that this table is still being loaded: what it lacks of
/// indexes and foreign keys is made at the end.
#[must_use]
pub fn is_loading(state: &str, table: &TableId) -> bool {
    serde_json::from_str::<SavedState>(state)
        .is_ok_and(|state| state.table(table).is_some_and(|it| it.loading || it.unfinished))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde calls")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde calls")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

impl SavedState {
    pub(super) fn table(&self, name: &TableId) -> Option<&SavedTable> {
        self.tables.iter().find(|table| table.table == *name)
    }

    /// The entry of a table, made if it is missing.
    pub(super) fn table_mut(&mut self, name: &TableId, schema: SchemaId) -> &mut SavedTable {
        let at = self.tables.iter().position(|table| table.table == *name);
        let at = at.unwrap_or_else(|| {
            self.tables.push(SavedTable {
                table: name.clone(),
                schema,
                unfinished: false,
                merged: false,
                void: false,
                loading: false,
                ended: false,
            });
            self.tables.len() - 1
        });
        &mut self.tables[at]
    }

    /// Whether a snapshot is being loaded, or waits for its rest.
    pub(super) fn is_loading(&self) -> bool {
        self.snapshot.is_some() || self.cut.is_some()
    }

    /// The snapshot that is being loaded does not end: what came of it is to be replaced.
    pub(super) fn void_snapshot(&mut self, snapshot: Place) {
        for table in &mut self.tables {
            table.void |= std::mem::take(&mut table.loading);
            table.ended = false;
        }
        (self.snapshot, self.cut) = (None, None);
        self.given_up = Some(snapshot);
    }

    /// The snapshot that is being loaded goes on with another part: what of it has not ended is to
    /// be replaced.
    pub(super) fn cut_snapshot(&mut self) {
        for table in &mut self.tables {
            if table.loading && !table.ended {
                (table.loading, table.void) = (false, true);
            }
        }
        self.cut = self.snapshot.take();
    }

    /// Whether rows of this table stay when their source does not say so.
    pub(super) fn is_merging(&self, name: &TableId) -> bool {
        self.snapshot.is_some() && self.table(name).is_some_and(|table| table.merged)
    }
}
