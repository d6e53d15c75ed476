//! MySQL's and MariaDB's column types: how the catalog spells them, and what flows of them.
//!
//! A type that is not listed here is refused by name, never guessed: its values could arrive
//! changed.

use tailwater_change::Kind;

/// A column type whose every value arrives equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ColumnType {
    /// TINYINT (8) to BIGINT (64).
    Int { bits: u8, signed: bool },
    /// YEAR.
    Year,
    /// DECIMAL(precision, scale).
    Decimal { precision: u8, scale: u8 },
    /// FLOAT.
    Float,
    /// DOUBLE.
    Double,
    /// CHAR(n): n characters, trailing spaces not kept.
    Char { length: u32 },
    /// VARCHAR(n), in characters.
    VarChar { length: u32 },
    /// TINYTEXT to LONGTEXT.
    Text,
    /// BINARY(n): padded with zero bytes.
    Binary { length: u32 },
    /// VARBINARY(n).
    VarBinary { length: u32 },
    /// TINYBLOB to LONGBLOB.
    Blob,
    /// DATE.
    Date,
    /// TIME(fsp).
    Time { digits: u8 },
    /// DATETIME(fsp).
    DateTime { digits: u8 },
    /// TIMESTAMP(fsp).
    Timestamp { digits: u8 },
    /// MySQL's JSON. MariaDB's is LONGTEXT.
    Json,
    /// ENUM.
    Enum { labels: Vec<String> },
}

/// Why a column cannot be captured or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TypeError {
    /// The type has no exact canonical form yet.
    #[error("type {0} is not supported")]
    Unsupported(String),
    /// The catalog spells the type in a way that we do not know.
    #[error("type {0} is not understood")]
    Unknown(String),
}

impl ColumnType {
    /// Reads the catalog's COLUMN_TYPE: `int(10) unsigned`, `enum('a','it''s')`.
    pub(crate) fn parse(text: &str) -> Result<Self, TypeError> {
        let unknown = || TypeError::Unknown(text.to_owned());
        let lower = text.to_ascii_lowercase();
        if lower.contains("compressed") && lower.contains("/*") {
            return Err(TypeError::Unsupported(text.to_owned()));
        }
        let name_end = lower.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(lower.len());
        let (name, rest) = lower.split_at(name_end);
        if name == "enum" {
            let labels = text[name_end..].strip_prefix('(').ok_or_else(unknown)?;
            return Ok(Self::Enum { labels: parse_labels(labels).ok_or_else(unknown)? });
        }
        let unsupported = || TypeError::Unsupported(text.to_owned());
        let arguments = arguments(rest).ok_or_else(unsupported)?;
        let signed = !rest.contains("unsigned") && !rest.contains("zerofill");
        let first = arguments.first().copied();
        let digits = || u8::try_from(first.unwrap_or(0)).ok().filter(|digits| *digits <= 6);
        Ok(match name {
            "tinyint" | "bool" | "boolean" => Self::Int { bits: 8, signed },
            "smallint" => Self::Int { bits: 16, signed },
            "mediumint" => Self::Int { bits: 24, signed },
            "int" | "integer" => Self::Int { bits: 32, signed },
            "bigint" => Self::Int { bits: 64, signed },
            "year" => Self::Year,
            "decimal" | "numeric" => {
                let precision = first.unwrap_or(10);
                let scale = arguments.get(1).copied().unwrap_or(0);
                if precision == 0 || precision > 65 || scale > 38 || scale > precision {
                    return Err(unknown());
                }
                Self::Decimal {
                    precision: u8::try_from(precision).map_err(|_| unknown())?,
                    scale: u8::try_from(scale).map_err(|_| unknown())?,
                }
            }
            "float" => Self::Float,
            "double" | "real" => Self::Double,
            "char" => Self::Char { length: first.unwrap_or(1) },
            "varchar" => Self::VarChar { length: first.ok_or_else(unknown)? },
            "tinytext" | "text" | "mediumtext" | "longtext" => Self::Text,
            "binary" => Self::Binary { length: first.unwrap_or(1) },
            "varbinary" => Self::VarBinary { length: first.ok_or_else(unknown)? },
            "tinyblob" | "blob" | "mediumblob" | "longblob" => Self::Blob,
            "date" => Self::Date,
            "time" => Self::Time { digits: digits().ok_or_else(unknown)? },
            "datetime" => Self::DateTime { digits: digits().ok_or_else(unknown)? },
            "timestamp" => Self::Timestamp { digits: digits().ok_or_else(unknown)? },
            "json" => Self::Json,
            _ => return Err(unsupported()),
        })
    }

    /// The canonical type of its values.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Int { bits, signed } => Kind::Int { bits: *bits, signed: *signed },
            Self::Year => Kind::Int { bits: 16, signed: false },
            Self::Decimal { precision, scale } => Kind::Decimal {
                precision: Some(u32::from(*precision)),
                scale: Some(i32::from(*scale)),
            },
            Self::Float => Kind::Float32,
            Self::Double => Kind::Float64,
            Self::Char { length } => Kind::Text { length: Some(*length), fixed: true },
            Self::VarChar { length } => Kind::Text { length: Some(*length), fixed: false },
            Self::Text => Kind::Text { length: None, fixed: false },
            Self::Binary { length } => Kind::Bytes { length: Some(*length), fixed: true },
            Self::VarBinary { length } => Kind::Bytes { length: Some(*length), fixed: false },
            Self::Blob => Kind::Bytes { length: None, fixed: false },
            Self::Date => Kind::Date,
            Self::Time { .. } => Kind::Time,
            Self::DateTime { .. } => Kind::Timestamp,
            Self::Timestamp { .. } => Kind::TimestampTz,
            Self::Json => Kind::Json,
            Self::Enum { labels } => Kind::Enum { labels: labels.clone() },
        }
    }

    /// Whether its values are characters of the column's character set.
    pub(crate) fn has_charset(&self) -> bool {
        matches!(self, Self::Char { .. } | Self::VarChar { .. } | Self::Text | Self::Enum { .. })
    }
}

/// The numbers in the parentheses behind a type's name; none without parentheses.
fn arguments(rest: &str) -> Option<Vec<u32>> {
    let Some(inner) = rest.strip_prefix('(') else { return Some(Vec::new()) };
    let (inner, _) = inner.split_once(')')?;
    inner.split(',').map(|number| number.trim().parse().ok()).collect()
}

/// `'a','it''s')`: both servers double quotes and put a backslash before what would break a line.
fn parse_labels(text: &str) -> Option<Vec<String>> {
    let mut labels = Vec::new();
    let mut characters = text.chars().peekable();
    loop {
        if characters.next()? != '\'' {
            return None;
        }
        let mut label = String::new();
        loop {
            match characters.next()? {
                '\'' if characters.peek() == Some(&'\'') => {
                    characters.next();
                    label.push('\'');
                }
                '\'' => break,
                '\\' => label.push(match characters.next()? {
                    '0' => '\0',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    'b' => '\u{8}',
                    'Z' => '\u{1a}',
                    other => other,
                }),
                other => label.push(other),
            }
        }
        labels.push(label);
        match characters.next()? {
            ',' => {}
            ')' => return Some(labels),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_as_both_catalogs_spell_them() {
        let check = |text: &str, expected| assert_eq!(ColumnType::parse(text), Ok(expected));
        check("int(10) unsigned", ColumnType::Int { bits: 32, signed: false });
        check("int", ColumnType::Int { bits: 32, signed: true });
        check("tinyint(1)", ColumnType::Int { bits: 8, signed: true });
        check("bigint(20) unsigned zerofill", ColumnType::Int { bits: 64, signed: false });
        check("decimal(65,30)", ColumnType::Decimal { precision: 65, scale: 30 });
        check("float(7,2) unsigned", ColumnType::Float);
        check("datetime(6)", ColumnType::DateTime { digits: 6 });
        check("timestamp", ColumnType::Timestamp { digits: 0 });
        check("varbinary(12)", ColumnType::VarBinary { length: 12 });
        check("year(4)", ColumnType::Year);
        let labels =
            ["a", "it's", "b,c)", "", "back\\slash", "line\nbreak"].map(String::from).into();
        check(
            r"enum('a','it''s','b,c)','','back\\slash','line\nbreak')",
            ColumnType::Enum { labels },
        );
    }

    #[test]
    fn other_types_are_refused_by_name() {
        for text in ["bit(3)", "set('a')", "point", "uuid", "inet6", "vector(3)", "geometry"] {
            assert_eq!(ColumnType::parse(text), Err(TypeError::Unsupported(text.into())));
        }
        let compressed = "varchar(20) /*M!100301 COMPRESSED*/";
        assert_eq!(ColumnType::parse(compressed), Err(TypeError::Unsupported(compressed.into())));
        assert!(matches!(ColumnType::parse("enum('a"), Err(TypeError::Unknown(_))));
    }
}
