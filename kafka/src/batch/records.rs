//! Walking the records of a batch.
//!
//! Keys and values are slices of the buffer that the batch arrived in, or of the one it was
//! decompressed into: nothing is copied per record.

use bytes::Bytes;

use super::{BatchError, BatchHeader, Compression, compression, varint};
use crate::ids::Offset;

/// What a caller allows a batch to cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of records after decompression.
    pub decompressed_bytes: usize,
}

impl Default for Limits {
    /// 128 MiB: more than the largest request a broker takes (100 MiB) holds uncompressed, little
    /// enough that a crafted batch does not end the process.
    fn default() -> Self {
        Self { decompressed_bytes: 128 << 20 }
    }
}

/// A record of a batch.
#[derive(Debug, Clone)]
pub struct Record {
    /// Where it stands in its partition.
    pub offset: Offset,
    /// Milliseconds since 1970, by the producer's or the broker's clock.
    pub timestamp_ms: i64,
    /// The key, if it has one.
    pub key: Option<Bytes>,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// The headers, still encoded.
    pub headers: Headers,
}

/// The records of one batch, in order, those below the reader's position left out.
///
/// Ends after the first error.
#[derive(Debug)]
pub struct Records {
    body: Bytes,
    /// Bytes of `body` that are read.
    read: usize,
    index: u32,
    count: u32,
    base_offset: i64,
    last_offset_delta: i32,
    base_timestamp: i64,
    /// The timestamp of all records, if the broker set it.
    append_timestamp: Option<i64>,
    visible_from: Offset,
}

/// The smallest record: length, attributes, three deltas and lengths, header count.
const MIN_RECORD_BYTES: usize = 7;

impl Records {
    pub(super) fn new(
        header: &BatchHeader,
        body: Bytes,
        visible_from: Offset,
        limits: Limits,
    ) -> Result<Self, BatchError> {
        let body = match header.compression() {
            Compression::None => body,
            codec => compression::decompress(codec, &body, limits.decompressed_bytes)?.into(),
        };
        let least = usize::try_from(header.record_count()).unwrap_or(usize::MAX);
        if least > body.len() / MIN_RECORD_BYTES {
            return Err(BatchError::Header("more records than bytes"));
        }
        Ok(Self {
            body,
            read: 0,
            index: 0,
            count: header.record_count(),
            base_offset: header.base_offset().get(),
            last_offset_delta: (header.offset_count() - 1).cast_signed(),
            base_timestamp: header.base_timestamp(),
            append_timestamp: header.is_log_append_time().then(|| header.max_timestamp()),
            visible_from,
        })
    }

    fn read_record(&mut self) -> Result<Record, &'static str> {
        let mut rest = &self.body[self.read..];
        let length = read_length(&mut rest)?.ok_or("record without length")?;
        if length > rest.len() {
            return Err("longer than the batch");
        }
        let (mut record, after) = rest.split_at(length);
        self.read = self.body.len() - after.len();

        let (_attributes, tail) = record.split_first().ok_or("empty")?;
        record = tail;
        let timestamp_delta = varint::read_i64(&mut record).ok_or("timestamp")?;
        let offset_delta = varint::read_i32(&mut record).ok_or("offset")?;
        if offset_delta < 0 || offset_delta > self.last_offset_delta {
            return Err("offset outside of the batch");
        }
        let key = self.read_slice(&mut record)?;
        let value = self.read_slice(&mut record)?;
        let headers = self.read_headers(record)?;
        Ok(Record {
            // Cannot overflow: the header was refused if its last offset does.
            offset: Offset::new(self.base_offset + i64::from(offset_delta)),
            timestamp_ms: self
                .append_timestamp
                .unwrap_or_else(|| self.base_timestamp.wrapping_add(timestamp_delta)),
            key,
            value,
            headers,
        })
    }

    fn read_slice(&self, record: &mut &[u8]) -> Result<Option<Bytes>, &'static str> {
        let Some(length) = read_length(record)? else {
            return Ok(None);
        };
        let slice = record.get(..length).ok_or("field longer than the record")?;
        *record = &record[length..];
        Ok(Some(self.body.slice_ref(slice)))
    }

    fn read_headers(&self, mut record: &[u8]) -> Result<Headers, &'static str> {
        let count = varint::read_i32(&mut record).ok_or("header count")?;
        let count = usize::try_from(count).map_err(|_| "header count")?;
        if count > record.len() / 2 {
            return Err("more headers than bytes");
        }
        if count == 0 {
            return if record.is_empty() {
                Ok(Headers::default())
            } else {
                Err("bytes after its last field")
            };
        }
        let headers = Headers { count, bytes: self.body.slice_ref(record) };
        // Walked once here, so that a reader of headers cannot meet an error any more.
        let mut rest = &headers.bytes[..];
        for _ in 0..count {
            read_header(&mut rest)?;
        }
        if rest.is_empty() { Ok(headers) } else { Err("bytes after its last header") }
    }
}

impl Iterator for Records {
    type Item = Result<Record, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.index < self.count {
            let index = self.index;
            self.index += 1;
            match self.read_record() {
                Ok(record) if record.offset < self.visible_from => {}
                Ok(record) => return Some(Ok(record)),
                Err(problem) => {
                    self.index = self.count;
                    self.read = self.body.len();
                    return Some(Err(BatchError::Record { index, problem }));
                }
            }
        }
        if self.read < self.body.len() {
            self.read = self.body.len();
            let problem = "bytes after the last record";
            return Some(Err(BatchError::Record { index: self.count, problem }));
        }
        None
    }
}

/// The headers of a record, checked but still encoded: most readers never look.
#[derive(Debug, Clone, Default)]
pub struct Headers {
    count: usize,
    bytes: Bytes,
}

impl Headers {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The headers in order, duplicates included.
    pub fn iter(&self) -> impl Iterator<Item = Header<'_>> {
        let mut rest = &self.bytes[..];
        (0..self.count).map_while(move |_| read_header(&mut rest).ok())
    }
}

/// One header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// Its name, UTF-8 by the protocol, unchecked.
    pub name: &'a [u8],
    /// Its value; null is `None`.
    pub value: Option<&'a [u8]>,
}

fn read_header<'a>(rest: &mut &'a [u8]) -> Result<Header<'a>, &'static str> {
    let name = take(rest)?.ok_or("header without name")?;
    let value = take(rest)?;
    Ok(Header { name, value })
}

fn take<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, &'static str> {
    let Some(length) = read_length(rest)? else {
        return Ok(None);
    };
    let slice = rest.get(..length).ok_or("header longer than the record")?;
    *rest = &rest[length..];
    Ok(Some(slice))
}

/// A length; -1 is `None`.
fn read_length(rest: &mut &[u8]) -> Result<Option<usize>, &'static str> {
    match varint::read_i32(rest) {
        Some(-1) => Ok(None),
        Some(length) => usize::try_from(length).map(Some).map_err(|_| "negative length"),
        None => Err("length"),
    }
}
