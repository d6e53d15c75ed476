//! The SQL of steps, as text: no IO.
//!
//! Three kinds of row stand in it: the table's (`t`), parameters (`$1` …, for few rows), and those
//! of a temporary table (`s`, for many). The temporary table has a column `n…` for each column
//! that flows, the new value, and a column `o…` for each column of the identity, the old value;
//! both with the table's own types, so that values are read there as the table would read them.

use std::fmt::Write as _;

use tailwater_change::Identity;

use super::described::{Described, TargetColumn};
use crate::connect::quote;

/// `COPY`'s two formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CopyFormat {
    Binary,
    Text,
}

impl CopyFormat {
    fn name(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Text => "text",
        }
    }
}

/// Which columns of the temporary table hold the identity of a step's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Names {
    /// The old row's, in `o…`.
    Old,
    /// The new row's, in `n…`: the identity has not changed.
    New,
}

/// The columns of the identity: the key, or all that flow.
pub(super) fn identity(table: &Described) -> &[usize] {
    match &table.schema.identity {
        Identity::Key(key) => key,
        Identity::Full => &table.flows,
    }
}

/// Name of the table's temporary table of rows.
pub(super) fn stage(table: &Described) -> String {
    format!("pg_temp.tailwater_stage_{}", table.number)
}

/// `INSERT` of one row: parameters in the order of the columns that flow.
pub(super) fn insert(table: &Described) -> String {
    let columns = list(table.flows.iter().map(|&index| name(table, index)));
    let values = list((1..=table.flows.len()).map(|number| format!("${number}")));
    if table.flows.is_empty() {
        return format!("INSERT INTO {} DEFAULT VALUES", table.sql);
    }
    format!("INSERT INTO {} ({columns}){} VALUES ({values})", table.sql, overriding(table),)
}

/// Without it, identity columns that are always generated take no value.
pub(super) fn overriding(table: &Described) -> &'static str {
    let always = table.entry.columns.iter().any(|column| column.identity_always);
    if always { " OVERRIDING SYSTEM VALUE" } else { "" }
}

/// `COPY` into the table itself.
pub(super) fn copy_into(table: &Described, format: CopyFormat) -> String {
    let columns = list(table.flows.iter().map(|&index| name(table, index)));
    format!("COPY {} ({columns}) FROM STDIN (FORMAT {})", table.sql, format.name())
}

/// Makes the temporary table.
pub(super) fn create_stage(table: &Described) -> String {
    let old = identity(table).iter().map(|&index| format!("{} AS o{index}", name(table, index)));
    let new = table.flows.iter().map(|&index| format!("{} AS n{index}", name(table, index)));
    format!(
        "CREATE TEMPORARY TABLE IF NOT EXISTS {} AS SELECT {} FROM {} WITH NO DATA",
        stage(table),
        list(old.chain(new)),
        table.sql,
    )
}

/// How the planner is to join the temporary table with the table, which it knows nothing about:
/// row by row through the key's index where there is one. Left to itself it soon prefers to read
/// all of the table for each batch, which takes the longer the larger the table is.
pub(super) fn join(table: &Described) -> &'static str {
    match &table.schema.identity {
        Identity::Key(_) if !table.unguarded => {
            "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"
        }
        Identity::Key(_) | Identity::Full => {
            "SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on"
        }
    }
}

/// `COPY` into the temporary table: the old identity if `names` says so, then `new` columns.
pub(super) fn copy_stage(
    table: &Described,
    names: Names,
    new: &[usize],
    format: CopyFormat,
) -> String {
    let old = match names {
        Names::Old => identity(table),
        Names::New => &[],
    };
    let old = old.iter().map(|index| format!("o{index}"));
    let columns = list(old.chain(new.iter().map(|index| format!("n{index}"))));
    format!("COPY {} ({columns}) FROM STDIN (FORMAT {})", stage(table), format.name())
}

/// `DELETE` of the row whose identity the parameters are.
pub(super) fn delete(table: &Described) -> String {
    match &table.schema.identity {
        Identity::Key(key) => {
            format!("DELETE FROM {} AS t WHERE {}", table.sql, by_parameters(table, key, 1))
        }
        Identity::Full => {
            format!("{} DELETE FROM {} AS t USING one WHERE {ONE}", one(table, 1), table.sql)
        }
    }
}

/// `DELETE` of the rows whose identities are in `o…`.
pub(super) fn delete_staged(table: &Described) -> String {
    match &table.schema.identity {
        Identity::Key(key) => format!(
            "DELETE FROM {} AS t USING {} AS s WHERE {}",
            table.sql,
            stage(table),
            by_stage(table, key, Names::Old),
        ),
        Identity::Full => {
            format!("{} DELETE FROM {} AS t USING one WHERE {ONE}", one_each(table), table.sql,)
        }
    }
}

/// `UPDATE` that sets the columns `set` from the first parameters of the row whose identity the
/// following ones are.
pub(super) fn update(table: &Described, set: &[usize]) -> String {
    let mut values = list(
        set.iter().zip(1..).map(|(&index, number)| format!("{} = ${number}", name(table, index))),
    );
    if set.is_empty() {
        values = idle(table);
    }
    if values.is_empty() {
        return exists(table);
    }
    let first = set.len() + 1;
    match &table.schema.identity {
        Identity::Key(key) => format!(
            "UPDATE {} AS t SET {values} WHERE {}",
            table.sql,
            by_parameters(table, key, first)
        ),
        Identity::Full => format!(
            "{} UPDATE {} AS t SET {values} FROM one WHERE {ONE}",
            one(table, first),
            table.sql,
        ),
    }
}

/// `UPDATE` that sets the columns `set` from `n…`. Identity columns that are always generated
/// cannot be set: rows in which they change are not touched, and so not counted.
pub(super) fn update_staged(table: &Described, set: &[usize], names: Names) -> String {
    let (always, set): (Vec<usize>, Vec<usize>) =
        set.iter().partition(|&&index| table.column(index).identity_always);
    let mut values = list(set.iter().map(|&i| format!("{} = s.n{i}", name(table, i))));
    if set.is_empty() {
        values = idle(table);
    }
    match &table.schema.identity {
        Identity::Key(key) => {
            let mut found = by_stage(table, key, names);
            for index in always {
                let _infallible = write!(found, " AND t.{} = s.n{index}", name(table, index));
            }
            let stage = stage(table);
            if values.is_empty() {
                return format!("SELECT FROM {} AS t, {stage} AS s WHERE {found}", table.sql);
            }
            format!("UPDATE {} AS t SET {values} FROM {stage} AS s WHERE {found}", table.sql)
        }
        Identity::Full => {
            let mut found = ONE.to_owned();
            for index in always {
                let _infallible = write!(found, " AND t.{} = s.n{index}", name(table, index));
            }
            format!(
                "{} UPDATE {} AS t SET {values} FROM one JOIN {} AS s ON s.ctid = one.s \
                 WHERE {found}",
                one_each(table),
                table.sql,
                stage(table),
            )
        }
    }
}

/// `INSERT` of the rows in `n…` whose identities are not there yet.
pub(super) fn insert_staged(table: &Described) -> String {
    let columns = list(table.flows.iter().map(|&index| name(table, index)));
    let values = list(table.flows.iter().map(|index| format!("s.n{index}")));
    format!(
        "INSERT INTO {target} ({columns}){} SELECT {values} FROM {} AS s \
         WHERE NOT EXISTS (SELECT FROM {target} AS t WHERE {})",
        overriding(table),
        stage(table),
        by_stage(table, identity(table), Names::New),
        target = table.sql,
    )
}

/// Identities that are in `n…` more than once.
pub(super) fn staged_twice(table: &Described) -> String {
    let key = list(identity(table).iter().map(|index| format!("s.n{index}")));
    format!("SELECT 1 FROM {} AS s GROUP BY {key} HAVING count(*) > 1 LIMIT 1", stage(table))
}

/// A SET clause that changes nothing, for rows of which nothing but the identity was sent; empty
/// where no column may be set.
fn idle(table: &Described) -> String {
    let column = table.flows.iter().find(|&&index| !table.column(index).identity_always);
    column
        .map_or_else(String::new, |&index| format!("{name} = t.{name}", name = name(table, index)))
}

/// Whether the row whose identity the parameters are is there.
pub(super) fn exists(table: &Described) -> String {
    format!(
        "SELECT 1 FROM {} AS t WHERE {} LIMIT 1",
        table.sql,
        by_parameters(table, identity(table), 1)
    )
}

/// The key, as text, of a row that equals the key in the parameters there and is other bytes;
/// `None` where the two are one.
pub(super) fn equal_key(table: &Described) -> Option<String> {
    let key = identity(table);
    let differs = list_or(table.folding().filter_map(|index| {
        let number = key.iter().position(|&column| column == index)? + 1;
        let column = table.column(index);
        let ours = comparable(column, &format!("t.{}", name(table, index)));
        Some(format!("{ours} <> {}", comparable(column, &format!("${number}::{}", column.bare))))
    }))?;
    let texts = list(key.iter().map(|&index| format!("(t.{})::text", name(table, index))));
    Some(format!(
        "SELECT pg_catalog.concat_ws(', ', {texts}) FROM {} AS t WHERE {} AND ({differs}) LIMIT 1",
        table.sql,
        by_parameters(table, key, 1),
    ))
}

/// As [`equal_key`], for all rows of the temporary table.
pub(super) fn equal_keys_staged(table: &Described) -> Option<String> {
    let differs = list_or(table.folding().map(|index| {
        let column = table.column(index);
        let ours = comparable(column, &format!("t.{}", name(table, index)));
        format!("{ours} <> {}", comparable(column, &format!("s.n{index}")))
    }))?;
    Some(format!(
        "SELECT 1 FROM {} AS t, {} AS s WHERE {} AND ({differs}) LIMIT 1",
        table.sql,
        stage(table),
        by_stage(table, identity(table), Names::New),
    ))
}

fn list_or(parts: impl Iterator<Item = String>) -> Option<String> {
    let parts: Vec<String> = parts.collect();
    (!parts.is_empty()).then(|| parts.join(" OR "))
}

/// The condition that a row `t` has the identity in the parameters from number `first` on.
pub(super) fn by_parameters(table: &Described, columns: &[usize], first: usize) -> String {
    let keyed = matches!(table.schema.identity, Identity::Key(_));
    let mut number = first;
    let condition = columns.iter().map(|&index| {
        let column = table.column(index);
        let parameter = format!("${number}");
        number += 1;
        if keyed {
            format!("t.{} {} {parameter}", name(table, index), equals(column))
        } else {
            let ours = comparable(column, &format!("t.{}", name(table, index)));
            let typed = format!("{parameter}::{}", column.bare);
            format!("{ours} IS NOT DISTINCT FROM {}", comparable(column, &typed))
        }
    });
    all(condition)
}

/// The condition that a row `t` has the identity in the row `s`.
fn by_stage(table: &Described, key: &[usize], names: Names) -> String {
    all(key.iter().map(|&index| {
        let column = table.column(index);
        let theirs = match names {
            Names::Old => format!("s.o{index}"),
            Names::New => format!("s.n{index}"),
        };
        format!("t.{} {} {theirs}", name(table, index), equals(column))
    }))
}

/// A condition on `t` and the one row that [`one`] or [`one_each`] found for it. Partitions number
/// their rows each on their own.
const ONE: &str = "t.ctid = one.row AND t.tableoid = one.part";

/// One of the rows that equal the parameters in all columns.
fn one(table: &Described, first: usize) -> String {
    format!(
        "WITH one AS MATERIALIZED (SELECT t.ctid AS row, t.tableoid AS part FROM {} AS t \
         WHERE {} LIMIT 1)",
        table.sql,
        by_parameters(table, &table.flows, first),
    )
}

/// For each row of the temporary table one that equals it in all columns. Rows there are all
/// different, so no row is found for two of them.
fn one_each(table: &Described) -> String {
    let pair = |index: usize| {
        let column = table.column(index);
        (
            comparable(column, &format!("t.{}", name(table, index))),
            comparable(column, &format!("s.o{index}")),
        )
    };
    // Only `=` lets the server hash or sort instead of comparing each row with each.
    let joins = table.flows.iter().map(|&index| {
        let (ours, theirs) = pair(index);
        if table.column(index).not_null {
            format!("{ours} = {theirs}")
        } else {
            format!(
                "COALESCE(({ours})::text, '') = COALESCE(({theirs})::text, '') \
                 AND {ours} IS NOT DISTINCT FROM {theirs}"
            )
        }
    });
    format!(
        "WITH one AS MATERIALIZED (SELECT DISTINCT ON (s.ctid) s.ctid AS s, t.ctid AS row, \
         t.tableoid AS part FROM {} AS t JOIN {} AS s ON {} ORDER BY s.ctid, t.tableoid, t.ctid)",
        table.sql,
        stage(table),
        all(joins),
    )
}

/// The column's operator `=`; an extension's lies in the extension's schema.
pub(super) fn equals(column: &TargetColumn) -> String {
    let own = column.type_schema != "pg_catalog" && column.typtype == b'b';
    if own { format!("OPERATOR({}.=)", quote(&column.type_schema)) } else { "=".into() }
}

/// `sql`, a value of the column's type, as something whose `=` means the same value: as text where
/// the type has no equality (json) or a wider one (1.0 and 1.00, 0 and -0, 'a' and 'A').
fn comparable(column: &TargetColumn, sql: &str) -> String {
    const AS_THEY_ARE: [u32; 10] = [16, 17, 20, 21, 23, 1082, 1083, 1114, 1184, 2950];
    let text = matches!(column.base, 25 | 1043);
    if AS_THEY_ARE.contains(&column.base) || (text && column.deterministic) {
        sql.to_owned()
    } else {
        format!("({sql})::text COLLATE \"C\"")
    }
}

pub(super) fn name(table: &Described, index: usize) -> String {
    quote(&table.schema.columns[index].name)
}

/// Separated by commas.
pub(super) fn list(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

fn all(conditions: impl Iterator<Item = String>) -> String {
    let text = conditions.collect::<Vec<_>>().join(" AND ");
    if text.is_empty() { "true".into() } else { text }
}
