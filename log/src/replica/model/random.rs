//! Thousands of short random lives of a partition, each from its seed.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Plant, World, index};

const SEEDS: u64 = 3000;
const STEPS: usize = 400;

/// How much goes wrong in this life.
struct Weather {
    lost_percent: u32,
    twice_percent: u32,
    /// Of 1000 steps, those that break something.
    breaks: u32,
}

fn weather(random: &mut SmallRng) -> Weather {
    Weather {
        lost_percent: [0, 5, 30][random.random_range(0..3)],
        twice_percent: [0, 10, 30][random.random_range(0..3)],
        breaks: [20, 60, 150][random.random_range(0..3)],
    }
}

/// What is wrong with this life, if anything is.
fn live(seed: u64, plant: Plant, traced: bool) -> Result<World, World> {
    let mut random = SmallRng::seed_from_u64(seed);
    let brokers = random.random_range(3..=5);
    let min_insync = random.random_range(1..=3);
    let mut world = World::new(brokers, min_insync, plant);
    world.trace = traced.then(Vec::new);
    let weather = weather(&mut random);
    for _ in 0..STEPS {
        if random.random_range(0..1000) < weather.breaks {
            disturb(&mut world, &mut random);
        } else {
            work(&mut world, &mut random, &weather);
        }
        if world.failure.is_some() {
            return Err(world);
        }
    }
    heal(&mut world);
    if world.failure.is_some() { Err(world) } else { Ok(world) }
}

fn work(world: &mut World, random: &mut SmallRng, weather: &Weather) {
    let n = random.random_range(0..world.nodes.len());
    let up = world.nodes[n].up;
    match random.random_range(0..100) {
        0..35 if !world.network.is_empty() => {
            // Mostly in order, and sometimes something very old.
            let among = if random.random_bool(0.8) { world.network.len().min(3) } else { usize::MAX };
            let which = random.random_range(0..world.network.len().min(among));
            let message = world.network.remove(which);
            if random.random_range(0..100) < weather.lost_percent {
                return;
            }
            if message.is_request() && random.random_range(0..100) < weather.twice_percent {
                world.network.push(message.clone());
            }
            world.deliver(message);
        }
        35..50 if up => world.append(n, random.random_bool(0.8)),
        50..62 if up => world.flush(n),
        62..82 if up => {
            // The answer may have been lost.
            if random.random_bool(0.2) {
                world.nodes[n].asked = None;
            }
            world.ask(n);
        }
        82..92 if up && !world.nodes[n].cut_from_controller => {
            world.learn(n);
            world.controller.heartbeat(world.nodes[n].id, world.nodes[n].applied);
        }
        92..96 if up => world.begin(n),
        96..100 => world.tick(Duration::from_millis(random.random_range(1..900))),
        _ => {}
    }
}

fn disturb(world: &mut World, random: &mut SmallRng) {
    let n = random.random_range(0..world.nodes.len());
    let id = world.nodes[n].id;
    match random.random_range(0..100) {
        // More often back than gone.
        0..40 if !world.nodes[n].up => {
            world.restart(n, random.random_bool(0.5), random.random_bool(0.5));
        }
        0..20 => world.crash(n),
        40..55 => world.controller.fence(id),
        55..70 => world.controller.elect(id),
        70..78 => world.nodes[n].cut_from_peers = random.random_bool(0.5),
        78..88 => world.nodes[n].cut_from_controller = random.random_bool(0.6),
        88..93 => world.lose_disk(n),
        93..100 if world.nodes[n].replica.leads().is_some() && world.nodes[n].up => {
            let from = world.nodes[n].log.start;
            let to = index(world.nodes[n].replica.high_watermark());
            world.forget(n, random.random_range(from..=to));
        }
        _ => {}
    }
}

/// Nothing breaks any more: soon all are in sync, with all that was ever committed.
fn heal(world: &mut World) {
    world.note(|_| "all is well from here".to_owned());
    for n in 0..world.nodes.len() {
        (world.nodes[n].cut_from_peers, world.nodes[n].cut_from_controller) = (false, false);
        if !world.nodes[n].up {
            world.restart(n, true, true);
        }
    }
    for _ in 0..60 {
        for n in 0..world.nodes.len() {
            world.nodes[n].asked = None;
            world.catch_up(n);
            world.begin(n);
            world.flush(n);
            world.ask(n);
        }
        world.deliver_all();
        world.tick(Duration::from_millis(300));
        if world.failure.is_some() || (world.is_whole() && world.controller_is_quiet()) {
            return;
        }
    }
    world.fail("it did not become whole again".to_owned());
}

impl World {
    fn controller_is_quiet(&self) -> bool {
        self.nodes.iter().all(|node| node.applied == self.controller.images.len())
    }
}

/// The story of a life that went wrong.
fn told(seed: u64) -> String {
    let world = live(seed, Plant::None, true).unwrap_or_else(|world| world);
    let trace = world.trace.unwrap_or_default().join("\n");
    format!("{trace}\nseed {seed}: {}", world.failure.as_deref().unwrap_or("nothing wrong"))
}

#[test]
fn nothing_committed_is_lost_whatever_happens() {
    let (mut committed, mut epochs) = (0, 0);
    for seed in 0..SEEDS {
        let Ok(world) = live(seed, Plant::None, false) else { panic!("{}", told(seed)) };
        committed += world.committed.len();
        epochs += world.controller.state().leader_epoch.get();
    }
    // The lives are worth living: something is committed, and leaders change.
    println!("{SEEDS} seeds: {committed} entries committed, {epochs} elections");
    assert!(committed > 10 * usize::try_from(SEEDS).unwrap(), "{committed}");
    assert!(u64::try_from(epochs).unwrap() > 3 * SEEDS, "{epochs}");
}

#[test]
fn a_life_is_the_same_each_time() {
    for seed in 0..20 {
        let lives = [live(seed, Plant::None, true), live(seed, Plant::None, true)];
        let [one, other] = lives.map(|life| life.unwrap_or_else(|world| world).trace);
        assert_eq!(one, other, "seed {seed}");
    }
}

/// The first seed that finds the mistake.
fn found(plant: Plant) -> Option<(u64, String)> {
    (0..2000).find_map(|seed| {
        let world = live(seed, plant, false).err()?;
        Some((seed, world.failure.unwrap_or_default()))
    })
}

#[test]
fn planted_mistakes_are_found() {
    let plants = [
        Plant::TruncateByHighWatermark,
        Plant::CountNonIsrAck,
        Plant::SkipRequestEpoch,
        Plant::SkipAnswerEpoch,
        Plant::SkipDivergence,
        Plant::ForgetFence,
        Plant::AskUnflushed,
        Plant::BelieveProposals,
        Plant::ActOnOldImage,
    ];
    let mut missed = Vec::new();
    for plant in plants {
        match found(plant) {
            Some((seed, what)) => println!("{plant:?}: seed {seed}: {what}"),
            None => missed.push(plant),
        }
    }
    assert!(missed.is_empty(), "not found in 2,000 seeds: {missed:?}");
}
