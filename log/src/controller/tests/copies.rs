//! Copies that their brokers cannot use.

use tailwater_kafka::wire::ErrorCode;

use super::super::Heartbeat;
use super::cluster::{Cluster, Start, id, ids, settings};
use super::script::check;

#[test]
fn a_copy_that_goes_offline_leads_no_more_and_comes_back_as_any_follower() {
    check(
        "start 1 2 3
         topic 1 2 3 min 2      => isr 1 2 3  elr -  leader 1@0
         offline 1              => isr 2 3    elr -  leader 2@1
         offline 1              => isr 2 3    elr -  leader 2@1
         isr 1 2 3              => IneligibleReplica
         beat 1                 => isr 2 3    elr -  leader 2@1
         usable 1               => isr 2 3    elr -  leader 2@2
         isr 1 2 3              => isr 1 2 3  elr -  leader 2@2",
    );
}

/// What is written while it is offline is not there, and what was there is not trusted.
#[test]
fn it_is_eligible_only_if_nobody_else_is_complete() {
    check(
        "start 1 2 3
         topic 1 2 3 min 2      => isr 1 2 3  elr -  leader 1@0
         offline 1              => isr 2 3    elr -  leader 2@1
         offline 2              => isr 3      elr -  leader 3@2
         silent 3               => isr -      elr 3  leader -@3
         usable 1               => isr -      elr 3  leader -@4
         beat 3                 => isr 3      elr -  leader 3@5",
    );
}

#[test]
fn the_last_complete_copy_is_waited_for() {
    check(
        "start 1 2
         topic 1 2 min 1        => isr 1 2  elr -  leader 1@0
         silent 2               => isr 1    elr -  leader 1@0
         offline 1              => isr -    elr 1  leader -@1
         beat 2                 => isr -    elr 1  leader -@1
         beat 1                 => isr -    elr 1  leader -@1
         register 1 unclean     => isr -    elr 1  leader -@1
         beat 1                 => isr -    elr 1  leader -@1
         usable 1               => isr 1    elr -  leader 1@2
         isr 1 2                => isr 1 2  elr -  leader 1@2",
    );
}

#[test]
fn an_operator_may_give_up_the_last_complete_copy() {
    check(
        "start 1 2
         topic 1 2 min 1        => isr 1 2  elr -  leader 1@0
         silent 2               => isr 1    elr -  leader 1@0
         offline 1              => isr -    elr 1  leader -@1
         elect unclean          => EligibleLeadersNotAvailable
         beat 2                 => isr -    elr 1  leader -@1
         elect unclean          => isr 2    elr -  leader 2@2
         usable 1               => isr 2    elr -  leader 2@3",
    );
}

#[test]
fn members_that_are_silent_are_relied_on_before_a_copy_that_is_offline() {
    check(
        "start 1 2 3
         topic 1 2 3 min 2      => isr 1 2 3  elr -  leader 1@0
         silent 2 3             => isr 1      elr 2 3  leader 1@0
         offline 1              => isr -      elr 2 3  leader -@1
         usable 1               => isr -      elr 2 3  leader -@2
         beat 3                 => isr 3      elr 2    leader 3@3",
    );
}

/// Its first heartbeat says both that it has caught up and what it cannot use.
#[test]
fn a_broker_that_comes_back_damaged_is_not_elected_in_passing() {
    let mut cluster = Cluster::of(settings(), &[1]);
    cluster.create("t", &ids(&[1]), 1);
    cluster.register(id(1), Start { unclean: true, ..Start::default() }).unwrap();
    let copies = vec![cluster.copy_report("t", true)];
    let beat = cluster.beat_with(Heartbeat { copies, ..cluster.heartbeat(id(1)) });
    assert!(!beat.fenced);
    let state = cluster.partition("t");
    assert_eq!((state.leader, &state.isr[..], &state.elr[..]), (None, &[][..], &ids(&[1])[..]));
    assert_eq!(state.offline, ids(&[1]));
    cluster.report(id(1), "t", false);
    assert_eq!(cluster.partition("t").leader, Some(id(1)));
}

#[test]
fn a_copy_that_is_moved_away_is_forgotten_with_its_state() {
    let mut cluster = Cluster::of(settings(), &[1, 2]);
    cluster.create("t", &ids(&[1]), 1);
    cluster.reassign("t", Some(ids(&[2]))).unwrap();
    let report = cluster.copy_report("t", true);
    cluster.report(id(2), "t", true);
    let refused = cluster.alter(cluster.isr_change("t", &ids(&[1, 2]))).unwrap_err();
    assert_eq!(refused.code, ErrorCode::IneligibleReplica);
    cluster.reassign("t", None).unwrap();
    assert_eq!(cluster.partition("t").offline, []);
    // Of a partition that it has no part in.
    cluster.beat_with(Heartbeat { copies: vec![report], ..cluster.heartbeat(id(2)) });
    assert_eq!(cluster.partition("t").offline, []);
}
