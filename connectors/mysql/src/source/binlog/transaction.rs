//! The events between a transaction's GTID and its end.

use tailwater_capture::{Changes, Event, TableSlot};
use tailwater_change::{Commit, Problem, TableId};

use super::gtid::{self, Start};
use super::header::{Header, kind};
use super::rows::RowsEvent;
use super::statement::{self, Name, Statement};
use super::tables::MapError;
use super::take::{Broken, Take};
use super::{DecodeError, Decoder, payload};

/// A transaction that has begun.
#[derive(Debug)]
pub(super) struct Transaction {
    commit: Commit,
    start: Start,
    /// Whether a BEGIN was seen: then a statement does not end it.
    bracketed: bool,
    /// Whether capture has been told of it.
    told: bool,
    /// Rows so far, of every table.
    pub(super) rows: u64,
    /// Whether a row was of a captured table.
    pub(super) captured: bool,
    xa: bool,
}

impl Transaction {
    /// Its place if capture has not been told of it.
    pub(super) fn untold(&self) -> Option<Commit> {
        (!self.told).then_some(self.commit)
    }

    /// Tells capture, once.
    pub(super) fn begin(&mut self, out: &mut Changes) {
        if !self.told {
            self.told = true;
            out.begin(self.commit, self.start.committed_at_us);
        }
    }
}

impl Decoder {
    /// Decodes what stands in a file, or in a compressed transaction.
    pub(super) fn content(
        &mut self,
        head: &Header,
        mut body: Take<'_>,
        out: &mut Changes,
    ) -> Result<(), DecodeError> {
        if let Some(event) = RowsEvent::of(head.kind) {
            return self.rows(head.kind, event, body, out);
        }
        let failed = |decoder: &Self, broken| decoder.failed(head.kind, broken);
        match head.kind {
            kind::GTID | kind::ANONYMOUS_GTID => {
                let anonymous = head.kind == kind::ANONYMOUS_GTID;
                let start = gtid::untagged(body, anonymous);
                self.open(start.map_err(|broken| failed(self, broken))?);
            }
            kind::GTID_TAGGED => {
                let start = gtid::tagged(body);
                self.open(start.map_err(|broken| failed(self, broken))?);
            }
            kind::MARIADB_GTID => {
                let start = gtid::mariadb(head, body);
                self.open(start.map_err(|broken| failed(self, broken))?);
            }
            kind::TABLE_MAP => {
                let id = body.uint(6).and_then(|id| body.u16().map(|_| id));
                let id = id.map_err(|broken| failed(self, broken))?;
                return self.table_map(id, body, out);
            }
            kind::XID => self.end(out),
            kind::QUERY | kind::MARIADB_QUERY_COMPRESSED => {
                let compressed = head.kind == kind::MARIADB_QUERY_COMPRESSED;
                let query = read_query(body, compressed);
                let (database, sql) = query.map_err(|broken| failed(self, broken))?;
                if self.transaction.is_none() {
                    self.open(Start {
                        gtid: None,
                        committed_at_us: Some(i64::from(head.timestamp) * 1_000_000),
                        standalone: false,
                        begun: false,
                        prepared: false,
                    });
                }
                return self.statement(&database, &sql, out);
            }
            kind::XA_PREPARE => return self.xa_prepare(body, out),
            kind::STOP
            | kind::INTVAR
            | kind::RAND
            | kind::USER_VAR
            | kind::IGNORABLE
            | kind::ROWS_QUERY
            | kind::PREVIOUS_GTIDS
            | kind::TRANSACTION_CONTEXT
            | kind::VIEW_CHANGE
            | kind::MARIADB_ANNOTATE_ROWS
            | kind::MARIADB_BINLOG_CHECKPOINT
            | kind::MARIADB_GTID_LIST
            | kind::MARIADB_START_ENCRYPTION => {}
            kind::BEGIN_LOAD_QUERY
            | kind::EXECUTE_LOAD_QUERY
            | kind::APPEND_BLOCK
            | kind::DELETE_FILE => return Err(self.logged_as_statement("LOAD DATA")),
            kind::PARTIAL_UPDATE_ROWS => {
                return Err(stop(
                    "an update was logged as a partial JSON value",
                    "run SET GLOBAL binlog_row_value_options = '', let the applications reconnect, \
                     then take a new snapshot of the source (tailwater resync)",
                ));
            }
            kind::INCIDENT => {
                return Err(stop(
                    &format!("the server lost events of its binlog at {}", self.position()),
                    "take a new snapshot of the source (tailwater resync)",
                ));
            }
            _ => return Err(self.failed(head.kind, Broken("it is not understood"))),
        }
        Ok(())
    }

    /// Whether the open transaction was delivered before.
    pub(super) fn skips(&self) -> bool {
        self.transaction.as_ref().is_some_and(|open| self.delivered.covers(open.commit))
    }

    fn open(&mut self, start: Start) {
        self.transaction = Some(Transaction {
            commit: self.buffers.start,
            bracketed: start.begun,
            xa: start.prepared,
            start,
            told: false,
            rows: 0,
            captured: false,
        });
    }

    fn end(&mut self, out: &mut Changes) {
        let Some(transaction) = self.transaction.take() else { return };
        if let Some(gtid) = &transaction.start.gtid {
            self.ended.push(gtid.clone());
        }
        if transaction.told {
            self.idle = self.idle.max(transaction.commit);
            out.end(transaction.start.gtid);
        }
    }

    fn table_map(&mut self, id: u64, body: Take<'_>, out: &mut Changes) -> Result<(), DecodeError> {
        if self.skips() {
            // Of a transaction that the log holds: the table may have been another then.
            self.tables
                .map_skipped(id, body.0)
                .map_err(|broken| self.failed(kind::TABLE_MAP, broken))?;
            return Ok(());
        }
        match self.tables.map(id, body.0) {
            Ok(()) => Ok(()),
            Err(MapError::Broken(broken)) => Err(self.failed(kind::TABLE_MAP, broken)),
            Err(MapError::Changed { slot, why }) => {
                self.changed(slot, &why, out);
                Ok(())
            }
            Err(MapError::Unknown(table)) => Err(never_seen(&table)),
        }
    }

    fn statement(
        &mut self,
        database: &str,
        sql: &str,
        out: &mut Changes,
    ) -> Result<(), DecodeError> {
        let statement = statement::parse(sql);
        let mut rows_follow = false;
        match &statement {
            Statement::Begin => {
                self.bracket();
                return Ok(());
            }
            Statement::XaStart => {
                self.bracket();
                if let Some(transaction) = &mut self.transaction {
                    transaction.xa = true;
                }
                return Ok(());
            }
            Statement::Commit => {
                self.end(out);
                return Ok(());
            }
            Statement::Rollback | Statement::RollbackToSavepoint => {
                return self.rollback(&statement);
            }
            // Inside a transaction; second phases of XA stand alone and end below.
            Statement::Savepoint => return Ok(()),
            Statement::Xa | Statement::Other => {}
            Statement::Truncate(name) => {
                if let Some(slot) = self.tables.named(name, database) {
                    self.truncated(slot, out);
                }
            }
            Statement::Create { table, replaces, if_absent, rows_follow: follow } => {
                rows_follow = *follow;
                if !self.skips() {
                    self.create(table, database, (*replaces, *if_absent), out);
                }
            }
            Statement::Alter(names) => self.alter(names, database, sql, out)?,
            Statement::DropDatabase(name) => {
                if let Some(slot) = self.tables.in_database(name).filter(|_| !self.skips()) {
                    self.changed(slot, "its database is dropped", out);
                }
            }
            Statement::Rows => {
                if !self.skips() {
                    return Err(self.logged_as_statement(&beginning(sql)));
                }
            }
            Statement::Unknown(words) => {
                if let Some(slot) = self.tables.mentioned(words).filter(|_| !self.skips()) {
                    let shown = statement::shown(sql);
                    let why = format!("a statement that is not understood names it: {shown}");
                    self.changed(slot, &why, out);
                }
            }
        }
        if rows_follow {
            self.bracket();
        }
        // A statement that stands alone is its own transaction.
        if self.transaction.as_ref().is_some_and(|open| !open.bracketed) {
            self.end(out);
        }
        Ok(())
    }

    fn bracket(&mut self) {
        if let Some(transaction) = &mut self.transaction {
            transaction.bracketed = true;
        }
    }

    /// The server takes back what it logged: only where tables without transactions are involved.
    fn rollback(&mut self, statement: &Statement) -> Result<(), DecodeError> {
        if self.transaction.as_ref().is_some_and(|open| open.captured) {
            return Err(stop(
                &format!("a transaction at {} is rolled back in the binlog", self.position()),
                "do not change tables without transactions (MyISAM, MEMORY) together with captured \
                 tables; take a new snapshot of the source (tailwater resync)",
            ));
        }
        if *statement == Statement::Rollback {
            self.transaction = None;
        }
        Ok(())
    }

    fn create(
        &mut self,
        name: &Name,
        database: &str,
        (replaces, if_absent): (bool, bool),
        out: &mut Changes,
    ) {
        if let Some(slot) = self.tables.named(name, database) {
            match self.tables.captured.get_mut(slot) {
                Some(captured) if captured.born && replaces => {
                    self.changed(slot, "it was dropped and created again", out);
                }
                // It was made while nobody looked, and here is where: from now on it is captured.
                Some(captured) if !if_absent => captured.born = true,
                // It may have been there, with rows that nobody read.
                _ => {}
            }
            return;
        }
        let Some(table) = self.tables.would_capture(name, database) else { return };
        out.push(Event::SchemaChange {
            slot: None,
            table: table.clone(),
            description: "the table was created".into(),
        });
        self.stop = Some(Problem::new(
            format!(
                "table {table} was created at {}, and the patterns capture it",
                self.position()
            ),
            "create it on the targets too, or exclude it; then run tailwater resume",
        ));
    }

    fn alter(
        &mut self,
        names: &[Name],
        database: &str,
        sql: &str,
        out: &mut Changes,
    ) -> Result<(), DecodeError> {
        if self.skips() {
            return Ok(());
        }
        let slots: Vec<usize> =
            names.iter().filter_map(|name| self.tables.named(name, database)).collect();
        let born = |slot: &&usize| self.tables.captured.get(**slot).is_some_and(|one| one.born);
        if let Some(&slot) = slots.iter().find(born) {
            self.changed(slot, &statement::shown(sql), out);
            return Ok(());
        }
        // Changes of a table on its way to what the catalog says are part of that.
        if !slots.is_empty() {
            return Ok(());
        }
        // A table may get a name that the patterns capture; one that is dropped loses it.
        let dropped =
            matches!(sql.trim_start().get(..4), Some(word) if word.eq_ignore_ascii_case("drop"));
        let to = names.iter().skip(1).find_map(|name| self.tables.would_capture(name, database));
        if let Some(table) = to.filter(|_| !dropped) {
            return Err(never_seen(&table));
        }
        Ok(())
    }

    /// Tells capture that a table is no longer what it was, and stops before the next event.
    fn changed(&mut self, slot: usize, why: &str, out: &mut Changes) {
        let Some(captured) = self.tables.captured.get(slot) else { return };
        let table = captured.schema.table.clone();
        out.push(Event::SchemaChange {
            slot: captured.announced.then_some(TableSlot(slot)),
            table: table.clone(),
            description: why.to_owned(),
        });
        self.stop = Some(Problem::new(
            format!("the definition of {table} changed at {}: {why}", self.position()),
            format!(
                "make the same change on the targets, then take a new snapshot of the table \
                 (tailwater resync, or exclude {table})"
            ),
        ));
    }

    fn xa_prepare(&mut self, mut body: Take<'_>, out: &mut Changes) -> Result<(), DecodeError> {
        let one_phase = body.u8().map_err(|broken| self.failed(kind::XA_PREPARE, broken))? != 0;
        if one_phase {
            self.end(out);
            return Ok(());
        }
        if self.transaction.as_ref().is_some_and(|open| open.captured) {
            return Err(stop(
                &format!(
                    "an XA transaction prepared at {} changes captured tables",
                    self.position()
                ),
                "XA transactions in two phases are not captured: let the application use \
                 XA COMMIT … ONE PHASE or plain transactions, then take a new snapshot of the \
                 source (tailwater resync)",
            ));
        }
        self.transaction = None;
        Ok(())
    }

    fn logged_as_statement(&self, statement: &str) -> DecodeError {
        stop(
            &format!(
                "a change of rows at {} was logged as a statement, not as rows: {statement}",
                self.position()
            ),
            "run SET GLOBAL binlog_format = 'ROW', let the applications reconnect (and not set \
             another format), then take a new snapshot of the source (tailwater resync)",
        )
    }
}

/// The event's name for the operator, or its number.
pub(super) fn event_name(number: u8) -> String {
    let name = match number {
        kind::QUERY => "QUERY",
        kind::ROTATE => "ROTATE",
        kind::FORMAT_DESCRIPTION => "FORMAT_DESCRIPTION",
        kind::TABLE_MAP => "TABLE_MAP",
        kind::GTID => "GTID",
        kind::GTID_TAGGED => "GTID_TAGGED",
        kind::MARIADB_GTID => "MARIADB_GTID",
        kind::TRANSACTION_PAYLOAD => "TRANSACTION_PAYLOAD",
        other if RowsEvent::of(other).is_some() => "ROWS",
        _ => "of type",
    };
    format!("{name} ({number})")
}

/// The database and the text of a QUERY event. Text in another character set than UTF-8 is read as
/// well as can be: only its names matter.
fn read_query(mut body: Take<'_>, compressed: bool) -> Result<(String, String), Broken> {
    body.bytes(8)?;
    let database = usize::from(body.u8()?);
    body.u16()?;
    let variables = usize::from(body.u16()?);
    body.bytes(variables)?;
    let database = body.bytes(database)?;
    body.u8()?;
    let sql = if compressed { payload::mariadb(body)? } else { body.0.to_vec() };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((text(database), text(&sql)))
}

/// The first words of a change of rows: enough to find it, and no values of its end.
fn beginning(sql: &str) -> String {
    sql.split_whitespace().take(4).collect::<Vec<_>>().join(" ")
}

fn stop(what: &str, remedy: &str) -> DecodeError {
    DecodeError::Stop(Problem::new(what, remedy))
}

fn never_seen(table: &TableId) -> DecodeError {
    stop(
        &format!("table {table} matches the patterns, but its rows were never read"),
        &format!("take a snapshot of it (tailwater resync), or exclude {table}"),
    )
}
