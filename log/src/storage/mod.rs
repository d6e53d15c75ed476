//! A partition on disk: appended, flushed, read, recovered, trimmed. No protocol in here.
//!
//! A batch on its way through this module: [`append`] gives it its offset and its turn in the
//! producer's sequence and puts it in the queue and in the [`tail`] cache; a flush thread
//! ([`flusher`]) takes all that waits, writes it to the active [`segment`] and flushes it
//! ([`flush`]); now it is below the high watermark, its producer is answered and readers ([`read`])
//! see it. After a crash [`recovery`] finds out how much of that is on the disk, and [`open`] puts
//! the partition together again.

pub(crate) mod append;
pub(crate) mod checkpoint;
mod compaction;
pub(crate) mod disk;
pub(crate) mod epochs;
mod flush;
pub(crate) mod flusher;
pub(crate) mod folder_lock;
pub(crate) mod frames;
mod index;
pub(crate) mod lookup;
mod open;
pub(crate) mod partition;
pub(crate) mod read;
mod recovery;
pub(crate) mod replicate;
pub(crate) mod reserve;
pub(crate) mod retention;
pub(crate) mod role;
mod scan;
mod segment;
mod tail;
#[cfg(test)]
pub(crate) mod testing;
mod truncate;

pub use disk::{Disk, DiskFile, FileSystem};
