//! ISR, eligible leaders and elections of one partition.

use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::{LeaderEpoch, PartitionId, TopicId};
use uuid::Uuid;

use super::cluster::{Cluster, id, ids, settings};
use super::script::check;
use crate::metadata::{BrokerEpoch, PartitionEpoch};

#[test]
fn the_next_in_the_order_of_replicas_leads_when_the_leader_is_silent() {
    check(
        "start 1 2 3
         topic 2 3 1 min 2      => isr 2 3 1  elr -  leader 2@0
         silent 2               => isr 3 1    elr -  leader 3@1
         beat 2                 => isr 3 1    elr -  leader 3@1
         isr 1 2 3              => isr 2 3 1  elr -  leader 3@1
         silent 1               => isr 2 3    elr -  leader 3@1",
    );
}

#[test]
fn below_min_isr_who_leaves_stays_eligible() {
    check(
        "start 1 2 3
         topic 1 2 3 min 2      => isr 1 2 3  elr -    leader 1@0
         silent 3               => isr 1 2    elr -    leader 1@0
         silent 2               => isr 1      elr 2    leader 1@0
         silent 1               => isr -      elr 1 2  leader -@1
         beat 3                 => isr -      elr 1 2  leader -@1
         beat 2                 => isr 2      elr 1    leader 2@2
         isr 2 3                => isr 2 3    elr -    leader 2@2
         beat 1                 => isr 2 3    elr -    leader 2@2
         isr 1 2 3              => isr 1 2 3  elr -    leader 2@2
         elect preferred        => isr 1 2 3  elr -    leader 1@3",
    );
}

#[test]
fn what_the_leader_takes_out_below_min_isr_stays_eligible() {
    check(
        "start 1 2 3
         topic 1 2 3 min 2      => isr 1 2 3  elr -    leader 1@0
         isr 1                  => isr 1      elr 2 3  leader 1@0
         silent 1               => isr 2      elr 1 3  leader 2@1
         isr 2 3                => isr 2 3    elr -    leader 2@1",
    );
}

#[test]
fn when_all_are_silent_at_once_the_first_back_leads() {
    check(
        "start 1 2 3
         topic 1 2 3 min 1      => isr 1 2 3  elr -      leader 1@0
         silent 1 2 3           => isr -      elr 1 2 3  leader -@1
         beat 3                 => isr 3      elr -      leader 3@2",
    );
}

#[test]
fn with_one_replica_its_return_is_a_new_reign() {
    check(
        "start 1
         topic 1 min 1          => isr 1  elr -  leader 1@0
         silent 1               => isr -  elr 1  leader -@1
         beat 1                 => isr 1  elr -  leader 1@2
         register 1             => isr -  elr 1  leader -@3
         beat 1                 => isr 1  elr -  leader 1@4",
    );
}

#[test]
fn a_restart_keeps_what_was_flushed() {
    check(
        "start 1 2
         topic 1 2 min 2        => isr 1 2  elr -    leader 1@0
         register 2 unclean     => isr 1    elr 2    leader 1@0
         register 1             => isr -    elr 1 2  leader -@1
         beat 2                 => isr 2    elr 1    leader 2@2",
    );
}

#[test]
fn an_unclean_restart_loses_what_was_not_flushed() {
    check(
        "start 1 2
         topic 1 2 min 2                => isr 1 2  elr -  leader 1@0
         register 2 unclean unflushed   => isr 1    elr -  leader 1@0
         beat 2                         => isr 1    elr -  leader 1@0
         silent 1                       => isr -    elr 1  leader -@1
         beat 1                         => isr 1    elr -  leader 1@2
         isr 1 2                        => isr 1 2  elr -  leader 1@2
         register 2 unflushed           => isr 1    elr 2  leader 1@2",
    );
}

#[test]
fn the_only_replica_is_never_forgotten_for_what_it_did_not_flush() {
    check(
        "start 1
         topic 1 min 1                  => isr 1  elr -  leader 1@0
         register 1 unclean unflushed   => isr -  elr 1  leader -@1
         beat 1                         => isr 1  elr -  leader 1@2",
    );
}

#[test]
fn an_empty_disk_never_leads_by_itself() {
    check(
        "start 1 2
         topic 1 2 min 2        => isr 1 2  elr -    leader 1@0
         silent 1 2             => isr -    elr 1 2  leader -@1
         register 1 emptied     => isr -    elr 2    leader -@1
         beat 1                 => isr -    elr 2    leader -@1
         elect unclean          => isr 1    elr -    leader 1@2
         beat 2                 => isr 1    elr -    leader 1@2
         elect unclean          => ElectionNotNeeded",
    );
}

#[test]
fn an_unclean_election_takes_the_last_leader_first() {
    check(
        "start 1 2 3
         topic 1 2 3 min 1      => isr 1 2 3  elr -  leader 1@0
         silent 1               => isr 2 3    elr -  leader 2@1
         isr 2                  => isr 2      elr -  leader 2@1
         silent 2 3             => isr -      elr 2  leader -@2
         elect unclean          => EligibleLeadersNotAvailable
         register 2 emptied     => isr -      elr -  leader -@2
         beat 3                 => isr -      elr -  leader -@2
         beat 2                 => isr -      elr -  leader -@2
         elect unclean          => isr 2      elr -  leader 2@3",
    );
}

#[test]
fn a_preferred_election_needs_the_preferred_replica_in_sync() {
    check(
        "start 1 2
         topic 1 2 min 1        => isr 1 2  elr -  leader 1@0
         elect preferred        => ElectionNotNeeded
         silent 1               => isr 2    elr -  leader 2@1
         beat 1                 => isr 2    elr -  leader 2@1
         elect preferred        => PreferredLeaderNotAvailable
         isr 1 2                => isr 1 2  elr -  leader 2@1
         elect preferred        => isr 1 2  elr -  leader 1@2",
    );
}

#[test]
fn who_stops_hands_over_first() {
    check(
        "start 1 2 3
         topic 1 2 3 min 2      => isr 1 2 3  elr -    leader 1@0
         stop 1                 => isr 2 3    elr -    leader 2@1
         isr 1 2 3              => IneligibleReplica
         stop 2                 => isr 3      elr 2    leader 3@2
         stop 3                 => isr 3      elr 2    leader 3@2
         start 1                => isr 3      elr 2    leader 3@2
         isr 1 3                => isr 1      elr 2 3  leader 1@3",
    );
}

#[test]
fn a_lower_min_isr_ends_eligibility_a_higher_one_does_not_begin_it() {
    check(
        "start 1 2 3
         topic 1 2 3 min 2      => isr 1 2 3  elr -    leader 1@0
         isr 1                  => isr 1      elr 2 3  leader 1@0
         min 3                  => isr 1      elr 2 3  leader 1@0
         min 1                  => isr 1      elr -    leader 1@0
         min 3                  => isr 1      elr -    leader 1@0
         isr 1 2                => isr 1 2    elr -    leader 1@0
         silent 1               => isr 2      elr 1    leader 2@1",
    );
}

#[test]
fn another_controller_decides_alike() {
    check(
        "start 1 2
         topic 1 2 min 2        => isr 1 2  elr -  leader 1@0
         silent 1               => isr 2    elr 1  leader 2@1
         controller             => isr 2    elr 1  leader 2@1
         beat 1                 => isr 2    elr 1  leader 2@1
         isr 1 2                => isr 1 2  elr -  leader 2@1",
    );
}

#[test]
fn a_proposal_counts_only_in_the_state_it_builds_on() {
    let mut cluster = Cluster::of(settings(), &[1, 2, 3, 4]);
    cluster.create("shop", &ids(&[1, 2, 3]), 1);
    cluster.silent(&ids(&[1, 4]));
    assert_eq!(cluster.partition("shop").leader, Some(id(2)));
    cluster.beat(id(1));
    cluster.beat(id(4));
    let good = cluster.isr_change("shop", &ids(&[1, 2, 3]));

    let mut refused = |expected: ErrorCode, change: &dyn Fn(&mut super::super::IsrChange)| {
        let mut request = good.clone();
        change(&mut request.changes[0]);
        let state = cluster.partition("shop").clone();
        assert_eq!(cluster.alter(request).unwrap_err().code, expected);
        assert_eq!(*cluster.partition("shop"), state);
    };
    let old = LeaderEpoch::new(0);
    refused(ErrorCode::FencedLeaderEpoch, &|change| change.leader_epoch = old);
    refused(ErrorCode::NotController, &|change| change.leader_epoch = LeaderEpoch::new(9));
    let old = PartitionEpoch::new(good.changes[0].partition_epoch.get() - 1);
    refused(ErrorCode::InvalidUpdateVersion, &|change| change.partition_epoch = old);
    refused(ErrorCode::NotController, &|change| change.partition_epoch = PartitionEpoch::new(99));
    let unknown = TopicId::new(Uuid::from_u128(999));
    refused(ErrorCode::UnknownTopicId, &|change| change.topic = unknown);
    refused(ErrorCode::UnknownTopicOrPartition, &|change| change.partition = PartitionId::new(1));
    refused(ErrorCode::InvalidRequest, &|change| change.isr.retain(|(one, _)| *one != id(2)));
    refused(ErrorCode::InvalidRequest, &|change| change.isr.push(change.isr[0]));
    refused(ErrorCode::InvalidRequest, &|change| change.isr.push((id(4), BrokerEpoch::NONE)));
    refused(ErrorCode::IneligibleReplica, &|change| change.isr[0].1 = BrokerEpoch::NONE);
    refused(ErrorCode::IneligibleReplica, &|change| change.isr[0].1 = BrokerEpoch::new(99));

    // Another broker than the leader, in the leader's state.
    let mut usurper = good.clone();
    (usurper.id, usurper.epoch) = (id(3), cluster.epoch(id(3)));
    assert_eq!(cluster.alter(usurper).unwrap_err().code, ErrorCode::InvalidRequest);
    let mut former_self = good.clone();
    former_self.epoch = BrokerEpoch::new(0);
    assert_eq!(cluster.alter(former_self).unwrap_err().code, ErrorCode::StaleBrokerEpoch);
    let mut stranger = good.clone();
    stranger.id = id(9);
    assert_eq!(cluster.alter(stranger).unwrap_err().code, ErrorCode::BrokerIdNotRegistered);

    assert_eq!(cluster.alter(good.clone()).unwrap().isr, ids(&[1, 2, 3]));
    // Once: the state it built on is gone.
    assert_eq!(cluster.alter(good).unwrap_err().code, ErrorCode::InvalidUpdateVersion);
}

#[test]
fn who_registered_anew_since_it_caught_up_is_not_taken_into_the_isr() {
    let mut cluster = Cluster::of(settings(), &[1, 2]);
    cluster.create("shop", &ids(&[1, 2]), 1);
    cluster.alter(cluster.isr_change("shop", &ids(&[1]))).unwrap();
    let caught_up = cluster.isr_change("shop", &ids(&[1, 2]));
    cluster.start(id(2), super::cluster::Start::default());
    assert_eq!(cluster.alter(caught_up).unwrap_err().code, ErrorCode::IneligibleReplica);
    assert_eq!(cluster.partition("shop").isr, ids(&[1]));
}
