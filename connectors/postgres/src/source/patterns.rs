//! Which tables are captured: `tables` and `exclude` of the configuration.

use tailwater_change::{Problem, TableId};

/// Patterns `schema.table` with `*` for any run of characters.
#[derive(Debug, Clone)]
pub(crate) struct Patterns {
    tables: Vec<(String, String)>,
    exclude: Vec<(String, String)>,
}

impl Patterns {
    /// Reads both lists.
    ///
    /// # Errors
    /// The first pattern that is none.
    pub(crate) fn new(tables: &[String], exclude: &[String]) -> Result<Self, Problem> {
        let all = |patterns: &[String]| -> Result<Vec<_>, Problem> {
            patterns.iter().map(|pattern| split(pattern)).collect()
        };
        if tables.is_empty() {
            return Err(Problem::new(
                "`tables` is empty",
                "name the tables to capture, such as tables = [\"public.*\"]",
            ));
        }
        Ok(Self { tables: all(tables)?, exclude: all(exclude)? })
    }

    /// Whether `table` is captured. Tailwater's own tables never are.
    pub(crate) fn matches(&self, table: &TableId) -> bool {
        let any = |patterns: &[(String, String)]| patterns.iter().any(|one| matches(one, table));
        table.schema != "tailwater" && any(&self.tables) && !any(&self.exclude)
    }

    /// The patterns of `tables` that match none of `found`.
    pub(crate) fn idle(&self, found: &[TableId]) -> Vec<String> {
        let idle = self.tables.iter().filter(|one| !found.iter().any(|table| matches(one, table)));
        idle.map(|(schema, table)| format!("{schema}.{table}")).collect()
    }
}

fn split(pattern: &str) -> Result<(String, String), Problem> {
    match pattern.split_once('.') {
        Some((schema, table)) if !schema.is_empty() && !table.is_empty() => {
            Ok((schema.to_owned(), table.to_owned()))
        }
        _ => Err(Problem::new(
            format!("{pattern:?} does not name tables"),
            "write schema.table, with * for any run of characters: \"public.*\"",
        )),
    }
}

fn matches((schema, name): &(String, String), table: &TableId) -> bool {
    glob(schema.as_bytes(), table.schema.as_bytes()) && glob(name.as_bytes(), table.name.as_bytes())
}

/// Matches with one step back: on a mismatch the last `*` takes one more character.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut back) = (0, 0, None);
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            back = Some((p + 1, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((after, taken)) = back {
            back = Some((after, taken + 1));
            (p, t) = (after, taken + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&letter| letter == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_pick_tables() {
        let list = |patterns: &[&str]| patterns.iter().map(|&p| p.to_owned()).collect::<Vec<_>>();
        let patterns =
            Patterns::new(&list(&["public.*", "s*s.a*c*"]), &list(&["*.tmp_*", "public.x"]))
                .unwrap();
        let picked = |schema: &str, name: &str| patterns.matches(&TableId::new(schema, name));
        assert!(picked("public", "orders"));
        assert!(picked("sales", "abacus"));
        assert!(!picked("sales", "abbot"));
        assert!(!picked("public", "tmp_1"));
        assert!(!picked("public", "x"));
        assert!(!picked("other", "orders"));
        assert_eq!(patterns.idle(&[TableId::new("public", "a")]), ["s*s.a*c*"]);
        let all = Patterns::new(&list(&["*.*"]), &[]).unwrap();
        assert!(!all.matches(&TableId::new("tailwater", "progress")));
        assert!(Patterns::new(&list(&["orders"]), &[]).is_err());
    }
}
