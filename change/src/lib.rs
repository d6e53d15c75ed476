//! What flows through Tailwater: changes of rows, whole transactions, the schemas they are read
//! by, and the bytes they become in the log.
//!
//! The life of one change here: a connector decodes a row image into [`Value`]s that still lie in
//! the network buffer and writes them with a [`RowWriter`]; capture puts the row's [`Place`] and
//! operation around it as an [`Envelope`]; the frame in front names the schema. Apply walks the
//! same bytes back: [`Frame`], [`Envelope`], [`RowReader`], [`Value`].
//!
//! No IO, no async, no clock. Every decoder returns an error for any bytes that are not ours.

mod chunk;
mod control;
mod disposition;
mod envelope;
mod frame;
mod lateness;
mod place;
mod problem;
mod proto;
mod role_state;
mod row;
mod schema;
mod schema_text;
mod value;

pub use chunk::{ChunkError, ChunkJoiner, Chunks};
pub use control::{CONTROL_SCHEMA, CONTROL_SUBJECT, Control, is_control_schema};
pub use disposition::Disposition;
pub use envelope::{Envelope, EnvelopeWriter, Operation};
pub use frame::{Frame, FrameError, SchemaId};
pub use lateness::is_far_behind;
pub use place::{Commit, Epoch, Ordinal, Place};
pub use problem::{Problem, name_source};
pub use proto::DecodeError;
pub use role_state::RoleState;
pub use row::{RowReader, RowWriter, identity, overlay, rank};
pub use schema::{
    Column, Dialect, ForeignKey, Generated, Identity, Index, Kind, ReferentialAction, TableId,
    TableSchema,
};
pub use schema_text::{SchemaTextError, key_schema_text, parse_schema, schema_text};
pub use value::Value;
