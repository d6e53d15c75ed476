//! What we keep on the source server: one publication and one replication slot, of one name.
//!
//! The publication is made before the slot: the slot's decoding looks publications up as they were
//! at the point it has reached, and one made later would not be there yet.

use std::time::Duration;

use tailwater_capture::SourceError;
use tailwater_change::{Problem, TableId};

use crate::catalog::CatalogTable;
use crate::connect::{Server, Session, literal, quote, quote_table, source_error};
use crate::source::state::System;
use crate::source::wire::Connection;

/// What the server says of a slot.
#[derive(Debug, Clone)]
pub(crate) struct SlotStatus {
    pub(crate) plugin: Option<String>,
    pub(crate) database: Option<String>,
    pub(crate) active_pid: Option<i32>,
    pub(crate) wal_status: Option<String>,
    pub(crate) confirmed_flush: Option<u64>,
}

/// A new slot.
#[derive(Debug, Clone)]
pub(crate) struct NewSlot {
    /// What committed below it is not in the stream.
    pub(crate) consistent_point: u64,
    /// The snapshot just there.
    pub(crate) snapshot: Option<String>,
}

/// The name of slot and publication of the source `name`: lower case letters, digits and
/// underscores are all that a slot may have. A name that had others gets a number, so that two
/// sources never share one.
pub(crate) fn slot_name(name: &str) -> String {
    const LONGEST: usize = 63;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let plain: String = name.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
    let full = format!("tailwater_{plain}");
    if plain == name && full.len() <= LONGEST {
        return full;
    }
    let kept: String = full.chars().take(LONGEST - 9).collect();
    format!("{kept}_{:08x}", hash(name))
}

/// The name of the slot that exports the rest of a snapshot, beside the source's own: one that no
/// source's own slot has.
pub(crate) fn rest_slot_name(slot: &str) -> String {
    format!("tailwaterrest_{:08x}", hash(slot))
}

/// FNV-1a: any fixed function of the name will do.
fn hash(name: &str) -> u32 {
    name.bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Looks at a slot.
pub(crate) async fn slot_status(
    session: &Session,
    slot: &str,
) -> Result<Option<SlotStatus>, SourceError> {
    let row = session
        .query_opt(
            "SELECT plugin::text, database::text, active_pid, wal_status,
                    (confirmed_flush_lsn - '0/0')::int8
               FROM pg_catalog.pg_replication_slots WHERE slot_name = $1",
            &[&slot],
        )
        .await
        .map_err(|error| source_error("looking at the replication slot", error))?;
    Ok(row.map(|row| SlotStatus {
        plugin: row.get(0),
        database: row.get(1),
        active_pid: row.get(2),
        wal_status: row.get(3),
        confirmed_flush: row.get::<_, Option<i64>>(4).and_then(|lsn| u64::try_from(lsn).ok()),
    }))
}

/// Whether the server has room for another slot.
pub(crate) async fn has_free_slot(session: &Session) -> Result<bool, SourceError> {
    let sql = "SELECT count(*) < pg_catalog.current_setting('max_replication_slots')::int8
                 FROM pg_catalog.pg_replication_slots";
    let row = session.query_one(sql, &[]).await;
    row.map(|row| row.get(0)).map_err(|error| source_error("counting replication slots", error))
}

/// The problem of a slot of our name that belongs to another database or plugin.
pub(crate) fn foreign(server: &Server, slot: &str, status: &SlotStatus) -> Option<Problem> {
    let database = status.database.as_deref().unwrap_or("none");
    let plugin = status.plugin.as_deref().unwrap_or("none");
    (database != server.database() || plugin != "pgoutput").then(|| {
        Problem::new(
            format!("the replication slot {slot} belongs to database {database}, plugin {plugin}"),
            format!(
                "give this source another name, or drop the slot: SELECT \
                 pg_drop_replication_slot({})",
                literal(slot)
            ),
        )
    })
}

/// Drops our slot if it is there.
pub(crate) async fn drop_slot(
    server: &Server,
    session: &Session,
    slot: &str,
) -> Result<(), SourceError> {
    let Some(status) = slot_status(session, slot).await? else { return Ok(()) };
    if let Some(problem) = foreign(server, slot, &status) {
        return Err(SourceError::Refused(problem));
    }
    if status.active_pid.is_some() {
        return Err(SourceError::InUse(format!("the replication slot {slot}")));
    }
    session
        .execute("SELECT pg_catalog.pg_drop_replication_slot($1)", &[&slot])
        .await
        .map_err(|error| source_error(&format!("dropping the replication slot {slot}"), error))?;
    Ok(())
}

/// What a new slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// A stream from now on.
    Streaming,
    /// A snapshot and a stream after it.
    Exporting,
    /// A snapshot: it is gone with its connection.
    Temporary,
}

/// Makes the slot; while the server waits for open transactions, says for which.
pub(crate) async fn create_slot(
    replication: &mut Connection,
    session: &Session,
    slot: &str,
    kept: Kept,
) -> Result<NewSlot, SourceError> {
    /// How long a busy server may take before it is worth a word.
    const PATIENCE: Duration = Duration::from_secs(5);
    let version = server_version(session).await?;
    let snapshot = match (version >= 150_000, kept != Kept::Streaming) {
        (true, true) => "SNAPSHOT 'export'",
        (true, false) => "SNAPSHOT 'nothing'",
        (false, true) => "EXPORT_SNAPSHOT",
        (false, false) => "NOEXPORT_SNAPSHOT",
    };
    let temporary = if kept == Kept::Temporary { "TEMPORARY " } else { "" };
    let options = match version {
        170_000.. if kept != Kept::Temporary => format!("({snapshot}, FAILOVER true)"),
        150_000.. => format!("({snapshot})"),
        _ => snapshot.to_owned(),
    };
    let sql =
        format!("CREATE_REPLICATION_SLOT {} {temporary}LOGICAL pgoutput {options}", quote(slot));
    let operation = format!("creating the replication slot {slot}");
    let rows = {
        let mut creating = std::pin::pin!(replication.query(&sql));
        loop {
            tokio::select! {
                rows = &mut creating => break rows,
                () = tokio::time::sleep(PATIENCE) => warn_of_open_transactions(session).await?,
            }
        }
    };
    let rows = rows.map_err(|error| error.into_source_error(&operation))?;
    let field = |index: usize| rows.first().and_then(|row| row.get(index)).cloned().flatten();
    let consistent_point = field(1).as_deref().and_then(parse_lsn);
    let Some(consistent_point) = consistent_point else {
        return Err(SourceError::Protocol { operation, detail: "no consistent point".into() });
    };
    Ok(NewSlot { consistent_point, snapshot: field(2) })
}

async fn warn_of_open_transactions(session: &Session) -> Result<(), SourceError> {
    let rows = session
        .query(
            "SELECT pid::text, xact_start::text, coalesce(application_name, '')
               FROM pg_catalog.pg_stat_activity
              WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid()
             UNION ALL
             SELECT 'prepared ' || gid, prepared::text, owner::text
               FROM pg_catalog.pg_prepared_xacts
              ORDER BY 2",
            &[],
        )
        .await
        .map_err(|error| source_error("looking at open transactions", error))?;
    let open: Vec<String> = rows
        .iter()
        .map(|row| {
            let since: Option<String> = row.get(1);
            let (who, what): (String, String) = (row.get(0), row.get(2));
            format!("pid {who} ({what}) since {}", since.unwrap_or_default())
        })
        .collect();
    tracing::warn!(
        transactions = open.join("; "),
        "the replication slot waits until these transactions have ended"
    );
    Ok(())
}

/// Who the server is.
pub(crate) async fn identify(replication: &mut Connection) -> Result<System, SourceError> {
    let operation = "asking the server who it is";
    let rows = replication
        .query("IDENTIFY_SYSTEM")
        .await
        .map_err(|error| error.into_source_error(operation))?;
    let field = |index: usize| rows.first().and_then(|row| row.get(index)).cloned().flatten();
    match (field(0), field(1).and_then(|timeline| timeline.parse().ok())) {
        (Some(identifier), Some(timeline)) => Ok(System { identifier, timeline }),
        _ => Err(SourceError::Protocol { operation: operation.into(), detail: "no answer".into() }),
    }
}

/// Where the server's history left timeline `from`; `None` if it never was on it.
pub(crate) async fn switch_point(
    replication: &mut Connection,
    now: u32,
    from: u32,
) -> Result<Option<u64>, SourceError> {
    let rows = replication
        .query(&format!("TIMELINE_HISTORY {now}"))
        .await
        .map_err(|error| error.into_source_error("reading the timeline's history"))?;
    let history = rows.first().and_then(|row| row.get(1)).cloned().flatten().unwrap_or_default();
    Ok(left_at(&history, from))
}

/// Where a timeline's history says that `timeline` was left: lines of timeline, LSN and reason.
fn left_at(history: &str, timeline: u32) -> Option<u64> {
    history.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let found: u32 = words.next()?.parse().ok()?;
        if found == timeline { words.next().and_then(parse_lsn) } else { None }
    })
}

/// Sees to it that the publication has exactly these tables.
pub(crate) async fn ensure_publication(
    server: &Server,
    session: &Session,
    name: &str,
    tables: &[CatalogTable],
) -> Result<(), SourceError> {
    let operation = format!("publishing tables as {name}");
    let existing = publication(session, name).await?;
    let statement = match existing {
        Some(_) => set_publication(name, tables),
        None => create_publication(name, tables),
    };
    let failed = |error: tokio_postgres::Error| match error.as_db_error() {
        Some(said) if said.code().code() == "42501" => {
            SourceError::Refused(may_not_publish(server, &statement, said.message()))
        }
        _ => source_error(&operation, error),
    };
    let Some(publication) = existing else {
        return session.batch_execute(&statement).await.map_err(failed);
    };
    let wanted: Vec<&TableId> = tables.iter().map(|table| &table.schema.table).collect();
    let has_all = wanted.iter().all(|table| publication.tables.contains(table));
    let has_more = publication.tables.iter().any(|table| !wanted.contains(&table));
    // One that someone else made for us may hold more: its other tables are left aside.
    let complete = publication.whole && !publication.filtered && has_all;
    if complete && (!has_more || !publication.owned || publication.fixed) {
        return Ok(());
    }
    session.batch_execute(&statement).await.map_err(failed)
}

/// The statement that makes the publication.
pub(crate) fn create_publication(name: &str, tables: &[CatalogTable]) -> String {
    format!(
        "CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)",
        quote(name),
        list(tables)
    )
}

/// The statement that makes an existing publication what we need.
pub(crate) fn set_publication(name: &str, tables: &[CatalogTable]) -> String {
    format!(
        "ALTER PUBLICATION {0} SET TABLE {1}; ALTER PUBLICATION {0} SET (publish = 'insert, \
         update, delete, truncate', publish_via_partition_root = true)",
        quote(name),
        list(tables)
    )
}

fn list(tables: &[CatalogTable]) -> String {
    let names = tables.iter().map(|table| {
        let only = if table.partitioned { "" } else { "ONLY " };
        format!("{only}{}", quote_table(&table.schema.table))
    });
    names.collect::<Vec<_>>().join(", ")
}

/// The problem of a role that may not publish; `statement` is what another must run for it.
pub(crate) fn may_not_publish(server: &Server, statement: &str, why: &str) -> Problem {
    let (database, user) = (quote(server.database()), quote(server.user()));
    Problem::new(
        format!("{} may not publish the tables: {why}", server.user()),
        format!(
            "run this as a superuser: {statement}; (or GRANT CREATE ON DATABASE {database} TO \
             {user} and make it the owner of every captured table and of the publication)"
        ),
    )
}

/// A publication as the catalog has it.
#[derive(Debug)]
pub(crate) struct Publication {
    /// Whether it publishes every operation, partitions by their root.
    pub(crate) whole: bool,
    /// Whether it has row filters or column lists.
    pub(crate) filtered: bool,
    /// Whether its tables are not listed one by one.
    pub(crate) fixed: bool,
    /// Whether we may change it.
    pub(crate) owned: bool,
    /// Its tables.
    pub(crate) tables: Vec<TableId>,
}

/// Looks at a publication.
pub(crate) async fn publication(
    session: &Session,
    name: &str,
) -> Result<Option<Publication>, SourceError> {
    let failed = |error| source_error("looking at the publication", error);
    let row = session
        .query_opt(
            "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot,
                    EXISTS (SELECT FROM pg_catalog.pg_publication_rel r
                             WHERE r.prpubid = p.oid
                               AND coalesce(to_jsonb(r)->>'prqual', to_jsonb(r)->>'prattrs')
                                   IS NOT NULL),
                    puballtables, pg_catalog.pg_has_role(pubowner, 'USAGE')
               FROM pg_catalog.pg_publication p WHERE pubname = $1",
            &[&name],
        )
        .await
        .map_err(failed)?;
    let Some(row) = row else { return Ok(None) };
    let tables = session
        .query(
            "SELECT schemaname::text, tablename::text
               FROM pg_catalog.pg_publication_tables WHERE pubname = $1",
            &[&name],
        )
        .await
        .map_err(failed)?;
    let table =
        |row: &tokio_postgres::Row| TableId::new(row.get::<_, String>(0), row.get::<_, String>(1));
    Ok(Some(Publication {
        whole: row.get(0),
        filtered: row.get(1),
        fixed: row.get(2),
        owned: row.get(3),
        tables: tables.iter().map(table).collect(),
    }))
}

/// `server_version_num`.
pub(crate) async fn server_version(session: &Session) -> Result<i32, SourceError> {
    let row = session
        .query_one("SELECT pg_catalog.current_setting('server_version_num')::int4", &[])
        .await
        .map_err(|error| source_error("asking for the server's version", error))?;
    Ok(row.get(0))
}

/// An LSN as PostgreSQL prints it.
pub(crate) fn parse_lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let (high, low) = (u32::from_str_radix(high, 16).ok()?, u32::from_str_radix(low, 16).ok()?);
    Some(u64::from(high) << 32 | u64::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_named_after_its_source() {
        assert_eq!(slot_name("shop"), "tailwater_shop");
        assert_ne!(slot_name("my-shop"), slot_name("my_shop"));
        assert_ne!(slot_name("Shop"), slot_name("shop"));
        let long = slot_name(&"x".repeat(80));
        assert!(long.len() <= 63 && long != slot_name(&"x".repeat(81)));
        assert_ne!(rest_slot_name("tailwater_shop"), rest_slot_name("tailwater_shop2"));
    }

    #[test]
    fn a_history_says_where_a_timeline_was_left() {
        let history = "1\t0/3000148\tno recovery target specified\n\n2\t1/60\tbefore a day\n";
        assert_eq!(left_at(history, 1), Some(0x300_0148));
        assert_eq!(left_at(history, 2), Some(0x1_0000_0060));
        assert_eq!(left_at(history, 3), None);
        assert_eq!(left_at("", 1), None);
    }

    #[test]
    fn positions_are_read_as_printed() {
        assert_eq!(parse_lsn("2/10"), Some(0x2_0000_0010));
        assert_eq!(parse_lsn("2"), None);
    }
}
