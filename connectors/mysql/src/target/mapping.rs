//! Which type a source's column becomes, and which existing columns take it: one table.
//!
//! Like to like, the type stays as the source spells it. From PostgreSQL:
//!
//! | PostgreSQL | MySQL, MariaDB | |
//! |---|---|---|
//! | boolean | `tinyint(1)` | exact |
//! | smallint, integer, bigint | `smallint`, `int`, `bigint` | exact |
//! | real, double precision | `float`, `double` | exact; NaN and infinities stop |
//! | numeric(p,s) | `decimal(p,s)` | exact up to 65 digits; NaN stops |
//! | numeric | refused | its digits are not bounded: make the column by hand |
//! | varchar(n), char(n) | `varchar(n)`, beyond 255 and not in an index `longtext` | widened |
//! | text | `longtext`; refused in a key | exact |
//! | bytea | `longblob`; refused in a key | exact |
//! | uuid | `char(36)` ascii | exact |
//! | json, jsonb | `json` | the same document; MySQL respells it, MariaDB keeps the text |
//! | date | `date` | exact; infinity, BC and years beyond 9999 stop |
//! | time | `time(6)` | exact |
//! | timestamp | `datetime(6)` | as date |
//! | timestamptz | `datetime(6)`, in UTC | as date; `timestamp` would end in 2038 |
//! | enum | `enum(…)` | exact |
//!
//! Text of PostgreSQL gets a binary collation without padding: there, equal is equal bytes too.

use std::collections::BTreeSet;

use tailwater_change::{Column, Dialect, Generated, Kind, Problem, TableSchema};

use super::collation::{self, StandIn};
use super::spell::Form;
use crate::catalog::CatalogColumn;
use crate::connect::quote_text;
use crate::types::ColumnType;

/// What the target server can do, as far as types depend on it.
#[derive(Debug, Clone)]
pub struct Abilities {
    /// MySQL or MariaDB.
    pub dialect: Dialect,
    /// The collations it has.
    pub collations: BTreeSet<String>,
}

/// How a column is used: keys must be bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Part of the identity.
    Key,
    /// Part of another index.
    Indexed,
    /// Neither.
    Plain,
}

impl Usage {
    /// How the schema uses its column `index`.
    pub fn of(schema: &TableSchema, index: usize) -> Self {
        let name = &schema.columns[index].name;
        if schema.key().contains(&index) {
            Self::Key
        } else if schema.indexes.iter().any(|index| index.columns.contains(name)) {
            Self::Indexed
        } else {
            Self::Plain
        }
    }
}

/// A column's type on the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetType {
    /// As it stands in CREATE TABLE, with character set and collation.
    pub spelled: String,
    /// What an operator should know: a collation that is not quite the source's.
    pub remark: Option<String>,
}

/// The type that `column` of a source of this dialect gets on the target.
///
/// # Errors
/// There is none that takes every value unchanged: what to do instead.
pub fn mapping(
    source: Dialect,
    column: &Column,
    usage: Usage,
    target: &Abilities,
) -> Result<TargetType, Problem> {
    if source.is_like(target.dialect) {
        return like(column, target);
    }
    let refused = |what: &str, remedy: &str| {
        Problem::new(format!("column {} ({}): {what}", column.name, column.native), remedy)
    };
    let spelled = match &column.kind {
        Kind::Bool => "tinyint(1)".to_owned(),
        Kind::Int { bits, signed } => integer(*bits, *signed),
        Kind::Float32 => "float".to_owned(),
        Kind::Float64 => "double".to_owned(),
        Kind::Decimal { precision: Some(precision), scale } => {
            decimal(*precision, scale.unwrap_or(0), target.dialect).ok_or_else(|| {
                refused(
                    "MySQL's decimal has at most 65 digits, 30 of them after the point",
                    "create the target's table by hand with this column as decimal or text",
                )
            })?
        }
        Kind::Decimal { precision: None, .. } => {
            return Err(refused(
                "its digits are not limited, MySQL's are",
                "create the target's table by hand with this column as decimal(65,30) (a value \
                 with more digits stops the pipeline) or longtext (every value, as text)",
            ));
        }
        Kind::Text { length, .. } => text(*length, usage, target).ok_or_else(|| {
            refused(
                "a key column of MySQL needs a length",
                "make it varchar(n) with n up to 768 in the source, or create the target's table \
                 by hand with such a column (a longer value stops the pipeline)",
            )
        })?,
        Kind::Bytes { length, .. } => bytes(*length, usage).ok_or_else(|| {
            refused(
                "a key column of MySQL needs a length",
                "create the target's table by hand with this column as varbinary(n), n up to 3072 \
                 (a longer value stops the pipeline)",
            )
        })?,
        Kind::Date => "date".to_owned(),
        Kind::Time => "time(6)".to_owned(),
        Kind::Timestamp | Kind::TimestampTz => "datetime(6)".to_owned(),
        Kind::Uuid => "char(36) CHARACTER SET ascii COLLATE ascii_bin".to_owned(),
        Kind::Json => "json".to_owned(),
        Kind::Enum { labels } => {
            if labels.iter().any(|label| label.ends_with(' ')) {
                return Err(refused(
                    "MySQL cuts trailing spaces off the labels of an enum",
                    "create the target's table by hand with this column as varchar(255)",
                ));
            }
            let labels: Vec<String> = labels.iter().map(|label| quote_text(label)).collect();
            format!("enum({}) {}", labels.join(","), exact_collation(target))
        }
    };
    Ok(TargetType { spelled, remark: None })
}

fn like(column: &Column, target: &Abilities) -> Result<TargetType, Problem> {
    let Some(collation) = column.collation.as_deref() else {
        return Ok(TargetType { spelled: column.native.clone(), remark: None });
    };
    let StandIn { name, same_equality } = collation::stand_in(collation, &target.collations)
        .ok_or_else(|| {
            Problem::new(
                format!("column {}: the target has no collation like {collation}", column.name),
                "create the target's table by hand with a collation that it has",
            )
        })?;
    let charset = name.split('_').next().unwrap_or_default();
    Ok(TargetType {
        spelled: format!("{} CHARACTER SET {charset} COLLATE {name}", column.native),
        remark: (!same_equality).then(|| {
            format!(
                "column {}: the target lacks the collation {collation}; {name} stands in, which \
                 tells some texts apart differently",
                column.name
            )
        }),
    })
}

fn integer(bits: u8, signed: bool) -> String {
    let name = match bits {
        ..=8 => "tinyint",
        9..=16 => "smallint",
        17..=24 => "mediumint",
        25..=32 => "int",
        _ => "bigint",
    };
    if signed { name.to_owned() } else { format!("{name} unsigned") }
}

/// PostgreSQL allows a scale below 0 and above the precision.
fn decimal(precision: u32, scale: i32, dialect: Dialect) -> Option<String> {
    let places = u32::try_from(scale.max(0)).ok()?;
    let whole = (i64::from(precision) - i64::from(scale)).max(0);
    let digits = u32::try_from(whole).ok()?.checked_add(places)?.max(1);
    let most_places = if dialect == Dialect::Mariadb { 38 } else { 30 };
    (digits <= 65 && places <= most_places).then(|| format!("decimal({digits},{places})"))
}

/// Long columns count in full against the 65,535 bytes of a row, `longtext` does not.
fn text(length: Option<u32>, usage: Usage, target: &Abilities) -> Option<String> {
    let collation = exact_collation(target);
    match (length, usage) {
        (Some(length), _) if length <= 255 => Some(format!("varchar({length}) {collation}")),
        (Some(length), Usage::Key | Usage::Indexed) if length <= 768 => {
            Some(format!("varchar({length}) {collation}"))
        }
        (_, Usage::Key) => None,
        _ => Some(format!("longtext {collation}")),
    }
}

fn bytes(length: Option<u32>, usage: Usage) -> Option<String> {
    match (length, usage) {
        (Some(length), _) if length <= 255 => Some(format!("varbinary({length})")),
        (Some(length), Usage::Key) if length <= 3072 => Some(format!("varbinary({length})")),
        (_, Usage::Key) => None,
        _ => Some("longblob".to_owned()),
    }
}

/// Equal is equal bytes, trailing spaces included.
pub(super) fn exact_collation(target: &Abilities) -> String {
    let name = collation::exact("utf8mb4", &target.collations);
    format!("CHARACTER SET utf8mb4 COLLATE {name}")
}

/// The form of `column`'s values for the existing column `to`.
///
/// # Errors
/// Why it does not take every value unchanged.
pub(super) fn accept(
    source: Dialect,
    column: &Column,
    to: &CatalogColumn,
) -> Result<(Form, ColumnType), String> {
    let ty = ColumnType::parse(&to.native).map_err(|error| error.to_string())?;
    let form = Form::of(&column.kind, &ty)
        .ok_or_else(|| format!("type {} does not hold {}", to.native, column.native))?;
    if matches!(to.generated, Some(Generated::Stored | Generated::Virtual)) {
        return Err(
            "it is a generated column on the target and an ordinary one in the source".into()
        );
    }
    if column.nullable && !to.nullable {
        return Err("it is NOT NULL on the target and takes NULL in the source".into());
    }
    let from =
        source.is_like(Dialect::Mysql).then(|| ColumnType::parse(&column.native).ok()).flatten();
    let narrow =
        |what: &str| Err(format!("{} is narrower than {}: {what}", to.native, column.native));
    if to.native.contains("unsigned") && may_be_negative(column, from.is_some()) {
        return narrow("it has no negative values");
    }
    if !wide_enough(column, from.as_ref(), &ty, &to.native) {
        return narrow("it would not take every value unchanged");
    }
    characters_fit(column, to)?;
    Ok((form, ty))
}

fn may_be_negative(column: &Column, like: bool) -> bool {
    match &column.kind {
        Kind::Int { signed, .. } => *signed,
        Kind::Decimal { .. } | Kind::Float32 | Kind::Float64 => {
            !like || !column.native.contains("unsigned")
        }
        _ => false,
    }
}

/// Whether no value of `column` is cut, rounded or padded. A source without a limit of its own
/// (PostgreSQL's text and numeric) may stand in a limited column that somebody chose: strict mode
/// stops at what does not fit.
fn wide_enough(column: &Column, from: Option<&ColumnType>, to: &ColumnType, native: &str) -> bool {
    match (&column.kind, to) {
        (Kind::Int { bits, signed }, ColumnType::Int { bits: have, signed: with_sign }) => {
            // An unsigned value needs one bit more where there is a sign.
            if *signed || !*with_sign { have >= bits } else { have > bits }
        }
        (Kind::Int { .. }, ColumnType::Year) => matches!(from, Some(ColumnType::Year)),
        (Kind::Int { bits, .. }, ColumnType::Decimal { precision, scale }) => {
            let digits = match bits {
                ..=8 => 3,
                9..=16 => 5,
                17..=24 => 8,
                25..=32 => 10,
                _ => 20,
            };
            precision - scale >= digits
        }
        (Kind::Float32 | Kind::Float64, _) => !native.contains('(') || native == column.native,
        (
            Kind::Decimal { precision: Some(digits), scale },
            ColumnType::Decimal { precision, scale: places },
        ) => {
            let wanted = scale.unwrap_or(0);
            i32::from(*places) >= wanted
                && i64::from(precision - places) >= i64::from(*digits) - i64::from(wanted)
        }
        (Kind::Time, ColumnType::Time { digits })
        | (Kind::Timestamp | Kind::TimestampTz, ColumnType::DateTime { digits }) => {
            *digits >= fraction(column, from)
        }
        // TIMESTAMP ends in 2038 and knows no year before 1970.
        (_, ColumnType::Timestamp { digits }) => {
            matches!(from, Some(ColumnType::Timestamp { .. })) && *digits >= fraction(column, from)
        }
        (Kind::Enum { labels }, ColumnType::Enum { labels: known }) => {
            labels.iter().all(|label| known.contains(label))
        }
        (_, ColumnType::Enum { .. }) => false,
        (kind, ColumnType::Json) => *kind == Kind::Json,
        // CHAR cuts trailing spaces, BINARY pads with zeros.
        (Kind::Uuid, ColumnType::Char { length }) => *length >= 36,
        (Kind::Text { length: Some(wanted), fixed: true }, ColumnType::Char { length }) => {
            from.is_some() && length >= wanted
        }
        (_, ColumnType::Char { .. }) => false,
        (Kind::Bytes { length: Some(wanted), fixed: true }, ColumnType::Binary { length }) => {
            length == wanted
        }
        (_, ColumnType::Binary { .. }) => false,
        _ => long_enough(column, from, to, native),
    }
}

fn long_enough(column: &Column, from: Option<&ColumnType>, to: &ColumnType, native: &str) -> bool {
    let wanted = match &column.kind {
        Kind::Text { length, .. } | Kind::Bytes { length, .. } => length.map(u64::from),
        Kind::Enum { labels } => labels.iter().map(|label| label.chars().count() as u64).max(),
        Kind::Uuid => Some(36),
        _ => None,
    };
    let (wanted, bytes_per_unit) = match (wanted, from) {
        (Some(wanted), _) => (wanted, if matches!(to, ColumnType::Text) { 4 } else { 1 }),
        (None, Some(ColumnType::Text | ColumnType::Blob)) => (capacity(&column.native), 1),
        (None, _) => return true,
    };
    match to {
        ColumnType::VarChar { length } | ColumnType::VarBinary { length } => {
            u64::from(*length) >= wanted
        }
        ColumnType::Text | ColumnType::Blob => capacity(native) >= wanted * bytes_per_unit,
        _ => true,
    }
}

/// Bytes that TINYTEXT to LONGBLOB hold.
fn capacity(native: &str) -> u64 {
    match native.as_bytes().first() {
        Some(b't') if native.starts_with("tiny") => 255,
        Some(b'm') => 0xFF_FFFF,
        Some(b'l') => 0xFFFF_FFFF,
        _ => 0xFFFF,
    }
}

/// Digits of the seconds' fraction that the source has: a target with fewer rounds silently.
fn fraction(column: &Column, from: Option<&ColumnType>) -> u8 {
    match from {
        Some(
            ColumnType::Time { digits }
            | ColumnType::DateTime { digits }
            | ColumnType::Timestamp { digits },
        ) => *digits,
        // `timestamp(3) with time zone`
        _ => column
            .native
            .split_once('(')
            .and_then(|(_, rest)| rest.split_once(')')?.0.parse().ok())
            .unwrap_or(6),
    }
}

fn characters_fit(column: &Column, to: &CatalogColumn) -> Result<(), String> {
    let Some(charset) = to.charset.as_deref() else { return Ok(()) };
    let source = column.charset.as_deref();
    let fits = match charset {
        "utf8mb4" => true,
        "utf8mb3" | "utf8" => matches!(source, Some("utf8mb3" | "utf8" | "ascii" | "latin1")),
        other => source == Some(other) || source == Some("ascii"),
    };
    if fits || matches!(column.kind, Kind::Uuid) {
        return Ok(());
    }
    Err(format!(
        "its character set {charset} lacks characters that {} has",
        source.unwrap_or("UTF-8")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn abilities() -> Abilities {
        Abilities {
            dialect: Dialect::Mysql,
            collations: ["utf8mb4_0900_bin", "utf8mb4_0900_ai_ci"].map(String::from).into(),
        }
    }

    fn column(kind: Kind, native: &str) -> Column {
        Column::nullable("c", 1, kind, native)
    }

    fn target(native: &str) -> CatalogColumn {
        let text = ["char", "text", "enum"].iter().any(|name| native.contains(name));
        CatalogColumn {
            name: "c".into(),
            position: 1,
            native: native.into(),
            default: None,
            nullable: true,
            charset: text.then(|| "utf8mb4".into()),
            collation: text.then(|| "utf8mb4_0900_bin".into()),
            generated: None,
            expression: None,
            on_update: false,
        }
    }

    fn every_kind() -> Vec<(Kind, &'static str)> {
        vec![
            (Kind::Bool, "boolean"),
            (Kind::Int { bits: 16, signed: true }, "smallint"),
            (Kind::Int { bits: 32, signed: false }, "oid"),
            (Kind::Int { bits: 64, signed: true }, "bigint"),
            (Kind::Float32, "real"),
            (Kind::Float64, "double precision"),
            (Kind::Decimal { precision: Some(12), scale: Some(4) }, "numeric(12,4)"),
            (Kind::Decimal { precision: Some(3), scale: Some(-2) }, "numeric(3,-2)"),
            (Kind::Decimal { precision: Some(2), scale: Some(5) }, "numeric(2,5)"),
            (Kind::Text { length: None, fixed: false }, "text"),
            (Kind::Text { length: Some(40), fixed: false }, "character varying(40)"),
            (Kind::Text { length: Some(4000), fixed: false }, "character varying(4000)"),
            (Kind::Text { length: Some(8), fixed: true }, "character(8)"),
            (Kind::Bytes { length: None, fixed: false }, "bytea"),
            (Kind::Date, "date"),
            (Kind::Time, "time without time zone"),
            (Kind::Timestamp, "timestamp without time zone"),
            (Kind::TimestampTz, "timestamp(3) with time zone"),
            (Kind::Uuid, "uuid"),
            (Kind::Json, "jsonb"),
            (Kind::Enum { labels: vec!["a".into(), "it's".into()] }, "mood"),
        ]
    }

    #[test]
    fn what_is_created_is_accepted() {
        for (kind, native) in every_kind() {
            let column = column(kind, native);
            let made =
                mapping(Dialect::Postgres, &column, Usage::Plain, &abilities()).unwrap().spelled;
            let bare = made.split(" CHARACTER SET").next().unwrap();
            let accepted = accept(Dialect::Postgres, &column, &target(bare));
            assert!(accepted.is_ok(), "{native} as {made}: {accepted:?}");
        }
    }

    #[test]
    fn what_has_no_bound_is_refused_by_name() {
        let check = |kind, native, usage| {
            let problem =
                mapping(Dialect::Postgres, &column(kind, native), usage, &abilities()).unwrap_err();
            assert!(problem.what.contains("column c"), "{problem}");
        };
        check(Kind::Decimal { precision: None, scale: None }, "numeric", Usage::Plain);
        check(
            Kind::Decimal { precision: Some(100), scale: Some(2) },
            "numeric(100,2)",
            Usage::Plain,
        );
        check(Kind::Text { length: None, fixed: false }, "text", Usage::Key);
        check(Kind::Bytes { length: None, fixed: false }, "bytea", Usage::Key);
    }

    #[test]
    fn what_would_change_a_value_silently_is_not_accepted() {
        let check = |source, kind, native: &str, to: &str| {
            let accepted = accept(source, &column(kind, native), &target(to));
            assert!(accepted.is_err(), "{native} in {to}");
        };
        let (pg, my) = (Dialect::Postgres, Dialect::Mysql);
        check(pg, Kind::Timestamp, "timestamp without time zone", "datetime");
        check(pg, Kind::Timestamp, "timestamp without time zone", "datetime(3)");
        check(pg, Kind::TimestampTz, "timestamp with time zone", "timestamp(6)");
        check(my, Kind::Timestamp, "datetime(6)", "datetime(3)");
        check(pg, Kind::Float64, "double precision", "float");
        check(my, Kind::Float32, "float", "float(7,2)");
        check(pg, Kind::Text { length: Some(3), fixed: true }, "character(3)", "char(3)");
        check(pg, Kind::Int { bits: 16, signed: true }, "smallint", "year(4)");
        check(my, Kind::Int { bits: 32, signed: false }, "int(10) unsigned", "int");
        check(my, Kind::Int { bits: 32, signed: true }, "int", "int unsigned");
        check(
            pg,
            Kind::Decimal { precision: Some(9), scale: Some(4) },
            "numeric(9,4)",
            "decimal(9,2)",
        );
        check(my, Kind::Bytes { length: Some(4), fixed: false }, "varbinary(4)", "binary(4)");
        check(
            pg,
            Kind::Text { length: Some(9), fixed: false },
            "character varying(9)",
            "varchar(8)",
        );
        check(my, Kind::Text { length: None, fixed: false }, "mediumtext", "text");
        check(pg, Kind::Bytes { length: None, fixed: false }, "bytea", "longtext");
        let mut nullable = target("int");
        nullable.nullable = false;
        let int = column(Kind::Int { bits: 32, signed: true }, "integer");
        assert!(accept(pg, &int, &nullable).is_err());
        let mut latin1 = target("varchar(40)");
        latin1.charset = Some("latin1".into());
        let text = column(Kind::Text { length: Some(40), fixed: false }, "character varying(40)");
        assert!(accept(pg, &text, &latin1).is_err());
    }

    #[test]
    fn the_sources_own_types_are_accepted() {
        let check = |kind, native: &str| {
            let accepted = accept(Dialect::Mysql, &column(kind, native), &target(native));
            assert!(accepted.is_ok(), "{native}: {accepted:?}");
        };
        for native in [
            "tinyint(1)",
            "bigint unsigned",
            "float(7,2) unsigned",
            "double",
            "decimal(20,5)",
            "char(3)",
            "varchar(3000)",
            "tinytext",
            "longtext",
            "binary(16)",
            "varbinary(16)",
            "mediumblob",
            "date",
            "time(3)",
            "datetime",
            "timestamp(6)",
            "year(4)",
            "json",
            "enum('a','b')",
        ] {
            check(ColumnType::parse(native).unwrap().kind(), native);
        }
    }
}
