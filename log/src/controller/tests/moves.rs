//! Reassignments.

use super::cluster::{Cluster, ids, settings};
use super::script::check;

#[test]
fn a_move_is_complete_when_the_target_is_in_sync() {
    check(
        "start 1 2 3 4 5
         topic 1 2 3 min 2   => isr 1 2 3 elr - leader 1@0
         move 4 2 5          => replicas 4 2 5 1 3 adding 4 5 removing 1 3 isr 2 1 3   elr - leader 1@0
         isr 1 2 3 4         => replicas 4 2 5 1 3 adding 4 5 removing 1 3 isr 4 2 1 3 elr - leader 1@0
         isr 1 2 3 4 5       => replicas 4 2 5     adding -   removing -   isr 4 2 5   elr - leader 4@1",
    );
}

#[test]
fn a_move_can_be_taken_back() {
    check(
        "start 1 2 3 4
         topic 1 2 min 2     => isr 1 2 elr - leader 1@0
         move back           => NoReassignmentInProgress
         move 3 4            => replicas 3 4 1 2 adding 3 4 removing 1 2 isr 1 2   elr - leader 1@0
         isr 1 2 3           => replicas 3 4 1 2 adding 3 4 removing 1 2 isr 3 1 2 elr - leader 1@0
         move back           => replicas 1 2     adding -   removing -   isr 1 2   elr - leader 1@0",
    );
}

#[test]
fn another_target_replaces_one_that_is_not_reached() {
    check(
        "start 1 2 3 4 5
         topic 1 2 min 1     => isr 1 2 elr - leader 1@0
         move 3 4            => replicas 3 4 1 2 adding 3 4 removing 1 2 isr 1 2   elr - leader 1@0
         isr 1 2 3           => replicas 3 4 1 2 adding 3 4 removing 1 2 isr 3 1 2 elr - leader 1@0
         move 1 5            => replicas 1 5 2   adding 5   removing 2   isr 1 2   elr - leader 1@0
         isr 1 2 5           => replicas 1 5     adding -   removing -   isr 1 5   elr - leader 1@0",
    );
}

#[test]
fn more_and_fewer_replicas_and_another_order_are_moves_too() {
    check(
        "start 1 2 3
         topic 1 min 2       => isr 1 elr - leader 1@0
         move 1 2 3          => replicas 1 2 3 adding 2 3 removing - isr 1     elr - leader 1@0
         isr 1 2             => replicas 1 2 3 adding 2 3 removing - isr 1 2   elr - leader 1@0
         isr 1 2 3           => replicas 1 2 3 adding -   removing - isr 1 2 3 elr - leader 1@0
         move 3 1 2          => replicas 3 1 2 adding -   removing - isr 3 1 2 elr - leader 1@0
         move 2              => replicas 2     adding -   removing - isr 2     elr - leader 2@1",
    );
}

#[test]
fn a_target_that_is_down_holds_the_move_until_it_is_back() {
    check(
        "start 1 2 3
         topic 1 2 3 min 1   => isr 1 2 3 elr - leader 1@0
         silent 2            => isr 1 3   elr - leader 1@0
         move 2 1            => replicas 2 1 3 adding - removing 3 isr 1 3 elr - leader 1@0
         beat 2              => replicas 2 1 3 adding - removing 3 isr 1 3 elr - leader 1@0
         isr 1 2 3           => replicas 2 1   adding - removing - isr 2 1 elr - leader 1@0",
    );
}

#[test]
fn taking_back_keeps_the_last_who_has_everything() {
    check(
        "start 1 2
         topic 1 min 1         => isr 1 elr - leader 1@0
         move 2                => replicas 2 1 adding 2 removing 1 isr 1 elr - leader 1@0
         isr 1 2               => replicas 2   adding - removing - isr 2 elr - leader 2@1
         move 1 2              => replicas 1 2 adding 1 removing - isr 2 elr - leader 2@1
         silent 2              => replicas 1 2 adding 1 removing - isr - elr 2 leader -@2
         move 1                => replicas 1 2 adding 1 removing 2 isr - elr 2 leader -@2
         elect unclean         => replicas 1   adding - removing - isr 1 elr - leader 1@3",
    );
    // Two complete replicas that are being added are needed for a target that is not reached.
    check(
        "start 1 2 3
         topic 1 min 1         => isr 1 elr - leader 1@0
         move 2 3              => replicas 2 3 1 adding 2 3 removing 1 isr 1   elr - leader 1@0
         isr 1 2               => replicas 2 3 1 adding 2 3 removing 1 isr 2 1 elr - leader 1@0
         silent 1              => replicas 2 3 1 adding 2 3 removing 1 isr 2   elr - leader 2@1
         move back             => InvalidReplicaAssignment
         beat 1                => replicas 2 3 1 adding 2 3 removing 1 isr 2   elr - leader 2@1
         isr 1 2               => replicas 2 3 1 adding 2 3 removing 1 isr 2 1 elr - leader 2@1
         move back             => replicas 1     adding -   removing - isr 1   elr - leader 1@2",
    );
}

#[test]
fn a_wrong_target_is_refused_in_words() {
    let mut cluster = Cluster::of(settings(), &[1, 2, 3]);
    cluster.create("shop", &ids(&[1, 2]), 1);
    cluster.silent(&ids(&[3]));
    for (target, named) in [
        (vec![], "without replicas"),
        (ids(&[1, 1]), "twice"),
        (ids(&[1, 9]), "no broker 9"),
        (ids(&[1, 3]), "broker 3 is not live"),
    ] {
        let refusal = cluster.reassign("shop", Some(target)).unwrap_err();
        assert!(refusal.message.contains(named), "{refusal}");
    }
    assert!(!cluster.partition("shop").is_reassigning());
    assert!(cluster.reassign("other", None).is_err());
}
