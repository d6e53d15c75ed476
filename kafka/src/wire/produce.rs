//! Produce requests: batches in as slices, out as slices.
//!
//! Written by hand because these are the largest frames a stranger may send: the count of
//! partitions is bounded while reading, so that 100 MiB of empty topics cost nothing.

use bytes::{Buf, BufMut, Bytes};
use kacrab_protocol::{
    ProtocolError,
    bytes_io::{read_compact_nullable_bytes, read_nullable_bytes},
    primitives::{
        read_array_length, read_compact_array_length, write_array_length,
        write_compact_array_length, write_unsigned_varint,
    },
    string::{
        read_compact_nullable_string, read_compact_string, read_nullable_string, read_string,
        write_compact_nullable_string, write_compact_string, write_nullable_string, write_string,
    },
    uuid::{read_uuid, write_uuid},
    version::UnsupportedVersion,
};

use super::{
    ApiKey, WireError,
    frame::{Scatter, skip_tags},
    produce_request::{PartitionProduceData, ProduceRequestData, TopicProduceData},
};

/// Versions from this one on are flexible.
const FLEXIBLE: i16 = 9;
/// Versions from this one on name topics by id.
const TOPIC_IDS: i16 = 13;
const SUPPORTED: std::ops::RangeInclusive<i16> = 3..=13;

/// Topics and partitions a request may name together: far above what a client sends at once.
const MAX_PARTS: usize = 100_000;

pub(super) fn read(buf: &mut Bytes, version: i16) -> Result<ProduceRequestData, WireError> {
    let mut reader = Reader { buf, version, parts_left: MAX_PARTS };
    reader.request()
}

struct Reader<'a> {
    buf: &'a mut Bytes,
    version: i16,
    parts_left: usize,
}

impl Reader<'_> {
    fn request(&mut self) -> Result<ProduceRequestData, WireError> {
        let transactional_id = if self.flexible() {
            read_compact_nullable_string(self.buf)
        } else {
            read_nullable_string(self.buf)
        };
        let transactional_id = transactional_id.map_err(|error| self.error(error))?;
        if self.buf.len() < 6 {
            return Err(WireError::CutOff { what: "produce request" });
        }
        let acks = self.buf.get_i16();
        let timeout_ms = self.buf.get_i32();
        let mut topics = Vec::new();
        for _ in 0..self.count()? {
            topics.push(self.topic()?);
        }
        self.tags()?;
        Ok(ProduceRequestData::default()
            .with_transactional_id(transactional_id)
            .with_acks(acks)
            .with_timeout_ms(timeout_ms)
            .with_topic_data(topics))
    }

    fn topic(&mut self) -> Result<TopicProduceData, WireError> {
        let mut topic = TopicProduceData::default();
        if self.version >= TOPIC_IDS {
            topic.topic_id = read_uuid(self.buf).map_err(|error| self.error(error))?;
        } else {
            let name =
                if self.flexible() { read_compact_string(self.buf) } else { read_string(self.buf) };
            topic.name = name.map_err(|error| self.error(error))?;
        }
        for _ in 0..self.count()? {
            topic.partition_data.push(self.partition()?);
        }
        self.tags()?;
        Ok(topic)
    }

    fn partition(&mut self) -> Result<PartitionProduceData, WireError> {
        if self.buf.len() < 4 {
            return Err(WireError::CutOff { what: "produce partition" });
        }
        let index = self.buf.get_i32();
        let records = if self.flexible() {
            read_compact_nullable_bytes(self.buf)
        } else {
            read_nullable_bytes(self.buf)
        };
        let records = records.map_err(|error| self.error(error))?;
        self.tags()?;
        Ok(PartitionProduceData::default().with_index(index).with_records(records))
    }

    /// The length of an array, taken off what may still come.
    fn count(&mut self) -> Result<usize, WireError> {
        let count = if self.flexible() {
            read_compact_array_length(self.buf)
        } else {
            read_array_length(self.buf)
        };
        let count = usize::try_from(count.map_err(|error| self.error(error))?).unwrap_or(0);
        self.parts_left = self
            .parts_left
            .checked_sub(count)
            .ok_or(WireError::TooManyPartitions { limit: MAX_PARTS })?;
        Ok(count)
    }

    fn tags(&mut self) -> Result<(), WireError> {
        if self.flexible() { skip_tags(self.buf) } else { Ok(()) }
    }

    fn flexible(&self) -> bool {
        self.version >= FLEXIBLE
    }

    fn error(&self, source: impl Into<ProtocolError>) -> WireError {
        WireError::Message {
            direction: "decode request",
            api: ApiKey::Produce,
            version: self.version,
            source: source.into(),
        }
    }
}

pub(super) fn write(
    request: &ProduceRequestData,
    out: &mut Scatter,
    version: i16,
) -> Result<(), ProtocolError> {
    if !SUPPORTED.contains(&version) {
        return Err(UnsupportedVersion::new(ApiKey::Produce as i16, version).into());
    }
    let flexible = version >= FLEXIBLE;
    let transactional_id = request.transactional_id.as_ref();
    if flexible {
        write_compact_nullable_string(&mut out.buf, transactional_id)?;
    } else {
        write_nullable_string(&mut out.buf, transactional_id)?;
    }
    out.buf.put_i16(request.acks);
    out.buf.put_i32(request.timeout_ms);
    write_count(out, request.topic_data.len(), flexible);
    for topic in &request.topic_data {
        if version >= TOPIC_IDS {
            write_uuid(&mut out.buf, &topic.topic_id);
        } else if flexible {
            write_compact_string(&mut out.buf, &topic.name)?;
        } else {
            write_string(&mut out.buf, &topic.name)?;
        }
        write_count(out, topic.partition_data.len(), flexible);
        for partition in &topic.partition_data {
            out.buf.put_i32(partition.index);
            write_records(out, partition.records.as_ref(), flexible);
            write_no_tags(out, flexible);
        }
        write_no_tags(out, flexible);
    }
    write_no_tags(out, flexible);
    Ok(())
}

/// Record batches with their length in front; the batches themselves are not copied.
pub(super) fn write_records(out: &mut Scatter, records: Option<&Bytes>, flexible: bool) {
    let length = records.map_or(-1, |records| bounded(records.len()));
    if flexible {
        // Lengths are sent plus one, null is 0.
        write_unsigned_varint(&mut out.buf, length.wrapping_add(1).cast_unsigned());
    } else {
        out.buf.put_i32(length);
    }
    if let Some(records) = records {
        out.put_slice(records);
    }
}

pub(super) fn write_count(out: &mut Scatter, count: usize, flexible: bool) {
    if flexible {
        write_compact_array_length(&mut out.buf, bounded(count));
    } else {
        write_array_length(&mut out.buf, bounded(count));
    }
}

fn write_no_tags(out: &mut Scatter, flexible: bool) {
    if flexible {
        out.buf.put_u8(0);
    }
}

/// Frames are refused far below 2 GiB, see `Scatter::finish`: what does not fit never leaves.
fn bounded(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX - 1)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    #[test]
    fn a_frame_of_nothing_but_topics_is_refused() {
        let mut buf = BytesMut::new();
        buf.put_i16(-1);
        buf.put_i16(-1);
        buf.put_i32(1000);
        buf.put_i32(10_000_000);
        buf.put_bytes(0, 60_000_000);
        let error = read(&mut buf.freeze(), 3).unwrap_err();
        assert!(matches!(error, WireError::TooManyPartitions { .. }), "{error}");
    }
}
