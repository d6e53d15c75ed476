//! The binlog, decoded: events in, `Changes` out. No IO, no clock.
//!
//! ```text
//!   ROTATE FORMAT_DESCRIPTION { GTID [BEGIN] { TABLE_MAP | ROWS | QUERY }* XID | COMMIT }*
//!                                    └ or one TRANSACTION_PAYLOAD with the same inside
//! ```
//!
//! A transaction's place is its binlog file's number and the position of its first event. Positions
//! are summed from event sizes in 64 bits; the 32 bits of each header must agree with the sum, so a
//! missing event is an error and not a gap. Rows are numbered over every table, also those that are
//! not captured, so that a changed filter shifts no number. An event that is not understood ends
//! the stream: nothing is skipped unasked.

mod gtid;
mod header;
mod image;
mod json;
mod number;
mod payload;
mod rows;
#[cfg(test)]
mod scripted;
mod statement;
mod table_map;
mod tables;
mod take;
#[cfg(test)]
mod tests;
mod transaction;

use bytes::Bytes;
use tailwater_capture::{Changes, Event};
use tailwater_change::{Commit, Dialect, Problem};

use self::header::{Checksum, HEADER_BYTES, Header, checksum_of_file, kind};
use self::payload::Payload;
use self::rows::Buffers;
use self::take::{Broken, Take};
use self::transaction::Transaction;
use super::file::BinlogName;

pub(crate) use self::table_map::Collations;
pub(crate) use self::tables::Tables;
#[cfg(test)]
pub(crate) use self::tests::Recording;

/// Files of which it is known when they were made: what is confirmed may lag a file behind.
const FILES_KEPT: usize = 4;

/// Why decoding ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    /// The server sent what we do not understand.
    #[error("binlog event {event} at {at}: {broken}")]
    Event { event: String, at: String, broken: Broken },
    /// A person must decide.
    #[error("{0}")]
    Stop(Problem),
    /// The binlog is not the one we read before.
    #[error("{0}")]
    Renamed(Problem),
}

/// Which transactions were delivered before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) through: Commit,
    /// Whether the transaction at `through` itself must come again.
    pub(crate) again: bool,
}

impl Delivered {
    fn covers(&self, commit: Commit) -> bool {
        commit < self.through || (commit == self.through && !self.again)
    }
}

/// Reads one binlog, event by event.
#[derive(Debug)]
pub(crate) struct Decoder {
    dialect: Dialect,
    base: String,
    /// Number of the file, and the position of the next event in it.
    file: u64,
    position: u64,
    checksum: Checksum,
    /// When the files read last were made: number, and seconds since 1970.
    pub(crate) files: Vec<(u64, u32)>,
    delivered: Delivered,
    pub(crate) tables: Tables,
    transaction: Option<Transaction>,
    payload: Option<Payload>,
    /// What was last said to be without changes.
    idle: Commit,
    /// Set by what must reach capture before the stream ends.
    stop: Option<Problem>,
    buffers: Buffers,
    /// GTIDs of transactions that ended since they were last asked for.
    ended: Vec<String>,
}

impl Decoder {
    /// Begins at an event's position.
    pub(crate) fn new(
        dialect: Dialect,
        base: String,
        from: Commit,
        delivered: Delivered,
        tables: Tables,
    ) -> Self {
        Self {
            dialect,
            base,
            file: from.file(),
            position: from.position(),
            checksum: Checksum::Unknown,
            files: Vec::new(),
            delivered,
            tables,
            transaction: None,
            payload: None,
            idle: Commit::ZERO,
            stop: None,
            buffers: Buffers::default(),
            ended: Vec::new(),
        }
    }

    /// Where the next event stands.
    pub(crate) fn position(&self) -> Commit {
        Commit::binlog(self.file, self.position)
    }

    /// GTIDs of the transactions that ended since the last call.
    pub(crate) fn take_ended(&mut self) -> std::vec::Drain<'_, String> {
        self.ended.drain(..)
    }

    /// Decodes an event. Whether [`more`](Self::more) must be called before the next.
    pub(crate) fn event(&mut self, event: &Bytes, out: &mut Changes) -> Result<bool, DecodeError> {
        if let Some(problem) = self.stop.take() {
            return Err(DecodeError::Stop(problem));
        }
        let head = Header::read(&mut Take(event)).map_err(|broken| self.failed(0, broken))?;
        if usize::try_from(head.size) != Ok(event.len()) {
            return Err(self.failed(head.kind, Broken("its size is not that of its packet")));
        }
        self.whole_event(&head, event, out)?;
        Ok(self.payload.is_some())
    }

    /// Decodes an event as one of a server without checksums.
    #[cfg(test)]
    fn event_unsummed(&mut self, event: &Bytes, out: &mut Changes) -> Result<bool, DecodeError> {
        let sums = if event.get(4) == Some(&kind::FORMAT_DESCRIPTION) { 0 } else { 4 };
        self.checksum = Checksum::None;
        let event = event.slice(..event.len().saturating_sub(sums));
        let mut bytes = event.to_vec();
        if let (Some(size), Ok(length)) = (bytes.get_mut(9..13), u32::try_from(event.len())) {
            size.copy_from_slice(&length.to_le_bytes());
        }
        if let Some(next) = bytes.get_mut(13..17) {
            next.fill(0);
        }
        self.event(&bytes.into(), out)
    }

    /// Goes on with a compressed transaction until it ends or `out` has `bytes`. Whether there is
    /// still more.
    pub(crate) fn more(&mut self, out: &mut Changes, bytes: usize) -> Result<bool, DecodeError> {
        if let Some(problem) = self.stop.take() {
            return Err(DecodeError::Stop(problem));
        }
        let Some(mut payload) = self.payload.take() else { return Ok(false) };
        let mut event = std::mem::take(&mut self.buffers.event);
        while out.bytes() < bytes && self.stop.is_none() {
            let more = payload.next(&mut event);
            if !more.map_err(|broken| self.failed(kind::TRANSACTION_PAYLOAD, broken))? {
                self.buffers.event = event;
                return Ok(false);
            }
            let mut take = Take(&event);
            let head = Header::read(&mut take).map_err(|broken| self.failed(0, broken))?;
            if head.kind == kind::TRANSACTION_PAYLOAD {
                return Err(self.failed(head.kind, Broken("it stands in another")));
            }
            self.content(&head, take, out)?;
        }
        self.buffers.event = event;
        self.payload = Some(payload);
        Ok(true)
    }

    /// Says how far nothing more came: after everything that has been read was decoded.
    pub(crate) fn idle(&mut self, out: &mut Changes) {
        let next = match &self.transaction {
            _ if self.stop.is_some() => return,
            // Nothing of it was of a captured table so far: it may go on for hours.
            Some(open) => open.untold(),
            None if self.payload.is_some() => return,
            None => Some(self.position()),
        };
        let Some(next) = next else { return };
        let Some(before) = next.position().checked_sub(1) else { return };
        let through = Commit::binlog(next.file(), before);
        if through > self.idle && through >= self.delivered.through {
            self.idle = through;
            out.push(Event::Idle { through });
        }
    }

    /// Makes the next pause say again how far it is.
    pub(crate) fn say_again(&mut self) {
        self.idle = Commit::ZERO;
    }

    fn whole_event(
        &mut self,
        head: &Header,
        event: &Bytes,
        out: &mut Changes,
    ) -> Result<(), DecodeError> {
        let failed = |broken| self.failed(head.kind, broken);
        if head.kind == kind::FORMAT_DESCRIPTION {
            let checksum = checksum_of_file(event).map_err(failed)?;
            self.checksum = checksum;
            self.advance(head).map_err(|broken| self.failed(head.kind, broken))?;
            return self.made_at(head.timestamp);
        }
        let content = self.checksum.strip(event).map_err(failed)?;
        let body = Take(content.get(HEADER_BYTES..).unwrap_or_default());
        match head.kind {
            kind::ROTATE => return self.rotate(head, body),
            kind::HEARTBEAT | kind::HEARTBEAT_V2 => {
                self.heartbeat(head, out);
                return Ok(());
            }
            _ => {}
        }
        let start = self.position;
        self.advance(head).map_err(|broken| self.failed(head.kind, broken))?;
        // Of a gap, the event stands at its end.
        let start = start.max(self.position.saturating_sub(u64::from(head.size)));
        self.buffers.start = Commit::binlog(self.file, start);
        if head.kind == kind::TRANSACTION_PAYLOAD {
            let body = event.slice(HEADER_BYTES..content.len());
            let payload = Payload::read(&body);
            self.payload = Some(payload.map_err(|broken| self.failed(head.kind, broken))?);
            return Ok(());
        }
        self.content(head, body, out)
    }

    /// Takes when the file was made: one of a number that we know, made at another time, is another.
    fn made_at(&mut self, made_at: u32) -> Result<(), DecodeError> {
        match self.files.iter().find(|(file, _)| *file == self.file) {
            Some((_, known)) if *known != made_at => Err(DecodeError::Renamed(Problem::new(
                format!("{} is not the file of that name that was read before", self.file_name()),
                "the server's binlog was reset: take a new snapshot of the source \
                 (tailwater resync)",
            ))),
            Some(_) => Ok(()),
            None => {
                if self.files.len() >= FILES_KEPT {
                    self.files.remove(0);
                }
                self.files.push((self.file, made_at));
                Ok(())
            }
        }
    }

    /// Moves behind an event.
    fn advance(&mut self, head: &Header) -> Result<(), Broken> {
        if head.next == 0 {
            // Made up by the server for this connection: it is in no file.
            return Ok(());
        }
        let low = low_bits(self.position);
        let distance = u64::from(head.next.wrapping_sub(low));
        let size = u64::from(head.size);
        // MariaDB leaves out what a replica does not need: annotations, encryption keys.
        let right =
            if self.dialect == Dialect::Mariadb { distance >= size } else { distance == size };
        if !right {
            return Err(Broken("its position does not follow from the event before it"));
        }
        self.position = self.position.checked_add(distance).ok_or(Broken("its position"))?;
        Ok(())
    }

    fn rotate(&mut self, head: &Header, mut body: Take<'_>) -> Result<(), DecodeError> {
        let failed = |broken| self.failed(kind::ROTATE, broken);
        let position = body.u64().map_err(failed)?;
        let name = std::str::from_utf8(body.0).ok().and_then(BinlogName::parse);
        let name = name.ok_or(failed(Broken("the name of the next file cannot be read")))?;
        let next = self.file.checked_add(1);
        if name.base() != self.base || !(name.number() == self.file || Some(name.number()) == next)
        {
            return Err(DecodeError::Renamed(Problem::new(
                format!("the binlog goes on in {name}, which does not follow {}", self.file_name()),
                "the server's binlog was renamed or reset: take a new snapshot of the source \
                 (tailwater resync)",
            )));
        }
        if name.number() == self.file && position != self.position && head.next == 0 {
            return Err(failed(Broken("the server sends another position than was asked for")));
        }
        if name.number() != self.file {
            // A server that crashed leaves the last transaction of a file without its end.
            self.transaction = None;
            self.file = name.number();
            self.position = position;
        }
        Ok(())
    }

    /// The server has sent all it has, up to a position.
    fn heartbeat(&mut self, head: &Header, out: &mut Changes) {
        if head.kind == kind::HEARTBEAT && head.next != 0 && self.transaction.is_none() {
            let distance = head.next.wrapping_sub(low_bits(self.position));
            if distance < u32::MAX / 2 && self.dialect == Dialect::Mariadb {
                self.position = self.position.saturating_add(u64::from(distance));
            }
        }
        self.idle(out);
    }

    fn file_name(&self) -> BinlogName {
        BinlogName::new(&self.base, self.file)
    }

    fn failed(&self, kind: u8, broken: Broken) -> DecodeError {
        DecodeError::Event {
            event: transaction::event_name(kind),
            at: format!("{}:{}", self.file_name(), self.position),
            broken,
        }
    }
}

/// The 32 bits of a position that an event's header has room for.
fn low_bits(position: u64) -> u32 {
    let [a, b, c, d, ..] = position.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
