//! The pipeline's row in `tailwater.progress`, the lock of who may write it, and COMMIT.
//!
//! | column | type | |
//! |---|---|---|
//! | pipeline | text, primary key | |
//! | cluster_id, topic_id | text | the log that was read |
//! | next_offset | bigint | first offset not yet applied |
//! | epoch, file, position, ordinal | numeric(20) | the last place applied: 64 bits without a sign |
//! | fence | bigint | raised by every take-over |
//! | state | text | apply's own |
//! | updated_at | timestamptz | when, for people |
//!
//! The lock is the session-level advisory lock whose number is the 64-bit FNV-1a hash
//! (<http://www.isthe.com/chongo/tech/comp/fnv/>) of `tailwater.` and the pipeline's name in UTF-8,
//! its bits taken as a signed number. Two pipelines whose names share a hash would wait for each
//! other; they would not harm each other.

use tailwater_apply::{Progress, TargetError};
use tailwater_change::{Commit, Epoch, Ordinal, Place};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row, Statement};

use super::error::{said, target_error};
use super::param::Param;
use crate::connect::{is_passing, session_named};

const SCHEMA: &str = "CREATE SCHEMA IF NOT EXISTS tailwater";

const TABLE: &str = "CREATE TABLE IF NOT EXISTS tailwater.progress (
    pipeline text PRIMARY KEY,
    cluster_id text NOT NULL,
    topic_id text NOT NULL,
    next_offset bigint NOT NULL,
    epoch numeric(20) NOT NULL,
    file numeric(20) NOT NULL,
    position numeric(20) NOT NULL,
    ordinal numeric(20) NOT NULL,
    fence bigint NOT NULL,
    state text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now())";

/// Tries to take the pipeline's lock.
pub(super) async fn try_lock(client: &Client, pipeline: &str) -> Result<bool, TargetError> {
    let row = client
        .query_one("SELECT pg_catalog.pg_try_advisory_lock($1)", &[&lock_number(pipeline)])
        .await
        .map_err(|error| target_error("taking the pipeline's advisory lock", error))?;
    Ok(row.get(0))
}

/// The session that has the lock, for people.
pub(super) async fn lock_holder(client: &Client, pipeline: &str) -> Result<String, TargetError> {
    let sql = "SELECT l.pid, coalesce(pg_catalog.host(a.client_addr), 'the server''s own host')
                 FROM pg_catalog.pg_locks l
                 JOIN pg_catalog.pg_database d ON d.oid = l.database
                 LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
                WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                  AND l.classid::int8 = ($1::int8 >> 32) & 4294967295
                  AND l.objid::int8 = $1::int8 & 4294967295
                  AND d.datname = pg_catalog.current_database()";
    let row = client.query_opt(sql, &[&lock_number(pipeline)]).await;
    let row = row.map_err(|error| target_error("looking for who has the lock", error))?;
    Ok(match row {
        Some(row) => session_named(row.get(0), row.get(1)),
        None => "its session has just ended".into(),
    })
}

/// Which of the locks are held.
pub(super) async fn held(client: &Client, locks: &[String]) -> Result<Vec<bool>, TargetError> {
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l
                        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                          AND l.classid::int8 = (n >> 32) & 4294967295
                          AND l.objid::int8 = n & 4294967295
                          AND l.database = (SELECT oid FROM pg_catalog.pg_database
                                             WHERE datname = pg_catalog.current_database()))
                 FROM unnest($1::int8[]) WITH ORDINALITY AS wanted (n, nth) ORDER BY nth";
    let numbers: Vec<i64> = locks.iter().map(|lock| lock_number(lock)).collect();
    let rows = client.query(sql, &[&numbers]).await;
    let rows = rows.map_err(|error| target_error("looking for who else is there", error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn lock_number(pipeline: &str) -> i64 {
    const OFFSET_BASIS: u64 = 0xCBF2_9CE4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01B3;
    let bytes = b"tailwater.".iter().chain(pipeline.as_bytes());
    bytes
        .fold(OFFSET_BASIS, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
        .cast_signed()
}

/// Whether the progress table is there.
pub(super) async fn is_there(client: &Client) -> Result<bool, TargetError> {
    client
        .query_one("SELECT pg_catalog.to_regclass('tailwater.progress') IS NOT NULL", &[])
        .await
        .map(|row| row.get(0))
        .map_err(|error| target_error("looking for tailwater.progress", error))
}

/// Creates the progress table where it is missing. Where it is there, no privilege is needed.
pub(super) async fn create(client: &Client) -> Result<(), TargetError> {
    if is_there(client).await? {
        return Ok(());
    }
    for sql in [SCHEMA, TABLE] {
        match client.batch_execute(sql).await {
            Ok(()) => {}
            // IF NOT EXISTS does not see what another session is making just now.
            Err(error)
                if matches!(
                    error.code(),
                    Some(
                        &SqlState::UNIQUE_VIOLATION
                            | &SqlState::DUPLICATE_TABLE
                            | &SqlState::DUPLICATE_SCHEMA
                    )
                ) => {}
            Err(error) => return Err(target_error("creating tailwater.progress", error)),
        }
    }
    Ok(())
}

const READ: &str = "
    SELECT pipeline, cluster_id, topic_id, next_offset, epoch::text, file::text, position::text,
           ordinal::text, fence, state
      FROM tailwater.progress WHERE pipeline = $1";

/// Reads the pipeline's row.
pub(super) async fn read(client: &Client, pipeline: &str) -> Result<Option<Progress>, TargetError> {
    let row = client
        .query_opt(READ, &[&pipeline])
        .await
        .map_err(|error| target_error("reading tailwater.progress", error))?;
    row.map(|row| progress(&row)).transpose()
}

fn progress(row: &Row) -> Result<Progress, TargetError> {
    let number = |index: usize| {
        row.get::<_, &str>(index).parse::<u64>().map_err(|error| TargetError::Bug {
            operation: "reading tailwater.progress".into(),
            detail: error.to_string(),
        })
    };
    let epoch = u32::try_from(number(4)?).map_err(|error| TargetError::Bug {
        operation: "reading tailwater.progress".into(),
        detail: error.to_string(),
    })?;
    Ok(Progress {
        pipeline: row.get(0),
        cluster_id: row.get(1),
        topic_id: row.get(2),
        next_offset: row.get(3),
        place: Place::new(
            Epoch::new(epoch),
            Commit::binlog(number(5)?, number(6)?),
            Ordinal::new(number(7)?),
        ),
        fence: row.get(8),
        state: row.get(9),
    })
}

const TAKE_OVER: &str = "
    INSERT INTO tailwater.progress AS p (pipeline, cluster_id, topic_id, next_offset, epoch, file,
                                         position, ordinal, state, fence)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        ON CONFLICT (pipeline)
        DO UPDATE SET fence = p.fence + 1, updated_at = pg_catalog.clock_timestamp()
    RETURNING pipeline, cluster_id, topic_id, next_offset, epoch::text, file::text, position::text,
              ordinal::text, fence, state";

/// Raises the fence, committed at once.
pub(super) async fn take_over(
    client: &Client,
    initial: &Progress,
) -> Result<Progress, TargetError> {
    let failed = |error| target_error("taking over tailwater.progress", error);
    let statement = client.prepare(TAKE_OVER).await.map_err(failed)?;
    let mut params = params(initial);
    // A first row carries a raised fence as well: nobody has held the initial one.
    params.push(text(initial.fence + 1));
    let rows = client.query_raw(&statement, &params).await.map_err(failed)?;
    let rows: Vec<Row> = futures_util::TryStreamExt::try_collect(rows).await.map_err(failed)?;
    rows.first().map(progress).ok_or_else(|| TargetError::Bug {
        operation: "taking over tailwater.progress".into(),
        detail: "no row came back".into(),
    })?
}

/// Advances the row if the fence is still ours, and fails otherwise: dividing by the count of rows
/// leaves a transaction that COMMIT rolls back, and so COMMIT need not wait for the answer.
pub(super) const ADVANCE: &str = "
    WITH advanced AS (
        UPDATE tailwater.progress
           SET cluster_id = $2, topic_id = $3, next_offset = $4, epoch = $5, file = $6,
               position = $7, ordinal = $8, state = $9, updated_at = pg_catalog.clock_timestamp()
         WHERE pipeline = $1 AND fence = $10
        RETURNING 1)
    SELECT 1 / pg_catalog.count(*) FROM advanced";

/// Whether a COMMIT waits until the server has flushed it, and its standbys have what is asked of
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flush {
    Wait,
    Later,
}

/// Writes the progress and commits, in one round trip.
pub(super) async fn commit(
    client: &Client,
    advance: &Statement,
    progress: &Progress,
    flush: Flush,
) -> Result<(), TargetError> {
    let set = async {
        match flush {
            Flush::Wait => Ok(()),
            Flush::Later => client.batch_execute("SET LOCAL synchronous_commit = off").await,
        }
    };
    let mut params = params(progress);
    params.push(text(progress.fence));
    let advance = client.execute_raw(advance, &params);
    let commit = client.batch_execute("COMMIT");
    let (set, advanced, committed) = tokio::join!(biased; set, advance, commit);
    set.map_err(|error| uncertain("SET LOCAL synchronous_commit", error))?;
    match advanced {
        Ok(_) => {}
        Err(error) if error.code() == Some(&SqlState::DIVISION_BY_ZERO) => {
            return Err(TargetError::Fenced { ours: progress.fence });
        }
        Err(error) => return Err(uncertain("advancing tailwater.progress", error)),
    }
    committed.map_err(|error| uncertain("COMMIT", error))
}

/// What became of a COMMIT that did not answer well. Where the server says which constraint or
/// conflict stood against it, it has rolled back; where it went away, or was told to (waiting for a
/// standby, it has committed by then), nobody knows.
fn uncertain(operation: &str, error: tokio_postgres::Error) -> TargetError {
    let Some(answer) = error.as_db_error() else {
        return TargetError::UnknownOutcome(Box::new(error));
    };
    let code = answer.code().code();
    match code.get(..2) {
        Some("40") => TargetError::unavailable(operation, error),
        Some("23") => TargetError::Conflict {
            table: tailwater_change::TableId::new(
                answer.schema().unwrap_or_default(),
                answer.table().unwrap_or_default(),
            ),
            detail: said(answer),
        },
        _ if is_passing(code) => TargetError::UnknownOutcome(Box::new(error)),
        _ => target_error(operation, error),
    }
}

/// The row's values but the fence, in the order of both statements.
fn params(progress: &Progress) -> Vec<Param<'_>> {
    let place = &progress.place;
    vec![
        Param::Text(progress.pipeline.as_str().into()),
        Param::Text(progress.cluster_id.as_str().into()),
        Param::Text(progress.topic_id.as_str().into()),
        text(progress.next_offset),
        text(place.epoch.get()),
        text(place.commit.file()),
        text(place.commit.position()),
        text(place.ordinal.get()),
        Param::Text(progress.state.as_str().into()),
    ]
}

fn text(number: impl itoa::Integer) -> Param<'static> {
    Param::Text(itoa::Buffer::new().format(number).to_owned().into())
}

/// Removes the pipeline's row.
pub(super) async fn forget(client: &Client, pipeline: &str) -> Result<(), TargetError> {
    if !is_there(client).await? {
        return Ok(());
    }
    client
        .execute("DELETE FROM tailwater.progress WHERE pipeline = $1", &[&pipeline])
        .await
        .map(drop)
        .map_err(|error| target_error("removing the pipeline from tailwater.progress", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_the_hash_of_the_name() {
        // Computed elsewhere: whoever looks into pg_locks finds this number.
        assert_eq!(lock_number("shop"), 3_441_655_259_187_777_912);
        assert_ne!(lock_number("shop"), lock_number("shoq"));
    }
}
