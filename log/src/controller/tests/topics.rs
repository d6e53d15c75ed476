//! Topics: made, placed, grown, set, deleted.

use std::collections::{BTreeMap, BTreeSet};

use tailwater_kafka::BrokerId;
use tailwater_kafka::wire::ErrorCode;

use super::super::requests::MorePartitions;
use super::super::{ControllerAnswer, ControllerRequest, Settings, TopicRef};
use super::cluster::{Cluster, id, ids, only_done, settings};

fn create(cluster: &mut Cluster, name: &str, partitions: i32, factor: i16) {
    let mut topic = cluster.new_topic(name);
    (topic.partitions, topic.replication_factor) = (partitions, factor);
    cluster.try_create(topic).unwrap();
}

fn replicas(cluster: &Cluster, name: &str) -> Vec<Vec<BrokerId>> {
    let (_, topic) = cluster.image.topic_by_name(name).unwrap();
    topic.partitions.values().map(|state| state.replicas.clone()).collect()
}

fn counts(of: impl Iterator<Item = BrokerId>) -> BTreeMap<i32, usize> {
    let mut counts = BTreeMap::new();
    for id in of {
        *counts.entry(id.get()).or_default() += 1;
    }
    counts
}

#[test]
fn leaders_and_replicas_are_spread_evenly() {
    let mut cluster = Cluster::of(settings(), &[1, 2, 3, 4, 5]);
    create(&mut cluster, "shop", 20, 3);
    let placed = replicas(&cluster, "shop");
    let leaders = counts(placed.iter().map(|replicas| replicas[0]));
    assert!(leaders.len() == 5 && leaders.values().all(|count| *count == 4), "{leaders:?}");
    let all = counts(placed.iter().flatten().copied());
    assert!(all.values().all(|count| *count == 12), "{all:?}");
    for replicas in &placed {
        assert_eq!(replicas.iter().collect::<BTreeSet<_>>().len(), 3);
    }
    // What one leads would go to several others.
    for leader in ids(&[1, 2, 3, 4, 5]) {
        let heirs: BTreeSet<_> =
            placed.iter().filter(|one| one[0] == leader).flat_map(|one| &one[1..]).collect();
        assert!(heirs.len() >= 3, "{leader}: {heirs:?}");
    }
}

#[test]
fn small_topics_do_not_all_go_to_the_same_broker() {
    let mut cluster = Cluster::of(settings(), &[1, 2, 3]);
    for number in 0..6 {
        create(&mut cluster, &format!("t{number}"), 1, 2);
    }
    let leaders = counts((0..6).map(|number| replicas(&cluster, &format!("t{number}"))[0][0]));
    assert_eq!(leaders, BTreeMap::from([(1, 2), (2, 2), (3, 2)]));
}

#[test]
fn replicas_stand_in_different_racks() {
    let mut cluster = Cluster::new(settings());
    for (broker, rack) in [(1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "c"), (6, "c")] {
        cluster.set_rack(id(broker), rack);
        cluster.start(id(broker), super::cluster::Start::default());
    }
    create(&mut cluster, "shop", 12, 3);
    let rack = |id: &BrokerId| (id.get() + 1) / 2;
    for replicas in replicas(&cluster, "shop") {
        assert_eq!(replicas.iter().map(rack).collect::<BTreeSet<_>>().len(), 3, "{replicas:?}");
    }
    let leaders = counts(replicas(&cluster, "shop").iter().map(|replicas| replicas[0]));
    assert!(leaders.values().all(|count| *count == 2), "{leaders:?}");
}

#[test]
fn the_same_metadata_gives_the_same_placement() {
    let placed = || {
        let mut cluster = Cluster::of(settings(), &[3, 1, 2]);
        create(&mut cluster, "shop", 7, 2);
        replicas(&cluster, "shop")
    };
    assert_eq!(placed(), placed());
}

#[test]
fn fenced_and_stopping_brokers_get_nothing() {
    let mut cluster = Cluster::of(settings(), &[1, 2, 3, 4]);
    cluster.silent(&ids(&[2]));
    cluster.stop(id(3));
    create(&mut cluster, "shop", 4, 2);
    let all: BTreeSet<_> = replicas(&cluster, "shop").into_iter().flatten().collect();
    assert_eq!(all, BTreeSet::from([id(1), id(4)]));
}

#[test]
fn too_few_brokers_are_named() {
    let mut cluster = Cluster::new(settings());
    let refusal = |cluster: &mut Cluster, factor| {
        let mut topic = cluster.new_topic("shop");
        topic.replication_factor = factor;
        let refusal = cluster.try_create(topic).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::InvalidReplicationFactor);
        refusal.message
    };
    assert!(refusal(&mut cluster, 1).contains("no broker is live"));
    cluster.start(id(1), super::cluster::Start::default());
    assert!(refusal(&mut cluster, 3).contains("only one broker is live (1)"));
    cluster.start(id(4), super::cluster::Start::default());
    assert_eq!(
        refusal(&mut cluster, 3),
        "replication factor 3, but only 2 brokers are live (1, 4): start more brokers or ask for \
         fewer replicas"
    );
    assert!(refusal(&mut cluster, 0).contains("the least is 1"));
}

#[test]
fn defaults_are_the_settings() {
    let settings = Settings { default_partitions: 5, default_replication_factor: 2, ..settings() };
    let mut cluster = Cluster::of(settings, &[1, 2]);
    create(&mut cluster, "shop", -1, -1);
    let placed = replicas(&cluster, "shop");
    assert!(placed.len() == 5 && placed.iter().all(|replicas| replicas.len() == 2));
}

#[test]
fn wrong_topics_are_refused_and_leave_no_trace() {
    let mut cluster = Cluster::of(settings(), &[1, 2]);
    create(&mut cluster, "taken", 1, 1);
    let good = cluster.new_topic("shop");
    let before = cluster.image.clone();
    let mut refused = |code: ErrorCode, change: &dyn Fn(&mut super::super::NewTopic)| {
        let mut topic = good.clone();
        change(&mut topic);
        assert_eq!(cluster.try_create(topic).unwrap_err().code, code);
        assert_eq!(cluster.image, before);
    };
    refused(ErrorCode::InvalidTopicException, &|topic| topic.name = "a/b".to_owned());
    refused(ErrorCode::TopicAlreadyExists, &|topic| topic.name = "taken".to_owned());
    refused(ErrorCode::InvalidPartitions, &|topic| topic.partitions = 0);
    refused(ErrorCode::InvalidPartitions, &|topic| topic.partitions = i32::MAX);
    refused(ErrorCode::InvalidConfig, &|topic| {
        topic.configs.insert("min.insync.replicas".to_owned(), "0".to_owned());
    });
    refused(ErrorCode::InvalidConfig, &|topic| {
        topic.configs.insert("colour".to_owned(), "red".to_owned());
    });
    let assign = |replicas: &[&[i32]]| replicas.iter().map(|one| ids(one)).collect::<Vec<_>>();
    let wrong = ErrorCode::InvalidReplicaAssignment;
    refused(wrong, &|topic| topic.assignments = assign(&[&[1, 1]]));
    refused(wrong, &|topic| topic.assignments = assign(&[&[1, 9]]));
    refused(wrong, &|topic| topic.assignments = assign(&[&[]]));
    refused(wrong, &|topic| topic.assignments = assign(&[&[1], &[1, 2]]));
    refused(ErrorCode::InvalidRequest, &|topic| {
        topic.assignments = assign(&[&[1]]);
        topic.partitions = 1;
    });
}

#[test]
fn a_topic_asked_for_again_is_the_same_and_another_of_its_name_is_not() {
    let mut cluster = Cluster::of(settings(), &[1]);
    let topic = cluster.new_topic("shop");
    cluster.try_create(topic.clone()).unwrap();
    let before = cluster.image.clone();
    cluster.try_create(topic.clone()).unwrap();
    assert_eq!(cluster.image, before);

    let deleted = cluster
        .ask(ControllerRequest::DeleteTopics { topics: vec![TopicRef::Name("shop".to_owned())] });
    assert_eq!(deleted, Ok(ControllerAnswer::Deleted(vec![Ok((topic.id, "shop".to_owned()))])));
    create(&mut cluster, "shop", 1, 1);
    let Ok(ControllerAnswer::Deleted(again)) =
        cluster.ask(ControllerRequest::DeleteTopics { topics: vec![TopicRef::Id(topic.id)] })
    else {
        panic!("no answer")
    };
    assert_eq!(again[0].as_ref().unwrap_err().code, ErrorCode::UnknownTopicId);
    assert!(cluster.image.topic_by_name("shop").is_some());
}

#[test]
fn validating_makes_nothing() {
    let mut cluster = Cluster::of(settings(), &[1, 2]);
    let before = cluster.image.clone();
    let mut topic = cluster.new_topic("shop");
    topic.partitions = 4;
    let request = ControllerRequest::CreateTopics { topics: vec![topic], validate_only: true };
    let Ok(ControllerAnswer::Created(created)) = cluster.ask(request) else { panic!("no answer") };
    assert_eq!(created[0].as_ref().unwrap().replicas.len(), 4);
    assert_eq!(cluster.image, before);
}

#[test]
fn a_topic_grows_and_does_not_shrink() {
    let mut cluster = Cluster::of(settings(), &[1, 2]);
    create(&mut cluster, "shop", 1, 2);
    let grow = |cluster: &mut Cluster, name: &str, count, assignments: Vec<Vec<BrokerId>>| {
        let topics = vec![MorePartitions { name: name.to_owned(), count, assignments }];
        cluster
            .ask(ControllerRequest::CreatePartitions { topics, validate_only: false })
            .and_then(only_done)
    };
    let code = |outcome: Result<(), super::super::Refusal>| outcome.unwrap_err().code;
    grow(&mut cluster, "shop", 4, vec![]).unwrap();
    let leaders = counts(replicas(&cluster, "shop").iter().map(|replicas| replicas[0]));
    assert_eq!(leaders, BTreeMap::from([(1, 2), (2, 2)]));
    grow(&mut cluster, "shop", 5, vec![ids(&[2, 1])]).unwrap();
    assert_eq!(replicas(&cluster, "shop")[4], ids(&[2, 1]));
    assert_eq!(code(grow(&mut cluster, "shop", 5, vec![])), ErrorCode::InvalidPartitions);
    assert_eq!(code(grow(&mut cluster, "shop", 2, vec![])), ErrorCode::InvalidPartitions);
    let wrong = ErrorCode::InvalidReplicaAssignment;
    assert_eq!(code(grow(&mut cluster, "shop", 7, vec![ids(&[1, 2])])), wrong);
    assert_eq!(code(grow(&mut cluster, "shop", 6, vec![ids(&[1])])), wrong);
    assert_eq!(code(grow(&mut cluster, "none", 6, vec![])), ErrorCode::UnknownTopicOrPartition);
    assert_eq!(replicas(&cluster, "shop").len(), 5);
}

#[test]
fn settings_change_one_by_one() {
    let mut cluster = Cluster::of(settings(), &[1]);
    create(&mut cluster, "shop", 1, 1);
    cluster.configure("shop", "retention.ms", "5000").unwrap();
    cluster.configure("shop", "segment.bytes", "1048576").unwrap();
    let refusal = cluster.configure("shop", "retention.ms", "soon").unwrap_err();
    assert_eq!(refusal.code, ErrorCode::InvalidConfig);
    let (_, topic) = cluster.image.topic_by_name("shop").unwrap();
    let expected = [("retention.ms", "5000"), ("segment.bytes", "1048576")];
    assert!(topic.configs.iter().map(|(k, v)| (k.as_str(), v.as_str())).eq(expected));
}
