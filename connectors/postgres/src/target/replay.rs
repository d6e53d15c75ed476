//! Changes one by one, in the source's order, repairing what is not as they expect.
//!
//! First in small runs without waiting in between: where the plan chose the source's order for its
//! own sake (triggers, foreign keys), nothing is wrong with the rows. A run that meets anything
//! unexpected is undone and done again change by change, each under a savepoint. Many inserts that
//! are to be repaired go together, where their order cannot matter (`merge`).
//!
//! | change | finds | then |
//! |---|---|---|
//! | insert | the row there | it is made equal, and counted; one of an equal key of other bytes is a conflict |
//! | update | no row | inserted if all of it was sent, and counted; else a conflict |
//! | delete | no row | counted |
//! | any | another row in the way | that one is parked (`parking`); on tables where something fires, a conflict |
//! | any | a value or constraint against it | a conflict |

use futures_util::TryStreamExt as _;
use tailwater_apply::{Change, ConflictPolicy, TargetError};
use tailwater_change::{Identity, Operation, Value};
use tokio_postgres::Statement;
use tokio_postgres::error::DbError;

use super::described::Shared;
use super::error::Failure;
use super::param::Param;
use super::parking::{blocked, is_in_the_way};
use super::rows;
use super::session::PgTarget;
use super::statement::{self, Names};
use super::steps::{
    check_images, columns_set, identity_params, insert_params, size, update_params,
};

/// Changes in one run. Also keeps the pipeline below what `join_all` polls in order at once.
const RUN_CHANGES: usize = 30;

/// As much of another row's key as a message shows.
const KEY_CHARACTERS: usize = 120;

/// A run's images in all: what waits in the driver's queue.
const RUN_BYTES: usize = 1 << 20;

impl PgTarget {
    /// Replays changes; returns how many were repaired.
    pub(super) async fn replay_changes(
        &mut self,
        changes: &[Change],
        policy: ConflictPolicy,
    ) -> Result<u64, TargetError> {
        let mut repaired = 0;
        let mut rest = changes;
        while !rest.is_empty() {
            if policy == ConflictPolicy::Repair
                && let Some((done, there)) = self.merge(rest).await?
            {
                repaired += there;
                rest = &rest[done..];
                continue;
            }
            let (run, later) = rest.split_at(run_length(rest));
            if !self.run_at_once(run).await? {
                for change in run {
                    repaired += self.one(change, policy).await?;
                }
            }
            rest = later;
        }
        if !self.parked.is_empty() {
            repaired += self.settle(policy).await?;
        }
        Ok(repaired)
    }

    /// Tries a run without waiting in between; `false`: undone.
    async fn run_at_once(&mut self, run: &[Change]) -> Result<bool, TargetError> {
        let Some(jobs) = self.jobs(run).await? else { return Ok(false) };
        self.run("SAVEPOINT tailwater_run", "SAVEPOINT").await?;
        let done = self.pipeline(&jobs).await;
        let end = match &done {
            Ok(counts) if counts.iter().all(|&count| count == 1) => {
                "RELEASE SAVEPOINT tailwater_run"
            }
            Ok(_) | Err(Failure::Data(_)) => {
                "ROLLBACK TO SAVEPOINT tailwater_run; RELEASE SAVEPOINT tailwater_run"
            }
            Err(Failure::Other(_)) => {
                return done.map(|_| true).map_err(|f| f.into_error("replaying"));
            }
        };
        self.run(end, "the end of a run").await?;
        Ok(end.starts_with("RELEASE"))
    }

    /// One statement per change; `None` where one needs a look first.
    async fn jobs<'a>(
        &mut self,
        run: &'a [Change],
    ) -> Result<Option<Vec<(Statement, Vec<Param<'a>>)>>, TargetError> {
        if !self.parked.is_empty() {
            return Ok(None);
        }
        let mut jobs = Vec::with_capacity(run.len());
        for change in run {
            let table = self.table(&change.table).await?;
            let (sql, params) = match change.operation {
                Operation::Insert | Operation::Read if !table.unguarded => {
                    (statement::insert(&table), insert_params(&table, change)?)
                }
                Operation::Delete => {
                    check_images(&table, std::slice::from_ref(change))?;
                    (statement::delete(&table), identity_params(&table, change)?)
                }
                Operation::Update => {
                    check_images(&table, std::slice::from_ref(change))?;
                    let set = columns_set(&table, &change.unsent, names(change));
                    if set.iter().any(|&index| table.column(index).identity_always) {
                        return Ok(None);
                    }
                    let params = update_params(&table, &set, change)?;
                    (statement::update(&table, &set), params)
                }
                Operation::Insert | Operation::Read | Operation::Truncate => return Ok(None),
            };
            let failed = |failure: Failure| failure.into_error("preparing a statement");
            jobs.push((self.statement(&sql).await.map_err(failed)?, params));
        }
        Ok(Some(jobs))
    }

    async fn one(&mut self, change: &Change, policy: ConflictPolicy) -> Result<u64, TargetError> {
        let table = self.table(&change.table).await?;
        let done = match change.operation {
            Operation::Insert | Operation::Read => self.insert_one(&table, change, policy).await,
            Operation::Update => self.update_one(&table, change, policy).await,
            Operation::Delete => self.delete_one(&table, change, policy).await,
            Operation::Truncate => {
                let emptied = self.truncate(std::slice::from_ref(&change.table)).await;
                match emptied {
                    Ok(()) => self.empty_parking(&table).await.map(|()| 0),
                    Err(failure) => Err(failure),
                }
            }
        };
        done.map_err(|failure| match failure {
            Failure::Data(error) => blocked(&table, change, &error),
            Failure::Other(error) => error,
        })
    }

    async fn insert_one(
        &mut self,
        table: &Shared,
        change: &Change,
        policy: ConflictPolicy,
    ) -> Result<u64, Failure> {
        if !table.unguarded {
            let params = insert_params(table, change)?;
            match self.attempt(&statement::insert(table), &params).await? {
                Attempt::Done(1) => return Ok(0),
                Attempt::Done(_) => return Err(kept_out(table, change)?.into()),
                Attempt::Blocked(error) => {
                    if !self.is_there(table, change).await? {
                        return self.make_way(table, change, &error).await.map(|()| 0);
                    }
                }
            }
        } else if !self.is_there(table, change).await? {
            self.execute(&statement::insert(table), &insert_params(table, change)?).await?;
            return Ok(0);
        }
        if policy == ConflictPolicy::Stop {
            return Err(stop(table, change, "the row to insert is there already")?.into());
        }
        self.same_key(table, change).await?;
        self.set_all(table, change).await.map(|()| 1)
    }

    async fn update_one(
        &mut self,
        table: &Shared,
        change: &Change,
        policy: ConflictPolicy,
    ) -> Result<u64, Failure> {
        check_images(table, std::slice::from_ref(change))?;
        if self.apply_to_parked(table, change).await? {
            return Ok(0);
        }
        let set = columns_set(table, &change.unsent, names(change));
        let (always, free): (Vec<usize>, Vec<usize>) =
            set.iter().partition(|&&index| table.column(index).identity_always);
        if self.changes_always(table, change, &always).await? {
            return self.rebuild(table, change).await.map(|()| 0);
        }
        let params = update_params(table, &free, change)?;
        match self.attempt(&statement::update(table, &free), &params).await? {
            Attempt::Done(1) => return Ok(0),
            Attempt::Done(0) => {}
            Attempt::Done(_) => {
                return Err(stop(table, change, "the target has several rows of this key")?.into());
            }
            Attempt::Blocked(error) => {
                return self.make_way(table, change, &error).await.map(|()| 0);
            }
        }
        if policy == ConflictPolicy::Stop {
            return Err(stop(table, change, "the row to update is not there")?.into());
        }
        if !change.unsent.is_empty() {
            let what = "the row to update is not there, and the source did not send all of it";
            return Err(stop(table, change, what)?.into());
        }
        // Under a new key it may be there after all.
        self.insert_missing(table, change).await.map(|()| 1)
    }

    async fn insert_missing(&mut self, table: &Shared, change: &Change) -> Result<(), Failure> {
        let new = Change { before: None, operation: Operation::Insert, ..change.clone() };
        self.insert_one(table, &new, ConflictPolicy::Repair).await.map(drop)
    }

    async fn delete_one(
        &mut self,
        table: &Shared,
        change: &Change,
        policy: ConflictPolicy,
    ) -> Result<u64, Failure> {
        check_images(table, std::slice::from_ref(change))?;
        if self.apply_to_parked(table, change).await? {
            return Ok(0);
        }
        let params = identity_params(table, change)?;
        match self.execute(&statement::delete(table), &params).await? {
            1 => Ok(0),
            0 if policy == ConflictPolicy::Repair => Ok(1),
            0 => Err(stop(table, change, "the row to delete is not there")?.into()),
            _ => Err(stop(table, change, "the target has several rows of this key")?.into()),
        }
    }

    /// Where the target takes different keys for equal, the row that stands there may be another:
    /// making it equal would lose it.
    async fn same_key(&mut self, table: &Shared, change: &Change) -> Result<(), Failure> {
        let Some(sql) = statement::equal_key(table) else { return Ok(()) };
        let params = identity_params(table, change)?;
        let statement = self.statement(&sql).await?;
        let failed = |error| Failure::of("comparing a key", error);
        let rows = self.session.query_raw(&statement, &params).await.map_err(failed)?;
        let rows: Vec<tokio_postgres::Row> = rows.try_collect().await.map_err(failed)?;
        let Some(row) = rows.first() else { return Ok(()) };
        let there: String = row.get(0);
        let there: String = there.chars().take(KEY_CHARACTERS).collect();
        let what = format!(
            "the target takes its key for equal to that of another row, ({there}), which is there"
        );
        Err(stop(table, change, &what)?.into())
    }

    /// Makes the row with the change's key equal to its new row.
    async fn set_all(&mut self, table: &Shared, change: &Change) -> Result<(), Failure> {
        let set = columns_set(table, &change.unsent, Names::New);
        let (always, free): (Vec<usize>, Vec<usize>) =
            set.iter().partition(|&&index| table.column(index).identity_always);
        if self.changes_always(table, change, &always).await? {
            return self.rebuild(table, change).await;
        }
        let params = update_params(table, &free, change)?;
        match self.attempt(&statement::update(table, &free), &params).await? {
            Attempt::Done(_) => Ok(()),
            Attempt::Blocked(error) => self.make_way(table, change, &error).await,
        }
    }

    /// Whether identity columns that cannot be set must get another value: those in `always`, and
    /// a key of that kind that changes.
    async fn changes_always(
        &mut self,
        table: &Shared,
        change: &Change,
        always: &[usize],
    ) -> Result<bool, Failure> {
        if always.is_empty() {
            return Ok(false);
        }
        let params = update_params(table, always, change)?;
        let different = always.iter().zip(1..).map(|(&index, number)| {
            format!("t.{} IS DISTINCT FROM ${number}", statement::name(table, index))
        });
        let sql = format!(
            "SELECT 1 FROM {} AS t WHERE ({}) AND {} LIMIT 1",
            table.sql,
            different.collect::<Vec<_>>().join(" OR "),
            statement::by_parameters(table, statement::identity(table), always.len() + 1),
        );
        Ok(self.execute(&sql, &params).await? > 0)
    }

    /// Updates by delete and insert.
    async fn rebuild(&mut self, table: &Shared, change: &Change) -> Result<(), Failure> {
        if table.entry.fires {
            let what = "an identity column that is always generated changes, and triggers or \
                        foreign keys would act on its replacement";
            return Err(stop(table, change, what)?.into());
        }
        self.place_changed(table, change, None).await.map(drop)
    }

    /// Does the change although other rows stand in its way, if they may be moved.
    async fn make_way(
        &mut self,
        table: &Shared,
        change: &Change,
        error: &DbError,
    ) -> Result<(), Failure> {
        if table.entry.fires {
            return Err(Failure::Data(Box::new(error.clone())));
        }
        let is_insert = matches!(change.operation, Operation::Insert | Operation::Read);
        if is_insert && !self.is_there(table, change).await? {
            return self.place_new(table, change, error).await;
        }
        self.place_changed(table, change, Some(error)).await.map(drop)
    }

    /// Whether a row with the identity of the change's row is there. Where all columns are the
    /// identity, equal rows do not stand in each other's way.
    async fn is_there(&mut self, table: &Shared, change: &Change) -> Result<bool, Failure> {
        if matches!(table.schema.identity, Identity::Full) {
            return Ok(false);
        }
        let params = identity_params(table, change)?;
        Ok(self.execute(&statement::exists(table), &params).await? > 0)
    }

    /// Executes a statement that another row may stand in the way of.
    async fn attempt(&mut self, sql: &str, params: &[Param<'_>]) -> Result<Attempt, Failure> {
        self.run("SAVEPOINT tailwater_row", "SAVEPOINT").await?;
        let (done, end) = match self.execute(sql, params).await {
            Ok(count) => (Attempt::Done(count), "RELEASE SAVEPOINT tailwater_row"),
            Err(Failure::Data(error)) if is_in_the_way(&error) => (
                Attempt::Blocked(error),
                "ROLLBACK TO SAVEPOINT tailwater_row; RELEASE SAVEPOINT tailwater_row",
            ),
            Err(failure) => return Err(failure),
        };
        self.run(end, "the end of a change").await?;
        Ok(done)
    }
}

/// How a change of one row ended.
enum Attempt {
    /// So many rows were changed.
    Done(u64),
    /// Undone.
    Blocked(Box<DbError>),
}

/// How many of these changes make the next run.
fn run_length(changes: &[Change]) -> usize {
    let mut bytes = 0;
    let fitting = changes.iter().take(RUN_CHANGES).take_while(|change| {
        bytes += size(change);
        bytes <= RUN_BYTES && change.operation != Operation::Truncate
    });
    fitting.count().max(1)
}

fn names(change: &Change) -> Names {
    if change.before.is_some() { Names::Old } else { Names::New }
}

fn kept_out(table: &Shared, change: &Change) -> Result<TargetError, TargetError> {
    stop(table, change, "a trigger or rule of the target kept the row out")
}

/// A conflict that names the change's row.
fn stop(table: &Shared, change: &Change, what: &str) -> Result<TargetError, TargetError> {
    let mut values: Vec<Value<'_>> = Vec::new();
    rows::read(table, rows::identity(change)?, &[], &mut values)?;
    Ok(rows::conflict(table, &values, what))
}
