//! The header of a record batch, and a batch as a slice of the buffer it came in.

use bytes::{Bytes, BytesMut};

use super::{BatchError, Compression, Limits, Records};
use crate::ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence};

/// Bytes before the first record.
pub const HEADER_BYTES: usize = 61;

/// The leading bytes that [`place`] changes: base offset, length and leader epoch.
pub const PLACEMENT_BYTES: usize = 16;

/// Bytes that the length field does not count: base offset and the length itself.
const UNCOUNTED_BYTES: usize = 12;

/// Where the checksummed part starts.
const CHECKED_FROM: usize = 21;

const TIMESTAMP_TYPE_BIT: i16 = 1 << 3;
pub(super) const TRANSACTIONAL_BIT: i16 = 1 << 4;
pub(super) const CONTROL_BIT: i16 = 1 << 5;

/// A decoded, self-consistent header. Its checksum is not verified by decoding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    base_offset: i64,
    length: i32,
    total_bytes: usize,
    leader_epoch: i32,
    crc: u32,
    attributes: i16,
    last_offset_delta: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
    record_count: u32,
    compression: Compression,
}

impl BatchHeader {
    /// Decodes the header at the front of `bytes`; `None` if there are fewer than [`HEADER_BYTES`].
    ///
    /// # Errors
    /// If this is not the header of a version 2 batch, or contradicts itself.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, BatchError> {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let magic = i8::from_be_bytes(field(header, 16));
        if magic != 2 {
            return Err(BatchError::Magic(magic));
        }
        let length = i32::from_be_bytes(field(header, 8));
        let total_bytes = usize::try_from(length)
            .ok()
            .and_then(|length| length.checked_add(UNCOUNTED_BYTES))
            .filter(|total| *total >= HEADER_BYTES)
            .ok_or(BatchError::Header("length is less than a header"))?;
        let attributes = i16::from_be_bytes(field(header, 21));
        let base_offset = i64::from_be_bytes(field(header, 0));
        let last_offset_delta = i32::from_be_bytes(field(header, 23));
        if base_offset < 0 || last_offset_delta < 0 {
            return Err(BatchError::Header("negative offset"));
        }
        if base_offset.checked_add(i64::from(last_offset_delta) + 1).is_none() {
            return Err(BatchError::Header("offsets overflow"));
        }
        let record_count = u32::try_from(i32::from_be_bytes(field(header, 57)))
            .map_err(|_| BatchError::Header("negative record count"))?;
        // Compaction leaves fewer records than offsets, never more.
        if i64::from(record_count) > i64::from(last_offset_delta) + 1 {
            return Err(BatchError::Header("more records than offsets"));
        }
        Ok(Some(Self {
            base_offset,
            length,
            total_bytes,
            leader_epoch: i32::from_be_bytes(field(header, 12)),
            crc: u32::from_be_bytes(field(header, 17)),
            attributes,
            last_offset_delta,
            base_timestamp: i64::from_be_bytes(field(header, 27)),
            max_timestamp: i64::from_be_bytes(field(header, 35)),
            producer_id: i64::from_be_bytes(field(header, 43)),
            producer_epoch: i16::from_be_bytes(field(header, 51)),
            base_sequence: i32::from_be_bytes(field(header, 53)),
            record_count,
            compression: Compression::from_attributes(attributes)?,
        }))
    }

    /// The whole batch in bytes, header included.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.total_bytes
    }

    /// The offset of the first record as it was written (compaction may have removed it).
    #[must_use]
    pub fn base_offset(&self) -> Offset {
        Offset::new(self.base_offset)
    }

    /// The offset of the last record as it was written.
    #[must_use]
    pub fn last_offset(&self) -> Offset {
        Offset::new(self.base_offset + i64::from(self.last_offset_delta))
    }

    /// The first offset after this batch.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        Offset::new(self.base_offset + i64::from(self.last_offset_delta) + 1)
    }

    /// Offsets this batch takes up, at least 1.
    #[must_use]
    pub fn offset_count(&self) -> u32 {
        self.last_offset_delta.cast_unsigned() + 1
    }

    /// The epoch of the leader that appended it.
    #[must_use]
    pub fn leader_epoch(&self) -> LeaderEpoch {
        LeaderEpoch::new(self.leader_epoch)
    }

    /// Who wrote it; [`ProducerId::NONE`] without idempotence.
    #[must_use]
    pub fn producer_id(&self) -> ProducerId {
        ProducerId::new(self.producer_id)
    }

    /// The writer's epoch; [`ProducerEpoch::NONE`] without idempotence.
    #[must_use]
    pub fn producer_epoch(&self) -> ProducerEpoch {
        ProducerEpoch::new(self.producer_epoch)
    }

    /// The sequence of its first record; [`Sequence::NONE`] without idempotence.
    #[must_use]
    pub fn base_sequence(&self) -> Sequence {
        Sequence::new(self.base_sequence)
    }

    /// The sequence of its last record; [`Sequence::NONE`] without idempotence.
    #[must_use]
    pub fn last_sequence(&self) -> Sequence {
        if self.base_sequence < 0 {
            return Sequence::NONE;
        }
        self.base_sequence().advance(self.last_offset_delta.cast_unsigned())
    }

    /// Records that are in it; after compaction fewer than [`BatchHeader::offset_count`].
    #[must_use]
    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Milliseconds since 1970 to which the records' timestamps are relative.
    #[must_use]
    pub fn base_timestamp(&self) -> i64 {
        self.base_timestamp
    }

    /// The greatest timestamp in it, milliseconds since 1970.
    #[must_use]
    pub fn max_timestamp(&self) -> i64 {
        self.max_timestamp
    }

    /// Whether the records' timestamps are the broker's ([`BatchHeader::max_timestamp`] for all).
    #[must_use]
    pub fn is_log_append_time(&self) -> bool {
        self.attributes & TIMESTAMP_TYPE_BIT != 0
    }

    /// Whether it belongs to a Kafka transaction.
    #[must_use]
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL_BIT != 0
    }

    /// Whether it holds a control record, which is never shown to readers but takes an offset.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL_BIT != 0
    }

    /// How the records are compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.compression
    }
}

/// One whole record batch, a slice of the buffer it arrived in.
#[derive(Debug, Clone)]
pub struct RecordBatch {
    header: BatchHeader,
    bytes: Bytes,
    visible_from: Offset,
}

impl RecordBatch {
    /// Splits the batch at the front of `bytes` off from the rest.
    ///
    /// `None` if `bytes` end before the batch does: brokers cut a fetch off at its size limit.
    ///
    /// # Errors
    /// If the bytes are not a version 2 batch. The checksum is left to
    /// [`RecordBatch::verify_crc`].
    pub fn parse(bytes: Bytes) -> Result<Option<(Self, Bytes)>, BatchError> {
        let Some(header) = BatchHeader::parse(&bytes)? else {
            return Ok(None);
        };
        if bytes.len() < header.total_bytes {
            return Ok(None);
        }
        let mut rest = bytes;
        let bytes = rest.split_to(header.total_bytes);
        Ok(Some((Self { header, bytes, visible_from: Offset::ZERO }, rest)))
    }

    /// Checks that the bytes are those that were written.
    ///
    /// # Errors
    /// [`BatchError::Checksum`] if they are not.
    pub fn verify_crc(&self) -> Result<(), BatchError> {
        let actual = crc32c::crc32c(&self.bytes[CHECKED_FROM..]);
        if actual == self.header.crc {
            return Ok(());
        }
        Err(BatchError::Checksum { expected: self.header.crc, actual })
    }

    /// Hides the records below `offset` from [`RecordBatch::records`]: a broker gives whole
    /// batches, also when a reader starts inside one.
    #[must_use]
    pub fn visible_from(mut self, offset: Offset) -> Self {
        self.visible_from = offset;
        self
    }

    /// Walks the records, decompressed within `limits`.
    ///
    /// # Errors
    /// If the records are damaged or decompress to more than `limits` allows.
    pub fn records(&self, limits: Limits) -> Result<Records, BatchError> {
        Records::new(&self.header, self.bytes.slice(HEADER_BYTES..), self.visible_from, limits)
    }

    /// The decoded header.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch, as it was written.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl std::ops::Deref for RecordBatch {
    type Target = BatchHeader;

    fn deref(&self) -> &BatchHeader {
        &self.header
    }
}

/// Gives the batch at the front of `bytes` its place in the log; the checksum does not cover it.
///
/// # Errors
/// If there is no whole batch at the front of `bytes`.
pub fn place(
    bytes: &mut BytesMut,
    base_offset: Offset,
    leader_epoch: LeaderEpoch,
) -> Result<(), BatchError> {
    let header = BatchHeader::parse(bytes)?.ok_or(BatchError::Header("cut off"))?;
    bytes[..PLACEMENT_BYTES].copy_from_slice(&placement(&header, base_offset, leader_epoch));
    Ok(())
}

/// The first [`PLACEMENT_BYTES`] of a batch at its place in the log.
///
/// For writers that cannot change the batch because it is shared: these bytes, then the batch
/// from [`PLACEMENT_BYTES`] on.
#[must_use]
pub fn placement(
    header: &BatchHeader,
    base_offset: Offset,
    leader_epoch: LeaderEpoch,
) -> [u8; PLACEMENT_BYTES] {
    let mut bytes = [0; PLACEMENT_BYTES];
    bytes[..8].copy_from_slice(&base_offset.get().to_be_bytes());
    bytes[8..12].copy_from_slice(&header.length.to_be_bytes());
    bytes[12..].copy_from_slice(&leader_epoch.get().to_be_bytes());
    bytes
}

/// The checksum that belongs into the header of `batch`, a whole batch.
pub(super) fn checksum(batch: &[u8]) -> u32 {
    crc32c::crc32c(&batch[CHECKED_FROM..])
}

fn field<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}
