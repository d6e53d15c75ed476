//! Set-based steps: few rows by pipelined prepared statements, many by COPY.
//!
//! A step counts: exactly its rows, or it is refused and replayed. So does whatever the server
//! holds against a value or a constraint, which a replay may get past in the source's order, or
//! name.

use std::collections::BTreeMap;
use std::sync::Arc;

use tailwater_apply::{Change, Step, StepOutcome, Table, TargetError};
use tailwater_change::{Identity, Value};

use super::copy::{Copy, CopyError};
use super::described::{Described, Shared};
use super::error::{Failure, said};
use super::form::Form;
use super::param::Param;
use super::rows;
use super::session::PgTarget;
use super::statement::{self, CopyFormat, Names};

/// Up to this many rows a prepared statement per row, pipelined, beats filling a temporary table
/// (three round trips and two catalog changes).
pub(super) const FEW_ROWS: usize = 16;

/// Rows larger than this in all go by COPY, which does not hold them whole.
const FEW_BYTES: usize = 256 << 10;

impl PgTarget {
    /// Executes a step.
    pub(super) async fn execute_step(&mut self, step: &Step) -> Result<StepOutcome, TargetError> {
        if !self.parked.is_empty() {
            return Ok(StepOutcome::Refused("rows of a replay are still set aside".into()));
        }
        let (expected, done) = match step {
            Step::Truncate(tables) => (0, self.truncate(tables).await.map(|()| 0)),
            Step::Delete { table, rows } => {
                let table = self.table(table).await?;
                (rows.len(), self.delete(&table, rows).await)
            }
            Step::Update { table, rows } => {
                let table = self.table(table).await?;
                (rows.len(), self.update(&table, rows).await)
            }
            Step::Insert { table, rows } => {
                let table = self.table(table).await?;
                if table.unguarded {
                    // Its key is deferrable, which a replica session does not check: look first.
                    return Ok(StepOutcome::Refused(format!(
                        "{} has no immediate unique index on its key",
                        table.name
                    )));
                }
                (rows.len(), self.insert(&table, rows).await)
            }
        };
        match done {
            Ok(count) if u64::try_from(expected) == Ok(count) => Ok(StepOutcome::Applied),
            Ok(count) => Ok(StepOutcome::Refused(format!("{count} rows instead of {expected}"))),
            Err(Failure::Data(error)) => Ok(StepOutcome::Refused(said(&error))),
            Err(Failure::Other(error)) => Err(error),
        }
    }

    /// Empties tables at once; those that keys of other tables point to, row by row.
    pub(super) async fn truncate(&mut self, tables: &[Arc<Table>]) -> Result<(), Failure> {
        let mut described = Vec::with_capacity(tables.len());
        for table in tables {
            described.push(self.table(table).await?);
        }
        let oids: Vec<u32> = described.iter().map(|table| table.entry.oid).collect();
        let failed = |error| Failure::of("emptying tables", error);
        let blocked = self.statement(POINTED_TO).await?;
        let blocked: bool =
            self.session.query_one(&blocked, &[&oids]).await.map_err(failed)?.get(0);
        let denied = described
            .iter()
            .any(|table| table.entry.missing_privileges.iter().any(|name| name == "TRUNCATE"));
        let names = described.iter().map(|table| table.sql.clone());
        let sql = if blocked || denied {
            names.map(|name| format!("DELETE FROM {name}")).collect::<Vec<_>>().join("; ")
        } else {
            format!("TRUNCATE {}", statement::list(names))
        };
        self.session.batch_execute(&sql).await.map_err(failed)
    }

    async fn insert(&mut self, table: &Shared, rows: &[Change]) -> Result<u64, Failure> {
        if are_few(rows) || table.flows.is_empty() {
            let sql = statement::insert(table);
            let mut jobs = Vec::with_capacity(rows.len());
            for change in rows {
                jobs.push((self.statement(&sql).await?, insert_params(table, change)?));
            }
            return self.counted(&jobs).await;
        }
        let format = format_of(table, &table.flows);
        let sql = statement::copy_into(table, format);
        let copy_statement = self.statement(&sql).await?;
        let mut copy = Copy::begin(&self.session, &copy_statement, format).await?;
        let mut values = Vec::with_capacity(table.schema.columns.len());
        for change in rows {
            rows::read(table, rows::after(change)?, &change.unsent, &mut values)?;
            let fields = table.flows.iter().map(|&index| (table.forms[index], values[index]));
            let sent = copy.row(fields).await;
            sent.map_err(|error| in_row(table, error, &table.flows, &values))?;
        }
        copy.finish().await
    }

    async fn delete(&mut self, table: &Shared, rows: &[Change]) -> Result<u64, Failure> {
        check_images(table, rows)?;
        if are_few(rows) {
            let sql = statement::delete(table);
            let mut jobs = Vec::with_capacity(rows.len());
            for change in rows {
                jobs.push((self.statement(&sql).await?, identity_params(table, change)?));
            }
            return self.counted(&jobs).await;
        }
        let group = Group { set: Vec::new(), names: Names::Old, rows: rows.iter().collect() };
        self.fill_stage(table, &group).await?;
        self.execute(&statement::delete_staged(table), &[]).await
    }

    async fn update(&mut self, table: &Shared, rows: &[Change]) -> Result<u64, Failure> {
        check_images(table, rows)?;
        let mut count = 0;
        for group in groups(table, rows) {
            let always = group.set.iter().any(|&index| table.column(index).identity_always);
            if are_few(rows) && !always {
                let sql = statement::update(table, &group.set);
                let mut jobs = Vec::with_capacity(group.rows.len());
                for change in &group.rows {
                    let params = update_params(table, &group.set, change)?;
                    jobs.push((self.statement(&sql).await?, params));
                }
                count += self.counted(&jobs).await?;
                continue;
            }
            self.fill_stage(table, &group).await?;
            let sql = statement::update_staged(table, &group.set, group.names);
            count += self.execute(&sql, &[]).await?;
        }
        Ok(count)
    }

    /// Executes one-row statements; a row that counts for more than one makes the sum useless.
    async fn counted(
        &self,
        jobs: &[(tokio_postgres::Statement, Vec<Param<'_>>)],
    ) -> Result<u64, Failure> {
        let counts = self.pipeline(jobs).await?;
        Ok(counts.iter().map(|&count| if count > 1 { u64::MAX >> 16 } else { count }).sum())
    }

    /// Fills the table's temporary table with the identities and new values of a group.
    pub(super) async fn fill_stage(
        &mut self,
        table: &Shared,
        group: &Group<'_>,
    ) -> Result<(), Failure> {
        let stage = statement::stage(table);
        let (create, settings) = (statement::create_stage(table), statement::join(table));
        self.fresh_temporary(&stage, &create, settings).await?;
        let identity = statement::identity(table);
        let (old, new): (&[usize], Vec<usize>) = match group.names {
            Names::Old => (identity, group.set.clone()),
            Names::New => (&[], identity.iter().chain(&group.set).copied().collect()),
        };
        let both: Vec<usize> = old.iter().chain(&new).copied().collect();
        let format = format_of(table, &both);
        let sql = statement::copy_stage(table, group.names, &new, format);
        let copy_statement = self.statement(&sql).await?;
        let mut copy = Copy::begin(&self.session, &copy_statement, format).await?;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for change in &group.rows {
            rows::read(table, rows::identity(change)?, &[], &mut before)?;
            if !new.is_empty() {
                rows::read(table, rows::after(change)?, &change.unsent, &mut after)?;
            }
            let fields = both.iter().enumerate().map(|(place, &index)| {
                let values: &[Value<'_>] = if place < old.len() { &before } else { &after };
                (table.forms[index], values[index])
            });
            let sent = copy.row(fields).await;
            sent.map_err(|error| in_row(table, error, &both, &before))?;
        }
        copy.finish().await.map(drop)
    }
}

/// Whether a key of a table that is not among these points to one of them: TRUNCATE refuses then,
/// rows there or not, replica session or not.
const POINTED_TO: &str = "
    SELECT EXISTS (SELECT FROM pg_catalog.pg_constraint
                    WHERE contype = 'f' AND confrelid = ANY($1) AND conrelid <> ALL($1))";

/// Rows of an update that set the same columns and are found in the same way.
#[derive(Debug)]
pub(super) struct Group<'a> {
    pub(super) set: Vec<usize>,
    pub(super) names: Names,
    pub(super) rows: Vec<&'a Change>,
}

fn groups<'a>(table: &Described, rows: &'a [Change]) -> Vec<Group<'a>> {
    let mut found: BTreeMap<(&[u32], Names), Vec<&Change>> = BTreeMap::new();
    for change in rows {
        let names = if change.before.is_some() { Names::Old } else { Names::New };
        found.entry((change.unsent.as_slice(), names)).or_default().push(change);
    }
    found
        .into_iter()
        .map(|((unsent, names), rows)| Group {
            set: columns_set(table, unsent, names),
            names,
            rows,
        })
        .collect()
}

/// The columns that an update sets: those sent, without the key where it stays as it is.
pub(super) fn columns_set(table: &Described, unsent: &[u32], names: Names) -> Vec<usize> {
    let columns = &table.schema.columns;
    table
        .flows
        .iter()
        .copied()
        .filter(|&index| !unsent.contains(&columns[index].field))
        .filter(|index| names == Names::Old || !table.schema.key().contains(index))
        .collect()
}

/// The new row, for [`statement::insert`].
pub(super) fn insert_params<'a>(
    table: &Described,
    change: &'a Change,
) -> Result<Vec<Param<'a>>, TargetError> {
    let (mut values, mut params) = (Vec::new(), Vec::with_capacity(table.flows.len()));
    rows::read(table, rows::after(change)?, &change.unsent, &mut values)?;
    rows::params(table, &table.flows, &values, &mut params)?;
    Ok(params)
}

/// The identity, for [`statement::delete`] and [`statement::exists`].
pub(super) fn identity_params<'a>(
    table: &Described,
    change: &'a Change,
) -> Result<Vec<Param<'a>>, TargetError> {
    let (mut values, mut params) = (Vec::new(), Vec::new());
    rows::read(table, rows::identity(change)?, &[], &mut values)?;
    rows::params(table, statement::identity(table), &values, &mut params)?;
    Ok(params)
}

/// The columns `set` of the new row, then the identity, for [`statement::update`].
pub(super) fn update_params<'a>(
    table: &Described,
    set: &[usize],
    change: &'a Change,
) -> Result<Vec<Param<'a>>, TargetError> {
    let (mut values, mut params) = (Vec::new(), Vec::with_capacity(set.len() + 1));
    rows::read(table, rows::after(change)?, &change.unsent, &mut values)?;
    rows::params(table, set, &values, &mut params)?;
    rows::read(table, rows::identity(change)?, &[], &mut values)?;
    rows::params(table, statement::identity(table), &values, &mut params)?;
    Ok(params)
}

/// A table without a key is told apart by whole rows: half a row names none.
pub(super) fn check_images(table: &Described, rows: &[Change]) -> Result<(), TargetError> {
    if matches!(table.schema.identity, Identity::Key(_)) {
        return Ok(());
    }
    for change in rows {
        if !change.before.as_ref().is_some_and(|before| before.full) {
            return Err(TargetError::Conflict {
                table: table.name.clone(),
                detail: format!(
                    "the change at {} does not carry the whole old row, and the table has no key",
                    change.place
                ),
            });
        }
    }
    Ok(())
}

fn are_few(rows: &[Change]) -> bool {
    rows.len() <= FEW_ROWS && rows.iter().map(size).sum::<usize>() <= FEW_BYTES
}

/// Bytes of a change's images.
pub(super) fn size(change: &Change) -> usize {
    let after = change.after.as_ref().map_or(0, |row| row.len());
    after + change.before.as_ref().map_or(0, |row| row.bytes.len())
}

/// Binary where every column has a binary form: it spares the server the parsing.
fn format_of(table: &Described, columns: &[usize]) -> CopyFormat {
    if columns.iter().any(|&index| table.forms[index] == Form::Input) {
        CopyFormat::Text
    } else {
        CopyFormat::Binary
    }
}

/// What stopped a COPY, with column and key where it was a value.
fn in_row(table: &Described, error: CopyError, columns: &[usize], row: &[Value<'_>]) -> Failure {
    match error {
        CopyError::Failed(failure) => failure,
        CopyError::Unfit(field, unfit) => {
            Failure::Other(rows::unfit(table, columns[field], unfit, row))
        }
    }
}
