//! Many inserts of which some rows are there already, as when a snapshot is read again or a table
//! with rows is taken over: all through a temporary table, existing rows made equal.
//!
//! Only where no order can matter: one table, each key once, no unique index besides the key,
//! nothing that fires. Otherwise the rows go one by one.

use tailwater_apply::{Change, TargetError};
use tailwater_change::{Identity, Operation};

use super::described::Shared;
use super::error::Failure;
use super::session::PgTarget;
use super::statement::{self, Names};
use super::steps::{FEW_ROWS, Group, columns_set};

/// Rows in one merge: enough that its statements cost little beside them.
const MERGE_ROWS: usize = 20_000;

impl PgTarget {
    /// Merges the inserts that `changes` begin with. Returns how many changes these are and how
    /// many rows were there; `None`: nothing done.
    pub(super) async fn merge(
        &mut self,
        changes: &[Change],
    ) -> Result<Option<(usize, u64)>, TargetError> {
        let run = &changes[..length(changes)];
        if run.len() <= FEW_ROWS || !self.parked.is_empty() {
            return Ok(None);
        }
        let table = self.table(&run[0].table).await?;
        if !can_merge(&table) {
            return Ok(None);
        }
        self.run("SAVEPOINT tailwater_merge", "SAVEPOINT").await?;
        let end = match self.merge_run(&table, run).await {
            Ok(Some(repaired)) => {
                self.run("RELEASE SAVEPOINT tailwater_merge", "RELEASE SAVEPOINT").await?;
                return Ok(Some((run.len(), repaired)));
            }
            Ok(None) | Err(Failure::Data(_)) => {
                "ROLLBACK TO SAVEPOINT tailwater_merge; RELEASE SAVEPOINT tailwater_merge"
            }
            Err(Failure::Other(error)) => return Err(error),
        };
        // The temporary table may have gone with it.
        self.temporary.remove(&statement::stage(&table));
        self.run(end, "ROLLBACK TO SAVEPOINT").await?;
        Ok(None)
    }

    async fn merge_run(&mut self, table: &Shared, run: &[Change]) -> Result<Option<u64>, Failure> {
        let set = columns_set(table, &[], Names::New);
        let update = statement::update_staged(table, &set, Names::New);
        let group = Group { set, names: Names::New, rows: run.iter().collect() };
        self.fill_stage(table, &group).await?;
        if self.execute(&statement::staged_twice(table), &[]).await? > 0 {
            return Ok(None);
        }
        if let Some(equal) = statement::equal_keys_staged(table)
            && self.execute(&equal, &[]).await? > 0
        {
            return Ok(None);
        }
        let there = self.execute(&update, &[]).await?;
        let new = self.execute(&statement::insert_staged(table), &[]).await?;
        let expected = u64::try_from(run.len()).ok();
        Ok((there.checked_add(new) == expected).then_some(there))
    }
}

/// How many changes from the first on are inserts into its table.
fn length(changes: &[Change]) -> usize {
    let Some(first) = changes.first() else { return 0 };
    let inserts = changes.iter().take(MERGE_ROWS).take_while(|change| {
        matches!(change.operation, Operation::Insert | Operation::Read)
            && change.unsent.is_empty()
            && change.table.target.name == first.table.target.name
            && (std::sync::Arc::ptr_eq(&change.table.schema, &first.table.schema)
                || change.table.schema == first.table.schema)
    });
    inserts.count()
}

fn can_merge(table: &Shared) -> bool {
    matches!(table.schema.identity, Identity::Key(_))
        && !table.entry.fires
        && !table.unguarded
        && table.target_table().unique_keys.is_empty()
        && !table.flows.iter().any(|&index| {
            table.column(index).identity_always && !table.schema.key().contains(&index)
        })
}
