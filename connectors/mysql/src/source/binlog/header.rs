//! The head of an event, and the sum at its end.
//!
//! | bytes | field |
//! |---|---|
//! | 4 | timestamp, seconds |
//! | 1 | type |
//! | 4 | server id |
//! | 4 | size, of the whole event |
//! | 4 | position of the next event, 32 bits of it; 0 for events that are in no file |
//! | 2 | flags |

use flate2::Crc;

use super::take::{Broken, Take};

/// Bytes of the head.
pub(crate) const HEADER_BYTES: usize = 19;

/// Bytes of the sum at the end.
const CHECKSUM_BYTES: usize = 4;

/// Set in the first event of a file that is being written, and not part of what was summed.
const IN_USE: u8 = 1;

/// What an event says before its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Seconds since 1970, UTC.
    pub(crate) timestamp: u32,
    pub(crate) kind: u8,
    pub(crate) server_id: u32,
    pub(crate) size: u32,
    pub(crate) next: u32,
}

impl Header {
    pub(crate) fn read(take: &mut Take<'_>) -> Result<Self, Broken> {
        let header = Self {
            timestamp: take.u32()?,
            kind: take.u8()?,
            server_id: take.u32()?,
            size: take.u32()?,
            next: take.u32()?,
        };
        take.u16()?;
        Ok(header)
    }
}

/// How events of a file end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checksum {
    /// Not known: no file description has been read.
    Unknown,
    /// With nothing.
    None,
    /// With a CRC32 of all before it.
    Crc32,
}

impl Checksum {
    /// The event without its sum.
    ///
    /// # Errors
    /// The sum is not that of the bytes.
    pub(crate) fn strip(self, event: &[u8]) -> Result<&[u8], Broken> {
        let Some(at) = event.len().checked_sub(CHECKSUM_BYTES).filter(|at| *at >= HEADER_BYTES)
        else {
            return Ok(event);
        };
        let (content, sum) = event.split_at(at);
        let right = || crc32(content).to_le_bytes() == sum;
        match self {
            Self::None => Ok(event),
            Self::Unknown => Ok(if right() { content } else { event }),
            Self::Crc32 if right() => Ok(content),
            Self::Crc32 => Err(Broken("its checksum is wrong")),
        }
    }
}

/// Reads how events behind a format description end, and checks its own sum.
///
/// # Errors
/// It is too short, wrong, or of an algorithm that we do not know.
pub(crate) fn checksum_of_file(event: &[u8]) -> Result<Checksum, Broken> {
    let short = Broken("it ends too early");
    let at = event.len().checked_sub(CHECKSUM_BYTES).ok_or(short)?;
    let (content, sum) = event.split_at(at);
    match content.last() {
        Some(0) => Ok(Checksum::None),
        Some(1) => {
            let mut content = content.to_vec();
            *content.get_mut(HEADER_BYTES - 2).ok_or(short)? &= !IN_USE;
            if crc32(&content).to_le_bytes() != sum {
                return Err(Broken("its checksum is wrong"));
            }
            Ok(Checksum::Crc32)
        }
        _ => Err(Broken("its checksum algorithm is unknown")),
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Numbers of event types.
pub(crate) mod kind {
    pub(crate) const QUERY: u8 = 2;
    pub(crate) const STOP: u8 = 3;
    pub(crate) const ROTATE: u8 = 4;
    pub(crate) const INTVAR: u8 = 5;
    pub(crate) const APPEND_BLOCK: u8 = 9;
    pub(crate) const DELETE_FILE: u8 = 11;
    pub(crate) const RAND: u8 = 13;
    pub(crate) const USER_VAR: u8 = 14;
    pub(crate) const FORMAT_DESCRIPTION: u8 = 15;
    pub(crate) const XID: u8 = 16;
    pub(crate) const BEGIN_LOAD_QUERY: u8 = 17;
    pub(crate) const EXECUTE_LOAD_QUERY: u8 = 18;
    pub(crate) const TABLE_MAP: u8 = 19;
    pub(crate) const WRITE_ROWS_V1: u8 = 23;
    pub(crate) const UPDATE_ROWS_V1: u8 = 24;
    pub(crate) const DELETE_ROWS_V1: u8 = 25;
    pub(crate) const INCIDENT: u8 = 26;
    pub(crate) const HEARTBEAT: u8 = 27;
    pub(crate) const IGNORABLE: u8 = 28;
    pub(crate) const ROWS_QUERY: u8 = 29;
    pub(crate) const WRITE_ROWS: u8 = 30;
    pub(crate) const UPDATE_ROWS: u8 = 31;
    pub(crate) const DELETE_ROWS: u8 = 32;
    pub(crate) const GTID: u8 = 33;
    pub(crate) const ANONYMOUS_GTID: u8 = 34;
    pub(crate) const PREVIOUS_GTIDS: u8 = 35;
    pub(crate) const TRANSACTION_CONTEXT: u8 = 36;
    pub(crate) const VIEW_CHANGE: u8 = 37;
    pub(crate) const XA_PREPARE: u8 = 38;
    pub(crate) const PARTIAL_UPDATE_ROWS: u8 = 39;
    pub(crate) const TRANSACTION_PAYLOAD: u8 = 40;
    pub(crate) const HEARTBEAT_V2: u8 = 41;
    pub(crate) const GTID_TAGGED: u8 = 42;
    pub(crate) const MARIADB_ANNOTATE_ROWS: u8 = 160;
    pub(crate) const MARIADB_BINLOG_CHECKPOINT: u8 = 161;
    pub(crate) const MARIADB_GTID: u8 = 162;
    pub(crate) const MARIADB_GTID_LIST: u8 = 163;
    pub(crate) const MARIADB_START_ENCRYPTION: u8 = 164;
    pub(crate) const MARIADB_QUERY_COMPRESSED: u8 = 165;
    pub(crate) const MARIADB_WRITE_ROWS_COMPRESSED_V1: u8 = 166;
    pub(crate) const MARIADB_UPDATE_ROWS_COMPRESSED_V1: u8 = 167;
    pub(crate) const MARIADB_DELETE_ROWS_COMPRESSED_V1: u8 = 168;
    pub(crate) const MARIADB_WRITE_ROWS_COMPRESSED: u8 = 169;
    pub(crate) const MARIADB_UPDATE_ROWS_COMPRESSED: u8 = 170;
    pub(crate) const MARIADB_DELETE_ROWS_COMPRESSED: u8 = 171;
}
