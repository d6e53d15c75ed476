//! From the source database to the log.
//!
//! The life of one change here: a connector's [`Stream`] decodes rows of a transaction out of its
//! network buffer into [`Changes`]; the capture loop gives each its place, wraps it into an
//! envelope and appends it to the source's topic; when the log has acknowledged all of a
//! transaction, its commit position is confirmed to the source. Nothing is confirmed that the log
//! does not hold.

mod changes;
mod error;
mod reader;
mod source;

pub use changes::{Changes, Event, Image, RowEvent, TableSlot};
pub use error::SourceError;
pub use reader::{ReadRow, TableReader};
pub use source::{Resume, ServerIdentity, Snapshot, SourceConnector, SourceState, Stream};
