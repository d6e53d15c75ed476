//! The losses that made the rules, as scripts: each holds, and fails where a rule is left out.

use super::{Plant, World};

/// Two replicas, both in the ISR; broker 0 leads.
fn pair(plant: Plant) -> World {
    World::new(2, 1, plant)
}

impl World {
    /// One whole fetch.
    fn fetch(&mut self, n: usize) {
        self.ask(n);
        self.deliver_all();
    }

    /// Everybody who is up learns what the controller knows, and leads if it shall.
    fn spread(&mut self) {
        for n in 0..self.nodes.len() {
            if self.nodes[n].up {
                self.catch_up(n);
            }
        }
        for n in 0..self.nodes.len() {
            if self.nodes[n].up {
                self.catch_up(n);
                self.begin(n);
            }
        }
    }

    fn write(&mut self, n: usize) {
        self.append(n, false);
        self.flush(n);
    }

    fn values(&self, n: usize) -> Vec<u32> {
        self.nodes[n].log.kept().iter().map(|entry| entry.value).collect()
    }

    fn high_watermark(&self, n: usize) -> i64 {
        self.nodes[n].replica.high_watermark().get()
    }

    fn leads(&self, n: usize) -> bool {
        self.nodes[n].replica.leads().is_some()
    }

    fn stop(&mut self, n: usize) {
        self.crash(n);
        self.controller.fence(self.nodes[n].id);
    }
}

/// KIP-101, scenario 1. The follower's high watermark is old by a fetch.
///
/// ```text
/// broker 0 (leads)  | 1 | 2 |   high watermark 2: committed, both have it on disk
/// broker 1          | 1 | 2 |   has heard of high watermark 1, restarts, and leads when 0 dies
/// ```
#[test]
fn a_follower_that_restarts_keeps_what_it_has() {
    for (plant, kept) in [(Plant::None, vec![1, 2]), (Plant::TruncateByHighWatermark, vec![1])] {
        let mut world = pair(plant);
        world.write(0);
        world.fetch(1);
        world.write(0);
        world.fetch(1);
        // Asks from 2, and the answer that tells of high watermark 2 does not come.
        world.ask(1);
        let question = world.network.remove(0);
        world.deliver(question);
        world.network.clear();
        assert_eq!((world.high_watermark(0), world.high_watermark(1)), (2, 1));

        world.crash(1);
        world.restart(1, true, true);
        world.spread();
        world.stop(0);
        world.spread();
        assert!(world.leads(1));
        assert_eq!(world.values(1), kept);
        assert_eq!(world.failure.is_none(), plant == Plant::None, "{:?}", world.failure);
    }
}

/// KIP-101, scenario 2. Another record came to the place of one that was not committed.
///
/// ```text
/// broker 0   | 1 | 2 |        dies with 2, that nobody else has
/// broker 1   | 1 | 3 | 4 |    leads, and goes on
/// ```
#[test]
fn what_was_not_committed_gives_way_to_what_was() {
    for plant in [Plant::None, Plant::SkipDivergence] {
        let mut world = pair(plant);
        world.write(0);
        world.fetch(1);
        world.write(0);
        world.stop(0);
        world.spread();
        world.write(1);
        assert_eq!((world.values(0), world.values(1)), (vec![1, 2], vec![1, 3]));
        assert_eq!(world.high_watermark(1), 2);

        world.restart(0, true, true);
        world.spread();
        world.write(1);
        for _ in 0..3 {
            world.fetch(0);
        }
        assert_eq!(world.values(0) == [1, 3, 4], plant == Plant::None);
        assert_eq!(world.failure.is_none(), plant == Plant::None, "{:?}", world.failure);
    }
}

/// KIP-279. Two fast elections: each side has an epoch that the other does not know.
///
/// ```text
///              epoch 1   2   3
/// broker 0   | 1 | 2 |   | 4 |
/// broker 1   | 1 |   | 3 |
/// ```
#[test]
fn logs_that_part_after_two_elections_become_one() {
    let mut world = pair(Plant::None);
    world.write(0);
    world.fetch(1);
    world.fetch(1);
    world.write(0);
    for (leader, next) in [(0, 1), (1, 0)] {
        world.controller.elect(world.nodes[next].id);
        world.spread();
        assert!(world.leads(next) && !world.leads(leader));
        world.network.clear();
        world.write(next);
    }
    assert_eq!((world.values(0), world.values(1)), (vec![1, 2, 4], vec![1, 3]));
    assert_eq!(world.high_watermark(0), 1);
    world.fetch(1);
    assert_eq!(world.values(1), [1]);
    world.fetch(1);
    world.fetch(1);
    assert_eq!((world.values(0), world.values(1)), (vec![1, 2, 4], vec![1, 2, 4]));
    assert_eq!((world.high_watermark(0), world.failure), (3, None));
}

/// A leader that was replaced without knowing it commits nothing more, and gives up what it took.
///
/// ```text
/// broker 0  | 1 | 2 |        cut off; leads epoch 1 in its own eyes
/// broker 1  | 1 | 3 |        leads epoch 2, ISR 1 and 2
/// broker 2  | 1 | 3 |        a question that it asked in epoch 1 comes late to broker 0
/// ```
#[test]
fn a_leader_that_was_replaced_commits_nothing() {
    let mut world = World::new(3, 1, Plant::None);
    world.write(0);
    world.fetch(1);
    world.fetch(2);
    world.fetch(1);
    world.fetch(2);
    assert_eq!(world.high_watermark(0), 1);
    world.ask(2);
    let late = world.network.pop().unwrap();

    world.nodes[0].cut_from_controller = true;
    world.controller.fence(world.nodes[0].id);
    for n in [1, 2, 1] {
        world.catch_up(n);
        world.begin(n);
    }
    assert!(world.leads(0) && world.leads(1));
    world.write(0);
    world.write(1);
    world.deliver(late);
    world.network.clear();
    world.nodes[2].asked = None;
    world.fetch(2);
    world.fetch(2);
    assert_eq!((world.high_watermark(0), world.high_watermark(1)), (1, 2));
    assert_eq!(world.values(2), [1, 3]);

    world.nodes[0].cut_from_controller = false;
    world.spread();
    world.fetch(0);
    world.fetch(0);
    assert_eq!((world.values(0), world.failure), (vec![1, 3], None));
}

/// The proposal arrives, its answer does not: the new member counts, or it could lead without what
/// was committed in the meantime.
#[test]
fn a_member_that_joined_without_the_leaders_knowledge_counts() {
    let mut world = pair(Plant::None);
    world.write(0);
    world.stop(1);
    world.spread();
    assert_eq!(world.high_watermark(0), 1);
    world.restart(1, true, false);
    world.spread();
    world.fetch(1);
    world.ask(1);
    // The question, the answer to it and the proposal; then the cut.
    for _ in 0..3 {
        let message = world.network.remove(0);
        world.deliver(message);
    }
    world.network.clear();
    world.nodes[0].cut_from_controller = true;
    assert_eq!(world.controller.state().isr.len(), 2);
    world.write(0);
    assert_eq!((world.values(0), world.high_watermark(0)), (vec![1, 2], 1));

    world.stop(0);
    world.spread();
    assert!(world.leads(1));
    assert_eq!((world.values(1), world.failure), (vec![1], None));
}
