//! Thousands of short random lives of a partition, each from its seed.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::network::Message;
use super::{Node, Plant, World, index};

const SEEDS: u64 = 3000;
const NOT_WHOLE: &str = "it did not become whole again";
const STEPS: usize = 3000;

/// How much goes wrong in this life, and what most.
struct Weather {
    lost_percent: u32,
    twice_percent: u32,
    /// Of the messages, those that are delivered much later.
    late_percent: u32,
    /// Of 100 steps, records that come.
    appends: u32,
    /// Of 1000 steps, those that break something.
    breaks: u32,
    favourite: Option<Trouble>,
}

#[derive(Debug, Clone, Copy)]
enum Trouble {
    Crash,
    Fence,
    Elect,
    Cut,
    LoseDisk,
    Forget,
    MinInsync,
}

const TROUBLES: [Trouble; 7] = [
    Trouble::Crash,
    Trouble::Fence,
    Trouble::Elect,
    Trouble::Cut,
    Trouble::LoseDisk,
    Trouble::Forget,
    Trouble::MinInsync,
];

fn one_of<T: Copy>(random: &mut SmallRng, choices: &[T]) -> T {
    choices[random.random_range(0..choices.len())]
}

fn weather(random: &mut SmallRng) -> Weather {
    Weather {
        lost_percent: one_of(random, &[0, 5, 30]),
        twice_percent: one_of(random, &[0, 10, 40]),
        late_percent: one_of(random, &[0, 5, 20]),
        appends: one_of(random, &[1, 3, 10]),
        breaks: one_of(random, &[5, 20, 60]),
        favourite: random.random_bool(0.7).then(|| one_of(random, &TROUBLES)),
    }
}

/// A life; whether something is wrong with it stands in [`World::failure`].
fn live(seed: u64, plant: Plant, traced: bool) -> World {
    let mut random = SmallRng::seed_from_u64(seed);
    let brokers = random.random_range(3..=5);
    let min_insync = random.random_range(1..=3);
    let mut world = World::new(brokers, min_insync, plant);
    world.trace = traced.then(Vec::new);
    let weather = weather(&mut random);
    let mut late = Vec::new();
    for _ in 0..STEPS {
        if random.random_range(0..1000) < weather.breaks {
            let favourite = weather.favourite.filter(|_| random.random_bool(0.6));
            let trouble = favourite.unwrap_or_else(|| one_of(&mut random, &TROUBLES));
            disturb(&mut world, &mut random, trouble);
        } else {
            work(&mut world, &mut random, &weather, &mut late);
        }
        if world.failure.is_some() {
            return world;
        }
    }
    heal(&mut world);
    world
}

fn work(world: &mut World, random: &mut SmallRng, weather: &Weather, late: &mut Vec<Message>) {
    let n = random.random_range(0..world.nodes.len());
    let up = world.nodes[n].up;
    if random.random_range(0..100) < weather.appends {
        let leads = |node: &&Node| node.up && node.replica.leads().is_some();
        let leaders: Vec<_> = world.nodes.iter().filter(leads).map(|node| node.id).collect();
        if !leaders.is_empty() {
            let leader = usize::try_from(one_of(random, &leaders).get()).unwrap();
            world.append(leader, random.random_bool(0.8));
        }
        return;
    }
    match random.random_range(0..100) {
        0..40 if !world.network.is_empty() => transmit(world, random, weather, late),
        40..44 if !late.is_empty() => {
            let which = random.random_range(0..late.len());
            world.deliver(late.swap_remove(which));
        }
        44..54 if up => world.flush(n),
        54..75 if up => {
            // The answer may have been lost.
            if random.random_bool(0.2) {
                world.nodes[n].asked = None;
            }
            world.ask(n);
        }
        75..88 if up && !world.nodes[n].cut_from_controller => {
            world.learn(n);
            world.controller.heartbeat(world.nodes[n].id, world.nodes[n].applied);
        }
        88..96 if up => world.begin(n),
        88..96 => world.restart(n, random.random_bool(0.5), random.random_bool(0.5)),
        96..100 => world.tick(Duration::from_millis(random.random_range(1..900))),
        _ => {}
    }
}

/// One of the next messages arrives; or does not, or later, or later once more.
fn transmit(world: &mut World, random: &mut SmallRng, weather: &Weather, late: &mut Vec<Message>) {
    let message = world.network.remove(random.random_range(0..world.network.len().min(3)));
    if random.random_range(0..100) < weather.lost_percent {
        return;
    }
    if message.is_request() && random.random_range(0..100) < weather.twice_percent {
        late.push(message.clone());
    }
    if random.random_range(0..100) < weather.late_percent {
        late.push(message);
    } else {
        world.deliver(message);
    }
}

fn disturb(world: &mut World, random: &mut SmallRng, trouble: Trouble) {
    let n = random.random_range(0..world.nodes.len());
    let node = &mut world.nodes[n];
    let id = node.id;
    match trouble {
        Trouble::Crash => world.crash(n),
        Trouble::Fence => world.controller.fence(id),
        Trouble::Elect => world.controller.elect(id),
        Trouble::Cut if random.random_bool(0.4) => node.cut_from_peers = random.random_bool(0.4),
        Trouble::Cut => node.cut_from_controller = random.random_bool(0.6),
        Trouble::LoseDisk => {
            world.lose_disk(n);
            // Another disk is there at once: what was said before is still on its way.
            if !world.nodes[n].up && random.random_bool(0.7) {
                world.restart(n, false, false);
                world.catch_up(n);
            }
        }
        Trouble::Forget if node.up && node.replica.leads().is_some() => {
            let to = index(node.replica.high_watermark());
            let to = random.random_range(node.log.start..=to);
            world.forget(n, to);
        }
        Trouble::Forget => {}
        Trouble::MinInsync => world.controller.set_min_insync(random.random_range(1..=3)),
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
    world.fail(NOT_WHOLE.to_owned());
}

impl World {
    fn controller_is_quiet(&self) -> bool {
        self.nodes.iter().all(|node| node.applied == self.controller.images.len())
    }
}

/// The story of a life that went wrong.
fn told(seed: u64) -> String {
    let world = live(seed, Plant::None, true);
    let trace = world.trace.unwrap_or_default().join("\n");
    format!("{trace}\nseed {seed}: {}", world.failure.as_deref().unwrap_or("nothing wrong"))
}

#[test]
fn nothing_committed_is_lost_whatever_happens() {
    let (mut committed, mut epochs) = (0, 0);
    for seed in 0..SEEDS {
        let world = live(seed, Plant::None, false);
        assert!(world.failure.is_none(), "{}", told(seed));
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
        let [one, other] = lives.map(|world| world.trace);
        assert_eq!(one, other, "seed {seed}");
    }
}

/// The first seed that finds the mistake.
fn found(plant: Plant) -> Option<(u64, String)> {
    (0..2000).find_map(|seed| {
        // That it hangs is not what these are about.
        let wrong = live(seed, plant, false).failure.filter(|what| what != NOT_WHOLE)?;
        Some((seed, wrong))
    })
}

#[test]
fn planted_mistakes_are_found() {
    let plants = [
        Plant::TruncateByHighWatermark,
        Plant::CountNonIsrAck,
        Plant::SkipRequestEpoch,
        Plant::TakeAnyAnswer,
        Plant::SkipDivergence,
        Plant::ForgetFence,
        Plant::AskUnflushed,
        Plant::BelieveProposals,
        Plant::IgnoreMinIsr,
        Plant::TakeAnswerAsImage,
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
