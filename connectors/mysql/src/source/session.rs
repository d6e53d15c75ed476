//! What is asked of the server over an ordinary session.

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row};
use tailwater_capture::SourceError;
use tailwater_change::{Commit, Problem};

use super::binlog::Collations;
use super::file::BinlogName;
use super::gtids::GtidSet;
use crate::connect::{Endpoint, Server, in_time, quote_text, silent};

/// `ER_ERROR_WHEN_EXECUTING_COMMAND`: SHOW BINLOG EVENTS found no event where it was to begin.
const NO_EVENT_THERE: u16 = 1220;

/// A session and what it is connected to.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) conn: Conn,
    pub(crate) server: Server,
}

/// Where the binlog ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) file: BinlogName,
    pub(crate) position: u64,
    /// MySQL: the transactions executed up to here.
    pub(crate) gtids: Option<String>,
}

impl End {
    /// Reads the row of the status statement.
    pub(crate) fn read(row: &[Option<String>]) -> Option<Self> {
        let text = |at: usize| row.get(at).cloned().flatten();
        Some(Self {
            file: BinlogName::parse(&text(0)?)?,
            position: text(1)?.parse().ok()?,
            gtids: text(4),
        })
    }

    /// The position of the event that comes next.
    pub(crate) fn commit(&self) -> Commit {
        Commit::binlog(self.file.number(), self.position)
    }
}

impl Session {
    pub(crate) async fn open(endpoint: &Endpoint) -> Result<Self, SourceError> {
        let failed = |error| match endpoint.refusal(&error) {
            Some(problem) => SourceError::Refused(problem),
            None => SourceError::unavailable(format!("connect to {endpoint}"), error),
        };
        let opening = async {
            let mut conn = endpoint.connect().await?;
            let server = Server::of(&mut conn).await?;
            Ok(Self { conn, server })
        };
        in_time(opening, silent).await.map_err(failed)
    }

    /// Rows of a statement, each value as text.
    pub(crate) async fn rows(
        &mut self,
        sql: &str,
    ) -> Result<Vec<Vec<Option<String>>>, mysql_async::Error> {
        let rows: Vec<Row> = self.conn.query(sql).await?;
        let text = |value| match value {
            mysql_async::Value::NULL => None,
            mysql_async::Value::Bytes(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            other => Some(other.as_sql(true).trim_matches('\'').to_owned()),
        };
        Ok(rows.into_iter().map(|row| row.unwrap().into_iter().map(text).collect()).collect())
    }

    /// A statement's first value.
    pub(crate) async fn value(&mut self, sql: &str) -> Result<Option<String>, mysql_async::Error> {
        let rows = self.rows(sql).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
    }

    async fn ask(&mut self, sql: &str) -> Result<String, SourceError> {
        let answer = self.value(sql).await;
        let answer = answer.map_err(|error| SourceError::unavailable(sql.to_owned(), error))?;
        Ok(answer.unwrap_or_default())
    }

    /// Who the server is, whatever its address.
    pub(crate) async fn identity(&mut self) -> Result<String, SourceError> {
        if self.server.is_mariadb() {
            return self
                .ask("SELECT CONCAT('server_id=', @@server_id, ',domain=', @@gtid_domain_id)")
                .await;
        }
        self.ask("SELECT @@server_uuid").await
    }

    /// The statement that shows where the binlog ends.
    pub(crate) fn end_statement(&self) -> &'static str {
        if !self.server.is_mariadb() && self.server.version >= (8, 2, 0) {
            "SHOW BINARY LOG STATUS"
        } else {
            "SHOW MASTER STATUS"
        }
    }

    /// Where the binlog ends now.
    pub(crate) async fn end(&mut self) -> Result<End, SourceError> {
        let sql = self.end_statement();
        let rows = self.rows(sql).await.map_err(|error| SourceError::unavailable(sql, error))?;
        rows.first().and_then(|row| End::read(row)).ok_or_else(no_binlog)
    }

    /// Binlog files and their sizes in bytes, the oldest first.
    pub(crate) async fn files(&mut self) -> Result<Vec<(BinlogName, u64)>, SourceError> {
        let sql = "SHOW BINARY LOGS";
        let rows = self.rows(sql).await.map_err(|error| SourceError::unavailable(sql, error))?;
        let read = |row: Vec<Option<String>>| {
            let mut values = row.into_iter().flatten();
            Some((BinlogName::parse(&values.next()?)?, values.next()?.parse().ok()?))
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    /// Whether an event begins at `position` of a file; `None` where that cannot be asked.
    pub(crate) async fn begins_event(&mut self, file: &BinlogName, position: u64) -> Option<bool> {
        let name = quote_text(&file.to_string());
        let sql = format!("SHOW BINLOG EVENTS IN {name} FROM {position} LIMIT 1");
        match self.rows(&sql).await {
            Ok(rows) => {
                let at = rows.first().and_then(|row| row.get(1)).cloned().flatten();
                Some(at == Some(position.to_string()))
            }
            Err(mysql_async::Error::Server(error)) if error.code == NO_EVENT_THERE => Some(false),
            Err(_) => None,
        }
    }

    /// The transactions that the server has executed, as far as its binlog says.
    pub(crate) async fn executed(&mut self) -> Result<GtidSet, SourceError> {
        let variable = if self.server.is_mariadb() {
            "SELECT @@GLOBAL.gtid_binlog_pos"
        } else {
            "SELECT @@GLOBAL.gtid_executed"
        };
        let text = self.ask(variable).await?;
        Ok(GtidSet::parse(self.server.dialect, &text))
    }

    /// The character set of every collation, by number.
    pub(crate) async fn collations(&mut self) -> Result<Collations, SourceError> {
        let full = "SELECT id, character_set_name FROM \
                    information_schema.collation_character_set_applicability";
        let plain = "SELECT id, character_set_name FROM information_schema.collations";
        // MariaDB from 10.10 on numbers collations per character set, in the first of the two.
        let rows = match self.rows(full).await {
            Ok(rows) => rows,
            Err(_) => self
                .rows(plain)
                .await
                .map_err(|error| SourceError::unavailable("list the collations", error))?,
        };
        let read = |row: Vec<Option<String>>| {
            let mut values = row.into_iter();
            Some((values.next()??.parse().ok()?, values.next()??))
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }
}

/// Bytes from a position to another of a later file; `None` where the files do not say.
pub(super) fn behind(files: &[(BinlogName, u64)], from: Commit, end: Commit) -> Option<u64> {
    let number = |file: &(BinlogName, u64)| file.0.number();
    if from.file() > end.file() || !files.iter().any(|file| number(file) == from.file()) {
        return None;
    }
    let between = files.iter().filter(|file| (from.file()..end.file()).contains(&number(file)));
    let whole: u64 = between.map(|(_, size)| size).sum();
    Some((whole + end.position()).saturating_sub(from.position()))
}

/// The server writes none, or does not show it to us.
pub(crate) fn no_binlog() -> SourceError {
    SourceError::Refused(Problem::new("the server has no binlog", "start it with log_bin = binlog"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_goes_across_files() {
        let file = |number: u64, size| (BinlogName::new("binlog", number), size);
        let files = [file(7, 1000), file(8, 50), file(9, 400)];
        let at = Commit::binlog;
        assert_eq!(behind(&files, at(7, 990), at(9, 300)), Some(10 + 50 + 300));
        assert_eq!(behind(&files, at(8, 50), at(9, 4)), Some(4));
        assert_eq!(behind(&files, at(6, 4), at(9, 300)), None, "purged");
        assert_eq!(behind(&files, at(9, 4), at(7, 300)), None, "reset");
    }
}
