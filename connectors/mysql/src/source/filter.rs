//! Which tables are captured: patterns `database.table`, in which `*` stands for anything.

use std::collections::BTreeSet;
use std::fmt;

use tailwater_change::{Problem, TableId};

use crate::connect::quote_name;

/// Databases that nobody captures: the servers' own, and ours.
const NEVER: &[&str] = &["mysql", "information_schema", "performance_schema", "sys", "tailwater"];

/// The configured choice.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

/// One of its patterns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    schema: String,
    name: String,
}

impl Filter {
    /// Patterns without a database mean tables of `database`.
    ///
    /// # Errors
    /// A pattern names no database, and neither does the URL.
    pub(crate) fn new(
        include: &[String],
        exclude: &[String],
        database: Option<&str>,
    ) -> Result<Self, Problem> {
        let read = |patterns: &[String]| {
            patterns.iter().map(|text| Pattern::read(text, database)).collect::<Result<_, _>>()
        };
        Ok(Self { include: read(include)?, exclude: read(exclude)? })
    }

    /// Whether the table is captured.
    pub(crate) fn captures(&self, table: &TableId) -> bool {
        !NEVER.contains(&table.schema.as_str())
            && self.include.iter().any(|pattern| pattern.matches(table))
            && !self.exclude.iter().any(|pattern| pattern.matches(table))
    }

    /// The patterns that match none of `tables`.
    pub(crate) fn unmatched<'a>(
        &'a self,
        tables: &'a [TableId],
    ) -> impl Iterator<Item = &'a Pattern> + 'a {
        let matches_none = |pattern: &&Pattern| !tables.iter().any(|table| pattern.matches(table));
        self.include.iter().filter(matches_none)
    }

    /// The statements that let `account` read all that may be captured.
    pub(crate) fn grants(&self, account: &str) -> String {
        let grants: BTreeSet<String> =
            self.include.iter().map(|pattern| pattern.grant(account)).collect();
        grants.into_iter().collect::<Vec<_>>().join(" ")
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

impl Pattern {
    fn read(text: &str, database: Option<&str>) -> Result<Self, Problem> {
        let (schema, name) = match (text.split_once('.'), database) {
            (Some((schema, name)), _) => (schema, name),
            (None, Some(database)) => (database, text),
            (None, None) => {
                return Err(Problem::new(
                    format!("the table pattern {text:?} names no database"),
                    format!("write \"database.{text}\", or name the database in the url"),
                ));
            }
        };
        Ok(Self { schema: schema.to_owned(), name: name.to_owned() })
    }

    /// The statement that lets `account` read the databases of the pattern. A GRANT has patterns of
    /// its own for databases, and none for tables.
    pub(crate) fn grant(&self, account: &str) -> String {
        let databases = if self.schema == "*" {
            "*".to_owned()
        } else if self.schema.contains('*') {
            let literal = self.schema.replace('_', "\\_").replace('%', "\\%");
            quote_name(&literal.replace('*', "%"))
        } else {
            quote_name(&self.schema)
        };
        format!("GRANT SELECT ON {databases}.* TO {account};")
    }

    fn matches(&self, table: &TableId) -> bool {
        glob(&self.schema, &table.schema) && glob(&self.name, &table.name)
    }
}

fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, text, expected) in [
            ("*", "anything", true),
            ("orders", "orders", true),
            ("orders", "orders2", false),
            ("ord*", "orders", true),
            ("*_log", "my_log", true),
            ("a*b*c", "a--b--c", true),
            ("a*b*c", "a--c--b", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn exclusions_win_and_our_own_tables_never_flow() {
        let filter =
            Filter::new(&["shop.*".into(), "x".into()], &["*.tmp*".into()], Some("db")).unwrap();
        let captures = |schema: &str, name: &str| filter.captures(&TableId::new(schema, name));
        assert!(captures("shop", "orders") && captures("db", "x"));
        assert!(!captures("shop", "tmp_1") && !captures("other", "orders"));
        let all = Filter::new(&["*.*".into()], &[], None).unwrap();
        assert!(!all.captures(&TableId::new("tailwater", "progress")));
        assert!(Filter::new(&["orders".into()], &[], None).is_err());
        let tables = [TableId::new("shop", "orders")];
        let unmatched: Vec<String> = filter.unmatched(&tables).map(ToString::to_string).collect();
        assert_eq!(unmatched, ["db.x"]);
    }

    #[test]
    fn a_grant_can_be_pasted_whatever_the_pattern() {
        for (patterns, expected) in [
            (["shop.*", "shop.t"].as_slice(), "GRANT SELECT ON `shop`.* TO a;"),
            (&["shop_*.t"], r"GRANT SELECT ON `shop\_%`.* TO a;"),
            (&["a%`*.*"], r"GRANT SELECT ON `a\%``%`.* TO a;"),
            (&["*.orders"], "GRANT SELECT ON *.* TO a;"),
            (&["b.*", "a.*"], "GRANT SELECT ON `a`.* TO a; GRANT SELECT ON `b`.* TO a;"),
        ] {
            let patterns: Vec<String> = patterns.iter().map(|it| (*it).to_owned()).collect();
            assert_eq!(Filter::new(&patterns, &[], None).unwrap().grants("a"), expected);
        }
    }
}
