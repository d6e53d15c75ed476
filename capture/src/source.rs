//! The contract of a source: what a connector promises and what capture promises back.
//!
//! ```text
//!   check ─► snapshot ─► stream                        first start
//!   check ─► stream(resume)                            every other
//!   snapshot_rest(resume) ─► stream(resume) up to it ─► the rest ─► stream
//!                                                      after a snapshot that broke off
//! ```
//!
//! A connector promises: every committed change of the captured tables, once per stream, whole
//! transactions in commit order, from the asked position on; ordinals that count every row the
//! server sends, the same at every reading; a snapshot whose rows are what a reader saw at its
//! consistent point, in values byte-identical to those of the stream; and an error, never a gap,
//! where any of that cannot be had. Capture promises: `confirm` only what the log holds.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tailwater_change::{Commit, Problem, TableId, TableSchema};

use crate::{Changes, SourceError, TableReader};

/// Who the server is: PostgreSQL's system identifier and timeline; MySQL's server uuid (MariaDB: its
/// server id and GTID domain) and binlog base name. Positions of two of them do not compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServerIdentity(pub String);

/// What a connector needs to find its position again and tells nobody else: slot name, executed
/// GTID set, binlog base name. Text (JSON), written to the state topic as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SourceState(pub String);

/// Where a stream goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// The log holds everything up to and including this commit. The stream delivers every commit
    /// above it; it may deliver this one again, which capture drops.
    pub after: Commit,
    /// Whether the transaction at `after` may be incomplete in the log: then it must be delivered
    /// again, whole.
    pub again: bool,
    /// What the connector last said of itself.
    pub state: SourceState,
}

/// How long a source may hear nothing of the session that holds its lock before it ends that
/// session: the host vanished without a word, or the process hangs. Capture is heard every second.
/// A standby that looks every second, and takes over in less than one, is at work in ten.
pub const LOCK_LEASE: Duration = Duration::from_secs(5);

/// Whose a source's lock is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockHolder {
    /// Ours, from now on.
    Us,
    /// Another process's: which session it is, as the source says. For people.
    Another(String),
}

/// A session in which a source's lock is asked for and then held: the lock ends when this is
/// dropped, or with the session behind it. It keeps two captures from fencing each other in turn;
/// the log's fence is the safety behind it.
#[derive(Debug)]
pub struct SourceLock(Box<dyn LockSession>);

impl SourceLock {
    /// The lock is held as long as `session` lives.
    pub fn new(session: impl LockSession + 'static) -> Self {
        Self(Box::new(session))
    }

    /// As [`LockSession::try_take`].
    ///
    /// # Errors
    /// As there.
    pub async fn try_take(&mut self) -> Result<LockHolder, SourceError> {
        self.0.try_take().await
    }

    /// As [`LockSession::check`].
    ///
    /// # Errors
    /// As there.
    pub async fn check(&mut self) -> Result<(), SourceError> {
        self.0.check().await
    }

    /// As [`LockSession::lag_bytes`].
    ///
    /// # Errors
    /// As there.
    pub async fn lag_bytes(&mut self, after: Commit) -> Result<Option<u64>, SourceError> {
        self.0.lag_bytes(after).await
    }
}

/// The session that holds a source's lock, or waits for it. The source ends it when it has heard
/// nothing of it for [`LOCK_LEASE`]. It has nothing else to do, so it is asked how far the source
/// is: on a connection of its own, the answer does not wait behind what is to be read.
#[async_trait]
pub trait LockSession: Send + std::fmt::Debug {
    /// Takes the lock if no other process has it.
    ///
    /// # Errors
    /// Cannot be asked: the session is of no more use.
    async fn try_take(&mut self) -> Result<LockHolder, SourceError>;

    /// A sign of life: the lock that was taken is still ours.
    ///
    /// # Errors
    /// It is not, or cannot be asked for.
    async fn check(&mut self) -> Result<(), SourceError>;

    /// Bytes of the source's own log behind `after`, durable there; 0: there is nothing that a
    /// stream after it would still deliver. `None`: it cannot be said.
    ///
    /// # Errors
    /// Cannot be asked now.
    async fn lag_bytes(&mut self, after: Commit) -> Result<Option<u64>, SourceError>;
}

/// A source that no other process could read needs no lock.
#[async_trait]
impl LockSession for () {
    async fn try_take(&mut self) -> Result<LockHolder, SourceError> {
        Ok(LockHolder::Us)
    }

    async fn check(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    async fn lag_bytes(&mut self, _after: Commit) -> Result<Option<u64>, SourceError> {
        Ok(None)
    }
}

/// A source database: how to check, snapshot and stream it. Holds configuration, no connection.
#[async_trait]
pub trait SourceConnector: Send + Sync + std::fmt::Debug {
    /// Tries everything that snapshot and stream need; every problem with its remedy, none twice.
    async fn check(&self) -> Vec<Problem>;

    /// Who answers now: what a stream or a snapshot of this moment would name.
    ///
    /// # Errors
    /// Cannot be asked.
    async fn server(&self) -> Result<ServerIdentity, SourceError>;

    /// The captured tables as they are now, in an order in which foreign keys point backwards
    /// where that is possible.
    ///
    /// # Errors
    /// Cannot be asked, or a captured column has a type that is refused.
    async fn tables(&self) -> Result<Vec<Arc<TableSchema>>, SourceError>;

    /// A commit position such that everything that had committed when this was called is at or
    /// below it, and that the stream will pass even if nothing else happens on the source.
    ///
    /// # Errors
    /// Cannot be asked.
    async fn current(&self) -> Result<Commit, SourceError>;

    /// Opens the session in which the lock of this source is taken: who holds it captures, who
    /// does not waits.
    ///
    /// # Errors
    /// Cannot connect.
    async fn lock_session(&self) -> Result<SourceLock, SourceError> {
        Ok(SourceLock::new(()))
    }

    /// Takes the stream's starting position (slot, GTID set) and a snapshot exactly there. What an
    /// earlier one left on the source, usable or not, is replaced.
    ///
    /// # Errors
    /// As the variants say; nothing is left behind that a second call would stumble over.
    async fn snapshot(&self) -> Result<Box<dyn Snapshot>, SourceError>;

    /// Takes a snapshot of the captured tables that `finished` does not name: exact at a point of
    /// its own, which is not before `resume` and which the stream from there passes, also when
    /// nothing else happens on the source. The stream's starting position stays where it is. The
    /// snapshot's [`state`](Snapshot::state) is of all captured tables.
    ///
    /// It says [`Rest::Void`] where what was read before cannot be completed like that: a captured
    /// table was added, dropped or defined anew.
    ///
    /// # Errors
    /// As of [`stream`](Self::stream): [`SourceError::PositionLost`] if it could not go on from
    /// `resume`. Whatever fails, that position stays.
    async fn snapshot_rest(
        &self,
        resume: &Resume,
        finished: &[TableId],
    ) -> Result<Rest, SourceError>;

    /// Streams from `resume`; `None`: from now, without a snapshot (`snapshot = "never"`), and
    /// then the first event is an [`Event::Idle`](crate::Event::Idle) that says where it began.
    ///
    /// # Errors
    /// [`SourceError::PositionLost`] where the source cannot continue from there.
    async fn stream(&self, resume: Option<&Resume>) -> Result<Box<dyn Stream>, SourceError>;

    /// Reads rows of captured tables by key, for `verify`.
    ///
    /// # Errors
    /// Cannot connect.
    async fn table_reader(&self) -> Result<Box<dyn TableReader>, SourceError>;

    /// Gives up what the source keeps for us (slot, publication): after it the source must be
    /// snapshotted anew.
    ///
    /// # Errors
    /// Cannot connect, or may not drop it.
    async fn release(&self) -> Result<(), SourceError>;
}

/// What becomes of a snapshot that broke off.
pub enum Rest {
    /// It goes on with this.
    Snapshot(Box<dyn Snapshot>),
    /// It must begin anew: why.
    Void(String),
}

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Snapshot(snapshot) => write!(f, "Snapshot({})", snapshot.commit()),
            Self::Void(why) => write!(f, "Void({why:?})"),
        }
    }
}

/// A snapshot being read. When it is dropped, or fails, the position where the stream would begin
/// stays on the source: only capture knows whether something will go on from there, and
/// [releases](SourceConnector::release) it if not.
#[async_trait]
pub trait Snapshot: Send {
    /// The consistent point: the stream goes on after it. No transaction has this very position.
    fn commit(&self) -> Commit;

    /// Where it was taken.
    fn server(&self) -> ServerIdentity;

    /// What [`SourceConnector::stream`] needs to go on after it.
    fn state(&self) -> SourceState;

    /// Adds the next events to `out`, roughly `bytes` of them: per table `Schema`, `TableBegin`,
    /// rows as [`Operation::Read`](tailwater_change::Operation::Read) with running ordinals over
    /// the whole snapshot, `TableEnd`; then `SnapshotEnd`, after which it is not called again.
    ///
    /// # Errors
    /// The snapshot is lost; of a new one, tables that have had their end need not be part.
    async fn next(&mut self, out: &mut Changes, bytes: usize) -> Result<(), SourceError>;
}

/// A stream of transactions.
#[async_trait]
pub trait Stream: Send {
    /// Whom it reads.
    fn server(&self) -> ServerIdentity;

    /// What a later resume needs; read after each confirmed commit, written to the state topic
    /// when it differs from the last.
    fn state(&self) -> SourceState;

    /// Waits until the source says something, then adds what it said: everything decoded so far,
    /// stopping at roughly `bytes`. Between two calls a transaction may be open. Cancel-safe:
    /// dropped at any await, nothing is lost or repeated.
    ///
    /// # Errors
    /// The stream has ended; what was not yet returned comes again from the next.
    async fn next(&mut self, out: &mut Changes, bytes: usize) -> Result<(), SourceError>;

    /// The log holds everything up to and including `through`: the source may forget it. Also the
    /// sign of life that keeps the connection (called every few seconds, also without progress).
    ///
    /// # Errors
    /// The stream has ended.
    async fn confirm(&mut self, through: Commit) -> Result<(), SourceError>;

    /// Asks the source where it is: an [`Event::Idle`](crate::Event::Idle) or a transaction
    /// follows soon. For `wait`, and for lag when idle.
    ///
    /// # Errors
    /// The stream has ended.
    async fn probe(&mut self) -> Result<(), SourceError>;
}
