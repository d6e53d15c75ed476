//! Which crate may know which, and who may name a database driver.
//!
//! The arrows hold for what is built; a test may bring in more (a contract suite runs over the
//! real log), except a driver: what the product writes is judged by the databases' own clients.

use super::{Package, Violation};

/// Every package, what of ours it may depend on, and what is wrong with more (the numbers are the
/// invariants of ARCHITECTURE.md). A package that is not listed has not been thought about.
const ARROWS: &[(&str, &[&str], &str)] = &[
    ("tailwater-change", &[], "invariant 1: what flows stands alone"),
    ("tailwater-kafka", &[], "the protocol knows nothing of ours"),
    ("tailwater-log", &["tailwater-kafka"], "invariant 2: bytes in, bytes out"),
    (
        "tailwater-registry",
        &["tailwater-change", "tailwater-kafka"],
        "it keeps schemas in a topic, whoever's Kafka that is",
    ),
    (
        "tailwater-capture",
        &["tailwater-change", "tailwater-kafka", "tailwater-registry"],
        "invariant 3: it speaks to any log through kafka's client, and to any source by contract",
    ),
    (
        "tailwater-apply",
        &["tailwater-change", "tailwater-kafka", "tailwater-registry"],
        "invariant 3: it speaks to any log through kafka's client, and to any target by contract",
    ),
    ("tailwater-postgres", CONTRACTS, "a connector knows the contracts and its database"),
    ("tailwater-mysql", CONTRACTS, "a connector knows the contracts and its database"),
    ("tailwater-memory", CONTRACTS, "a connector knows the contracts and its database"),
    (
        "tailwater",
        &[
            "tailwater-apply",
            "tailwater-capture",
            "tailwater-change",
            "tailwater-kafka",
            "tailwater-log",
            "tailwater-memory",
            "tailwater-mysql",
            "tailwater-postgres",
            "tailwater-registry",
        ],
        "the binary knows the product, not its tests",
    ),
    (
        "tailwater-sim",
        &[
            "tailwater-apply",
            "tailwater-capture",
            "tailwater-change",
            "tailwater-kafka",
            "tailwater-log",
            "tailwater-memory",
            "tailwater-registry",
        ],
        "it runs everything between two databases in memory",
    ),
    ("tailwater-scratch", &[], "servers for tests must not need what is tested"),
    ("xtask", &["tailwater-scratch"], "it must build while the product does not"),
];

const CONTRACTS: &[&str] = &["tailwater-apply", "tailwater-capture", "tailwater-change"];

/// Crates that do IO or wait for it, which `tailwater-change` therefore has no use for.
const IO: &[&str] =
    &["async-std", "axum", "hyper", "mio", "reqwest", "rustls", "socket2", "tokio", "tokio-util"];

/// Database drivers and the only package that may name each.
const DRIVERS: &[(&str, &str)] = &[
    ("diesel", "no package"),
    ("mysql", "tailwater-mysql"),
    ("mysql_async", "tailwater-mysql"),
    ("mysql_common", "tailwater-mysql"),
    ("postgres", "tailwater-postgres"),
    ("postgres-protocol", "tailwater-postgres"),
    ("postgres-types", "tailwater-postgres"),
    ("sqlx", "no package"),
    ("tokio-postgres", "tailwater-postgres"),
];

pub(super) fn check(packages: &[Package]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let ours: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    for package in packages {
        let arrows = ARROWS.iter().find(|(name, ..)| *name == package.name);
        if arrows.is_none() {
            let message = "is not among the ARROWS of tidy: say there what it may depend on";
            violations.push(Violation::new(&package.name, message));
        }
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            let built = dependency.kind.as_deref() != Some("dev");
            if let Some((_, allowed, why)) = arrows
                && built
                && ours.contains(&name)
                && !allowed.contains(&name)
            {
                let message = format!("may not depend on {name}: {why}");
                violations.push(Violation::new(&package.name, message));
            }
            if package.name == "tailwater-change" && built && IO.contains(&name) {
                let message = format!("may not depend on {name}: invariant 1, it does no IO");
                violations.push(Violation::new(&package.name, message));
            }
            if let Some((_, owner)) = DRIVERS.iter().find(|(driver, _)| *driver == name)
                && package.name != *owner
            {
                let message = format!("may not name {name}: invariant 4, {owner} may");
                violations.push(Violation::new(&package.name, message));
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::Dependency;
    use super::*;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        let dependencies = dependencies
            .iter()
            .map(|(name, kind)| Dependency {
                name: (*name).to_owned(),
                kind: kind.map(str::to_owned),
            })
            .collect();
        Package { name: name.to_owned(), manifest_path: "Cargo.toml".into(), dependencies }
    }

    /// Violations of a package that has one dependency, in a workspace with every package.
    fn violations(name: &str, dependency: &str, kind: Option<&str>) -> Vec<String> {
        let mut packages: Vec<Package> =
            ARROWS.iter().map(|(name, ..)| package(name, &[])).filter(|p| p.name != name).collect();
        packages.push(package(name, &[(dependency, kind)]));
        check(&packages).iter().map(Violation::to_string).collect()
    }

    #[test]
    fn each_invariant_is_defended() {
        let planted = [
            ("tailwater-change", "tokio", "invariant 1"),
            ("tailwater-change", "tailwater-kafka", "invariant 1"),
            ("tailwater-log", "tailwater-change", "invariant 2"),
            ("tailwater-capture", "tailwater-log", "invariant 3"),
            ("tailwater-apply", "tailwater-log", "invariant 3"),
            ("tailwater-apply", "tailwater-postgres", "invariant 3"),
            ("tailwater-apply", "tokio-postgres", "invariant 4"),
            ("tailwater", "mysql_async", "invariant 4"),
            ("tailwater-mysql", "postgres-protocol", "invariant 4"),
            ("tailwater-kafka", "tailwater-change", "knows nothing of ours"),
            ("tailwater-postgres", "tailwater-log", "knows the contracts"),
            ("tailwater", "tailwater-scratch", "not its tests"),
        ];
        for (name, dependency, reason) in planted {
            let found = violations(name, dependency, None);
            assert_eq!(found.len(), 1, "{name} -> {dependency}: {found:?}");
            assert!(found[0].contains(reason), "{found:?}");
        }
    }

    #[test]
    fn what_the_design_draws_is_allowed() {
        for (name, allowed, _) in ARROWS {
            for dependency in *allowed {
                assert!(violations(name, dependency, None).is_empty(), "{name} -> {dependency}");
            }
        }
    }

    #[test]
    fn a_test_may_bring_in_more_but_no_driver() {
        assert!(violations("tailwater-kafka", "tailwater-log", Some("dev")).is_empty());
        assert_eq!(violations("tailwater", "tokio-postgres", Some("dev")).len(), 1);
    }

    #[test]
    fn a_build_script_counts_as_the_crate() {
        assert_eq!(violations("tailwater-log", "tailwater-change", Some("build")).len(), 1);
    }

    #[test]
    fn a_package_without_a_place_in_the_design_is_named() {
        let found = check(&[package("tailwater-extra", &[])]);
        assert_eq!(found[0].place, "tailwater-extra");
    }
}
