//! What `status` says of lag is measured against the source itself, not against what was read.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value as Json;
use tailwater_scratch::{Flavor, wait_until};

use crate::operator::{LIMIT, status, wait_for_source};
use crate::world::{PATIENCE, World};

/// The lag of the source in bytes, and that of its pipeline in seconds.
fn lags(world: &World) -> Result<(Option<u64>, Option<f64>)> {
    let status: Json = status(&world.tailwater)?;
    let pipeline = &status["pipelines"][0]["lag_seconds"];
    Ok((status["sources"][0]["lag_bytes"].as_u64(), pipeline.as_f64()))
}

fn until_nothing_is_left(world: &World) {
    let mut last = (None, None);
    wait_until(LIMIT, "no lag", || {
        last = lags(world)?;
        Ok((last == (Some(0), Some(0.0))).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {last:?}"));
}

#[test]
fn a_lag_is_the_sources_own_on_postgres() {
    check(Flavor::Postgres15, 501);
}

#[test]
fn a_lag_is_the_sources_own_on_mariadb() {
    check(Flavor::MariaDb, 502);
}

fn check(flavor: Flavor, seed: u64) {
    let mut world = World::new(flavor, flavor, seed).unwrap();
    let table = "CREATE TABLE large (id int PRIMARY KEY, v varchar(200))";
    world.from.0.sql(&world.from.1, table).unwrap();
    world.tailwater.start_again().unwrap();
    world.tailwater.wait_for(&world.pipeline, PATIENCE).unwrap();
    until_nothing_is_left(&world);
    world.work(30).unwrap();
    world.compare().unwrap();
    until_nothing_is_left(&world);

    // Nobody reads: what the source has done since cannot be known, and is not said to be nothing.
    let source = world.from.1.clone();
    let pause = world.tailwater.command(&["pause", "--source", &source]).unwrap();
    assert_eq!(pause.code, Some(0), "{pause:?}");
    wait_for_source(&world.tailwater, "paused", &[]).unwrap();
    world.work(30).unwrap();
    wait_until(LIMIT, "a lag that grows", || {
        let (bytes, seconds) = lags(&world)?;
        assert_eq!(bytes, None);
        Ok(seconds.filter(|seconds| *seconds > 0.5))
    })
    .unwrap();
    let resume = world.tailwater.command(&["resume", "--source", &source]).unwrap();
    assert_eq!(resume.code, Some(0), "{resume:?}");
    until_nothing_is_left(&world);
    world.compare().unwrap();

    // A large transaction that the source has committed and is still sending: the target has none
    // of it, and that is a lag, however little of it our log holds. The source is asked every
    // second: one such transaction may pass unnoticed, not one after the other.
    let mut round = 0;
    while !seen_behind(&world, round) {
        round += 1;
        assert!(round < 20, "it was never seen behind");
    }
    until_nothing_is_left(&world);
    // While nobody works it does not grow: what the source writes by itself, at a checkpoint, say,
    // is a lag only until the source is heard of again.
    for _look in 0..20 {
        let (_, seconds) = lags(&world).unwrap();
        assert!(seconds.is_some_and(|seconds| seconds < Duration::from_secs(3).as_secs_f64()));
    }
    world.tailwater.stop().unwrap();
}

/// Whether a large transaction was seen on its way; while it is, the pipeline's lag is not 0.
fn seen_behind(world: &World, round: u32) -> bool {
    let (first, last) = (round * 300_000 + 1, (round + 1) * 300_000);
    let rows = match world.from.0.flavor().is_postgres() {
        true => format!("SELECT n, repeat('x', 150) FROM generate_series({first}, {last}) n"),
        false => format!("SELECT seq, REPEAT('x', 150) FROM seq_{first}_to_{last}"),
    };
    world.from.0.sql(&world.from.1, &format!("INSERT INTO large {rows}")).unwrap();
    let mut seen = false;
    wait_until(LIMIT, "the end of a large transaction", || {
        let (bytes, seconds) = lags(world)?;
        if bytes.is_some_and(|bytes| bytes > 0) {
            seen = true;
            assert_ne!(seconds, Some(0.0), "{bytes:?} bytes behind");
        }
        let wait = ["wait", "--pipeline", &world.pipeline, "--timeout", "100ms"];
        Ok((world.tailwater.command(&wait)?.code == Some(0)).then_some(()))
    })
    .unwrap();
    seen
}
