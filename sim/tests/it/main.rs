//! Seeds for CI, that a seed is one run, and that the oracles see planted bugs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

use std::process::Command;

/// What the simulator says, and whether all was well.
fn sim(arguments: &[&str]) -> (bool, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_tailwater-sim")).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

#[test]
fn producers_and_readers_keep_what_was_acknowledged() {
    let (well, text) = sim(&["--workload", "produce", "--seeds", "150"]);
    assert!(well, "{text}");
}

#[test]
fn the_target_becomes_the_source_whatever_dies() {
    let (well, text) = sim(&["--workload", "pipeline", "--seeds", "50"]);
    assert!(well, "{text}");
}

#[test]
fn three_nodes_keep_what_was_acknowledged_and_end_alike() {
    let (well, text) = sim(&["--nodes", "3", "--workload", "produce", "--seeds", "60"]);
    assert!(well, "{text}");
    let (well, text) = sim(&["--nodes", "3", "--workload", "pipeline", "--seeds", "20"]);
    assert!(well, "{text}");
}

#[test]
fn a_seed_is_one_run_and_another_seed_another() {
    for (workload, nodes) in [("produce", "1"), ("pipeline", "1"), ("produce", "3")] {
        let run = |seed: &str| {
            sim(&["--workload", workload, "--nodes", nodes, "--quiet", "--seed", seed]).1
        };
        for (seed, other) in [("1", "2"), ("3", "4"), ("5", "6")] {
            assert_eq!(run(seed), run(seed));
            let hash =
                |text: &str| text.split_once("trace ").map(|(_, hash)| hash[..16].to_owned());
            assert_ne!(hash(&run(seed)), hash(&run(other)));
        }
    }
}

/// Whether one of some seeds shows the bug.
fn is_seen(workload: &str, nodes: &str, plant: &str) -> bool {
    let what = ["--workload", workload, "--nodes", nodes, "--plant", plant, "--seeds", "60"];
    let (well, text) = sim(&what);
    assert_ne!(well, text.contains("FAILED: "), "{text}");
    !well
}

#[test]
fn planted_bugs_are_seen() {
    assert!(is_seen("produce", "1", "acks-before-flush"));
    assert!(is_seen("produce", "1", "disk-lies"));
    assert!(is_seen("pipeline", "1", "acks-before-flush"));
    assert!(is_seen("pipeline", "1", "commits-each-step"));
    assert!(is_seen("pipeline", "1", "saves-progress-aside"));
    assert!(is_seen("produce", "3", "disk-lies"));
    assert!(is_seen("produce", "3", "followers-keep-what-diverged"));
    assert!(is_seen("produce", "3", "followers-claim-more"));
}
