//! Several processes share the partitions of a pipeline with `consistency = "key"`, and each of them
//! dies now and then: at rest the target is the source. Conflicts stop, so that nothing is applied
//! twice, left out or in another order without being seen.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailwater_apply::{ConflictPolicy, Consistency, PipelineConfig, PipelineHandle, State};
use tailwater_capture::{CaptureHandle, PartitionBy, SnapshotMode};
use tailwater_change::Identity;
use tailwater_memory::{Planted, sample_table};

use crate::end_to_end::{Process, System};

/// Time is made up: every sleep ends at once when nothing else is to be done.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a process knows of the others it looks at four times a second.
const LOOK: Duration = Duration::from_millis(500);

/// How often the two are looked at until it is believed that they stay equal.
const QUIET_LOOKS: usize = 6;

fn system(partitions: usize, by: PartitionBy, unique: bool) -> System {
    let key = || Identity::Key(vec![0]);
    let mut schemas = vec![
        sample_table("one", key(), &[]),
        sample_table("two", key(), &[]),
        sample_table("bag", Identity::Full, &[]),
    ];
    if unique {
        schemas.push(sample_table("four", key(), &["a"]));
    }
    System::of(schemas, partitions, by)
}

async fn host(system: &System) -> Process<PipelineHandle> {
    let mut config = PipelineConfig::new("copy", || 0);
    config.consistency = Consistency::Key;
    config.on_conflict = ConflictPolicy::Stop;
    system.apply_with(config, |log| Arc::new(log)).await
}

/// Waits until everything is applied, by whomever, and the target is the source and stays so.
async fn settle(
    system: &System,
    capture: &Process<CaptureHandle>,
    hosts: &[Process<PipelineHandle>],
) -> Result<(), String> {
    let current = system.source.with(|script| script.current());
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut quiet = 0;
    loop {
        capture.handle.probe();
        let statuses: Vec<_> = hosts.iter().map(|host| host.handle.status()).collect();
        let (source, target) = system.rows();
        let is_there = statuses.iter().any(|status| {
            status.state == State::Streaming
                && status.place.is_some_and(|place| place.commit >= current)
        });
        let is_equal = source == target;
        quiet = if is_there && is_equal { quiet + 1 } else { 0 };
        if quiet == QUIET_LOOKS {
            return Ok(());
        }
        let is_stopped = statuses.iter().any(|status| status.state == State::Stopped);
        if is_stopped || tokio::time::Instant::now() >= deadline {
            let captured = capture.handle.status();
            return Err(format!(
                "at {current}, equal: {is_equal}: {captured:?} {statuses:?}\n{source:?}\n{target:?}"
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Some time in which they get somewhere, but nobody knows where.
async fn let_go_on(rng: &mut SmallRng) {
    for _ in 0..rng.random_range(0..200) {
        tokio::task::yield_now().await;
    }
    if rng.random_bool(0.7) {
        let time = Duration::from_millis(rng.random_range(0..2_000));
        tokio::time::sleep(time).await;
    }
}

/// How many partitions all of them apply on their own by now.
fn apart(hosts: &[Process<PipelineHandle>]) -> usize {
    hosts.iter().map(|host| host.handle.status().partitions.len()).sum()
}

async fn deaths(system: System, seed: u64, rounds: usize) -> Result<usize, String> {
    let mut rng = SmallRng::seed_from_u64(seed);
    system.work(&mut rng, 20);
    let mut capture = system.capture(SnapshotMode::Initial).await;
    let mut hosts = vec![host(&system).await, host(&system).await];
    let mut most = 0;
    for _ in 0..rounds {
        system.work(&mut rng, 4);
        let_go_on(&mut rng).await;
        most = most.max(apart(&hosts));
        match rng.random_range(0..10) {
            0..=3 => {
                let which = rng.random_range(0..hosts.len());
                hosts.remove(which);
            }
            4..=5 if hosts.len() < 4 => hosts.push(host(&system).await),
            6 => {
                drop(capture);
                capture = system.capture(SnapshotMode::Initial).await;
            }
            7 => {
                let above = hosts.first().and_then(|host| host.handle.status().place);
                let above = above.map(|place| place.epoch).unwrap_or_default();
                drop(capture.handle.resync(above, Duration::from_secs(20)).await);
            }
            _ => {}
        }
        if hosts.is_empty() {
            hosts.push(host(&system).await);
        }
    }
    settle(&system, &capture, &hosts).await?;
    system.work(&mut rng, 3);
    settle(&system, &capture, &hosts).await?;
    Ok(most.max(apart(&hosts)))
}

fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let base = std::hash::RandomState::new().build_hasher().finish();
    (0..count).chain(base..base.saturating_add(count))
}

#[tokio::test(start_paused = true)]
async fn deaths_of_hosts_lose_and_repeat_nothing() {
    let mut apart = 0;
    for seed in seeds(20) {
        println!("seed {seed}");
        let by = if seed % 4 == 0 { PartitionBy::Table } else { PartitionBy::Key };
        let partitions = 2 + usize::try_from(seed % 4).unwrap();
        let most = deaths(system(partitions, by, false), seed, 12).await;
        apart += most.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    assert!(apart > 0, "they never were on their own");
}

/// Rows of this table need the source's order across partitions.
#[tokio::test(start_paused = true)]
async fn where_a_table_has_another_unique_key_the_partitions_stay_together() {
    for seed in seeds(3) {
        println!("seed {seed}");
        let apart = deaths(system(3, PartitionBy::Key, true), seed, 12).await;
        assert_eq!(apart, Ok(0), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_forgets_the_fence_is_seen() {
    let mut seen = false;
    for seed in 0..40 {
        let system = system(3, PartitionBy::Key, false);
        system.target.plant(Planted::ForgetsFence);
        if let Err(why) = deaths(system, seed, 12).await {
            println!("seed {seed}: {why}");
            seen = true;
            break;
        }
    }
    assert!(seen, "nothing came of it");
}

/// A host that comes gets its share, and those of one that goes are taken by the others, both
/// within ten seconds.
#[tokio::test(start_paused = true)]
async fn partitions_go_to_who_is_there() {
    let system = system(4, PartitionBy::Key, false);
    let mut rng = SmallRng::seed_from_u64(1);
    system.work(&mut rng, 10);
    let capture = system.capture(SnapshotMode::Initial).await;
    let first = host(&system).await;
    let has = |host: &Process<PipelineHandle>, count: usize| {
        let mut status = host.handle.watch();
        async move {
            let has = status.wait_for(|status| status.partitions.len() == count);
            let limit = Duration::from_secs(10);
            assert!(tokio::time::timeout(limit, has).await.is_ok(), "not in {limit:?}");
        }
    };
    has(&first, 4).await;
    let second = host(&system).await;
    has(&first, 2).await;
    has(&second, 2).await;
    let hosts = [second];
    system.work(&mut rng, 10);
    drop(first);
    has(&hosts[0], 4).await;
    settle(&system, &capture, &hosts).await.unwrap();
}

/// A pause is the pipeline's: whichever process is told, all of them stand still until one is told
/// to go on.
#[tokio::test(start_paused = true)]
async fn a_pause_is_everybodys() {
    let system = system(3, PartitionBy::Key, false);
    let mut rng = SmallRng::seed_from_u64(2);
    system.work(&mut rng, 10);
    let capture = system.capture(SnapshotMode::Initial).await;
    let hosts = [host(&system).await, host(&system).await];
    settle(&system, &capture, &hosts).await.unwrap();
    hosts[0].handle.pause().await.unwrap();
    for host in &hosts {
        let mut status = host.handle.watch();
        status.wait_for(|status| status.state == State::Paused).await.unwrap();
    }
    let before = system.rows().1;
    for _ in 0..20 {
        system.work(&mut rng, 3);
    }
    let_go_on(&mut rng).await;
    assert_eq!(system.rows().1, before);
    hosts[1].handle.resume().await.unwrap();
    settle(&system, &capture, &hosts).await.unwrap();
}
