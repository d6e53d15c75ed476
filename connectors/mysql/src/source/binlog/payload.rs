//! Compressed events: MySQL's transaction payload, MariaDB's compressed rows and statements.
//!
//! A payload is read event by event as it is decompressed: however large the transaction, only one
//! of its events is in memory.

use std::io::{BufReader, Cursor, Read};

use bytes::Bytes;
use flate2::read::ZlibDecoder;

use super::header::HEADER_BYTES;
use super::take::{Broken, Take};

/// The server's own limit of a packet, and so of an event.
const EVENT_BYTES_MAX: u64 = 1 << 30;

const FIELD_END: usize = 0;
const FIELD_COMPRESSION: usize = 2;
const ZSTD: usize = 0;
const UNCOMPRESSED: usize = 255;

const BROKEN: Broken = Broken("it does not decompress");

/// The events of a transaction, being decompressed.
pub(crate) struct Payload {
    events: Box<dyn Read + Send>,
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Payload")
    }
}

impl Payload {
    /// Reads the fields in front of the compressed bytes.
    pub(crate) fn read(body: &Bytes) -> Result<Self, Broken> {
        let mut take = Take(body);
        let mut compression = UNCOMPRESSED;
        loop {
            let field = take.length()?;
            if field == FIELD_END {
                break;
            }
            let mut value = Take(take.counted()?);
            if field == FIELD_COMPRESSION {
                compression = value.length()?;
            }
        }
        let compressed = Cursor::new(body.slice(body.len() - take.0.len()..));
        Ok(Self {
            events: match compression {
                ZSTD => {
                    let decoder = zstd::stream::read::Decoder::new(compressed);
                    Box::new(BufReader::new(decoder.map_err(|_| BROKEN)?))
                }
                UNCOMPRESSED => Box::new(compressed),
                _ => return Err(Broken("it is compressed by an unknown algorithm")),
            },
        })
    }

    /// The next event; `None` at the end.
    pub(crate) fn next(&mut self, event: &mut Vec<u8>) -> Result<bool, Broken> {
        event.clear();
        let header = u64::try_from(HEADER_BYTES).unwrap_or(0);
        let read = self.take(header, event)?;
        if read == 0 {
            return Ok(false);
        }
        let size = Take(event.get(9..13).unwrap_or_default()).u32()?;
        let body = u64::from(size).checked_sub(header).ok_or(Broken("an event's size"))?;
        if read < header || size > u32::try_from(EVENT_BYTES_MAX).unwrap_or(0) {
            return Err(Broken("an event's size"));
        }
        if self.take(body, event)? != body {
            return Err(BROKEN);
        }
        Ok(true)
    }

    fn take(&mut self, count: u64, event: &mut Vec<u8>) -> Result<u64, Broken> {
        let read = (&mut self.events).take(count).read_to_end(event).map_err(|_| BROKEN)?;
        u64::try_from(read).map_err(|_| BROKEN)
    }
}

/// Decompresses the rest of a MariaDB event.
pub(crate) fn mariadb(mut take: Take<'_>) -> Result<Vec<u8>, Broken> {
    let head = take.u8()?;
    if head & 0xF0 != 0x80 {
        return Err(Broken("it is compressed by an unknown algorithm"));
    }
    let size = take.uint_be(usize::from(head & 7))?;
    if size > EVENT_BYTES_MAX {
        return Err(Broken("its decompressed size"));
    }
    let mut out = Vec::new();
    let read = ZlibDecoder::new(take.0).take(size + 1).read_to_end(&mut out);
    if u64::try_from(read.map_err(|_| BROKEN)?) != Ok(size) {
        return Err(BROKEN);
    }
    Ok(out)
}
