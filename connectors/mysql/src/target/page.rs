//! The table of types as docs/types.md shows it: what [`mapping`] says, asked for every type.

use tailwater_change::{Column, Dialect, Kind};

use super::mapping::{Abilities, Usage, mapping};

/// How well a source's type fits the target's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// Exactly those values.
    Exact,
    /// All of them, and more.
    Widened,
    /// All but these: a row that has one stops the pipeline, naming column and key.
    Except(&'static str),
    /// None: what to do instead.
    Refused(String),
}

/// One row of the table: what becomes of a source's type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// The source.
    pub source: Dialect,
    /// The source's type, as it is written there.
    pub from: &'static str,
    /// The target's type; nothing where it is refused.
    pub to: String,
    /// How well it fits.
    pub fit: Fit,
}

/// The rows for a target of this kind, from both kinds of sources.
pub fn mapped(target: Dialect) -> Vec<Mapped> {
    let collation =
        if target == Dialect::Mariadb { "utf8mb4_nopad_bin" } else { "utf8mb4_0900_bin" };
    let abilities = Abilities { dialect: target, collations: [collation.to_owned()].into() };
    let own = MYSQL.iter().map(|&from| Mapped {
        source: target,
        from,
        to: from.to_owned(),
        fit: Fit::Exact,
    });
    let from_postgres =
        postgres().into_iter().map(|(from, kind, usage)| ask(from, kind, usage, &abilities));
    own.chain(from_postgres).collect()
}

fn ask(from: &'static str, kind: Kind, usage: Usage, target: &Abilities) -> Mapped {
    let column = Column { nullable: usage != Usage::Key, ..Column::nullable("c", 1, kind, from) };
    match mapping(Dialect::Postgres, &column, usage, target) {
        Ok(ty) => {
            let to = ty.spelled.split(" CHARACTER SET").next().unwrap_or_default().to_owned();
            let fit = fit(&column.kind, &to);
            Mapped { source: Dialect::Postgres, from, to, fit }
        }
        Err(problem) => Mapped {
            source: Dialect::Postgres,
            from,
            to: String::new(),
            fit: Fit::Refused(problem.remedy),
        },
    }
}

const CALENDAR: Fit = Fit::Except("infinity, BC and years beyond 9999");

/// How a type that was chosen fits: what PostgreSQL has and the chosen type does not.
fn fit(kind: &Kind, to: &str) -> Fit {
    match kind {
        Kind::Float32 | Kind::Float64 => Fit::Except("NaN and infinities"),
        Kind::Decimal { .. } => Fit::Except("NaN"),
        Kind::Text { length: Some(_), .. } if to == "longtext" => Fit::Widened,
        Kind::Text { fixed: true, .. } => Fit::Widened,
        Kind::Date | Kind::Timestamp | Kind::TimestampTz => CALENDAR,
        Kind::Bool | Kind::Uuid | Kind::Time => Fit::Widened,
        Kind::Int { .. }
        | Kind::Text { .. }
        | Kind::Bytes { .. }
        | Kind::Json
        | Kind::Enum { .. } => Fit::Exact,
    }
}

fn postgres() -> Vec<(&'static str, Kind, Usage)> {
    let int = |bits| Kind::Int { bits, signed: true };
    let text = |length, fixed| Kind::Text { length, fixed };
    let decimal = |precision, scale| Kind::Decimal { precision, scale };
    let bytes = || Kind::Bytes { length: None, fixed: false };
    let plain = Usage::Plain;
    vec![
        ("boolean", Kind::Bool, plain),
        ("smallint", int(16), plain),
        ("integer", int(32), plain),
        ("bigint", int(64), plain),
        ("real", Kind::Float32, plain),
        ("double precision", Kind::Float64, plain),
        ("numeric(12,2)", decimal(Some(12), Some(2)), plain),
        ("numeric(100,2)", decimal(Some(100), Some(2)), plain),
        ("numeric", decimal(None, None), plain),
        ("text", text(None, false), plain),
        ("text in a key", text(None, false), Usage::Key),
        ("character varying(40)", text(Some(40), false), plain),
        ("character varying(4000)", text(Some(4000), false), plain),
        ("character(10)", text(Some(10), true), plain),
        ("bytea", bytes(), plain),
        ("bytea in a key", bytes(), Usage::Key),
        ("date", Kind::Date, plain),
        ("time", Kind::Time, plain),
        ("timestamp", Kind::Timestamp, plain),
        ("timestamp with time zone", Kind::TimestampTz, plain),
        ("uuid", Kind::Uuid, plain),
        ("json, jsonb", Kind::Json, plain),
        ("an enum", Kind::Enum { labels: vec!["a".into(), "b".into()] }, plain),
    ]
}

const MYSQL: [&str; 21] = [
    "tinyint, also unsigned",
    "smallint, also unsigned",
    "mediumint, also unsigned",
    "int, also unsigned",
    "bigint, also unsigned",
    "year",
    "float",
    "double",
    "decimal(p,s)",
    "char(n)",
    "varchar(n)",
    "tinytext … longtext",
    "binary(n)",
    "varbinary(n)",
    "tinyblob … longblob",
    "date",
    "time(n)",
    "datetime(n)",
    "timestamp(n)",
    "json",
    "enum(…)",
];
