//! Rules for source files: size, header, nothing unfinished, and no IO where the design has none.

use super::{File, Violation};

/// Most files have 100 to 400 lines; a file of this many has a second idea in it.
const LINES_LIMIT: usize = 900;

/// Files that may be longer, and why.
const LONG: &[(&str, &str)] = &[];

/// Marks of unfinished work, split so that this file does not contain them.
const UNFINISHED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
];

/// Words that mean IO, waiting, time or threads: none of them in a protocol core.
const EFFECTS: &[&str] = &[
    "std::env",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "tokio::",
    "async fn",
    ".await",
    "Instant::now",
    "SystemTime::now",
];

/// Words that read files or environment: configuration comes in as an argument.
const AMBIENT: &[&str] = &["std::env::", "env::var", "std::fs", "tokio::fs"];

/// Where which words are forbidden, and why.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    ("change/src/", EFFECTS, "invariant 1: `change` does no IO"),
    ("kafka/src/wire/", EFFECTS, CORE_REASON),
    ("kafka/src/batch/", EFFECTS, CORE_REASON),
    ("apply/src/assemble/", EFFECTS, CORE_REASON),
    ("apply/src/plan", EFFECTS, CORE_REASON),
    ("connectors/mysql/src/source/binlog/", EFFECTS, CORE_REASON),
    ("connectors/postgres/src/source/decoder", EFFECTS, CORE_REASON),
    ("connectors/postgres/src/source/pgoutput", EFFECTS, CORE_REASON),
    ("kafka/src/", AMBIENT, AMBIENT_REASON),
    ("registry/src/", AMBIENT, AMBIENT_REASON),
    ("capture/src/", AMBIENT, AMBIENT_REASON),
    ("apply/src/", AMBIENT, AMBIENT_REASON),
    ("connectors/", AMBIENT, AMBIENT_REASON),
];

const CORE_REASON: &str = "invariant 1: protocol cores do no IO";
const AMBIENT_REASON: &str =
    "invariant 5: only `daemon` reads files and environment, and the log its own data folder";

pub(super) fn check(files: &[File]) -> Vec<Violation> {
    let tests = test_modules(files);
    let mut violations: Vec<Violation> =
        files.iter().flat_map(|file| check_file(file, &tests)).collect();
    // A folder that was renamed must not slip from under its rule.
    for (path, ..) in FORBIDDEN {
        if !files.iter().any(|file| file.path.starts_with(path)) {
            violations.push(Violation::new(*path, "has a rule in tidy's FORBIDDEN and no file"));
        }
    }
    for (path, _) in LONG {
        if !files.iter().any(|file| file.path == *path && file.text.lines().count() > LINES_LIMIT) {
            violations.push(Violation::new(*path, "no longer needs its place in tidy's LONG list"));
        }
    }
    violations
}

/// Paths, without `.rs`, of the modules that are only there for tests: `#[cfg(test)] mod name;`.
fn test_modules(files: &[File]) -> Vec<String> {
    let mut modules = Vec::new();
    for file in files {
        let path = file.path.trim_end_matches(".rs");
        // A module's children lie beside `mod.rs`, or in a folder of the module's name.
        let folder = match path.rsplit_once('/') {
            Some((folder, "mod" | "lib" | "main")) => folder,
            _ => path,
        };
        let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
        for pair in lines.windows(2) {
            let name = pair[1].strip_suffix(';').and_then(|line| line.rsplit_once("mod "));
            if let ("#[cfg(test)]", Some((_, name))) = (pair[0], name) {
                modules.push(format!("{folder}/{name}"));
            }
        }
    }
    modules
}

fn check_file(file: &File, tests: &[String]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut add = |message: String| violations.push(Violation::new(&file.path, message));
    let lines = file.text.lines().count();
    if lines > LINES_LIMIT && !LONG.iter().any(|(path, _)| *path == file.path) {
        add(format!("has {lines} lines, over {LINES_LIMIT}: split it, or say why not in LONG"));
    }
    if !file.text.starts_with("//!") {
        add("does not open with a `//!` header that says why it is there".to_owned());
    }
    for (number, line) in (1..).zip(file.text.lines()) {
        if let Some(mark) = UNFINISHED.iter().find(|mark| line.contains(*mark)) {
            add(format!("line {number} has `{mark}`: finish it or say what is missing elsewhere"));
        }
    }
    let module = file.path.trim_end_matches(".rs");
    let below = |test: &String| module == test || module.starts_with(&format!("{test}/"));
    if tests.iter().any(below) {
        return violations;
    }
    for (number, line, word, why) in forbidden_words(file) {
        add(format!("line {number} has `{word}`: {why}: {}", line.trim()));
    }
    violations
}

/// Lines of the product's code (not of tests, not comments) with a word that has no place there.
fn forbidden_words(file: &File) -> Vec<(usize, &str, &'static str, &'static str)> {
    let rules: Vec<_> = FORBIDDEN
        .iter()
        .filter(|(path, ..)| file.path.starts_with(path) && !file.path.contains("/tests/"))
        .collect();
    let mut found = Vec::new();
    for (number, line) in (1..).zip(file.text.lines()) {
        // Unit tests stand at the end of a file.
        if line.trim_start().starts_with("#[cfg(test)]") {
            break;
        }
        if line.trim_start().starts_with("//") {
            continue;
        }
        for (_, words, why) in &rules {
            if let Some(word) = words.iter().find(|word| line.contains(*word)) {
                found.push((number, line, *word, *why));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Violations of one file, in a tree with every folder that has a rule.
    fn violations(path: &str, text: &str) -> Vec<String> {
        let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
        let mut files: Vec<File> = FORBIDDEN
            .iter()
            .map(|(path, ..)| file(&format!("{path}/mod.rs"), "//! Why.\n"))
            .collect();
        files.push(file(path, text));
        check(&files).into_iter().map(|violation| violation.message).collect()
    }

    #[test]
    fn a_rule_for_a_folder_that_is_gone_is_found() {
        let found = check(&[File { path: "daemon/src/main.rs".into(), text: "//! Why.\n".into() }]);
        assert_eq!(found.len(), FORBIDDEN.len());
        assert_eq!(found[0].place, FORBIDDEN[0].0);
    }

    #[test]
    fn a_short_file_with_a_header_passes() {
        assert!(violations("change/src/lib.rs", "//! Why.\npub struct Change;\n").is_empty());
    }

    #[test]
    fn a_module_that_is_only_there_for_tests_may_read_files() {
        let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
        let check_with = |declaration: &str| {
            let parent =
                file("change/src/place.rs", &format!("//! Why.\n{declaration}\nmod golden;\n"));
            let tests = test_modules(&[parent]);
            check_file(&file("change/src/place/golden.rs", "//! Why.\nuse std::fs;\n"), &tests)
        };
        assert!(check_with("#[cfg(test)]").is_empty());
        assert!(!check_with("").is_empty());
    }

    #[test]
    fn a_file_over_the_limit_is_found() {
        let text = "//! Why.\n".to_owned() + &"\n".repeat(LINES_LIMIT - 1);
        assert!(violations("a/src/lib.rs", &text).is_empty());
        let found = violations("a/src/lib.rs", &(text + "\n"));
        assert!(found[0].contains("has 901 lines"), "{found:?}");
    }

    #[test]
    fn a_missing_header_is_found() {
        assert!(violations("a/src/lib.rs", "use std::fmt;\n")[0].contains("header"));
    }

    #[test]
    fn unfinished_work_is_found() {
        for mark in UNFINISHED {
            let found = violations("a/src/lib.rs", &format!("//! Why.\n// {mark}\n"));
            assert!(found[0].contains("line 2"), "{found:?}");
        }
    }

    #[test]
    fn io_is_found_in_what_does_none() {
        for word in EFFECTS {
            for path in ["change/src/a.rs", "kafka/src/wire/a.rs", "apply/src/plan/a.rs"] {
                let found = violations(path, &format!("//! Why.\nuse {word};\n"));
                assert!(found[0].contains("invariant 1"), "{path} {word}: {found:?}");
            }
        }
    }

    #[test]
    fn reading_files_or_environment_is_found_outside_the_binary() {
        for path in ["capture/src/a.rs", "apply/src/b/c.rs", "connectors/mysql/src/d.rs"] {
            let found = violations(path, "//! Why.\nlet home = std::env::var(\"HOME\");\n");
            assert!(found[0].contains("invariant 5"), "{path}: {found:?}");
        }
        assert!(violations("daemon/src/config.rs", "//! Why.\nuse std::fs;\n").is_empty());
    }

    #[test]
    fn tests_and_comments_may_name_what_the_code_may_not() {
        let text = "//! No std::fs here.\n// nor tokio::fs\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
        assert!(violations("change/src/a.rs", text).is_empty());
        assert!(
            violations("connectors/mysql/tests/it/a.rs", "//! Why.\nuse std::fs;\n").is_empty()
        );
    }
}
