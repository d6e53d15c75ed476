//! MySQL and MariaDB as a source: check, exact snapshot, binlog stream.
//!
//! ```text
//!   check.rs ─► snapshot.rs ─► stream.rs ─► binlog/ (no IO)
//!                    session.rs: what is asked once; state.rs: what is remembered
//! ```
//!
//! Nothing is kept on the server for us: the binlog goes when the server's own settings say so
//! (`binlog_expire_logs_seconds`), and a position that is gone is a clear error.

mod binlog;
mod check;
mod file;
mod filter;
mod gtids;
mod lock;
#[cfg(test)]
mod record;
mod session;
mod silence;
mod snapshot;
mod state;
mod stream;

use std::sync::Arc;

use async_trait::async_trait;
use tailwater_capture::{
    Rest, Resume, ServerIdentity, Snapshot, SourceConnector, SourceError, SourceLock, Stream,
    TableReader,
};
use tailwater_change::{Commit, Problem, TableId, TableSchema};

use self::filter::Filter;
use self::lock::Lock;
pub(crate) use self::session::Session;
use crate::catalog;
use crate::connect::{Endpoint, quote_text};
use crate::reader::KeyReader;

/// What the user says about a source.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// The source's name in the configuration.
    pub name: String,
    /// `mysql://user:password@host:port/database`, with `ssl-mode` and `ssl-ca` as MySQL's clients
    /// spell them.
    pub url: String,
    /// Patterns `database.table` of what is captured; `*` stands for anything. Without a database:
    /// the URL's.
    pub tables: Vec<String>,
    /// Patterns of what is not captured all the same.
    pub exclude: Vec<String>,
}

/// A MySQL or MariaDB server as a source.
///
/// # Errors
/// The URL or a pattern cannot be read.
pub fn connector(config: SourceConfig) -> Result<impl SourceConnector + use<>, Problem> {
    let endpoint = Endpoint::parse(&config.url)?;
    let filter = Filter::new(&config.tables, &config.exclude, endpoint.database())?;
    Ok(MysqlSource { name: config.name, endpoint, filter })
}

/// A source's configuration, read.
#[derive(Debug)]
pub(crate) struct MysqlSource {
    name: String,
    endpoint: Endpoint,
    filter: Filter,
}

impl MysqlSource {
    /// The account as a GRANT names it; its host is the server's to know.
    fn account(&self) -> String {
        quote_text(self.endpoint.opts().user().unwrap_or_default())
    }
}

#[async_trait]
impl SourceConnector for MysqlSource {
    async fn check(&self) -> Vec<Problem> {
        check::check(self).await
    }

    async fn server(&self) -> Result<ServerIdentity, SourceError> {
        let mut session = Session::open(&self.endpoint).await?;
        let server = session.identity().await?;
        let end = session.end().await?;
        Ok(state::identity(&server, end.file.base()))
    }

    async fn tables(&self) -> Result<Vec<Arc<TableSchema>>, SourceError> {
        let mut session = Session::open(&self.endpoint).await?;
        catalog(self, &mut session).await
    }

    async fn current(&self) -> Result<Commit, SourceError> {
        let mut session = Session::open(&self.endpoint).await?;
        let end = session.end().await?.commit();
        Ok(Commit::binlog(end.file(), end.position().saturating_sub(1)))
    }

    async fn lock_session(&self) -> Result<SourceLock, SourceError> {
        let session = Session::open(&self.endpoint).await?;
        Ok(SourceLock::new(Lock::new(session, &self.name).await?))
    }

    async fn snapshot(&self) -> Result<Box<dyn Snapshot>, SourceError> {
        Ok(Box::new(snapshot::take(self).await?))
    }

    async fn snapshot_rest(
        &self,
        resume: &Resume,
        finished: &[TableId],
    ) -> Result<Rest, SourceError> {
        let then = state::State::read(&resume.state)?;
        let mut session = Session::open(&self.endpoint).await?;
        stream::locate(&mut session, &then, resume).await?;
        let mut rest = snapshot::take(self).await?;
        Ok(match rest.complete(&then, finished) {
            Ok(()) => Rest::Snapshot(Box::new(rest)),
            Err(why) => Rest::Void(why),
        })
    }

    async fn stream(&self, resume: Option<&Resume>) -> Result<Box<dyn Stream>, SourceError> {
        Ok(Box::new(stream::open(self, resume).await?))
    }

    async fn table_reader(&self) -> Result<Box<dyn TableReader>, SourceError> {
        Ok(Box::new(KeyReader::connect(&self.endpoint).await?))
    }

    async fn release(&self) -> Result<(), SourceError> {
        // The server keeps nothing for us.
        Ok(())
    }
}

/// The captured tables as the catalog has them now.
async fn catalog(
    source: &MysqlSource,
    session: &mut Session,
) -> Result<Vec<Arc<TableSchema>>, SourceError> {
    let wanted = |table: &tailwater_change::TableId| source.filter.captures(table);
    let tables = catalog::tables(&mut session.conn, session.server, wanted)
        .await
        .map_err(|error| SourceError::unavailable("read the catalog", error))?;
    let mut schemas = Vec::with_capacity(tables.len());
    for table in tables {
        let schema = table.schema(session.server).map_err(|problems| {
            let problem = problems.into_iter().next();
            SourceError::Refused(problem.unwrap_or_else(|| {
                Problem::new(format!("table {} cannot be captured", table.table), "exclude it")
            }))
        })?;
        schemas.push(schema);
    }
    Ok(catalog::order_by_foreign_keys(schemas).into_iter().map(Arc::new).collect())
}
