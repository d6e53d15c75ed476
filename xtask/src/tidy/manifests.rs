//! Rules for each member's `Cargo.toml`: the workspace decides lints and versions, once.

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::{File, Violation};

const KINDS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

pub(super) fn check(manifest: &File) -> Result<Vec<Violation>> {
    let table: Table = manifest.text.parse().with_context(|| format!("parse {}", manifest.path))?;
    let mut violations = Vec::new();
    if !inherits(table.get("lints")) {
        violations.push(Violation::new(
            &manifest.path,
            "lacks `[lints] workspace = true`: lints are not inherited by themselves",
        ));
    }
    let targets = table.get("target").and_then(Value::as_table);
    let tables =
        targets.into_iter().flat_map(|targets| targets.values().filter_map(Value::as_table));
    for table in std::iter::once(&table).chain(tables) {
        for kind in KINDS {
            let Some(dependencies) = table.get(kind).and_then(Value::as_table) else { continue };
            for (name, dependency) in dependencies {
                if !inherits(Some(dependency)) && !is_itself(dependency) {
                    violations.push(Violation::new(
                        &manifest.path,
                        format!("{name} has a version or path of its own: those stand in the root's `[workspace.dependencies]`"),
                    ));
                }
            }
        }
    }
    Ok(violations)
}

/// Whether a table says `workspace = true`.
fn inherits(value: Option<&Value>) -> bool {
    value.and_then(|value| value.get("workspace")).and_then(Value::as_bool) == Some(true)
}

/// Whether it is the crate itself, as its tests name it to switch on a feature for them.
fn is_itself(dependency: &Value) -> bool {
    dependency.get("path").and_then(Value::as_str) == Some(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(text: &str) -> Vec<String> {
        let manifest = File { path: "a/Cargo.toml".into(), text: text.into() };
        check(&manifest).unwrap().into_iter().map(|violation| violation.message).collect()
    }

    #[test]
    fn a_manifest_that_inherits_everything_passes() {
        let text = "[lints]\nworkspace = true\n[dependencies]\nbytes.workspace = true\n\
                    [dev-dependencies]\nrand = { workspace = true, features = [\"std\"] }\n\
                    a = { path = \".\", features = [\"test-util\"] }\n";
        assert!(violations(text).is_empty());
    }

    #[test]
    fn lints_that_are_not_inherited_are_found() {
        assert!(violations("[package]\nname = \"a\"\n")[0].contains("[lints]"));
        assert!(violations("[lints]\nworkspace = false\n")[0].contains("[lints]"));
    }

    #[test]
    fn a_version_of_its_own_is_found_in_every_table() {
        for table in [
            "dependencies",
            "dev-dependencies",
            "build-dependencies",
            "target.'cfg(unix)'.dependencies",
        ] {
            for dependency in ["bytes = \"1\"", "bytes = { path = \"../bytes\" }"] {
                let text = format!("[lints]\nworkspace = true\n[{table}]\n{dependency}\n");
                let found = violations(&text);
                assert_eq!(found.len(), 1, "{text}");
                assert!(found[0].contains("bytes"), "{found:?}");
            }
        }
    }
}
