//! Which tables are captured: patterns `database.table`, in which `*` stands for anything.

use tailwater_change::{Problem, TableId};

/// Databases that nobody captures: the servers' own, and ours.
const NEVER: &[&str] = &["mysql", "information_schema", "performance_schema", "sys", "tailwater"];

/// The configured choice.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
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
    ) -> impl Iterator<Item = String> + 'a {
        let matches_none = |pattern: &&Pattern| !tables.iter().any(|table| pattern.matches(table));
        self.include
            .iter()
            .filter(matches_none)
            .map(|pattern| format!("{}.{}", pattern.schema, pattern.name))
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
        assert_eq!(filter.unmatched(&tables).collect::<Vec<_>>(), ["db.x"]);
    }
}
