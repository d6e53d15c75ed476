//! The log: it keeps record batches, durably and in order, and gives them to whoever asks. Bytes
//! in, bytes out: it does not know what a change is.
//!
//! The life of a batch: a Produce request arrives ([`tailwater_kafka::Node`], implemented in
//! `broker`), its checksum and size are checked, its producer's epoch passes the fence (`producers`)
//! and its turn is checked; it gets its offset and stands in memory (`storage::append`). A flush
//! thread writes it with everything else that waits and flushes once (`storage::flush`). Now it is
//! below the high watermark: its producer is answered and Fetch requests that wait for it are woken
//! (`broker::fetch`). Days later, when no pipeline needs it any more (`groups`), its segment goes
//! (`storage::retention`).
//!
//! # What is promised
//!
//! With [`FlushPolicy::Always`] an acknowledged batch is on the disk. A batch that was not
//! acknowledged may be there after a crash, or not; it is never half there. Damage to anything
//! acknowledged is found, named in the status with file and position, and never cut off.
//!
//! # On disk
//!
//! ```text
//! <data_dir>/
//!   lock                        one process at a time
//!   reserve                     space for getting out of a full disk
//!   node.json                   cluster id, node id
//!   producers.journal           transactional ids and their epochs, producer id blocks
//!   groups.journal              committed offsets
//!   topics/<name>/topic.json    id, partition count, settings
//!   topics/<name>/<partition>/
//!     partition.json            topic id, first offset kept, leader epochs
//!     flushed                   through where the segments are known to be on the disk
//!     <offset>.log              segment: record batches, as they came over the wire
//!     <offset>.index            offset and time index of a sealed segment, and its seal
//!     <offset>.producers        producer state below that offset
//!   staging/                    topics being made or deleted; swept out at start
//! ```
//!
//! Every format with a table of its fields stands in the module that writes it:
//!
//! | file | version | written and read by |
//! |---|---|---|
//! | `node.json` | 1 | `log` |
//! | `topic.json` | 1 | `topics` |
//! | `partition.json`, `flushed` | 1 | `storage::checkpoint` |
//! | `*.log` | record batch version 2 | [`tailwater_kafka::RecordBatch`] |
//! | `*.index` | 1 | `storage::index` |
//! | `*.producers` | 1 | `producers::sequence` |
//! | `*.journal` | 1 | `storage::journal`; entries: `producers::registry`, `groups` |

mod broker;
mod clock;
mod config;
mod controller;
mod coordinator;
mod error;
mod log;
mod metadata;
mod node;
mod partitions;
mod producers;
mod quorum;
mod replica;
mod storage;
mod topic_config;
mod topics;
mod workers;

pub use clock::{Clock, ManualClock, SystemClock};
pub use config::{Config, FlushPolicy};
pub use error::{Disposition, Error};
pub use log::{FollowerStatus, Log, PartitionStatus};
pub use node::wire::{ControllerNetwork, ControllerWire};
pub use storage::{Disk, DiskFile, FileSystem};
pub use workers::{DiskTime, Workers};
