//! Which type of PostgreSQL takes which values: one table for creating, checking and documenting.
//!
//! Between PostgreSQL servers a type is spelled as the source spells it. From elsewhere it is
//! chosen by kind, so that every value arrives equal; where PostgreSQL lacks some of the values
//! (zero dates, times beyond a day, NUL in text) those stop the pipeline by name, and are never
//! changed.

use tailwater_change::{Column, Dialect, Kind};

use super::described::TargetColumn;
use crate::types;

/// How well a type takes the values of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Exactly those values.
    Exact,
    /// All of them, and more.
    Widened,
    /// All but these: a row that has one stops the pipeline, naming column and key.
    Except(&'static str),
}

/// One row of the table of types: what becomes of a source's type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The source.
    pub source: Dialect,
    /// The source's type, as it is written there.
    pub from: &'static str,
    /// PostgreSQL's type.
    pub to: String,
    /// How well it fits.
    pub fit: Fit,
}

/// The table of types, for every kind of source, as docs/types.md shows it.
pub fn mapping() -> Vec<Mapping> {
    let mysql = |(from, kind): (&'static str, Kind)| {
        let (to, fit) = choose(&kind);
        Mapping { source: Dialect::Mysql, from, to, fit }
    };
    let postgres = POSTGRES.iter().map(|&from| Mapping {
        source: Dialect::Postgres,
        from,
        to: from.to_owned(),
        fit: Fit::Exact,
    });
    postgres.chain(mysql_types().into_iter().map(mysql)).collect()
}

const POSTGRES: [&str; 20] = [
    "boolean",
    "smallint",
    "integer",
    "bigint",
    "real",
    "double precision",
    "numeric(p,s)",
    "numeric",
    "text",
    "character varying(n)",
    "character(n)",
    "bytea",
    "date",
    "time",
    "timestamp",
    "timestamp with time zone",
    "uuid",
    "json",
    "jsonb",
    "an enum",
];

fn mysql_types() -> Vec<(&'static str, Kind)> {
    let int = |bits, signed| Kind::Int { bits, signed };
    vec![
        ("tinyint", int(8, true)),
        ("tinyint unsigned", int(8, false)),
        ("smallint", int(16, true)),
        ("smallint unsigned", int(16, false)),
        ("mediumint", int(24, true)),
        ("mediumint unsigned", int(24, false)),
        ("int", int(32, true)),
        ("int unsigned", int(32, false)),
        ("bigint", int(64, true)),
        ("bigint unsigned", int(64, false)),
        ("float", Kind::Float32),
        ("double", Kind::Float64),
        ("decimal(12,2)", Kind::Decimal { precision: Some(12), scale: Some(2) }),
        ("char(10)", Kind::Text { length: Some(10), fixed: true }),
        ("varchar(40)", Kind::Text { length: Some(40), fixed: false }),
        ("longtext", Kind::Text { length: None, fixed: false }),
        ("binary(16)", Kind::Bytes { length: Some(16), fixed: true }),
        ("varbinary(40)", Kind::Bytes { length: Some(40), fixed: false }),
        ("longblob", Kind::Bytes { length: None, fixed: false }),
        ("date", Kind::Date),
        ("time(6)", Kind::Time),
        ("datetime(6)", Kind::Timestamp),
        ("timestamp(6)", Kind::TimestampTz),
        ("uuid (MariaDB)", Kind::Uuid),
        ("json", Kind::Json),
        ("enum('a','b')", Kind::Enum { labels: vec!["a".into(), "b".into()] }),
    ]
}

/// Longest `varchar` that PostgreSQL declares.
const VARCHAR_LIMIT: u32 = 10_485_760;

/// Most digits that PostgreSQL's `numeric` declares.
const NUMERIC_LIMIT: u32 = 1000;

/// The OID of `json`.
const JSON: u32 = 114;

const NUL: Fit = Fit::Except("text with NUL characters");

/// The type that takes every value of `kind` that PostgreSQL has.
pub(super) fn choose(kind: &Kind) -> (String, Fit) {
    let fixed = |sql: &str, fit| (sql.to_owned(), fit);
    match kind {
        Kind::Bool => fixed("boolean", Fit::Exact),
        Kind::Int { bits, signed } => match (bits, signed) {
            (0..=8, _) => fixed("smallint", Fit::Widened),
            (9..=16, true) => fixed("smallint", Fit::Exact),
            (9..=16, false) | (17..=24, _) => fixed("integer", Fit::Widened),
            (25..=32, true) => fixed("integer", Fit::Exact),
            (25..=32, false) => fixed("bigint", Fit::Widened),
            (_, true) => fixed("bigint", Fit::Exact),
            (_, false) => fixed("numeric(20)", Fit::Widened),
        },
        Kind::Float32 => fixed("real", Fit::Exact),
        Kind::Float64 => fixed("double precision", Fit::Exact),
        Kind::Decimal { precision: Some(precision @ 1..=NUMERIC_LIMIT), scale } => {
            (format!("numeric({precision},{})", scale.unwrap_or(0)), Fit::Exact)
        }
        Kind::Decimal { .. } => fixed("numeric", Fit::Exact),
        // char(n) would pad: MySQL's values come without their padding.
        Kind::Text { length: Some(length @ 1..=VARCHAR_LIMIT), .. } => {
            (format!("character varying({length})"), NUL)
        }
        Kind::Text { .. } => fixed("text", NUL),
        Kind::Bytes { .. } => fixed("bytea", Fit::Widened),
        Kind::Date => fixed("date", Fit::Except("zero and partial dates")),
        Kind::Time => fixed("time", Fit::Except("negative times and those beyond 24:00:00")),
        Kind::Timestamp => fixed("timestamp", Fit::Except("zero and partial dates")),
        Kind::TimestampTz => {
            fixed("timestamp with time zone", Fit::Except("zero and partial dates"))
        }
        Kind::Uuid => fixed("uuid", Fit::Exact),
        // jsonb would drop repeated keys and the order of the others.
        Kind::Json => fixed("json", Fit::Exact),
        // MySQL's enums hold '' besides their labels.
        Kind::Enum { .. } => fixed("text", Fit::Widened),
    }
}

/// Whether an existing column takes every value of the source's column that PostgreSQL has, and
/// gives it back as it was. Otherwise: why not.
pub(super) fn fits(source: &Column, dialect: Dialect, target: &TargetColumn) -> Result<(), String> {
    let narrower = || {
        let wanted = if dialect.is_like(Dialect::Postgres) {
            source.native.clone()
        } else {
            choose(&source.kind).0
        };
        format!(
            "column {} is {}, which does not take every value of the source's {}; its type must \
             be {wanted}",
            source.name, target.native, source.native
        )
    };
    let fit = match (&source.kind, types::builtin(target.base, target.typmod)) {
        (Kind::Enum { labels: wanted }, None) if target.typtype == b'e' => {
            wanted.iter().all(|label| target.labels.contains(label))
        }
        // Types of extensions that keep text as it is.
        (Kind::Text { .. }, None) => target.bare.ends_with("citext"),
        (_, None) => false,
        // jsonb changes what a json column's text says; jsonb's own text it gives back.
        (Kind::Json, Some(Kind::Json)) => {
            target.base == JSON || (dialect == Dialect::Postgres && source.native == "jsonb")
        }
        (kind, Some(target_kind)) => {
            takes(kind, &target_kind) && takes_fraction(source, dialect, target)
        }
    };
    if fit { Ok(()) } else { Err(narrower()) }
}

fn takes(source: &Kind, target: &Kind) -> bool {
    let characters = |wanted: Option<u32>| match target {
        Kind::Text { length: None, fixed: false } => true,
        Kind::Text { length: Some(length), fixed: false } => wanted.is_some_and(|n| n <= *length),
        _ => false,
    };
    match (source, target) {
        (Kind::Bool, Kind::Bool)
        | (Kind::Float32, Kind::Float32 | Kind::Float64)
        | (Kind::Float64, Kind::Float64)
        | (Kind::Bytes { .. }, Kind::Bytes { .. })
        | (Kind::Date, Kind::Date)
        | (Kind::Time, Kind::Time)
        | (Kind::Timestamp, Kind::Timestamp)
        | (Kind::TimestampTz, Kind::TimestampTz)
        | (Kind::Uuid, Kind::Uuid) => true,
        (Kind::Int { bits, signed }, Kind::Int { bits: room, .. }) => {
            *bits < *room || (*bits == *room && *signed)
        }
        (Kind::Int { bits, .. }, Kind::Decimal { precision, scale }) => {
            let digits = match bits {
                0..=8 => 3,
                9..=16 => 5,
                17..=24 => 8,
                25..=32 => 10,
                _ => 20,
            };
            whole_digits(*precision, *scale).is_none_or(|whole| whole >= digits)
        }
        (
            Kind::Decimal { precision, scale },
            Kind::Decimal { precision: room, scale: room_after },
        ) => match (whole_digits(*precision, *scale), whole_digits(*room, *room_after)) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(whole), Some(room)) => whole <= room && scale <= room_after,
        },
        (Kind::Text { length, fixed: true }, Kind::Text { length: room, fixed: true }) => {
            length == room
        }
        (Kind::Text { length, .. }, Kind::Text { .. }) => characters(*length),
        (Kind::Enum { labels }, Kind::Text { .. }) => {
            let longest = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
            characters(u32::try_from(longest).ok())
        }
        (Kind::Uuid, Kind::Text { .. }) => characters(Some(36)),
        (Kind::Json, Kind::Text { .. }) => characters(None),
        _ => false,
    }
}

/// Digits before the point, if limited.
fn whole_digits(precision: Option<u32>, scale: Option<i32>) -> Option<i64> {
    precision.map(|precision| i64::from(precision) - i64::from(scale.unwrap_or(0)))
}

/// Whether the target keeps the fraction of a second that the source has.
fn takes_fraction(source: &Column, dialect: Dialect, target: &TargetColumn) -> bool {
    if !matches!(source.kind, Kind::Time | Kind::Timestamp | Kind::TimestampTz) {
        return true;
    }
    let Ok(room) = u32::try_from(target.typmod) else { return true };
    let digits = source
        .native
        .split_once('(')
        .and_then(|(_, rest)| rest.split_once(')'))
        .and_then(|(digits, _)| digits.parse::<u32>().ok());
    // MySQL's default is none, PostgreSQL's all six.
    digits.unwrap_or(if dialect == Dialect::Postgres { 6 } else { 0 }) <= room
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(kind: Kind, native: &str) -> Column {
        Column::nullable("c", 1, kind, native)
    }

    fn target(base: u32, typmod: i32) -> TargetColumn {
        TargetColumn {
            name: "c".into(),
            base,
            typmod,
            typtype: b'b',
            labels: Vec::new(),
            bare: "bare".into(),
            native: "native".into(),
            type_schema: "pg_catalog".into(),
            not_null: false,
            identity_always: false,
            identity: false,
            generated: false,
            has_default: false,
            deterministic: true,
        }
    }

    #[test]
    fn every_type_has_one_that_takes_it() {
        for (from, kind) in mysql_types() {
            let (to, _) = choose(&kind);
            assert!(!to.is_empty(), "{from}");
        }
        assert!(
            mapping().iter().any(|row| row.from == "bigint unsigned" && row.to == "numeric(20)")
        );
    }

    #[test]
    fn narrower_columns_are_refused_and_wider_ones_taken() {
        let check = |kind: Kind, native, base, typmod, expected: bool| {
            let fit = fits(&source(kind, native), Dialect::Mysql, &target(base, typmod));
            assert_eq!(fit.is_ok(), expected, "{native} into {base}({typmod}): {fit:?}");
        };
        let int = |bits, signed| Kind::Int { bits, signed };
        check(int(32, true), "int", 23, -1, true);
        check(int(32, false), "int unsigned", 23, -1, false);
        check(int(32, false), "int unsigned", 20, -1, true);
        check(int(64, false), "bigint unsigned", 20, -1, false);
        check(int(64, false), "bigint unsigned", 1700, (20 << 16) + 4, true);
        check(int(64, false), "bigint unsigned", 1700, -1, true);
        let decimal = Kind::Decimal { precision: Some(10), scale: Some(2) };
        check(decimal.clone(), "decimal(10,2)", 1700, (10 << 16) + 4 + 2, true);
        check(decimal.clone(), "decimal(10,2)", 1700, (10 << 16) + 4 + 3, false);
        check(decimal, "decimal(10,2)", 701, -1, false);
        let text = Kind::Text { length: Some(40), fixed: false };
        check(text.clone(), "varchar(40)", 25, -1, true);
        check(text.clone(), "varchar(40)", 1043, 43, false);
        check(text.clone(), "varchar(40)", 1043, 44, true);
        check(text, "varchar(40)", 1042, 44, false);
        check(Kind::Timestamp, "datetime(3)", 1114, 0, false);
        check(Kind::Timestamp, "datetime", 1114, 0, true);
        check(Kind::Json, "json", 3802, -1, false);
        let jsonb = |native, base| {
            fits(&source(Kind::Json, native), Dialect::Postgres, &target(base, -1)).is_ok()
        };
        assert!(jsonb("jsonb", 3802) && jsonb("jsonb", 114) && jsonb("json", 114));
        assert!(!jsonb("json", 3802));
    }
}
