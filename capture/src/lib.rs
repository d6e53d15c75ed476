//! From the source database to the log.
//!
//! The life of one change here: a connector's [`Stream`] decodes rows of a transaction out of its
//! network buffer into [`Changes`]; the capture loop gives each its place, wraps it into an
//! envelope and appends it to the source's topic; when the log has acknowledged all of a
//! transaction, its commit position is confirmed to the source. Nothing is confirmed that the log
//! does not hold.

mod another;
mod capture;
mod changes;
mod config;
mod error;
mod hold;
mod reader;
mod rest;
mod routing;
mod session;
mod source;
mod state;
mod status;
mod tail;
mod tails;
mod take_over;
mod writer;

pub use another::written_epoch;
pub use capture::Capture;
pub use changes::{Changes, Event, Image, RowEvent, TableSlot};
pub use config::{Config, SnapshotMode};
pub use error::{Error, SourceError};
pub use reader::{ReadRow, TableReader, Wanted};
pub use routing::PartitionBy;
pub use source::{
    LOCK_LEASE, LockHolder, LockSession, Rest, Resume, ServerIdentity, Snapshot, SourceConnector,
    SourceLock, SourceState, Stream,
};
pub use status::{CaptureHandle, CaptureState, CaptureStatus, ResyncError};
pub use tail::TailError;
