//! Who applies a pipeline, and how far it has come: the lock and the progress row.
//!
//! The lock is GET_LOCK of `tailwater.<pipeline>`: it belongs to the whole server and ends with the
//! session, which the server ends itself when it has heard nothing of it for the lease.
//!
//! The lock keeps two honest processes apart. The fence keeps out one that lost its lock without
//! knowing: the progress row is written on condition that its fence is still ours, in the very
//! transaction that carries the data.

use mysql_async::prelude::Queryable;
use mysql_async::{Error, Row};
use tailwater_apply::{Progress, TargetError};
use tailwater_change::{Commit, Epoch, Ordinal, Place, Problem, TableId};

use super::failure::{Failure, Spoken, sanitized};
use super::session::Session;
use crate::connect::{lock_holder, lock_name, quote_text};

/// What the names of pipelines' locks begin with.
const PREFIX: &str = "tailwater.";

const TABLE: &str = "CREATE TABLE IF NOT EXISTS `tailwater`.`progress` (\
     `pipeline` VARCHAR(255) NOT NULL PRIMARY KEY,\
     `cluster_id` VARCHAR(255) NOT NULL,\
     `topic_id` VARCHAR(255) NOT NULL,\
     `next_offset` BIGINT NOT NULL,\
     `epoch` BIGINT UNSIGNED NOT NULL,\
     `file` BIGINT UNSIGNED NOT NULL,\
     `position` BIGINT UNSIGNED NOT NULL,\
     `ordinal` BIGINT UNSIGNED NOT NULL,\
     `fence` BIGINT NOT NULL,\
     `state` LONGTEXT NOT NULL,\
     `updated_at` DATETIME(6) NOT NULL\
     ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin";

const COLUMNS: &str = "`pipeline`,`cluster_id`,`topic_id`,`next_offset`,`epoch`,`file`,\
     `position`,`ordinal`,`fence`,`state`";

impl Session {
    /// Takes the pipeline's lock if nobody has it.
    pub(super) async fn lock(&mut self, pipeline: &str) -> Result<bool, TargetError> {
        let sql = format!("SELECT GET_LOCK({}, 0)", lock_name(PREFIX, pipeline));
        let got: Result<Option<Option<i64>>, _> = self.conn.query_first(sql).await;
        match got.map_err(|error| Failure::of(error).into_target("lock the pipeline"))? {
            Some(Some(got)) => Ok(got == 1),
            _ => Err(TargetError::unavailable(
                "lock the pipeline",
                Spoken("the server could not say".into()),
            )),
        }
    }

    /// The session that has the lock.
    pub(super) async fn lock_holder(&mut self, pipeline: &str) -> Result<String, TargetError> {
        let holder = lock_holder(&mut self.conn, &lock_name(PREFIX, pipeline)).await;
        holder.map_err(|error| Failure::of(error).into_target("look for who has the lock"))
    }

    /// Which of the locks are held.
    pub(super) async fn held(&mut self, locks: &[String]) -> Result<Vec<bool>, TargetError> {
        if locks.is_empty() {
            return Ok(Vec::new());
        }
        let each = |lock: &String| format!("IS_USED_LOCK({})", lock_name(PREFIX, lock));
        let all: Vec<String> = locks.iter().map(each).collect();
        let row: Result<Option<Row>, _> =
            self.conn.query_first(format!("SELECT {}", all.join(","))).await;
        let row =
            row.map_err(|error| Failure::of(error).into_target("look for who else is there"))?;
        let is_used = |at: usize| {
            let holder = row.as_ref().and_then(|row| row.get::<Option<u64>, _>(at));
            holder.flatten().is_some()
        };
        Ok((0..locks.len()).map(is_used).collect())
    }

    /// Shows the server that we live: see [`tailwater_apply::Target::ping`].
    pub(super) async fn show_life(&mut self) -> Result<(), TargetError> {
        let answered = self.conn.ping().await;
        answered.map_err(|error| Failure::of(error).into_target("hold the pipeline's lock"))
    }

    /// Makes the table where it is missing. Asks first: an account may be allowed to write it and
    /// not to make it.
    pub(super) async fn ensure_progress(&mut self) -> Result<(), TargetError> {
        let there: Option<u64> = self
            .conn
            .query_first(
                "SELECT COUNT(*) FROM information_schema.tables \
                 WHERE table_schema = 'tailwater' AND table_name = 'progress'",
            )
            .await
            .map_err(|error| Failure::of(error).into_target("look for `tailwater`.`progress`"))?;
        if there.unwrap_or(0) > 0 {
            return Ok(());
        }
        for sql in
            ["CREATE DATABASE IF NOT EXISTS `tailwater` DEFAULT CHARACTER SET utf8mb4", TABLE]
        {
            self.execute(sql)
                .await
                .map_err(|failure| failure.into_target("create `tailwater`.`progress`"))?;
        }
        Ok(())
    }

    /// Reads the pipeline's row.
    pub(super) async fn read_progress(
        &mut self,
        pipeline: &str,
        lock: bool,
    ) -> Result<Option<Progress>, TargetError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM `tailwater`.`progress` WHERE `pipeline` = {}{}",
            quote_text(pipeline),
            if lock { " FOR UPDATE" } else { "" }
        );
        let row: Option<Row> = self
            .conn
            .query_first(sql)
            .await
            .map_err(|error| Failure::of(error).into_target("read the progress"))?;
        row.map(|row| progress_of(row).ok_or_else(unreadable)).transpose()
    }

    /// Whether a pipeline still loads the table.
    pub(super) async fn is_loading(&mut self, to: &TableId) -> Result<bool, TargetError> {
        self.ensure_progress().await?;
        let states: Result<Vec<String>, _> =
            self.conn.query("SELECT `state` FROM `tailwater`.`progress`").await;
        let states = states.map_err(|error| Failure::of(error).into_target("read the progress"))?;
        Ok(states.iter().any(|state| tailwater_apply::is_loading(state, to)))
    }

    /// Raises the fence, making the row where there is none; see
    /// [`tailwater_apply::Target::take_over`].
    pub(super) async fn raise_fence(
        &mut self,
        initial: &Progress,
    ) -> Result<Progress, TargetError> {
        let operation = "take over the pipeline";
        self.ensure_progress().await?;
        let failed = |failure: Failure| failure.into_target(operation);
        self.execute("BEGIN").await.map_err(failed)?;
        let found = self.read_progress(&initial.pipeline, true).await?;
        let is_new = found.is_none();
        let mut progress = found.unwrap_or_else(|| initial.clone());
        progress.fence += 1;
        let sql = if is_new {
            insert_sql(&progress)
        } else {
            format!(
                "UPDATE `tailwater`.`progress` SET `fence` = {}, `updated_at` = UTC_TIMESTAMP(6) \
                 WHERE `pipeline` = {}",
                progress.fence,
                quote_text(&progress.pipeline)
            )
        };
        self.execute(&sql).await.map_err(failed)?;
        self.execute("COMMIT").await.map_err(failed)?;
        Ok(progress)
    }

    /// Writes the progress and commits; see [`tailwater_apply::Target::commit`].
    pub(super) async fn commit_with(&mut self, progress: &Progress) -> Result<(), TargetError> {
        let written = self
            .execute(&update_sql(progress))
            .await
            .map_err(|failure| failure.into_target("write the progress"))?;
        // Rows found, not rows changed: the same progress may be written twice.
        if written.affected != 1 {
            self.execute("ROLLBACK").await.map_err(|failure| failure.into_target("roll back"))?;
            return Err(TargetError::Fenced { ours: progress.fence });
        }
        match self.conn.query_drop("COMMIT").await {
            Ok(()) => Ok(()),
            // Certification failed, or a deadlock was found: the server has rolled back.
            Err(Error::Server(error)) if matches!(error.code, 1180 | 1205 | 1213 | 3101) => {
                Err(TargetError::unavailable("commit", Spoken(sanitized(&error))))
            }
            Err(Error::Server(error)) => {
                Err(TargetError::UnknownOutcome(Box::new(Spoken(sanitized(&error)))))
            }
            Err(error) => Err(TargetError::UnknownOutcome(Box::new(error))),
        }
    }

    /// Removes the pipeline's row.
    pub(super) async fn remove_progress(&mut self, pipeline: &str) -> Result<(), TargetError> {
        self.ensure_progress().await?;
        let name = quote_text(pipeline);
        self.execute(&format!("DELETE FROM `tailwater`.`progress` WHERE `pipeline` = {name}"))
            .await
            .map(drop)
            .map_err(|failure| failure.into_target("forget the pipeline"))
    }
}

fn unreadable() -> TargetError {
    TargetError::Refused(Problem::new(
        "the target's `tailwater`.`progress` does not hold what Tailwater writes there",
        "restore its columns, or detach the pipeline and start it anew",
    ))
}

fn progress_of(mut row: Row) -> Option<Progress> {
    let mut text = |at| row.take_opt::<String, usize>(at).and_then(Result::ok);
    let (pipeline, cluster_id, topic_id, state) = (text(0)?, text(1)?, text(2)?, text(9)?);
    let signed = |at| row.get_opt::<i64, usize>(at).and_then(Result::ok);
    let number = |at| row.get_opt::<u64, usize>(at).and_then(Result::ok);
    Some(Progress {
        pipeline,
        cluster_id,
        topic_id,
        next_offset: signed(3)?,
        place: Place::new(
            Epoch::new(u32::try_from(number(4)?).ok()?),
            Commit::binlog(number(5)?, number(6)?),
            Ordinal::new(number(7)?),
        ),
        fence: signed(8)?,
        state,
    })
}

fn insert_sql(progress: &Progress) -> String {
    let Place { epoch, commit, ordinal } = progress.place;
    format!(
        "INSERT INTO `tailwater`.`progress` ({COLUMNS},`updated_at`) \
         VALUES ({},{},{},{},{},{},{},{},{},{},UTC_TIMESTAMP(6))",
        quote_text(&progress.pipeline),
        quote_text(&progress.cluster_id),
        quote_text(&progress.topic_id),
        progress.next_offset,
        epoch.get(),
        commit.file(),
        commit.position(),
        ordinal.get(),
        progress.fence,
        quote_text(&progress.state),
    )
}

fn update_sql(progress: &Progress) -> String {
    let Place { epoch, commit, ordinal } = progress.place;
    format!(
        "UPDATE `tailwater`.`progress` SET `cluster_id`={},`topic_id`={},`next_offset`={},\
         `epoch`={},`file`={},`position`={},`ordinal`={},`state`={},`updated_at`=UTC_TIMESTAMP(6) \
         WHERE `pipeline`={} AND `fence`={}",
        quote_text(&progress.cluster_id),
        quote_text(&progress.topic_id),
        progress.next_offset,
        epoch.get(),
        commit.file(),
        commit.position(),
        ordinal.get(),
        quote_text(&progress.state),
        quote_text(&progress.pipeline),
        progress.fence,
    )
}
