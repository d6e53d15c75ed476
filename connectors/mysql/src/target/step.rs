//! Set-based steps: inserts by load; updates and deletes row by row for a few, and for many by a join
//! with a temporary table, or, where whole rows of a plain table are updated, by REPLACE. Each says
//! exactly how many rows it must change; anything else refuses the step.

use std::collections::BTreeMap;
use std::sync::Arc;

use mysql_async::prelude::Queryable;
use tailwater_apply::{Change, Step, StepOutcome, Table, TargetError};

use super::failure::{Failure, sanitized, too_large};
use super::load::{Cell, Filled, Filling, Image, Images, Put, fits, whole_row};
use super::session::{Outcome, Session};
use super::sql;
use super::table::{Shape, on};

/// Up to this many rows, single statements in one packet beat a temporary table's four round trips.
const FEW_ROWS: usize = 48;

/// So many steps of a table go by a join after a REPLACE that did not replace every row: there may
/// be more of what the source changed into what it was.
const JOINED_STEPS: u32 = 32;

/// Statements that go in one packet, at most.
const STATEMENTS: usize = 64;
const STATEMENTS_BYTES: usize = 256 * 1024;

impl Session {
    /// Executes a step; see [`tailwater_apply::Target::step`].
    pub(super) async fn execute_step(&mut self, step: &Step) -> Result<StepOutcome, TargetError> {
        match step {
            Step::Truncate(tables) => {
                self.delete_all(tables).await?;
                Ok(StepOutcome::Applied)
            }
            Step::Insert { table, rows } => self.insert_step(table, rows).await,
            Step::Delete { table, rows } => {
                let shape = self.shape(table).await?;
                let rows: Vec<&Change> = rows.iter().collect();
                self.change_rows(&shape, &rows, &Work::Delete).await
            }
            Step::Update { table, rows } => self.update_step(table, rows).await,
        }
    }

    /// Empties tables inside the transaction. TRUNCATE would commit; DELETE with foreign keys off
    /// has its effect.
    pub(super) async fn delete_all(&mut self, tables: &[Arc<Table>]) -> Result<(), TargetError> {
        for table in tables {
            let shape = self.shape(table).await?;
            self.execute(&format!("DELETE FROM {}", shape.table))
                .await
                .map_err(|failure| failure.into_target(&on("empty", &shape.target.name)))?;
        }
        Ok(())
    }

    async fn insert_step(
        &mut self,
        table: &Arc<Table>,
        rows: &[Change],
    ) -> Result<StepOutcome, TargetError> {
        let shape = self.shape(table).await?;
        let rows: Vec<&Change> = rows.iter().collect();
        self.insert_rows(&shape, &rows).await
    }

    /// Inserts complete rows.
    pub(super) async fn insert_rows(
        &mut self,
        shape: &Shape,
        rows: &[&Change],
    ) -> Result<StepOutcome, TargetError> {
        let cells = whole_row(shape);
        let filling = Filling { shape, into: &shape.table, cells, rows, put: Put::Insert };
        Ok(match self.fill(&filling).await? {
            Filled::All => StepOutcome::Applied,
            Filled::Refused(why) => StepOutcome::Refused(format!("{}: {why}", shape.target.name)),
        })
    }

    /// Rows with the same columns unsent are updated together.
    async fn update_step(
        &mut self,
        table: &Arc<Table>,
        rows: &[Change],
    ) -> Result<StepOutcome, TargetError> {
        let shape = self.shape(table).await?;
        let mut groups: BTreeMap<(bool, Vec<u32>), Vec<&Change>> = BTreeMap::new();
        for row in rows {
            let mut unsent = row.unsent.clone();
            unsent.sort_unstable();
            groups.entry((row.before.is_some(), unsent)).or_default().push(row);
        }
        for ((moved, unsent), rows) in groups {
            let work = Work::Update { moved, unsent };
            match self.change_rows(&shape, &rows, &work).await? {
                StepOutcome::Applied => {}
                refused @ StepOutcome::Refused(_) => return Ok(refused),
            }
        }
        Ok(StepOutcome::Applied)
    }

    /// Updates or deletes rows that must each be there once.
    pub(super) async fn change_rows(
        &mut self,
        shape: &Shape,
        rows: &[&Change],
        work: &Work,
    ) -> Result<StepOutcome, TargetError> {
        if rows.len() > FEW_ROWS && !shape.is_full() {
            if work.is_whole()
                && let Some(has) = &shape.replaces
                && self.replace_rows(shape, rows, has).await?
            {
                return Ok(StepOutcome::Applied);
            }
            if let Some(outcome) = self.join_rows(shape, rows, work).await? {
                return Ok(outcome);
            }
        }
        self.single_rows(shape, rows, work).await
    }

    /// Puts whole rows in the place of those with their keys: the server reads and writes each once,
    /// a join three times. `false`: nothing was done, as a row was not there, which a join finds
    /// out too, or was there just so, which a join takes.
    async fn replace_rows(
        &mut self,
        shape: &Shape,
        rows: &[&Change],
        has: &[String],
    ) -> Result<bool, TargetError> {
        let name = &shape.target.name;
        if let Some(left) = self.joined.get_mut(name) {
            *left -= 1;
            if *left == 0 {
                self.joined.remove(name);
            }
            return Ok(false);
        }
        self.stage("SAVEPOINT tailwater_replace");
        let cells = whole_row(shape);
        let filling = Filling { shape, into: &shape.table, cells, rows, put: Put::Replace };
        let why = match self.fill(&filling).await? {
            // From now until the transaction ends nobody changes what the table has.
            Filled::All if self.has(shape).await? == has => return Ok(true),
            Filled::All => "the table has changed".to_owned(),
            Filled::Refused(why) => why,
        };
        tracing::debug!(table = %name, why, "not every row was replaced: joining");
        self.joined.insert(name.clone(), JOINED_STEPS);
        self.stage("ROLLBACK TO SAVEPOINT tailwater_replace");
        Ok(false)
    }

    /// The names of what the table has now, sorted.
    async fn has(&mut self, shape: &Shape) -> Result<Vec<String>, TargetError> {
        let found: Result<Vec<String>, _> = self.conn.query(shape.ask_what_it_has()).await;
        let mut has = found.map_err(|error| {
            Failure::of(error).into_target(&on("look again at", &shape.target.name))
        })?;
        has.sort_unstable();
        Ok(has)
    }

    async fn single_rows(
        &mut self,
        shape: &Shape,
        rows: &[&Change],
        work: &Work,
    ) -> Result<StepOutcome, TargetError> {
        let mut images = Images::default();
        let mut rows = rows.iter();
        // The statement that did not go with those before it.
        let mut held: Option<(&Change, Vec<u8>)> = None;
        loop {
            let mut batch = None;
            loop {
                let (row, statement) = match held.take() {
                    Some(held) => held,
                    None => {
                        let Some(row) = rows.next() else { break };
                        images.read(shape, row)?;
                        let mut statement = Vec::new();
                        work.put(shape, &images, &mut statement)?;
                        (*row, statement)
                    }
                };
                let alone = sql::Batch::default();
                if batch.is_none() && !fits(self, &alone, statement.len()) {
                    match self.one_large_row(shape, row, work).await? {
                        StepOutcome::Applied => continue,
                        refused @ StepOutcome::Refused(_) => return Ok(refused),
                    }
                }
                let batch = batch.get_or_insert_with(|| self.batch(shape.cascades));
                let full = batch.len() >= STATEMENTS
                    || batch.sql.len() + statement.len() > STATEMENTS_BYTES;
                if batch.len() > 0 && full {
                    held = Some((row, statement));
                    break;
                }
                batch.statement().extend_from_slice(&statement);
            }
            let Some(batch) = batch else { return Ok(StepOutcome::Applied) };
            if let Some(refused) = self.run_singles(shape, &batch).await? {
                return Ok(refused);
            }
        }
    }

    async fn run_singles(
        &mut self,
        shape: &Shape,
        batch: &sql::Batch,
    ) -> Result<Option<StepOutcome>, TargetError> {
        match self.run(batch).await {
            Ok(outcomes) if outcomes.len() == batch.len() => {
                Ok(outcomes.iter().find(|outcome| !outcome.is(1)).map(|outcome| {
                    refusal(shape, &format!("a row was found {} times", outcome.affected), *outcome)
                }))
            }
            Ok(_) => Ok(Some(StepOutcome::Refused("statements are missing".into()))),
            Err(failure) => match failure.data() {
                Some(error) => Ok(Some(StepOutcome::Refused(format!(
                    "{}: {}",
                    shape.target.name,
                    sanitized(error)
                )))),
                None => Err(failure.into_target(&on("change rows of", &shape.target.name))),
            },
        }
    }

    /// A row that does not go in one packet goes in pieces, by way of a temporary table.
    async fn one_large_row(
        &mut self,
        shape: &Shape,
        row: &Change,
        work: &Work,
    ) -> Result<StepOutcome, TargetError> {
        let large = || too_large(&on("change a row of", &shape.target.name));
        if shape.is_full() || !self.local_infile {
            return Err(large());
        }
        self.join_rows(shape, &[row], work).await?.ok_or_else(large)
    }

    /// By a join with a temporary table; none if there can be none for this table.
    pub(super) async fn join_rows(
        &mut self,
        shape: &Shape,
        rows: &[&Change],
        work: &Work,
    ) -> Result<Option<StepOutcome>, TargetError> {
        let operation = on("change rows of", &shape.target.name);
        let name = self.temporary();
        let cells = work.cells(shape);
        match self.execute(&create_temporary(&name, &cells)).await {
            Ok(_) => {}
            // Too many columns, or too wide a row with the key twice.
            Err(failure) if failure.data().is_some() => return Ok(None),
            Err(failure) => return Err(failure.into_target(&operation)),
        }
        let filled =
            self.fill(&Filling { shape, into: &name, cells, rows, put: Put::Insert }).await;
        let outcome = match filled {
            Ok(Filled::All) => self.join(shape, &name, rows.len(), work).await,
            Ok(Filled::Refused(why)) => {
                Ok(StepOutcome::Refused(format!("{}: {why}", shape.target.name)))
            }
            Err(error) => Err(error),
        };
        self.stage(format!("DROP TEMPORARY TABLE IF EXISTS {name}"));
        outcome.map(Some)
    }

    async fn join(
        &mut self,
        shape: &Shape,
        name: &str,
        rows: usize,
        work: &Work,
    ) -> Result<StepOutcome, TargetError> {
        let mut batch = self.batch(shape.cascades);
        batch.statement().extend_from_slice(work.join(shape, name).as_bytes());
        match self.run(&batch).await {
            Ok(outcomes) => Ok(match outcomes[..] {
                [outcome] if outcome.is(rows) => StepOutcome::Applied,
                [outcome] => refusal(
                    shape,
                    &format!("{} of {rows} rows were there", outcome.affected),
                    outcome,
                ),
                _ => StepOutcome::Refused("statements are missing".into()),
            }),
            Err(failure) => match failure.data() {
                Some(error) => {
                    Ok(StepOutcome::Refused(format!("{}: {}", shape.target.name, sanitized(error))))
                }
                None => Err(failure.into_target(&on("change rows of", &shape.target.name))),
            },
        }
    }
}

fn refusal(shape: &Shape, what: &str, outcome: Outcome) -> StepOutcome {
    let name = &shape.target.name;
    StepOutcome::Refused(format!("{name}: {what}, {} warnings", outcome.warnings))
}

/// What is done to rows that are there.
#[derive(Debug)]
pub(super) enum Work {
    /// They go.
    Delete,
    /// They become the new row.
    Update {
        /// Whether their identity changes.
        moved: bool,
        /// Field numbers that keep what they have.
        unsent: Vec<u32>,
    },
}

impl Work {
    /// Whether rows become wholly new under the key that they have.
    fn is_whole(&self) -> bool {
        matches!(self, Self::Update { moved: false, unsent } if unsent.is_empty())
    }

    fn put(
        &self,
        shape: &Shape,
        images: &Images<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), TargetError> {
        match self {
            Self::Delete => sql::put_delete(shape, &images.old, out),
            Self::Update { moved, .. } => {
                sql::put_update(shape, &images.old, &images.new, *moved, out)
            }
        }
    }

    /// The temporary table's columns: `o0…` the key that rows have, `c0…` what they become.
    fn cells<'a>(&self, shape: &'a Shape) -> Vec<Cell<'a>> {
        let key = shape.key.iter().enumerate().map(|(nth, at)| Cell {
            name: format!("o{nth}"),
            image: Image::Old,
            field: &shape.fields[*at],
        });
        let new = self.set(shape).into_iter().map(|at| Cell {
            name: format!("c{at}"),
            image: Image::New,
            field: &shape.fields[at],
        });
        key.chain(new).collect()
    }

    /// Positions of the columns that get a new value.
    fn set(&self, shape: &Shape) -> Vec<usize> {
        let Self::Update { moved, unsent } = self else { return Vec::new() };
        let sent = |at: &usize| {
            let field = &shape.fields[*at];
            !unsent.contains(&shape.schema.columns[field.source].field)
                && (*moved || !shape.key.contains(at))
        };
        (0..shape.fields.len()).filter(sent).collect()
    }

    fn join(&self, shape: &Shape, name: &str) -> String {
        let (table, fields) = (&shape.table, &shape.fields);
        let keys: Vec<String> = shape
            .key
            .iter()
            .enumerate()
            .map(|(nth, at)| {
                let (ours, sent) = (format!("t.{}", fields[*at].name), format!("s.o{nth}"));
                let equal = format!("{ours}={sent}");
                if !shape.folding.contains(at) {
                    return equal;
                }
                format!("{equal} AND {}={}", sql::as_bytes(&ours), sql::as_bytes(&sent))
            })
            .collect();
        let keys = keys.join(" AND ");
        if matches!(self, Self::Delete) {
            return format!("DELETE t FROM {name} AS s STRAIGHT_JOIN {table} AS t ON {keys}");
        }
        let set = self.set(shape);
        let mut assignments: Vec<String> =
            set.iter().map(|at| format!("t.{}=s.c{at}", fields[*at].name)).collect();
        let kept = (0..fields.len()).filter(|at| fields[*at].on_update && !set.contains(at));
        assignments.extend(kept.map(|at| format!("t.{0}=t.{0}", fields[at].name)));
        if assignments.is_empty() {
            assignments.push(format!("t.{0}=t.{0}", fields[shape.key[0]].name));
        }
        format!(
            "UPDATE {name} AS s STRAIGHT_JOIN {table} AS t ON {keys} SET {}",
            assignments.join(",")
        )
    }
}

/// Its own key keeps servers content that require one; it fills itself.
fn create_temporary(name: &str, cells: &[Cell<'_>]) -> String {
    let mut text = format!(
        "CREATE TEMPORARY TABLE {name} (n INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY"
    );
    for cell in cells {
        text.push_str(&format!(",{} {} NULL", cell.name, cell.field.definition));
    }
    text.push_str(") ENGINE=InnoDB");
    text
}
