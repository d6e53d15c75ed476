//! Who captures: GET_LOCK, which belongs to the whole server and ends with the session.
//!
//! The server ends a session that has been idle for the lease (`wait_timeout`): a host that vanished
//! without a word and a process that hangs are the same to a standby. A dump of such a process may
//! go on until the network gives up; it has a server id of its own and disturbs nobody.

use async_trait::async_trait;
use mysql_async::prelude::Queryable;
use tailwater_capture::{LOCK_LEASE, LockHolder, LockSession, SourceError};
use tailwater_change::Commit;

use super::session::{Session, behind};
use crate::connect::{lock_holder, lock_name};

/// No pipeline's lock on the same server begins like this: theirs have a point there.
const PREFIX: &str = "tailwater:source:";

/// The session that holds the lock, or waits for it.
#[derive(Debug)]
pub(super) struct Lock {
    session: Session,
    /// The lock's name, as an SQL expression.
    name: String,
}

impl Lock {
    /// Asks for the lock of `source` in `session`.
    ///
    /// # Errors
    /// The server is gone.
    pub(super) async fn new(mut session: Session, source: &str) -> Result<Self, SourceError> {
        let lease = format!("SET SESSION wait_timeout = {}", LOCK_LEASE.as_secs());
        session.conn.query_drop(lease).await.map_err(failed)?;
        Ok(Self { session, name: lock_name(PREFIX, source) })
    }
}

fn failed(error: mysql_async::Error) -> SourceError {
    SourceError::unavailable("lock the source", error)
}

#[async_trait]
impl LockSession for Lock {
    async fn try_take(&mut self) -> Result<LockHolder, SourceError> {
        let sql = format!("SELECT GET_LOCK({}, 0)", self.name);
        let got = self.session.value(&sql).await.map_err(failed)?;
        if got.as_deref() == Some("1") {
            return Ok(LockHolder::Us);
        }
        let holder = lock_holder(&mut self.session.conn, &self.name).await;
        Ok(LockHolder::Another(
            holder.unwrap_or_else(|error| format!("it is not known which: {error}")),
        ))
    }

    async fn check(&mut self) -> Result<(), SourceError> {
        let answered = self.session.conn.ping().await;
        answered.map_err(|error| SourceError::unavailable("hold the source's lock", error))
    }

    /// Across files: what is left of the one, all of those between, and what the last has.
    async fn lag_bytes(&mut self, after: Commit) -> Result<Option<u64>, SourceError> {
        let end = self.session.end().await?.commit();
        let covered = after.position().saturating_add(1);
        if end.file() == after.file() {
            return Ok(Some(end.position().saturating_sub(covered)));
        }
        let files = self.session.files().await?;
        Ok(behind(&files, Commit::binlog(after.file(), covered), end))
    }
}
