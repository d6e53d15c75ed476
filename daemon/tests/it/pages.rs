//! Pages of docs/ that say what the code says: docs/types.md is made of the connectors' mappings,
//! and docs/promises.md names tests, each of which must be there and be run.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use tailwater_change::Dialect;
use tailwater_mysql::target as mysql;
use tailwater_postgres::target as postgres;

fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Source's type, target's type, how it fits.
type Row = (Dialect, String, String, String);

fn from_postgres_target() -> Vec<Row> {
    let fit = |fit: &postgres::Fit| match fit {
        postgres::Fit::Exact => "exact".to_owned(),
        postgres::Fit::Widened => "widened".to_owned(),
        postgres::Fit::Except(what) => stops(what),
    };
    let rows = postgres::mapping();
    rows.into_iter().map(|row| (row.source, row.from.into(), row.to, fit(&row.fit))).collect()
}

fn from_mysql_target(target: Dialect) -> Vec<Row> {
    let fit = |fit: &mysql::Fit| match fit {
        mysql::Fit::Exact => "exact".to_owned(),
        mysql::Fit::Widened => "widened".to_owned(),
        mysql::Fit::Except(what) => stops(what),
        mysql::Fit::Refused(remedy) => format!("refused: {remedy}"),
    };
    let rows = mysql::mapped(target);
    rows.into_iter().map(|row| (row.source, row.from.into(), row.to, fit(&row.fit))).collect()
}

fn stops(what: &str) -> String {
    format!("exact; {what} stop the pipeline")
}

fn types() -> String {
    let mut page = String::from(HEAD);
    for (target, rows) in [
        ("PostgreSQL", from_postgres_target()),
        ("MySQL", from_mysql_target(Dialect::Mysql)),
        ("MariaDB", from_mysql_target(Dialect::Mariadb)),
    ] {
        let from_postgres = |row: &&Row| row.0 == Dialect::Postgres;
        for (source, rows) in [
            ("PostgreSQL", rows.iter().filter(from_postgres).collect::<Vec<_>>()),
            ("MySQL and MariaDB", rows.iter().filter(|row| !from_postgres(row)).collect()),
        ] {
            write!(page, "\n## {source} to {target}\n\n").unwrap();
            page.push_str("| source | target | |\n|---|---|---|\n");
            for (_, from, to, fit) in rows {
                let to = if to.is_empty() { "-".to_owned() } else { format!("`{to}`") };
                writeln!(page, "| `{from}` | {to} | {fit} |").unwrap();
            }
        }
    }
    page
}

const HEAD: &str = "# Types

Generated from the code; `TAILWATER_UPDATE=1 cargo test -p tailwater --test it pages` renews it.

What becomes of a source's column where Tailwater makes the target's table. *Exact*: those values and
no others. *Widened*: the target's type holds all of them, and more. *Refused*: `check` and `run` name
the column, and what to do instead. A type that is not listed here is refused by name. A table that is
there already may have any types that hold every value of the source's; `check` names those that do not.

Between MySQL and MariaDB, character sets and collations go along; a collation that the other server lacks
gets the nearest one it has, and `check` says so. MySQL's `json` becomes MariaDB's `longtext` with the same text.
";

#[test]
fn the_page_types_is_up_to_date() {
    let path = tree().join("docs/types.md");
    #[expect(clippy::disallowed_methods, reason = "a test's own switch")]
    if std::env::var("TAILWATER_UPDATE").is_ok() {
        std::fs::write(&path, types()).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(page == types(), "docs/types.md is not what the code says");
}

/// The `file.rs::test` that a page names in code quotes.
fn named(page: &str) -> Vec<(String, String)> {
    let quoted = page.split('`').skip(1).step_by(2);
    quoted
        .filter_map(|name| name.split_once(".rs::"))
        .map(|(file, test)| (format!("{file}.rs"), test.to_owned()))
        .collect()
}

fn missing(page: &str) -> Vec<String> {
    let exists = |(file, test): &(String, String)| {
        let text = std::fs::read_to_string(tree().join(file)).unwrap_or_default();
        has_test(&text, test)
    };
    let lost = named(page).into_iter().filter(|name| !exists(name));
    lost.map(|(file, test)| format!("{file}::{test}")).collect()
}

/// Whether the text has a function of that name which the test runner calls: without the attribute
/// above it, it is a function like others.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let function = format!("fn {name}(");
    let is_it = |line: &str| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.starts_with(&function)
    };
    let attributes = |at: usize| {
        let above = lines[..at].iter().rev();
        above.take_while(|line| line.starts_with('#') || line.starts_with("//"))
    };
    let runs = |line: &&str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
    let ignored = |line: &&str| line.starts_with("#[ignore");
    (0..lines.len())
        .any(|at| is_it(lines[at]) && attributes(at).any(runs) && !attributes(at).any(ignored))
}

#[test]
fn a_function_is_a_test_by_its_attribute() {
    for text in [
        "#[test]\nfn a() {}",
        "    #[tokio::test(start_paused = true)]\n    /// Why.\n    async fn a() {}",
        "fn a() {}\n}\n#[test]\n#[expect(clippy::panic)]\nfn a() {}",
    ] {
        assert!(has_test(text, "a"), "{text}");
    }
    for text in [
        "fn a() {}",
        "#[test]\nfn b() {}\nfn a() {}",
        "#[test]\n#[ignore = \"long\"]\nfn a() {}",
        "// fn a() {}\n#[test]\nfn ab() {}",
    ] {
        assert!(!has_test(text, "a"), "{text}");
    }
}

#[test]
fn every_test_that_the_page_promises_names_exists() {
    let page = std::fs::read_to_string(tree().join("docs/promises.md")).unwrap();
    assert!(named(&page).len() > 60, "the page names tests");
    assert_eq!(missing(&page), Vec::<String>::new());
    for promise in ["loss", "order", "once", "whole", "same", "bounded", "honest"] {
        assert!(page.contains(&format!("## {promise}\n")), "{promise}");
    }
    for loss in 1..=17 {
        assert!(page.contains(&format!("\n| {loss} |")), "silent loss {loss}");
    }
    // And it can fail.
    assert_eq!(missing("`daemon/tests/it/pages.rs::no_such_test`").len(), 1);
}
