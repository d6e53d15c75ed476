//! The stream: a binlog dump over our own connection.
//!
//! The server is asked for a file and a position, which must be where an event begins. A position
//! that capture remembers is a transaction's first event, or one byte before an event; the server
//! is asked which. Where it does not say, the file is read from its start and what the log holds is
//! passed over: slower, never wrong. So are positions beyond the 32 bits that the command has.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tailwater_capture::{Changes, Resume, ServerIdentity, SourceError, SourceState, Stream};
use tailwater_change::{Commit, Problem};
use tokio::time::Instant;

use super::binlog::{DecodeError, Decoder, Delivered, Tables};
use super::file::BinlogName;
use super::gtids::GtidSet;
use super::session::Session;
use super::silence::Silence;
use super::state::State;
use super::{MysqlSource, catalog};
use crate::connect::in_time;
use crate::wire::{Wire, WireError, refusal};

const COM_BINLOG_DUMP: u8 = 0x12;
const COM_REGISTER_SLAVE: u8 = 0x15;

/// The first event of every file.
const FIRST_EVENT: u64 = 4;

/// How often the server says where it is when nothing happens. `wait` on an idle source takes this
/// long; a heartbeat costs some sixty bytes.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// Silence after which the connection is taken for dead: many heartbeats.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// How old the state's GTIDs may get. They only serve to notice a server that lost transactions, and
/// the state holds every schema: it is not written at each commit.
const STATE_INTERVAL: Duration = Duration::from_secs(10);

/// `ER_MASTER_FATAL_ERROR_READING_BINLOG`.
const FATAL_READING: u16 = 1236;

/// A binlog being read.
#[derive(Debug)]
pub(crate) struct BinlogStream {
    wire: Wire,
    silence: Silence,
    decoder: Decoder,
    /// Whether a compressed transaction is being decoded.
    more: bool,
    state: State,
    written: SourceState,
    written_at: Instant,
    gtids: GtidSet,
    after: String,
    /// Why reading ended: said when what was decoded before it has been taken.
    end: Option<SourceError>,
}

/// Opens it.
pub(crate) async fn open(
    source: &MysqlSource,
    resume: Option<&Resume>,
) -> Result<BinlogStream, SourceError> {
    let mut session = Session::open(&source.endpoint).await?;
    let now = catalog(source, &mut session).await?;
    let collations = session.collations().await?;
    let mut tables = Tables::new(source.filter.clone(), collations);
    let (state, from, delivered) = match resume {
        None => {
            let server = session.identity().await?;
            let end = session.end().await?;
            let gtids = session.executed().await?.to_string();
            let base = end.file.base().to_owned();
            let state = State { server, base, gtids, files: Vec::new(), schemas: now.clone() };
            let delivered = Delivered { through: Commit::ZERO, again: true };
            (state, end.commit(), delivered)
        }
        Some(resume) => {
            let mut state = State::read(&resume.state)?;
            // What is not captured any more leaves the state, which is written before the first
            // row: capturing it again, without what happened meanwhile, is then noticed.
            state.schemas.retain(|schema| source.filter.captures(&schema.table));
            let from = locate(&mut session, &state, resume).await?;
            (state, from, Delivered { through: resume.after, again: resume.again })
        }
    };
    for schema in &state.schemas {
        tables.add(Arc::clone(schema), true);
    }
    for schema in now {
        tables.add(schema, false);
    }
    let name = BinlogName::new(&state.base, from.file());
    let wire = dump(source, &name, from.position()).await?;
    let dialect = session.server.dialect;
    let mut decoder = Decoder::new(dialect, state.base.clone(), from, delivered, tables);
    decoder.files.clone_from(&state.files);
    Ok(BinlogStream {
        wire,
        silence: Silence::new(SILENCE_LIMIT),
        decoder,
        more: false,
        gtids: GtidSet::parse(dialect, &state.gtids),
        written: state.write(),
        written_at: Instant::now(),
        state,
        after: resume.map_or_else(|| from.to_string(), |resume| resume.after.to_string()),
        end: None,
    })
}

/// The position of an event at or before the first one that is to be delivered.
pub(super) async fn locate(
    session: &mut Session,
    state: &State,
    resume: &Resume,
) -> Result<Commit, SourceError> {
    let after = resume.after;
    let lost = |what: String| position_lost(after.to_string(), what);
    let server = session.identity().await?;
    if server != state.server {
        return Err(lost(format!("the server is another one: {server}, not {}", state.server)));
    }
    let files = session.files().await?;
    let end = session.end().await?;
    if end.file.base() != state.base {
        return Err(lost(format!(
            "the server's binlog is called {}, not {}",
            end.file.base(),
            state.base
        )));
    }
    let known = GtidSet::parse(session.server.dialect, &state.gtids);
    if let Some(missing) = known.missing_in(&session.executed().await?) {
        return Err(lost(format!(
            "the server does not have transactions that the log holds: {missing}"
        )));
    }
    let name = BinlogName::new(&state.base, after.file());
    let Some(size) = files.iter().find(|(file, _)| *file == name).map(|(_, size)| *size) else {
        let first = files.first().map_or_else(String::new, |(file, _)| file.to_string());
        let what = if files.first().is_some_and(|(file, _)| file.number() > after.file()) {
            format!("the server has purged {name}; its oldest is {first}")
        } else {
            format!("the server has no {name}; its last is {}", end.file)
        };
        return Err(lost(what));
    };
    let size = if name == end.file { size.max(end.position) } else { size };
    let next = after.position().saturating_add(1);
    if next > size {
        return Err(lost(format!("{name} ends at {size}: the server lost its end")));
    }
    let at = |position| Commit::binlog(after.file(), position);
    if beyond_command(after) {
        return Ok(at(FIRST_EVENT));
    }
    if next == size && !resume.again {
        return Ok(at(size));
    }
    if next <= FIRST_EVENT {
        return Ok(at(FIRST_EVENT));
    }
    let mut asked = true;
    for position in [after.position(), next] {
        match session.begins_event(&name, position).await {
            Some(true) => return Ok(at(position)),
            Some(false) => {}
            None => asked = false,
        }
    }
    if asked {
        return Err(lost(format!(
            "no event of {name} begins where the log's last transaction stood: the server's \
             binlog was reset"
        )));
    }
    Ok(at(FIRST_EVENT))
}

/// Whether the command has no room for the position behind this one.
fn beyond_command(after: Commit) -> bool {
    after.position() >= u64::from(u32::MAX)
}

/// Turns a new connection into a dump, in reasonable time or not at all.
pub(super) async fn dump(
    source: &MysqlSource,
    file: &BinlogName,
    position: u64,
) -> Result<Wire, SourceError> {
    let late = |error| SourceError::unavailable(format!("connect to {}", source.endpoint), error);
    in_time(begin_dump(source, file, position), late).await
}

async fn begin_dump(
    source: &MysqlSource,
    file: &BinlogName,
    position: u64,
) -> Result<Wire, SourceError> {
    let failed = |error| SourceError::unavailable("begin to read the binlog", error);
    let mut wire = Wire::connect(&source.endpoint).await.map_err(|error| {
        SourceError::unavailable(format!("connect to {}", source.endpoint), error)
    })?;
    let heartbeat = HEARTBEAT.as_nanos();
    let settings = [
        "SET @master_binlog_checksum = 'CRC32', @source_binlog_checksum = 'CRC32'".to_owned(),
        format!(
            "SET @master_heartbeat_period = {heartbeat}, @source_heartbeat_period = {heartbeat}"
        ),
        // MariaDB: we know its GTID events; without it they are replaced by others.
        "SET @mariadb_slave_capability = 4".to_owned(),
        // Capture may wait for the log longer than the server waits for a client.
        "SET SESSION net_write_timeout = 86400".to_owned(),
    ];
    for setting in settings {
        wire.execute(&setting).await.map_err(failed)?;
    }
    // Unlike any replica's, and unlike that of another capture on this server.
    let server_id = wire.connection_id() | 1 << 31;
    let mut register = Vec::new();
    register.extend(server_id.to_le_bytes());
    let name = b"tailwater";
    register.push(u8::try_from(name.len()).unwrap_or(0));
    register.extend(name);
    // No user, no password, no port, no rank; the server fills in its own id.
    register.extend([0; 1 + 1 + 2 + 4 + 4]);
    wire.command(COM_REGISTER_SLAVE, &register).await.map_err(failed)?;
    let answer = wire.read_packet().await.map_err(failed)?;
    if answer.first() != Some(&0) {
        return Err(refused(refusal(&answer), source));
    }
    let command = dump_command(file, position, server_id)?;
    wire.command(COM_BINLOG_DUMP, &command).await.map_err(failed)?;
    Ok(wire)
}

/// The body of the command that asks for the binlog.
///
/// # Errors
/// The position is beyond what it has room for. Whoever has a position that the log holds begins at
/// the file's start instead; who begins where the server is now cannot.
fn dump_command(file: &BinlogName, position: u64, server_id: u32) -> Result<Vec<u8>, SourceError> {
    let position = u32::try_from(position).map_err(|_| {
        SourceError::Refused(Problem::new(
            format!("{file} has reached {position}: no replica can ask for more than 4 GiB of it"),
            "run FLUSH BINARY LOGS; so that another file begins, then tailwater resume",
        ))
    })?;
    let mut command = Vec::new();
    command.extend(position.to_le_bytes());
    command.extend(0_u16.to_le_bytes());
    command.extend(server_id.to_le_bytes());
    command.extend(file.to_string().as_bytes());
    Ok(command)
}

fn refused(error: WireError, source: &MysqlSource) -> SourceError {
    match error {
        WireError::Server { code: 1227 | 1045 | 1044, message } => {
            SourceError::Refused(Problem::new(
                format!("the account may not read the binlog: {message}"),
                format!("GRANT REPLICATION SLAVE ON *.* TO {};", source.account()),
            ))
        }
        other => SourceError::unavailable("begin to read the binlog", other),
    }
}

fn position_lost(after: String, what: String) -> SourceError {
    let remedy = "restore what is missing, or take a new snapshot of the source (tailwater resync)";
    SourceError::PositionLost { after, problem: Problem::new(what, remedy) }
}

#[async_trait]
impl Stream for BinlogStream {
    fn server(&self) -> ServerIdentity {
        self.state.identity()
    }

    fn state(&self) -> SourceState {
        self.written.clone()
    }

    async fn next(&mut self, out: &mut Changes, bytes: usize) -> Result<(), SourceError> {
        if let Some(end) = self.end.take() {
            return Err(end);
        }
        loop {
            match self.decode(out, bytes) {
                Ok(()) if out.is_empty() => self.decoder.idle(out),
                Ok(()) => {}
                Err(end) if out.is_empty() => return Err(end),
                // Returned with an error it would be lost, and with it the marker that tells the
                // targets why nothing more comes.
                Err(end) => self.end = Some(end),
            }
            for gtid in self.decoder.take_ended() {
                self.gtids.add(&gtid);
            }
            if !out.is_empty() {
                return Ok(());
            }
            match self.silence.end(self.wire.fill()).await {
                Some(filled) => filled.map_err(broke)?,
                None => {
                    let silence = "the server has not even sent heartbeats";
                    return Err(SourceError::unavailable("read the binlog", silence));
                }
            }
        }
    }

    async fn confirm(&mut self, _through: Commit) -> Result<(), SourceError> {
        let tables = self.decoder.tables.schemas().count();
        let other = tables != self.state.schemas.len() || self.state.files != self.decoder.files;
        if other || self.written_at.elapsed() >= STATE_INTERVAL {
            self.state.files.clone_from(&self.decoder.files);
            self.state.gtids = self.gtids.to_string();
            self.state.schemas = self.decoder.tables.schemas().cloned().collect();
            self.written = self.state.write();
            self.written_at = Instant::now();
        }
        Ok(())
    }

    async fn probe(&mut self) -> Result<(), SourceError> {
        self.decoder.say_again();
        Ok(())
    }
}

impl BinlogStream {
    /// Decodes what has been read, up to about `bytes`.
    fn decode(&mut self, out: &mut Changes, bytes: usize) -> Result<(), SourceError> {
        while out.bytes() < bytes {
            if self.more {
                self.more = self.decoder.more(out, bytes).map_err(|error| self.ended(error))?;
                continue;
            }
            let Some(packet) = self.wire.buffered_packet().map_err(broke)? else { break };
            self.packet(&packet, out)?;
        }
        Ok(())
    }

    fn packet(&mut self, packet: &Bytes, out: &mut Changes) -> Result<(), SourceError> {
        match packet.first() {
            Some(0) => {
                let event = self.decoder.event(&packet.slice(1..), out);
                self.more = event.map_err(|error| self.ended(error))?;
                Ok(())
            }
            Some(0xFF) => Err(match refusal(packet) {
                WireError::Server { code: FATAL_READING, message } => position_lost(
                    self.after.clone(),
                    format!("the server cannot send its binlog: {message}"),
                ),
                other => broke(other),
            }),
            // The server was told to end, or is ending.
            Some(0xFE) => {
                Err(SourceError::unavailable("read the binlog", "the server ended the dump"))
            }
            _ => Err(broke(WireError::Protocol("a packet that is no event"))),
        }
    }

    fn ended(&self, error: DecodeError) -> SourceError {
        match error {
            DecodeError::Stop(problem) => SourceError::Refused(problem),
            DecodeError::Renamed(problem) => {
                SourceError::PositionLost { after: self.after.clone(), problem }
            }
            error @ DecodeError::Event { .. } => SourceError::Protocol {
                operation: "read the binlog".into(),
                detail: error.to_string(),
            },
        }
    }
}

fn broke(error: WireError) -> SourceError {
    SourceError::unavailable("read the binlog", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_beyond_the_command_is_never_cut_to_its_bits() {
        let file = BinlogName::new("binlog", 7);
        let most = u64::from(u32::MAX);
        assert_eq!(dump_command(&file, most, 1).unwrap()[..4], [0xFF; 4]);
        // Resuming, the file is read from its start.
        assert!(!beyond_command(Commit::binlog(7, most - 1)));
        assert!(beyond_command(Commit::binlog(7, most)));
        assert!(beyond_command(Commit::binlog(7, most + 5)));
        // Beginning there is refused, with what to do.
        let error = dump_command(&file, most + 5, 1).unwrap_err();
        assert!(matches!(error, SourceError::Refused(_)), "{error:?}");
        let said = error.to_string();
        assert!(said.contains("binlog.000007") && said.contains("FLUSH BINARY LOGS"), "{said}");
    }
}
