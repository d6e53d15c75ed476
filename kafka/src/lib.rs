//! How it is spoken: the Kafka protocol, from both ends, and nothing of ours.
//!
//! A change on its way through this crate: the capture loop appends it to a batch of the
//! [`Producer`]; the finished batch travels as [`bytes::Bytes`], inside a [`wire::Request`], over
//! a socket or by a call into the [`Node`] of the same process ([`Transport`]); the log keeps it
//! byte for byte; a [`PartitionReader`] gets it back as a [`RecordBatch`] and walks its
//! [`Records`], which are slices of the buffer it arrived in.
//!
//! ```text
//! Producer ┐                  ┌ tcp ──── serve ┐
//! Client   ├─ requests ─ Transport             ├─ Node (the log, or somebody's broker)
//! Reader   ┘                  └ in process ────┘
//! ```

pub mod wire;

mod batch;
mod client;
mod error;
mod ids;
mod node;
mod outbox;
mod producer;
mod reader;
mod server;
#[cfg(feature = "test-util")]
pub mod test_util;
mod transport;

pub use batch::{
    BatchBuilder, BatchError, BatchHeader, BatchStamp, Compression, HEADER_BYTES, Header, Headers,
    Limits, PLACEMENT_BYTES, Record, RecordBatch, Records, place, placement,
};
pub use client::{Client, ClientConfig, OffsetAt, TopicInfo, TopicSpec};
pub use error::{Disposition, Error};
pub use ids::{
    BrokerId, LeaderEpoch, Offset, PartitionId, ProducerEpoch, ProducerId, Sequence, TopicId,
    TopicPartition,
};
pub use node::{Node, RequestContext};
pub use producer::{Acknowledged, PartitionHandle, Producer, ProducerConfig, RecordNumber};
pub use reader::{PartitionReader, ReaderConfig};
pub use server::{ServerConfig, serve};
pub use transport::{
    BrokerConnection, Line, Network, SaslConfig, SaslMechanism, Security, TlsConfig, Transport,
};
