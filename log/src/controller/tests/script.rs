//! Scenarios of one partition as a drawing: what happens on the left, what it then is on the right.
//!
//! ```text
//! start 1 2 3
//! topic 1 2 3 min 2          => isr 1 2 3  elr -    leader 1@0
//! silent 1                   => isr 2 3    elr -    leader 2@1
//! ```
//!
//! | step | |
//! |---|---|
//! | `start 1 2` | these brokers register, as after a clean stop, and are unfenced |
//! | `register 1 [unclean] [unflushed] [emptied]` | it registers only: how it went down and comes back |
//! | `beat 1` | a heartbeat that has applied everything |
//! | `silent 1 2` | they are not heard of for longer than the session time-out |
//! | `offline 1`, `usable 1` | a heartbeat says that its copy is that |
//! | `stop 1 2` | their heartbeats say that they want to stop |
//! | `topic 1 2 3 min 2` | a topic of one partition on these, with `min.insync.replicas` 2 |
//! | `min 1` | its `min.insync.replicas` becomes 1 |
//! | `isr 1 2` | the leader proposes this ISR |
//! | `move 4 2`, `move back` | a reassignment |
//! | `elect preferred`, `elect unclean` | an election is asked for |
//! | `controller` | another controller takes over |
//!
//! On the right stands the state (`replicas`, `adding`, `removing` only where it names them; leader
//! epoch behind the `@`), or the code with which the step is refused.

use tailwater_kafka::{BrokerId, PartitionId, TopicPartition};

use super::super::requests::ElectionKind;
use super::super::{ControllerRequest, Refusal};
use super::cluster::{Cluster, Start, id, only_done, settings};
use crate::metadata::PartitionState;

const TOPIC: &str = "shop";

/// Runs a scenario.
pub(super) fn check(script: &str) {
    let mut cluster = Cluster::new(settings());
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (step, expected) = line.split_once("=>").unwrap_or((line, ""));
        let before = cluster.image.topic_by_name(TOPIC).is_some().then(|| {
            let state = cluster.partition(TOPIC);
            (state.leader, state.leader_epoch, state.partition_epoch)
        });
        let outcome = run(&mut cluster, step.trim());
        let expected: Vec<&str> = expected.split_whitespace().collect();
        let actual = match &outcome {
            Ok(()) if expected.is_empty() => continue,
            Ok(()) => show(cluster.partition(TOPIC), expected.contains(&"replicas")),
            Err(refusal) => format!("{:?}", refusal.code),
        };
        let actual: Vec<&str> = actual.split_whitespace().collect();
        assert_eq!(actual, expected, "after {step:?} ({outcome:?})");
        if let Some((leader, leader_epoch, partition_epoch)) = before {
            let now = cluster.partition(TOPIC);
            let is_new_reign = now.leader != leader || step.trim().starts_with("usable");
            assert_eq!(now.leader_epoch > leader_epoch, is_new_reign, "after {step:?}");
            assert!(now.partition_epoch >= partition_epoch, "after {step:?}");
        }
    }
}

fn run(cluster: &mut Cluster, step: &str) -> Result<(), Refusal> {
    let mut words = step.split_whitespace();
    let verb = words.next().expect("a step");
    let words: Vec<&str> = words.collect();
    let brokers: Vec<BrokerId> = words.iter().map_while(|word| word.parse().ok()).map(id).collect();
    match verb {
        "start" => brokers.iter().for_each(|broker| cluster.start(*broker, Start::default())),
        "register" => {
            let start = Start {
                unclean: words.contains(&"unclean"),
                keeps_unflushed: words.contains(&"unflushed"),
                empty_disk: words.contains(&"emptied"),
            };
            cluster.register(brokers[0], start)?;
        }
        "beat" => {
            cluster.beat(brokers[0]);
        }
        "offline" => cluster.report(brokers[0], TOPIC, true),
        "usable" => cluster.report(brokers[0], TOPIC, false),
        "silent" => cluster.silent(&brokers),
        "stop" => {
            for broker in &brokers {
                cluster.stop(*broker);
            }
        }
        "topic" => {
            let min_isr = words.last().and_then(|word| word.parse().ok()).expect("min n");
            cluster.create(TOPIC, &brokers, min_isr);
        }
        "min" => cluster.configure(TOPIC, "min.insync.replicas", words[0])?,
        "isr" => drop(cluster.alter(cluster.isr_change(TOPIC, &brokers))?),
        "move" => cluster.reassign(TOPIC, (words[0] != "back").then_some(brokers))?,
        "elect" => {
            let kind = match words[0] {
                "preferred" => ElectionKind::Preferred,
                _ => ElectionKind::Unclean,
            };
            let partitions = Some(vec![TopicPartition::new(TOPIC, PartitionId::new(0))]);
            cluster
                .ask(ControllerRequest::ElectLeaders { kind, partitions })
                .and_then(only_done)?;
        }
        "controller" => cluster.new_controller(),
        other => panic!("no such step: {other}"),
    }
    Ok(())
}

fn show(state: &PartitionState, with_replicas: bool) -> String {
    let list = |ids: &[BrokerId]| match ids {
        [] => "-".to_owned(),
        ids => ids.iter().map(BrokerId::to_string).collect::<Vec<_>>().join(" "),
    };
    let leader = state.leader.map_or_else(|| "-".to_owned(), |leader| leader.to_string());
    let replicas = if with_replicas {
        let (all, adding, removing) =
            (list(&state.replicas), list(&state.adding), list(&state.removing));
        format!("replicas {all} adding {adding} removing {removing} ")
    } else {
        String::new()
    };
    let (isr, elr) = (list(&state.isr), list(&state.elr));
    format!("{replicas}isr {isr} elr {elr} leader {leader}@{}", state.leader_epoch)
}
