//! Collations that one of the two servers lacks, and what stands in for them.
//!
//! MySQL's `0900` and MariaDB's `uca1400` are built from different versions of the Unicode
//! collation algorithm: they agree on nearly every character, and are not the same. A stand-in
//! that tells other texts apart than the original is reported, because keys are unique under it.

use std::collections::BTreeSet;

/// A collation of the target that stands for one of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StandIn {
    /// The target's name.
    pub(super) name: String,
    /// Whether it holds exactly the same texts for equal.
    pub(super) same_equality: bool,
}

/// What stands for `collation` on a server that has `available`; none if nothing comes close.
pub(super) fn stand_in(collation: &str, available: &BTreeSet<String>) -> Option<StandIn> {
    if available.contains(collation) {
        return Some(StandIn { name: collation.to_owned(), same_equality: true });
    }
    candidates(collation).into_iter().find(|candidate| available.contains(&candidate.name))
}

fn candidates(collation: &str) -> Vec<StandIn> {
    let same = |name: String| StandIn { name, same_equality: true };
    let near = |name: String| StandIn { name, same_equality: false };
    let Some((charset, rest)) = collation.split_once('_') else { return Vec::new() };
    let sensitivity = ["ai_ci", "as_ci", "as_cs", "ai_cs"]
        .into_iter()
        .find(|ending| rest.ends_with(ending))
        .unwrap_or("ai_ci");
    if rest == "0900_bin" {
        return vec![same(format!("{charset}_nopad_bin"))];
    }
    if rest == "nopad_bin" {
        return vec![same(format!("{charset}_0900_bin")), near(format!("{charset}_bin"))];
    }
    if rest.contains("0900_") {
        return vec![
            near(format!("{charset}_uca1400_nopad_{sensitivity}")),
            near(format!("{charset}_unicode_520_nopad_ci")),
            near(format!("{charset}_unicode_520_ci")),
        ];
    }
    if rest.starts_with("uca1400_") {
        let padded = !rest.contains("nopad_");
        let old = near(format!("{charset}_unicode_520_ci"));
        let new = near(format!("{charset}_0900_{sensitivity}"));
        let first = if padded && sensitivity == "ai_ci" { [old, new] } else { [new, old] };
        return first.into_iter().chain([near(format!("{charset}_unicode_ci"))]).collect();
    }
    if rest.contains("nopad_") {
        return vec![near(format!("{charset}_{}", rest.replace("nopad_", "")))];
    }
    // A language's collation that the other server does not have.
    vec![near(format!("{charset}_unicode_520_ci")), near(format!("{charset}_general_ci"))]
}

/// Whether texts that are equal under `collation` are equal bytes. Not so where trailing spaces
/// do not count (`PAD SPACE`), which is every `_bin` but these.
pub(super) fn equal_is_same_bytes(collation: &str) -> bool {
    collation == "utf8mb4_0900_bin" || collation.ends_with("_nopad_bin") || collation == "binary"
}

/// Whether the collation tells texts apart as their bytes do, trailing spaces aside.
pub(super) fn is_binary(collation: &str) -> bool {
    collation == "binary" || collation.ends_with("_bin")
}

/// The collation of this character set under which equal is equal bytes; where the server has none,
/// the one that only takes no notice of trailing spaces.
pub(super) fn exact(charset: &str, available: &BTreeSet<String>) -> String {
    ["0900_bin", "nopad_bin"]
        .into_iter()
        .map(|name| format!("{charset}_{name}"))
        .find(|name| available.contains(name))
        .unwrap_or_else(|| format!("{charset}_bin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_new_collation_has_a_stand_in_on_the_other_server() {
        let mysql: BTreeSet<String> = [
            "utf8mb4_0900_ai_ci",
            "utf8mb4_0900_as_cs",
            "utf8mb4_0900_bin",
            "utf8mb4_unicode_520_ci",
            "utf8mb4_general_ci",
            "latin1_bin",
        ]
        .map(String::from)
        .into();
        let mariadb: BTreeSet<String> = [
            "utf8mb4_uca1400_nopad_ai_ci",
            "utf8mb4_uca1400_nopad_as_cs",
            "utf8mb4_nopad_bin",
            "utf8mb4_general_ci",
        ]
        .map(String::from)
        .into();
        let check = |from: &str, on: &BTreeSet<String>, name: &str, same_equality| {
            assert_eq!(stand_in(from, on), Some(StandIn { name: name.into(), same_equality }));
        };
        check("utf8mb4_general_ci", &mysql, "utf8mb4_general_ci", true);
        check("utf8mb4_0900_ai_ci", &mariadb, "utf8mb4_uca1400_nopad_ai_ci", false);
        check("utf8mb4_de_pb_0900_as_cs", &mariadb, "utf8mb4_uca1400_nopad_as_cs", false);
        check("utf8mb4_0900_bin", &mariadb, "utf8mb4_nopad_bin", true);
        check("utf8mb4_nopad_bin", &mysql, "utf8mb4_0900_bin", true);
        check("utf8mb4_uca1400_ai_ci", &mysql, "utf8mb4_unicode_520_ci", false);
        check("utf8mb4_uca1400_swedish_nopad_as_cs", &mysql, "utf8mb4_0900_as_cs", false);
        check("utf8mb4_general_nopad_ci", &mysql, "utf8mb4_general_ci", false);
        check("latin1_nopad_bin", &mysql, "latin1_bin", false);
        assert_eq!(stand_in("klingon_ci", &BTreeSet::new()), None);
    }
}
