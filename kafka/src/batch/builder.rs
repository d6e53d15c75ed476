//! Writing a record batch.
//!
//! Records are encoded straight into the batch's buffer, value parts one after the other: no
//! allocation and no second copy per record. The header is written last, when everything in it is
//! known.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    BatchError, Compression, compression,
    header::{CONTROL_BIT, HEADER_BYTES, TRANSACTIONAL_BIT, checksum},
    varint,
};
use crate::ids::{Offset, ProducerEpoch, ProducerId, Sequence};

/// What a finished batch says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchStamp {
    /// The writer; [`ProducerId::NONE`] without idempotence.
    pub producer_id: ProducerId,
    /// The writer's epoch.
    pub producer_epoch: ProducerEpoch,
    /// The sequence of the first record.
    pub base_sequence: Sequence,
    /// Where it starts; a producer leaves 0, the leader decides.
    pub base_offset: Offset,
    /// Whether it belongs to a Kafka transaction.
    pub transactional: bool,
    /// Whether it holds a control record.
    pub control: bool,
    /// How to compress it.
    pub compression: Compression,
}

impl Default for BatchStamp {
    /// A plain batch of nobody, uncompressed.
    fn default() -> Self {
        Self {
            producer_id: ProducerId::NONE,
            producer_epoch: ProducerEpoch::NONE,
            base_sequence: Sequence::NONE,
            base_offset: Offset::ZERO,
            transactional: false,
            control: false,
            compression: Compression::None,
        }
    }
}

/// A batch being written.
#[derive(Debug)]
pub struct BatchBuilder {
    /// Room for the header, then the records.
    buf: BytesMut,
    record_count: u32,
    base_timestamp: i64,
    max_timestamp: i64,
}

impl BatchBuilder {
    /// An empty batch with room for `capacity` bytes before it must grow.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        let mut buf = BytesMut::with_capacity(capacity.max(HEADER_BYTES));
        buf.put_bytes(0, HEADER_BYTES);
        Self { buf, record_count: 0, base_timestamp: 0, max_timestamp: 0 }
    }

    /// Appends a record whose value is `value_parts`, one after the other; `None` is a tombstone.
    ///
    /// # Panics
    /// If a batch grows past 2 GiB or 2^31 records: the callers bound it at about a megabyte.
    pub fn append(
        &mut self,
        key: Option<&[u8]>,
        value_parts: Option<&[&[u8]]>,
        timestamp_ms: i64,
        headers: &[(&str, &[u8])],
    ) {
        if self.record_count == 0 {
            self.base_timestamp = timestamp_ms;
            self.max_timestamp = timestamp_ms;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp_ms);
        let timestamp_delta = timestamp_ms.wrapping_sub(self.base_timestamp);
        let value_bytes = value_parts.map(|parts| parts.iter().map(|part| part.len()).sum());
        let body = body_bytes(timestamp_delta, self.record_count, key, value_bytes, headers);

        let buf = &mut self.buf;
        buf.reserve(body + varint::len(signed(body)));
        varint::write(buf, signed(body));
        buf.put_u8(0);
        varint::write(buf, timestamp_delta);
        varint::write(buf, i64::from(self.record_count));
        write_length(buf, key.map(<[u8]>::len));
        buf.put_slice(key.unwrap_or_default());
        write_length(buf, value_bytes);
        for part in value_parts.unwrap_or_default() {
            buf.put_slice(part);
        }
        varint::write(buf, signed(headers.len()));
        for (name, value) in headers {
            write_length(buf, Some(name.len()));
            buf.put_slice(name.as_bytes());
            write_length(buf, Some(value.len()));
            buf.put_slice(value);
        }
        self.record_count += 1;
        assert!(i32::try_from(self.buf.len()).is_ok(), "a batch stays below 2 GiB");
    }

    /// Bytes that a record adds at most to any batch.
    #[must_use]
    pub fn record_bytes(key: Option<&[u8]>, value_bytes: Option<usize>) -> usize {
        let body = body_bytes(i64::MAX, u32::MAX, key, value_bytes, &[]);
        body + varint::len(signed(body))
    }

    /// Bytes of the batch so far, header included, before compression.
    #[must_use]
    pub fn size(&self) -> usize {
        self.buf.len()
    }

    /// Records so far.
    #[must_use]
    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Whether nothing was appended yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Writes the header and gives the batch away.
    ///
    /// Where compressing gains nothing the batch stays uncompressed.
    ///
    /// # Errors
    /// If the codec fails, which means that the process is out of memory.
    ///
    /// # Panics
    /// If the batch is empty: there is no such batch on the producer's side of the protocol.
    pub fn finish(self, stamp: BatchStamp) -> Result<Bytes, BatchError> {
        assert!(self.record_count > 0, "a batch has a record");
        let Self { mut buf, record_count, base_timestamp, max_timestamp } = self;
        let mut codec = Compression::None;
        if stamp.compression != Compression::None {
            let packed = compression::compress(stamp.compression, &buf[HEADER_BYTES..])?;
            if packed.len() + HEADER_BYTES < buf.len() {
                buf.truncate(HEADER_BYTES);
                buf.put_slice(&packed);
                codec = stamp.compression;
            }
        }
        let length = i32::try_from(buf.len() - 12).expect("append keeps a batch below 2 GiB");
        let last_delta = i32::try_from(record_count - 1).expect("each record takes 7 bytes");
        let attributes = codec.bits()
            | if stamp.transactional { TRANSACTIONAL_BIT } else { 0 }
            | if stamp.control { CONTROL_BIT } else { 0 };

        let mut header = &mut buf[..HEADER_BYTES];
        header.put_i64(stamp.base_offset.get());
        header.put_i32(length);
        header.put_i32(-1);
        header.put_i8(2);
        header.put_u32(0);
        header.put_i16(attributes);
        header.put_i32(last_delta);
        header.put_i64(base_timestamp);
        header.put_i64(max_timestamp);
        header.put_i64(stamp.producer_id.get());
        header.put_i16(stamp.producer_epoch.get());
        header.put_i32(stamp.base_sequence.get());
        header.put_i32(last_delta + 1);
        let crc = checksum(&buf);
        buf[17..21].copy_from_slice(&crc.to_be_bytes());
        Ok(buf.freeze())
    }
}

/// Bytes of a record after its own length.
fn body_bytes(
    timestamp_delta: i64,
    offset_delta: u32,
    key: Option<&[u8]>,
    value_bytes: Option<usize>,
    headers: &[(&str, &[u8])],
) -> usize {
    let field = |bytes: Option<usize>| match bytes {
        Some(bytes) => varint::len(signed(bytes)) + bytes,
        None => 1,
    };
    1 + varint::len(timestamp_delta)
        + varint::len(i64::from(offset_delta))
        + field(key.map(<[u8]>::len))
        + field(value_bytes)
        + varint::len(signed(headers.len()))
        + headers
            .iter()
            .map(|(name, value)| field(Some(name.len())) + field(Some(value.len())))
            .sum::<usize>()
}

fn write_length(buf: &mut BytesMut, bytes: Option<usize>) {
    varint::write(buf, bytes.map_or(-1, signed));
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).expect("no buffer is that large")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        batch::{BatchHeader, Limits, RecordBatch, place},
        ids::LeaderEpoch,
    };

    type Field = Option<Vec<u8>>;

    fn codecs() -> impl Strategy<Value = Compression> {
        prop_oneof![
            Just(Compression::None),
            Just(Compression::Gzip),
            Just(Compression::Snappy),
            Just(Compression::Lz4),
            Just(Compression::Zstd),
        ]
    }

    fn fields() -> impl Strategy<Value = Field> {
        proptest::option::of(proptest::collection::vec(0_u8..4, 0..300))
    }

    proptest! {
        #[test]
        fn records_come_back_as_appended(
            records in proptest::collection::vec((fields(), fields(), any::<i32>()), 1..40),
            header in proptest::option::of(("[a-z]{0,9}", proptest::collection::vec(any::<u8>(), 0..9))),
            codec in codecs(),
            base in 0_i64..i64::from(u32::MAX),
        ) {
            let mut builder = BatchBuilder::with_capacity(0);
            let headers: Vec<(&str, &[u8])> =
                header.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
            for (key, value, timestamp) in &records {
                // In two parts, as an envelope's head and body are.
                let parts = value.as_ref().map(|value| value.split_at(value.len() / 2));
                let parts = parts.map(|(one, two)| [one, two]);
                builder.append(
                    key.as_deref(),
                    parts.as_ref().map(|parts| &parts[..]),
                    i64::from(*timestamp),
                    &headers,
                );
            }
            let size = builder.size();
            let stamp = BatchStamp {
                producer_id: ProducerId::new(7),
                producer_epoch: ProducerEpoch::new(3),
                base_sequence: Sequence::new(11),
                compression: codec,
                ..BatchStamp::default()
            };
            let mut bytes = BytesMut::from(&builder.finish(stamp).unwrap()[..]);
            prop_assert!(bytes.len() <= size);
            place(&mut bytes, Offset::new(base), LeaderEpoch::new(5)).unwrap();

            let (batch, rest) = RecordBatch::parse(bytes.freeze()).unwrap().unwrap();
            batch.verify_crc().unwrap();
            prop_assert!(rest.is_empty());
            prop_assert_eq!(batch.base_offset(), Offset::new(base));
            prop_assert_eq!(batch.leader_epoch(), LeaderEpoch::new(5));
            prop_assert_eq!(batch.producer_id(), ProducerId::new(7));
            prop_assert_eq!(batch.base_sequence(), Sequence::new(11));
            prop_assert_eq!(usize::try_from(batch.record_count()).unwrap(), records.len());
            let newest = records.iter().map(|record| i64::from(record.2)).max().unwrap();
            prop_assert_eq!(batch.max_timestamp(), newest);
            let back: Vec<_> =
                batch.records(Limits::default()).unwrap().collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(back.len(), records.len());
            for (index, (record, (key, value, timestamp))) in back.iter().zip(&records).enumerate() {
                prop_assert_eq!(record.offset.get(), base + i64::try_from(index).unwrap());
                prop_assert_eq!(record.timestamp_ms, i64::from(*timestamp));
                prop_assert_eq!(record.key.as_deref(), key.as_deref());
                prop_assert_eq!(record.value.as_deref(), value.as_deref());
                let names: Vec<_> = record.headers.iter().map(|header| header.name).collect();
                prop_assert_eq!(names, headers.iter().map(|h| h.0.as_bytes()).collect::<Vec<_>>());
            }
        }

        #[test]
        fn any_bytes_give_a_batch_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            read_all(&bytes);
        }

        #[test]
        fn damaged_batches_give_an_error_or_end(
            codec in codecs(),
            damage in proptest::collection::vec((0_usize..2000, any::<u8>()), 1..6),
        ) {
            let mut builder = BatchBuilder::with_capacity(0);
            for n in 0..20_u8 {
                builder.append(Some(&[n; 9]), Some(&[&[n; 50]]), i64::from(n), &[("h", b"v")]);
            }
            let stamp = BatchStamp { compression: codec, ..BatchStamp::default() };
            let mut bytes = builder.finish(stamp).unwrap().to_vec();
            for (at, byte) in damage {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            read_all(&bytes);
        }
    }

    fn read_all(bytes: &[u8]) {
        let limits = Limits { decompressed_bytes: 1 << 20 };
        let mut rest = Bytes::copy_from_slice(bytes);
        while let Ok(Some((batch, tail))) = RecordBatch::parse(rest.clone()) {
            drop(batch.verify_crc());
            if let Ok(records) = batch.records(limits) {
                for record in records.flatten() {
                    assert!(record.headers.iter().count() == record.headers.len());
                }
            }
            rest = tail;
        }
    }

    #[test]
    fn a_changed_byte_fails_the_checksum_and_a_new_place_does_not() {
        let mut builder = BatchBuilder::with_capacity(0);
        builder.append(None, Some(&[b"value"]), 1, &[]);
        let bytes = builder.finish(BatchStamp::default()).unwrap();
        let mut placed = BytesMut::from(&bytes[..]);
        place(&mut placed, Offset::new(1 << 40), LeaderEpoch::new(9)).unwrap();
        let (batch, _) = RecordBatch::parse(placed.freeze()).unwrap().unwrap();
        batch.verify_crc().unwrap();
        assert_eq!(batch.next_offset(), Offset::new((1 << 40) + 1));

        let mut changed = bytes.to_vec();
        *changed.last_mut().unwrap() ^= 1;
        let (batch, _) = RecordBatch::parse(changed.into()).unwrap().unwrap();
        assert!(matches!(batch.verify_crc(), Err(BatchError::Checksum { .. })));
    }

    #[test]
    fn a_reader_inside_a_batch_sees_the_rest_of_it() {
        let mut builder = BatchBuilder::with_capacity(0);
        for n in 0..5 {
            builder.append(None, Some(&[b"v"]), n, &[]);
        }
        let bytes = builder.finish(BatchStamp::default()).unwrap();
        let (batch, _) = RecordBatch::parse(bytes).unwrap().unwrap();
        let batch = batch.visible_from(Offset::new(3));
        let offsets: Vec<i64> =
            batch.records(Limits::default()).unwrap().map(|r| r.unwrap().offset.get()).collect();
        assert_eq!(offsets, [3, 4]);
    }

    #[test]
    fn a_cut_off_batch_is_not_there_yet() {
        let mut builder = BatchBuilder::with_capacity(0);
        builder.append(None, None, 1, &[]);
        let bytes = builder.finish(BatchStamp::default()).unwrap();
        assert!(RecordBatch::parse(bytes.slice(..bytes.len() - 1)).unwrap().is_none());
        assert!(BatchHeader::parse(&bytes[..60]).unwrap().is_none());
    }
}
