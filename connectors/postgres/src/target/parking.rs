//! Rows that stand in each other's way for a while: swaps and chains under a unique constraint.
//!
//! A source whose constraint is deferrable, or checked per statement, may go through states that
//! the target's does not admit (`UPDATE t SET k = 3 - k`). Replayed row by row, the first row meets
//! the second. The second is then **parked**: moved, whole, to a temporary table of the same columns,
//! where its own change finds it and puts it back. What nothing has put back by COMMIT was really in
//! the way, and is a conflict.
//!
//! Parking is deleting and inserting, so it is for tables on which nothing fires. Values stay in the
//! server: what the source did not send is kept.

use tailwater_apply::{Change, ConflictPolicy, TargetError};
use tailwater_change::TableId;
use tokio_postgres::error::{DbError, SqlState};

use super::described::{Described, Shared, Unique};
use super::error::{Failure, said};
use super::param::Param;
use super::rows;
use super::session::PgTarget;
use super::statement;
use super::steps::{columns_set, identity_params, insert_params, update_params};
use crate::connect::quote;

/// A row set aside.
#[derive(Debug, Clone)]
pub(super) struct Parked {
    table: TableId,
    /// Its number in the table's parking table.
    number: i64,
    /// What was said of it last.
    reason: String,
}

impl Parked {
    /// Nothing has moved it out of the way by the end of the transaction.
    pub(super) fn conflict(&self) -> TargetError {
        TargetError::Conflict {
            table: self.table.clone(),
            detail: format!(
                "a row of the target that the source does not have, or not like this, stands in \
                 the way: {}",
                self.reason
            ),
        }
    }
}

/// Whether another row stood in the way.
pub(super) fn is_in_the_way(error: &DbError) -> bool {
    matches!(*error.code(), SqlState::UNIQUE_VIOLATION | SqlState::EXCLUSION_VIOLATION)
}

/// The number of a parked row. No table of ours has a column of this name.
const NUMBER: &str = "tailwater_parked";

impl PgTarget {
    /// Parks a new row and then places it, moving out of its way what is there.
    pub(super) async fn place_new(
        &mut self,
        table: &Shared,
        change: &Change,
        error: &DbError,
    ) -> Result<(), Failure> {
        self.make_parking(table).await?;
        let params = insert_params(table, change)?;
        let columns = statement::list(table.flows.iter().map(|&i| statement::name(table, i)));
        let values = statement::list((1..=table.flows.len()).map(|number| format!("${number}")));
        let sql = format!(
            "INSERT INTO {} ({columns}) VALUES ({values}) RETURNING {NUMBER}",
            parking(table)
        );
        let numbers = self.numbers(&sql, &params).await?;
        self.note(table, &numbers, error);
        self.place_all(table, &numbers).await
    }

    /// Parks the row that `change` updates, changes it there and places it again.
    pub(super) async fn place_changed(
        &mut self,
        table: &Shared,
        change: &Change,
        reason: Option<&DbError>,
    ) -> Result<bool, Failure> {
        self.make_parking(table).await?;
        let condition = statement::by_parameters(table, statement::identity(table), 1);
        let params = identity_params(table, change)?;
        let one = format!(
            "(SELECT t.ctid, t.tableoid FROM {} AS t WHERE {condition} LIMIT 1)",
            table.sql
        );
        let numbers = self.park(table, &format!("(ctid, tableoid) = {one}"), &params).await?;
        let Some(&number) = numbers.first() else { return Ok(false) };
        self.parked.push(Parked {
            table: table.name.clone(),
            number,
            reason: reason.map_or_else(String::new, said),
        });
        self.change_parked(table, change, number).await?;
        self.place_all(table, &numbers).await?;
        Ok(true)
    }

    /// Applies a change to a parked row, if the row it names is one. An update puts it back.
    pub(super) async fn apply_to_parked(
        &mut self,
        table: &Shared,
        change: &Change,
    ) -> Result<bool, Failure> {
        if !self.parked.iter().any(|parked| parked.table == table.name) {
            return Ok(false);
        }
        let condition = statement::by_parameters(table, statement::identity(table), 1);
        let sql = format!("SELECT t.{NUMBER} FROM {} AS t WHERE {condition}", parking(table));
        let numbers = self.numbers(&sql, &identity_params(table, change)?).await?;
        let Some(&number) = numbers.first() else { return Ok(false) };
        if change.after.is_none() {
            self.leave(table, number).await?;
            return Ok(true);
        }
        self.change_parked(table, change, number).await?;
        self.place_all(table, &[number]).await?;
        Ok(true)
    }

    /// Puts back what can be; a row whose identity another has by now is dropped where the policy
    /// is to repair, and counted. What remains waits for changes to come.
    pub(super) async fn settle(&mut self, policy: ConflictPolicy) -> Result<u64, TargetError> {
        let mut repaired = 0;
        for parked in self.parked.clone() {
            let Some(table) = self.known(&parked.table) else { continue };
            let failed = |failure: Failure| failure.into_error("putting a row back");
            if self.place(&table, parked.number).await.map_err(failed)?.is_none() {
                continue;
            }
            if policy == ConflictPolicy::Repair && self.is_taken(&table, parked.number).await? {
                self.leave(&table, parked.number).await.map_err(failed)?;
                repaired += 1;
            }
        }
        Ok(repaired)
    }

    /// Forgets parked rows of a table that has been emptied.
    pub(super) async fn empty_parking(&mut self, table: &Shared) -> Result<(), Failure> {
        let numbers: Vec<i64> = self
            .parked
            .iter()
            .filter(|parked| parked.table == table.name)
            .map(|parked| parked.number)
            .collect();
        for number in numbers {
            self.leave(table, number).await?;
        }
        Ok(())
    }

    /// Places parked rows, and parks what stands in their way, which is not placed here.
    async fn place_all(&mut self, table: &Shared, numbers: &[i64]) -> Result<(), Failure> {
        for &number in numbers {
            while let Some(error) = self.place(table, number).await? {
                let parked = self.park_in_the_way(table, number).await?;
                if parked.is_empty() {
                    return Err(Failure::Data(error));
                }
                self.note(table, &parked, &error);
            }
        }
        Ok(())
    }

    /// Moves a parked row to its table; returns what stood in its way.
    async fn place(
        &mut self,
        table: &Shared,
        number: i64,
    ) -> Result<Option<Box<DbError>>, Failure> {
        let columns = stored(table);
        let sql = format!(
            "INSERT INTO {} ({columns}){} SELECT {columns} FROM {} WHERE {NUMBER} = $1",
            table.sql,
            statement::overriding(table),
            parking(table),
        );
        self.run("SAVEPOINT tailwater_place", "SAVEPOINT").await?;
        let placed = self.execute(&sql, &[Param::Text(number.to_string().into())]).await;
        match placed {
            Ok(_) => {
                self.run("RELEASE SAVEPOINT tailwater_place", "RELEASE SAVEPOINT").await?;
                self.leave(table, number).await?;
                Ok(None)
            }
            Err(Failure::Data(error)) if is_in_the_way(&error) => {
                let back =
                    "ROLLBACK TO SAVEPOINT tailwater_place; RELEASE SAVEPOINT tailwater_place";
                self.run(back, "ROLLBACK TO SAVEPOINT").await?;
                Ok(Some(error))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Parks the rows that have a unique value of the parked row `number`.
    async fn park_in_the_way(&mut self, table: &Shared, number: i64) -> Result<Vec<i64>, Failure> {
        let mut parked = Vec::new();
        for unique in table.entry.uniques.iter().filter(|unique| !unique.exclusion) {
            let condition = meets(table, unique);
            let params = [Param::Text(number.to_string().into())];
            parked.extend(self.park(table, &condition, &params).await?);
        }
        Ok(parked)
    }

    /// Moves the table's rows under `condition` to its parking table.
    async fn park(
        &mut self,
        table: &Shared,
        condition: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<i64>, Failure> {
        let columns = stored(table);
        let sql = format!(
            "WITH gone AS (DELETE FROM {} WHERE {condition} RETURNING {columns}) \
             INSERT INTO {} ({columns}) SELECT {columns} FROM gone RETURNING {NUMBER}",
            table.sql,
            parking(table),
        );
        self.numbers(&sql, params).await
    }

    async fn change_parked(
        &mut self,
        table: &Shared,
        change: &Change,
        number: i64,
    ) -> Result<(), Failure> {
        let set = columns_set(table, &change.unsent, statement::Names::Old);
        let mut params = update_params(table, &set, change)?;
        params.truncate(set.len());
        params.push(Param::Text(number.to_string().into()));
        let values = set.iter().zip(1..);
        let values = values.map(|(&i, place)| format!("{} = ${place}", statement::name(table, i)));
        let sql = format!(
            "UPDATE {} SET {} WHERE {NUMBER} = ${}",
            parking(table),
            statement::list(values),
            set.len() + 1
        );
        self.execute(&sql, &params).await.map(drop)
    }

    /// Whether another row has the identity of the parked row `number` now.
    async fn is_taken(&mut self, table: &Shared, number: i64) -> Result<bool, TargetError> {
        let key = table.schema.key();
        if key.is_empty() {
            return Ok(false);
        }
        let same = key.iter().map(|&index| {
            let name = statement::name(table, index);
            format!("t.{name} {} p.{name}", statement::equals(table.column(index)))
        });
        let sql = format!(
            "SELECT p.{NUMBER} FROM {} AS p JOIN {} AS t ON {} WHERE p.{NUMBER} = $1",
            parking(table),
            table.sql,
            same.collect::<Vec<_>>().join(" AND "),
        );
        let numbers = self.numbers(&sql, &[Param::Text(number.to_string().into())]).await;
        Ok(!numbers.map_err(|failure| failure.into_error("looking for a row"))?.is_empty())
    }

    async fn leave(&mut self, table: &Shared, number: i64) -> Result<(), Failure> {
        let sql = format!("DELETE FROM {} WHERE {NUMBER} = $1", parking(table));
        self.execute(&sql, &[Param::Text(number.to_string().into())]).await?;
        self.parked.retain(|parked| parked.table != table.name || parked.number != number);
        Ok(())
    }

    fn note(&mut self, table: &Shared, numbers: &[i64], error: &DbError) {
        let parked = numbers.iter().map(|&number| Parked {
            table: table.name.clone(),
            number,
            reason: said(error),
        });
        self.parked.extend(parked);
    }

    async fn numbers(&mut self, sql: &str, params: &[Param<'_>]) -> Result<Vec<i64>, Failure> {
        let statement = self.statement(sql).await?;
        let failed = |error| Failure::of("setting a row aside", error);
        let rows = self.session.query_raw(&statement, params).await.map_err(failed)?;
        let rows: Vec<tokio_postgres::Row> =
            futures_util::TryStreamExt::try_collect(rows).await.map_err(failed)?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    async fn make_parking(&mut self, table: &Shared) -> Result<(), Failure> {
        let name = parking(table);
        if self.temporary.contains(&name) {
            return Ok(());
        }
        let sql = format!(
            "CREATE TEMPORARY TABLE IF NOT EXISTS {name} (LIKE {} INCLUDING GENERATED INCLUDING DEFAULTS, \
             {NUMBER} bigint GENERATED ALWAYS AS IDENTITY)",
            table.sql
        );
        self.session
            .batch_execute(&sql)
            .await
            .map_err(|error| Failure::of("making a temporary table", error))?;
        self.made_temporary(&name);
        Ok(())
    }
}

/// Name of the table's parking table.
pub(super) fn parking(table: &Described) -> String {
    format!("pg_temp.tailwater_parking_{}", table.number)
}

/// Every column of the target's table that is written, those that the source lacks included.
fn stored(table: &Described) -> String {
    let columns = table.entry.columns.iter().filter(|column| !column.generated);
    statement::list(columns.map(|column| quote(&column.name)))
}

/// The condition that a row of the table meets the parked row `$1` in a unique index. Expressions
/// name columns alone, and so mean the table's outside, the parked row's within the subselect.
fn meets(table: &Described, unique: &Unique) -> String {
    let parking = parking(table);
    let equal = if unique.nulls_equal { "IS NOT DISTINCT FROM" } else { "=" };
    let mut conditions: Vec<String> = unique
        .terms
        .iter()
        .map(|term| {
            format!("({term}) {equal} (SELECT ({term}) FROM {parking} WHERE {NUMBER} = $1)")
        })
        .collect();
    if let Some(predicate) = &unique.predicate {
        conditions.push(format!("({predicate})"));
        conditions
            .push(format!("EXISTS (SELECT FROM {parking} WHERE {NUMBER} = $1 AND ({predicate}))"));
    }
    conditions.join(" AND ")
}

/// A conflict over another row in the way.
pub(super) fn blocked(table: &Described, change: &Change, error: &DbError) -> TargetError {
    let mut values = Vec::new();
    let named = rows::identity(change).and_then(|row| rows::read(table, row, &[], &mut values));
    match named {
        Ok(()) => rows::conflict(table, &values, &said(error)),
        Err(error) => error,
    }
}
