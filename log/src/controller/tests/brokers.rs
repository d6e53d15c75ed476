//! Registrations, sessions, stops.

use std::time::Duration;

use tailwater_kafka::wire::ErrorCode;

use super::super::{ControllerAnswer, ControllerRequest, Event, Heartbeat, Settings};
use super::cluster::{Cluster, Start, id, ids, settings};
use crate::metadata::{BrokerEpoch, MetadataIndex};

fn epoch_of(answer: super::cluster::Answer) -> BrokerEpoch {
    match answer {
        Ok(ControllerAnswer::Registered { epoch }) => epoch,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_broker_is_fenced_until_it_has_applied_its_registration() {
    let mut cluster = Cluster::of(settings(), &[1]);
    let before = cluster.image.index();
    cluster.register(id(2), Start::default()).unwrap();
    let lagging = Heartbeat { applied: before, ..cluster.heartbeat(id(2)) };
    assert!(cluster.beat_with(lagging).fenced);
    assert!(cluster.image.broker(id(2)).unwrap().fenced);
    assert!(!cluster.beat(id(2)).fenced);
    assert!(!cluster.image.broker(id(2)).unwrap().fenced);
}

#[test]
fn each_registration_has_a_greater_epoch_and_ends_the_former() {
    let mut cluster = Cluster::of(settings(), &[1]);
    let first = cluster.epoch(id(1));
    let second = epoch_of(cluster.register(id(1), Start::default()));
    assert!(second > first);
    let former = Heartbeat { epoch: first, ..cluster.heartbeat(id(1)) };
    let refusal = cluster.ask(ControllerRequest::Heartbeat(former)).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::StaleBrokerEpoch);
    let stranger = Heartbeat { id: id(7), ..cluster.heartbeat(id(1)) };
    let refusal = cluster.ask(ControllerRequest::Heartbeat(stranger)).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::BrokerIdNotRegistered);
}

#[test]
fn registrations_decided_together_have_different_epochs() {
    let mut cluster = Cluster::of(settings(), &[1]);
    cluster.commits = false;
    let topic = cluster.new_topic("shop");
    cluster.send(ControllerRequest::CreateTopics { topics: vec![topic], validate_only: false });
    let sent: Vec<u64> = (0..3)
        .map(|_| {
            let registration = cluster.registration(id(1), Start::default());
            cluster.send(ControllerRequest::Register(registration))
        })
        .collect();
    cluster.commits = true;
    cluster.commit();
    let mut epochs: Vec<_> =
        sent.iter().map(|sent| epoch_of(cluster.answers.remove(sent).unwrap())).collect();
    epochs.push(epoch_of(cluster.register(id(1), Start::default())));
    assert!(epochs.is_sorted_by(|one, next| one < next), "{epochs:?}");
}

#[test]
fn a_registration_asked_for_again_is_the_same() {
    let mut cluster = Cluster::of(settings(), &[]);
    let registration = cluster.registration(id(1), Start::default());
    let first = epoch_of(cluster.ask(ControllerRequest::Register(registration.clone())));
    cluster.new_controller();
    assert_eq!(epoch_of(cluster.ask(ControllerRequest::Register(registration))), first);
}

#[test]
fn two_brokers_do_not_share_an_id() {
    let mut cluster = Cluster::of(settings(), &[1, 2]);
    let emptied = Start { empty_disk: true, ..Start::default() };
    let refusal = cluster.register(id(2), emptied).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::DuplicateBrokerRegistration);
    assert!(refusal.message.contains("alive at host-2:9092"), "{refusal}");
    // Once the session is over it is taken for the replacement of a dead one.
    cluster.silent(&ids(&[2]));
    cluster.register(id(2), emptied).unwrap();
}

#[test]
fn only_silence_fences_and_a_new_controller_begins_to_count_anew() {
    let mut cluster = Cluster::of(settings(), &[1]);
    assert!(!is_fenced_after(&mut cluster, 900) && !is_fenced_after(&mut cluster, 900));
    cluster.beat(id(1));
    assert!(!is_fenced_after(&mut cluster, 900) && !is_fenced_after(&mut cluster, 900));
    cluster.new_controller();
    assert!(!is_fenced_after(&mut cluster, 900) && !is_fenced_after(&mut cluster, 900));
    assert!(is_fenced_after(&mut cluster, 200));
}

/// Time goes by, by `ms`; whether broker 1 is fenced then.
fn is_fenced_after(cluster: &mut Cluster, ms: u64) -> bool {
    cluster.now += Duration::from_millis(ms);
    cluster.event(Event::Tick);
    cluster.image.broker(id(1)).unwrap().fenced
}

#[test]
fn who_lets_go_of_its_last_heartbeat_has_an_eighth_of_the_time_to_come_back() {
    let mut cluster = Cluster::of(settings(), &[1]);
    let beat = |cluster: &mut Cluster| {
        cluster.send(ControllerRequest::Heartbeat(cluster.heartbeat(id(1))))
    };
    let older = beat(&mut cluster);
    let last = beat(&mut cluster);
    cluster.event(Event::Abandoned { id: older });
    assert!(!is_fenced_after(&mut cluster, 900), "it had come over another connection since");
    cluster.event(Event::Abandoned { id: last });
    assert!(!is_fenced_after(&mut cluster, 200));
    beat(&mut cluster);
    assert!(!is_fenced_after(&mut cluster, 900), "it came back");
    let last = beat(&mut cluster);
    cluster.event(Event::Abandoned { id: last });
    assert!(!is_fenced_after(&mut cluster, 249));
    assert!(is_fenced_after(&mut cluster, 1));
    assert!(!cluster.beat(id(1)).fenced);
}

#[test]
fn who_led_before_has_no_more_to_come_back() {
    let mut cluster = Cluster::of(settings(), &[1, 2]);
    cluster.replace_controller(Some(id(1)));
    assert!(!is_fenced_after(&mut cluster, 249));
    assert!(is_fenced_after(&mut cluster, 1));
    assert!(!cluster.image.broker(id(2)).unwrap().fenced);
    // One that is heard in time is as good as any.
    cluster.start(id(1), Start::default());
    cluster.replace_controller(Some(id(1)));
    assert!(!is_fenced_after(&mut cluster, 200));
    cluster.beat(id(1));
    assert!(!is_fenced_after(&mut cluster, 900) && !is_fenced_after(&mut cluster, 900));
}

#[test]
fn a_controller_that_was_not_running_fences_nobody_for_it() {
    let mut cluster = Cluster::of(settings(), &[1]);
    cluster.now += Duration::from_mins(1);
    cluster.event(Event::Tick);
    assert!(!cluster.image.broker(id(1)).unwrap().fenced);
}

#[test]
fn a_heartbeat_counts_when_it_comes_also_while_a_proposal_is_under_way() {
    let mut cluster = Cluster::of(settings(), &[1]);
    cluster.commits = false;
    let topic = cluster.new_topic("shop");
    cluster.send(ControllerRequest::CreateTopics { topics: vec![topic], validate_only: false });
    let sent: Vec<u64> = (0..10)
        .map(|_| {
            cluster.now += Duration::from_millis(500);
            cluster.event(Event::Tick);
            cluster.send(ControllerRequest::Heartbeat(cluster.heartbeat(id(1))))
        })
        .collect();
    cluster.commits = true;
    cluster.commit();
    assert!(!cluster.image.broker(id(1)).unwrap().fenced);
    assert!(sent.iter().all(|sent| cluster.answers.contains_key(sent)));
}

#[test]
fn who_stops_waits_until_the_others_know() {
    let mut cluster = Cluster::of(settings(), &[1, 2, 3]);
    cluster.create("shop", &ids(&[1, 2]), 1);
    let before = cluster.image.index();
    assert!(!cluster.stop(id(1)).may_stop);
    assert_eq!(cluster.partition("shop").leader, Some(id(2)));
    cluster.beat(id(2));
    assert!(!cluster.stop(id(1)).may_stop);
    let lagging = Heartbeat { applied: before, ..cluster.heartbeat(id(3)) };
    cluster.beat_with(lagging);
    assert!(!cluster.stop(id(1)).may_stop);
    cluster.beat(id(3));
    assert!(cluster.stop(id(1)).may_stop);
    // There is no way back but a restart.
    cluster.beat(id(1));
    assert!(cluster.image.broker(id(1)).unwrap().stopping);
}

#[test]
fn who_stops_does_not_wait_for_the_dead() {
    let mut cluster = Cluster::of(settings(), &[1, 2, 3]);
    cluster.silent(&ids(&[3]));
    assert!(!cluster.stop(id(1)).may_stop);
    cluster.beat(id(2));
    assert!(cluster.stop(id(1)).may_stop);
}

#[test]
fn a_broker_alone_may_stop_at_once() {
    let mut cluster = Cluster::of(settings(), &[1]);
    cluster.create("shop", &ids(&[1]), 1);
    assert!(cluster.stop(id(1)).may_stop);
    // It serves until it is gone.
    assert_eq!(cluster.partition("shop").leader, Some(id(1)));
    cluster.start(id(1), Start::default());
    assert_eq!(cluster.partition("shop").leader, Some(id(1)));
    assert!(!cluster.image.broker(id(1)).unwrap().stopping);
}

#[test]
fn a_broker_is_unregistered_when_it_is_gone_and_has_nothing() {
    let mut cluster = Cluster::of(settings(), &[1, 2]);
    cluster.create("shop", &ids(&[1, 2]), 1);
    let unregister = ControllerRequest::UnregisterBroker { id: id(2) };
    let refusal = cluster.ask(unregister.clone()).unwrap_err();
    assert!(refusal.message.contains("stop it first"), "{refusal}");
    cluster.silent(&ids(&[2]));
    let refusal = cluster.ask(unregister.clone()).unwrap_err();
    assert!(refusal.message.contains("1 partitions, shop-0 among them"), "{refusal}");
    cluster.reassign("shop", Some(ids(&[1]))).unwrap();
    cluster.ask(unregister.clone()).unwrap();
    assert!(cluster.image.broker(id(2)).is_none());
    assert_eq!(cluster.ask(unregister).unwrap_err().code, ErrorCode::BrokerIdNotRegistered);
}

#[test]
fn preferred_leaders_get_their_partitions_back_in_time() {
    let interval = Duration::from_secs(60);
    let mut cluster =
        Cluster::of(Settings { rebalance_interval: Some(interval), ..settings() }, &[1, 2]);
    cluster.create("shop", &ids(&[1, 2]), 1);
    cluster.create("lagging", &ids(&[1, 2]), 1);
    cluster.silent(&ids(&[1]));
    cluster.beat(id(1));
    cluster.alter(cluster.isr_change("shop", &ids(&[1, 2]))).unwrap();
    let leaders = |cluster: &Cluster| {
        ["shop", "lagging"].map(|topic| cluster.partition(topic).leader.unwrap().get())
    };
    assert_eq!(leaders(&cluster), [2, 2]);
    let until = cluster.now + interval;
    while cluster.now < until {
        cluster.now += Duration::from_millis(500);
        for broker in [1, 2] {
            cluster.beat(id(broker));
        }
        cluster.event(Event::Tick);
    }
    assert_eq!(leaders(&cluster), [1, 2]);
}

#[test]
fn producer_ids_are_given_once() {
    let mut cluster = Cluster::of(settings(), &[1, 2]);
    let mut seen = Vec::new();
    for broker in [1, 2, 1] {
        let epoch = cluster.epoch(id(broker));
        match cluster.ask(ControllerRequest::AllocateProducerIds { id: id(broker), epoch }) {
            Ok(ControllerAnswer::ProducerIds { first, count }) => seen.push((first.get(), count)),
            other => panic!("{other:?}"),
        }
        cluster.new_controller();
    }
    assert_eq!(seen, [(0, 1000), (1000, 1000), (2000, 1000)]);
    let stale = ControllerRequest::AllocateProducerIds { id: id(1), epoch: BrokerEpoch::new(0) };
    assert_eq!(cluster.ask(stale).unwrap_err().code, ErrorCode::StaleBrokerEpoch);
    assert!(cluster.image.index() > MetadataIndex::ZERO);
}
