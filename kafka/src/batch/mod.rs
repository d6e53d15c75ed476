//! Record batches, version 2: the unit that producers write, the log keeps byte for byte, and
//! readers get.
//!
//! ```text
//! offset width field
//!      0     8  base offset             ┐ set by the leader: outside the checksum, so that
//!      8     4  length (bytes after it) │ appending neither re-encodes nor re-checks
//!     12     4  leader epoch            │
//!     16     1  magic = 2               ┘
//!     17     4  CRC-32C of all that follows
//!     21     2  attributes: 0-2 codec, 3 log-append time, 4 transactional, 5 control, 6 horizon
//!     23     4  last offset delta       next offset = base + this + 1, never + record count
//!     27     8  base timestamp, ms
//!     35     8  max timestamp, ms
//!     43     8  producer id
//!     51     2  producer epoch
//!     53     4  base sequence
//!     57     4  record count
//!     61     …  records, compressed as a whole
//! ```
//!
//! [`BatchHeader`] reads it, [`RecordBatch`] is a batch as a slice of the buffer it arrived in,
//! [`Records`] walks its records within [`Limits`], [`BatchBuilder`] writes one. Nothing here
//! trusts a length: any bytes give an error or a batch, never a panic or an unbounded allocation.

mod builder;
mod compression;
mod header;
mod records;
mod varint;

pub use builder::{BatchBuilder, BatchStamp};
pub use compression::Compression;
pub use header::{BatchHeader, HEADER_BYTES, PLACEMENT_BYTES, RecordBatch, place, placement};
pub use records::{Header, Headers, Limits, Record, Records};

/// Why bytes are not a record batch.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// A batch of the formats before Kafka 0.11, or not a batch at all.
    #[error("record batch magic {0} is not supported, only 2")]
    Magic(i8),
    /// A field of the header contradicts the others.
    #[error("record batch header: {0}")]
    Header(&'static str),
    /// The bytes are not those that were written.
    #[error("record batch checksum is {actual:#010x}, its header says {expected:#010x}")]
    Checksum {
        /// What the header says.
        expected: u32,
        /// What the bytes give.
        actual: u32,
    },
    /// Codec bits without a codec.
    #[error("compression codec {0} does not exist")]
    UnknownCodec(u8),
    /// The compressed records are damaged.
    #[error("decompress records")]
    Decompress(#[source] std::io::Error),
    /// The records could not be compressed.
    #[error("compress records")]
    Compress(#[source] std::io::Error),
    /// The records decompress to more than the caller allows.
    #[error("records decompress to more than {limit} bytes")]
    TooLarge {
        /// The caller's limit in bytes.
        limit: usize,
    },
    /// A record contradicts itself or the header.
    #[error("record {index}: {problem}")]
    Record {
        /// The record's number within the batch, from 0.
        index: u32,
        /// What is wrong.
        problem: &'static str,
    },
}
