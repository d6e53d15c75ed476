//! What goes wrong when: a task that throws dice until it is told to stop.

use std::sync::Arc;
use std::time::Duration;

use crate::dice::{Dice, ms};
use crate::disk::End;
use crate::machine::Machine;
use crate::replicas;
use crate::world::World;

/// Has something go wrong now and then, for `time`; then nothing does, and every machine works.
pub(crate) async fn run(
    world: &World,
    machines: &[Arc<Machine>],
    clients: &[String],
    time: Duration,
) {
    // One trouble may end while another goes on, unless there is only one machine to trouble.
    let troubles = (1..machines.len().clamp(2, 3))
        .map(|number| trouble(world, machines, clients, world.dice(&format!("chaos {number}"))));
    // The time is up: whatever trouble there is ends.
    drop(tokio::time::timeout(time, futures_util::future::join_all(troubles)).await);
    world.end_faults();
    for machine in machines {
        machine.set_slow(false);
        machine.repair();
    }
}

/// One trouble after the other.
async fn trouble(world: &World, machines: &[Arc<Machine>], clients: &[String], dice: Dice) {
    let pauses = ms(20)..dice.time(ms(200)..ms(8000));
    loop {
        tokio::time::sleep(dice.time(pauses.clone())).await;
        let machine = &machines[dice.pick(0..machines.len())];
        // Who talks to it: clients, and the other machines.
        let others = machines.iter().map(|other| other.name()).filter(|it| *it != machine.name());
        let others: Vec<&str> = clients.iter().map(String::as_str).chain(others).collect();
        // What one of two keeps, nobody else may have.
        if machines.len() > 2
            && dice.chance(0.05)
            && replicas::problem(machines).is_none()
            && world.may_lose_disk()
        {
            machine.end(End::Disk);
        }
        one(world, &dice, machine, others[dice.pick(0..others.len())]).await;
    }
}

/// After [`run`]: that every machine is up, every partition serves, and replicas are alike.
pub(crate) async fn check_machines(machines: &[Arc<Machine>]) -> Result<(), String> {
    for machine in machines {
        if let Some(offline) = machine.offline().await {
            return Err(format!("a partition is offline: {offline}"));
        }
    }
    replicas::check(machines).await
}

async fn one(world: &World, dice: &Dice, machine: &Machine, other: &str) {
    let network = &world.network;
    match dice.pick(0..10) {
        0..=2 => machine.end(End::Power),
        3 => machine.end(End::Process),
        4 | 5 => network.break_connections(other, machine.name()),
        6 => {
            machine.set_slow(true);
            tokio::time::sleep(dice.time(ms(100)..ms(5000))).await;
            machine.set_slow(false);
        }
        direction => {
            let one = machine.name();
            if direction != 8 {
                network.cut(one, other);
            }
            if direction != 7 {
                network.cut(other, one);
            }
            tokio::time::sleep(dice.time(ms(50)..ms(8000))).await;
            network.reconnect(one, other);
            network.reconnect(other, one);
        }
    }
}
