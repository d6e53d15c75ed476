//! How it is spoken: the Kafka protocol, from both ends, and nothing of ours.
//!
//! A change on its way through this crate: the capture loop appends it to a [`BatchBuilder`] of
//! the producer; the finished batch travels as [`bytes::Bytes`], inside a [`wire::Request`], over
//! a socket or by a call into the [`Node`] of the same process; the log keeps it byte for byte; a
//! reader gets it back as a [`RecordBatch`] and walks its [`Records`], which are slices of the
//! buffer it arrived in.

pub mod wire;

mod batch;
mod ids;
mod node;

pub use batch::{
    BatchBuilder, BatchError, BatchHeader, BatchStamp, Compression, HEADER_BYTES, Header, Headers,
    Limits, PLACEMENT_BYTES, Record, RecordBatch, Records, place, placement,
};
pub use ids::{
    BrokerId, LeaderEpoch, Offset, PartitionId, ProducerEpoch, ProducerId, Sequence, TopicId,
    TopicPartition,
};
pub use node::{Node, RequestContext};
