//! The contract of a target: what a connector promises the apply loop.
//!
//! ```text
//!   connect ─► try_lock ─► take_over ─► { begin ─► step | replay … ─► commit(progress) } …
//! ```
//!
//! A connector promises: the session contract (every setting that changes how a value is read is
//! fixed at connect); that between `begin` and `commit` everything is one transaction; that
//! `commit` writes the progress row as its last statement, under the fence, and says honestly
//! whether it took effect; that a step is applied wholly as it says or refused, never half, never
//! with a value changed silently.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tailwater_change::{Dialect, Place, Problem, TableId, TableSchema};

use crate::{Change, Step, Table, TargetError};

/// How long a target may hear nothing of the session that holds a pipeline's lock before it ends
/// that session: the host vanished without a word, or the process hangs. It is heard every second.
/// A standby that looks every second, and takes over in less than one, is at work in ten.
pub const SESSION_LEASE: Duration = Duration::from_secs(5);

/// How far a pipeline has come: one row of `tailwater.progress` in the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The pipeline.
    pub pipeline: String,
    /// The cluster whose log was read.
    pub cluster_id: String,
    /// The topic's id there: another id under the same name is another log.
    pub topic_id: String,
    /// The first offset whose record is not yet applied. Inside a transaction it may lie at that
    /// transaction's first record.
    pub next_offset: i64,
    /// The last place that is applied, inclusive.
    pub place: Place,
    /// Who may write: raised by every take-over.
    pub fence: i64,
    /// What else apply remembers: text (JSON), opaque to the connector.
    pub state: String,
}

/// What the target's table is like, as far as the plan must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetTable {
    /// Its name on the target.
    pub name: TableId,
    /// Whether two identities are the same row on the target exactly if their row messages are
    /// equal bytes (not so under case-insensitive collations, for floats, for unscaled decimals).
    pub identity_is_bytes: bool,
    /// Columns (indexes into the source schema) of unique keys besides the identity. Expression
    /// and partial indexes count with all their columns.
    pub unique_keys: Vec<Vec<usize>>,
    /// Whether triggers, foreign keys or cascades act in our session when this table changes: then
    /// only the source's order has the source's effect.
    pub fires: bool,
}

/// What to do when a row on the target is not what the source's change expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConflictPolicy {
    /// Make the row what the source says, and count it.
    Repair,
    /// Stop.
    Stop,
}

/// How a set-based step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepOutcome {
    /// Exactly as many rows as the step has were changed.
    Applied,
    /// Something was not as the step expects (a row already there or missing, a unique key, a
    /// warning): the caller rolls back to the savepoint and replays. The text is for the log.
    Refused(String),
}

/// A target database: holds configuration, no connection.
#[async_trait]
pub trait TargetConnector: Send + Sync + std::fmt::Debug {
    /// What it is.
    fn dialect(&self) -> Dialect;

    /// Tries everything that apply needs besides the tables; every problem with its remedy.
    async fn check(&self) -> Vec<Problem>;

    /// Whether `schema` can be applied to the table `to`: every column has a type that takes every
    /// value unchanged, and a table that exists has what is needed.
    async fn check_table(&self, schema: &TableSchema, to: &TableId) -> Vec<Problem>;

    /// Opens a session under the session contract.
    ///
    /// # Errors
    /// Cannot connect.
    async fn connect(&self) -> Result<Box<dyn Target>, TargetError>;

    /// Forgets the pipeline: removes its progress row.
    ///
    /// # Errors
    /// Cannot connect, or may not.
    async fn forget(&self, pipeline: &str) -> Result<(), TargetError>;
}

/// A session on the target. Any error leaves it unusable unless said otherwise: the loop drops it
/// and connects anew.
#[async_trait]
pub trait Target: Send {
    /// Tries to become the one that applies this pipeline: a lock that ends with the session
    /// (advisory lock, GET_LOCK). `false`: another holds it.
    ///
    /// # Errors
    /// Cannot be asked.
    async fn try_lock(&mut self, pipeline: &str) -> Result<bool, TargetError>;

    /// Which session has the lock that [`try_lock`](Self::try_lock) did not get, as the target says:
    /// for people.
    ///
    /// # Errors
    /// Cannot be asked.
    async fn lock_holder(&mut self, _pipeline: &str) -> Result<String, TargetError> {
        Ok("another session of the target".into())
    }

    /// Which of these locks are held, by whatever session: those of [`try_lock`](Self::try_lock).
    ///
    /// # Errors
    /// Cannot be asked.
    async fn held(&mut self, locks: &[String]) -> Result<Vec<bool>, TargetError>;

    /// A sign of life, in a transaction or not: given every second while there is nothing else to
    /// say. The target ends a session, and its lock, that it has heard nothing of for
    /// [`SESSION_LEASE`].
    ///
    /// # Errors
    /// The session is gone, and the lock with it.
    async fn ping(&mut self) -> Result<(), TargetError> {
        Ok(())
    }

    /// Reads the progress row, creating `tailwater.progress` where it is missing.
    ///
    /// # Errors
    /// Cannot be read or created.
    async fn progress(&mut self, pipeline: &str) -> Result<Option<Progress>, TargetError>;

    /// Under the lock: inserts `initial` if there is no row, raises the fence and returns the row
    /// as it now stands, committed.
    ///
    /// # Errors
    /// Cannot be written.
    async fn take_over(&mut self, initial: &Progress) -> Result<Progress, TargetError>;

    /// Describes the table `to` for rows of `schema`; `None` if it does not exist. Remembers what
    /// it needs for steps on it.
    ///
    /// # Errors
    /// The table cannot take the schema's values.
    async fn describe(
        &mut self,
        schema: &TableSchema,
        to: &TableId,
    ) -> Result<Option<TargetTable>, TargetError>;

    /// Creates the table: columns, key, defaults; schema or database if missing. Not in a
    /// transaction. No error if it exists by now.
    ///
    /// # Errors
    /// A type has no equal on the target, or no privilege.
    async fn create_table(&mut self, schema: &TableSchema, to: &TableId)
    -> Result<(), TargetError>;

    /// After the load, for a table that [`create_table`](Self::create_table) made: secondary
    /// indexes, foreign keys (to tables named by `route` of their source name; those not captured
    /// are left out), sequences and auto-increment beyond the largest value. Idempotent.
    ///
    /// # Errors
    /// The definition is refused.
    async fn finish_table(
        &mut self,
        schema: &TableSchema,
        to: &TableId,
        route: &(dyn for<'a> Fn(&'a TableId) -> Option<TableId> + Sync),
    ) -> Result<(), TargetError>;

    /// Whether the table, as it stands, stays equal under a stream of changes: refuses one that the
    /// source changes in ways that it does not log and that the target would not repeat. Asked when
    /// a load is over, and of each table that a session takes up after it.
    ///
    /// # Errors
    /// It would part from the source.
    async fn follows(&mut self, _schema: &TableSchema, _to: &TableId) -> Result<(), TargetError> {
        Ok(())
    }

    /// Whether the table has no row.
    ///
    /// # Errors
    /// Cannot be read.
    async fn is_empty(&mut self, to: &TableId) -> Result<bool, TargetError>;

    /// Begins a transaction.
    ///
    /// # Errors
    /// The session is gone.
    async fn begin(&mut self) -> Result<(), TargetError>;

    /// Deletes every row of these tables in the running transaction, foreign keys or not.
    ///
    /// # Errors
    /// Refused by the database.
    async fn clear(&mut self, tables: &[Arc<Table>]) -> Result<(), TargetError>;

    /// Marks a point in the transaction. One at a time; the next replaces it.
    ///
    /// # Errors
    /// The session is gone.
    async fn savepoint(&mut self) -> Result<(), TargetError>;

    /// Undoes what came after the savepoint; the transaction goes on.
    ///
    /// # Errors
    /// The session is gone.
    async fn rollback_to_savepoint(&mut self) -> Result<(), TargetError>;

    /// Executes a set-based step. After `Refused` the caller goes back to the savepoint.
    ///
    /// # Errors
    /// What replaying would not heal either.
    async fn step(&mut self, step: &Step) -> Result<StepOutcome, TargetError>;

    /// Executes changes one by one in their order, repairing or stopping at conflicts as `policy`
    /// says. Insert of a row that is there, update and delete of one that is not: conflicts.
    /// Returns how many were repaired.
    ///
    /// # Errors
    /// [`TargetError::Conflict`] where the policy or unsent columns forbid a repair.
    async fn replay(
        &mut self,
        changes: &[Change],
        policy: ConflictPolicy,
    ) -> Result<u64, TargetError>;

    /// Writes the progress, conditional on its fence, and commits.
    ///
    /// # Errors
    /// [`TargetError::Fenced`]: rolled back. [`TargetError::UnknownOutcome`]: read the progress.
    async fn commit(&mut self, progress: &Progress) -> Result<(), TargetError>;

    /// As [`commit`](Self::commit), but need not wait until the server can no longer lose it: data
    /// and progress are then lost together, with all that was committed later. A later `commit`
    /// makes both safe. `true`: they are already.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    async fn commit_soon(&mut self, progress: &Progress) -> Result<bool, TargetError> {
        self.commit(progress).await.map(|()| true)
    }

    /// Undoes the transaction.
    ///
    /// # Errors
    /// The session is gone, and the transaction with it.
    async fn rollback(&mut self) -> Result<(), TargetError>;
}
