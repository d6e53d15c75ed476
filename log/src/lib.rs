//! The log: it keeps record batches, durably and in order, and gives them to whoever asks. Bytes
//! in, bytes out: it does not know what a change is.
//!
//! The life of a batch: a Produce request arrives at the partition's leader
//! ([`tailwater_kafka::Node`], implemented in `broker`), its checksum, its size and its producer's
//! turn are checked; it gets its offset and stands in memory (`storage::append`). A flush thread
//! writes it with everything else that waits and flushes once (`storage::flush`). Followers fetch it
//! and flush it too (`node::fetcher`, `storage::replicate`). Once every in-sync replica has it, it is
//! below the high watermark (`replica`): its producer is answered and Fetch requests that wait for it
//! are woken (`broker::fetch`). Days later, when no pipeline needs it any more
//! (`coordinator::offsets`), its segment goes (`storage::retention`).
//!
//! Who leads and who is in sync, the controller decides (`controller`) and the nodes that carry one
//! agree on (`quorum`); every broker applies the decisions in their order (`metadata`, `node`). A node
//! alone is a cluster of one, by the same code.
//!
//! # What is promised
//!
//! With [`FlushPolicy::Always`] an acknowledged batch is on the disk of every in-sync replica, and of
//! at least `min.insync.replicas`. A batch that was not acknowledged may be there after a crash, or
//! not; it is never half there. Damage to anything acknowledged is found, named in the status with
//! file and position, and never cut off.
//!
//! # On disk
//!
//! ```text
//! <data_dir>/
//!   lock                        one process at a time
//!   reserve                     space for getting out of a full disk
//!   node.json                   node id, and which folder this is
//!   stopped.json                as which registration it stopped in order; gone while it runs
//!   metadata/                   the controller's: see `quorum`
//!   topics/<name>/<partition>/
//!     partition.json            topic id, first offset kept, leader epochs
//!     flushed                   through where the segments are known to be on the disk
//!     <offset>.log              segment: record batches, as they came over the wire
//!     <offset>.index            offset and time index of a sealed segment, and its seal
//!     <offset>.producers        producer state below that offset
//!   staging/                    partitions being made or removed; swept out at start
//!   stray/                      copies that metadata knows nothing of, and damaged ones
//! ```
//!
//! Every format with a table of its fields stands in the module that writes it:
//!
//! | file | version | written and read by |
//! |---|---|---|
//! | `node.json`, `stopped.json` | 2, 1 | `folder` |
//! | `metadata/*` | 1 | `quorum` |
//! | `partition.json`, `flushed` | 1 | `storage::checkpoint` |
//! | `*.log` | record batch version 2 | [`tailwater_kafka::RecordBatch`] |
//! | `*.index` | 1 | `storage::index` |
//! | `*.producers` | 1 | `producers::sequence` |
//! | records of `__consumer_offsets`, `__transaction_state` | Kafka's | `coordinator` |

mod broker;
mod clock;
mod config;
mod controller;
mod coordinator;
mod error;
mod folder;
mod log;
mod metadata;
mod moves;
mod node;
mod partitions;
mod producers;
mod quorum;
mod replica;
mod status;
mod storage;
mod topic_config;
mod topics;
mod upkeep;
mod workers;

pub use clock::{Clock, ManualClock, SystemClock};
pub use config::{Config, FlushPolicy};
pub use error::{Disposition, Error};
pub use log::Log;
pub use moves::{Layout, Move, TooFewNodes};
pub use node::wire::{ControllerNetwork, ControllerWire};
pub use status::{FollowerStatus, PartitionStatus};
pub use storage::{Disk, DiskFile, FileSystem};
pub use workers::{DiskTime, Workers};
