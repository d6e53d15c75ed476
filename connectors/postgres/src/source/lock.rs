//! Who captures: a session-level advisory lock, and the slot, which has one reader at a time.
//!
//! Both end by themselves when their process is gone without a word. The session of the lock is
//! ended by the server when it has been idle for the lease (`idle_session_timeout`), the walsender
//! when nobody has answered it for as long (`wal_sender_timeout`, see `wire`): a host that vanished
//! and a process that hangs are the same to a standby.

use async_trait::async_trait;
use tailwater_capture::{LOCK_LEASE, LockHolder, LockSession, SourceError};
use tailwater_change::Commit;

use crate::connect::{Session, session_named, source_error};
use crate::source::slot::slot_status;

const OPERATION: &str = "taking the source's lock";

/// Two processes of one source are two clients of one slot: its name is the lock's.
const NUMBER: &str = "pg_catalog.hashtextextended('tailwater.source.' || $1, 0)";

/// The session that holds the lock, or waits for it.
#[derive(Debug)]
pub(super) struct Lock {
    session: Session,
    slot: String,
}

impl Lock {
    /// Asks for the lock of `slot` in `session`.
    ///
    /// # Errors
    /// The server is gone.
    pub(super) async fn new(session: Session, slot: &str) -> Result<Self, SourceError> {
        let lease = format!("SET idle_session_timeout TO {}", LOCK_LEASE.as_millis());
        let set = session.batch_execute(&lease).await;
        set.map_err(|error| source_error(OPERATION, error))?;
        Ok(Self { session, slot: slot.to_owned() })
    }

    /// The session that has the lock.
    async fn holder(&self) -> Result<String, tokio_postgres::Error> {
        let sql = format!(
            "SELECT l.pid, coalesce(pg_catalog.host(a.client_addr), 'the server''s own host')
               FROM (SELECT {NUMBER} AS n) k
               JOIN pg_catalog.pg_locks l
                 ON l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                AND l.classid::int8 = (k.n >> 32) & 4294967295
                AND l.objid::int8 = k.n & 4294967295
               JOIN pg_catalog.pg_database d ON d.oid = l.database
               LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
              WHERE d.datname = pg_catalog.current_database()"
        );
        Ok(match self.session.query_opt(&sql, &[&self.slot]).await? {
            Some(row) => session_named(row.get(0), row.get(1)),
            None => "its session has just ended".into(),
        })
    }

    /// The lock goes to who asks next.
    async fn give_back(&self) -> Result<(), SourceError> {
        let sql = format!("SELECT pg_catalog.pg_advisory_unlock({NUMBER})");
        let row = self.session.query_one(&sql, &[&self.slot]).await;
        row.map(drop).map_err(|error| source_error(OPERATION, error))
    }
}

#[async_trait]
impl LockSession for Lock {
    async fn try_take(&mut self) -> Result<LockHolder, SourceError> {
        let sql = format!("SELECT pg_catalog.pg_try_advisory_lock({NUMBER})");
        let row = self.session.query_one(&sql, &[&self.slot]).await;
        let taken: bool = row.map_err(|error| source_error(OPERATION, error))?.get(0);
        if !taken {
            let holder = self
                .holder()
                .await
                .unwrap_or_else(|error| format!("it is not known which: {error}"));
            return Ok(LockHolder::Another(holder));
        }
        // Whoever reads the slot without the lock lost it a moment ago, or came before it. Taking
        // over would stop his appends, and nobody could go on until the slot is free.
        let status = slot_status(&self.session, &self.slot).await?;
        match status.and_then(|status| status.active_pid) {
            None => Ok(LockHolder::Us),
            Some(pid) => {
                self.give_back().await?;
                let slot = &self.slot;
                Ok(LockHolder::Another(format!("session {pid} reads the replication slot {slot}")))
            }
        }
    }

    async fn check(&mut self) -> Result<(), SourceError> {
        let answered = self.session.batch_execute("").await;
        answered.map_err(|error| source_error("holding the source's lock", error))
    }

    async fn lag_bytes(&mut self, after: Commit) -> Result<Option<u64>, SourceError> {
        let end = "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() \
                        THEN pg_catalog.pg_last_wal_replay_lsn() \
                        ELSE pg_catalog.pg_current_wal_flush_lsn() END - '0/0')::int8";
        let row = self.session.query_one(end, &[]).await;
        let row = row.map_err(|error| source_error("asking for the end of the WAL", error))?;
        let end = below_end(row.get::<_, i64>(0));
        Ok(Some(end.position().saturating_sub(after.position())))
    }
}

/// The last position below the end of the WAL. A page's header counts into it before anything is
/// on the page, and the stream would not pass it: then the page's start.
pub(super) fn below_end(end: i64) -> Commit {
    const PAGE_BYTES: u64 = 8 << 10;
    const LONGEST_HEADER: u64 = 40;
    let end = u64::try_from(end).unwrap_or_default();
    let into_page = end % PAGE_BYTES;
    let end = if into_page <= LONGEST_HEADER { end - into_page } else { end };
    Commit::lsn(end.saturating_sub(1))
}
