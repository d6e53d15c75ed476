//! Which source table becomes which target table.
//!
//! A rule is `schema.table = schema.table`; `*` stands for any table, and for its own name on the
//! right. The first rule that matches decides; without rules every table keeps its name.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tailwater_change::{Problem, TableId};

/// A name or any.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Any,
    Name(String),
}

impl Pattern {
    fn of(text: &str) -> Self {
        if text == "*" { Self::Any } else { Self::Name(text.to_owned()) }
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Name(own) => own == name,
        }
    }

    fn or(&self, name: &str) -> String {
        match self {
            Self::Any => name.to_owned(),
            Self::Name(own) => own.clone(),
        }
    }
}

/// One rule: `shop.* = public.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRule {
    /// `schema.table` on the source, with `*` for any.
    pub from: String,
    /// `schema.table` on the target, with `*` for the same name.
    pub to: String,
}

/// The rules of a pipeline, in order; none: every table keeps its name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Route {
    rules: Vec<RouteRule>,
}

impl Route {
    /// These rules; the first that matches decides.
    pub fn new(rules: Vec<RouteRule>) -> Self {
        Self { rules }
    }

    /// Where rows of `table` go; `None`: nowhere, no rule names it.
    pub fn target(&self, table: &TableId) -> Option<TableId> {
        if self.rules.is_empty() {
            return Some(table.clone());
        }
        let matching = self
            .rules
            .iter()
            .filter_map(RouteRule::parse)
            .find(|(from, _)| from.0.matches(&table.schema) && from.1.matches(&table.name))?;
        let (schema, name) = matching.1;
        Some(TableId::new(schema.or(&table.schema), name.or(&table.name)))
    }

    /// Rules that cannot be read, or that send every table into one.
    pub fn validate(&self) -> Vec<Problem> {
        let problem = |rule: &RouteRule| match rule.parse() {
            None => Some(Problem::new(
                format!(
                    "route \"{}\" = \"{}\" is not of the form schema.table",
                    rule.from, rule.to
                ),
                "write \"schema.table\" = \"schema.table\", with * for any table",
            )),
            Some(((_, Pattern::Any), (_, Pattern::Name(_))))
            | Some(((Pattern::Any, _), (Pattern::Name(_), Pattern::Name(_)))) => {
                Some(Problem::new(
                    format!(
                        "route \"{}\" = \"{}\" sends several tables into one",
                        rule.from, rule.to
                    ),
                    "name the tables one by one, or keep * on the right",
                ))
            }
            Some(_) => None,
        };
        self.rules.iter().filter_map(problem).collect()
    }
}

impl RouteRule {
    fn parse(&self) -> Option<((Pattern, Pattern), (Pattern, Pattern))> {
        let side = |text: &str| {
            let (schema, table) = text.split_once('.')?;
            let partly = |text: &str| text.is_empty() || (text.contains('*') && text != "*");
            (!partly(schema) && !partly(table)).then(|| (Pattern::of(schema), Pattern::of(table)))
        };
        Some((side(&self.from)?, side(&self.to)?))
    }
}

impl FromStr for RouteRule {
    type Err = Problem;

    /// `shop.* = public.*`
    fn from_str(text: &str) -> Result<Self, Problem> {
        let (from, to) = text.split_once('=').ok_or_else(|| {
            Problem::new(
                format!("route {text:?} has no ="),
                "write \"schema.table = schema.table\", with * for any table",
            )
        })?;
        let rule = Self { from: from.trim().to_owned(), to: to.trim().to_owned() };
        match Route::new(vec![rule.clone()]).validate().pop() {
            Some(problem) => Err(problem),
            None => Ok(rule),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(rules: &[&str]) -> Route {
        Route::new(rules.iter().map(|rule| rule.parse().unwrap()).collect())
    }

    fn routed(route: &Route, schema: &str, name: &str) -> Option<String> {
        route.target(&TableId::new(schema, name)).map(|table| table.to_string())
    }

    #[test]
    fn without_rules_tables_keep_their_names() {
        assert_eq!(routed(&Route::default(), "a", "b").as_deref(), Some("a.b"));
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let route = route(&["shop.orders = sales.bought", "shop.* = public.*", "x.* = x.*"]);
        assert_eq!(routed(&route, "shop", "orders").as_deref(), Some("sales.bought"));
        assert_eq!(routed(&route, "shop", "items").as_deref(), Some("public.items"));
        assert_eq!(routed(&route, "x", "items").as_deref(), Some("x.items"));
        assert_eq!(routed(&route, "y", "items"), None);
    }

    #[test]
    fn rules_that_mean_nothing_or_too_much_are_refused() {
        for bad in ["shop", "shop.*", "a.b = c", "a.b* = c.d", ".x = a.b", "a.* = b.c"] {
            assert!(bad.parse::<RouteRule>().is_err(), "{bad}");
        }
    }
}
