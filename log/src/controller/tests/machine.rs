//! The machine around the decisions: one proposal, the queue, taking over.

use tailwater_kafka::wire::ErrorCode;

use super::super::{Command, Controller, ControllerRequest, Event, Settings};
use super::cluster::{Cluster, Start, id, ids, settings};
use crate::metadata::{LEVEL, Record};

fn create(cluster: &mut Cluster, name: &str) -> u64 {
    let topic = cluster.new_topic(name);
    cluster.send(ControllerRequest::CreateTopics { topics: vec![topic], validate_only: false })
}

#[test]
fn what_comes_while_a_proposal_is_under_way_is_the_next_entry() {
    let mut cluster = Cluster::of(settings(), &[1]);
    cluster.commits = false;
    let sent: Vec<u64> = ["a", "b", "c"].map(|name| create(&mut cluster, name)).into();
    assert!(cluster.answers.is_empty());
    let names = |records: &Option<Vec<Record>>| {
        let records = records.as_deref().unwrap_or_default();
        let name = |record: &Record| match record {
            Record::Topic { name, .. } => Some(name.clone()),
            _ => None,
        };
        records.iter().filter_map(name).collect::<Vec<_>>()
    };
    assert_eq!(names(&cluster.proposed), ["a"]);
    let index = cluster.image.index().get();
    cluster.commits = true;
    cluster.commit();
    assert_eq!(cluster.image.index().get(), index + 2);
    assert!(sent.iter().all(|sent| cluster.answers[sent].is_ok()));
}

#[test]
fn nothing_is_answered_before_what_it_rests_on_is_committed() {
    let mut cluster = Cluster::of(settings(), &[1]);
    cluster.commits = false;
    let first = create(&mut cluster, "other");
    // Decided together: the second is refused because of the first, which is not committed.
    let sent = [create(&mut cluster, "shop"), create(&mut cluster, "shop")];
    let records = cluster.proposed.take().unwrap();
    let index = crate::metadata::MetadataIndex::new(cluster.image.index().get() + 1);
    cluster.image.apply(index, &records);
    cluster.event(Event::Committed { index, records: records.into() });
    assert!(cluster.answers.contains_key(&first));
    assert!(sent.iter().all(|sent| !cluster.answers.contains_key(sent)));
    cluster.commit();
    assert!(sent.iter().all(|sent| cluster.answers.contains_key(sent)));
}

#[test]
fn who_loses_the_lead_refuses_all_that_waits_and_forgets_what_it_proposed() {
    let mut cluster = Cluster::of(settings(), &[1]);
    cluster.commits = false;
    let sent = ["a", "b"].map(|name| create(&mut cluster, name));
    cluster.event(Event::Deactivated);
    for sent in sent {
        assert_eq!(cluster.answers[&sent].as_ref().unwrap_err().code, ErrorCode::NotController);
    }
    cluster.commits = true;
    cluster.new_controller();
    assert!(cluster.image.topics().is_empty());
    let again = create(&mut cluster, "a");
    assert!(cluster.answers[&again].is_ok());
}

#[test]
fn who_does_not_lead_refuses() {
    let mut controller = Controller::new(settings());
    let now = std::time::Duration::ZERO;
    let request = ControllerRequest::UnregisterBroker { id: id(1) };
    let commands = controller.handle(now, Event::Request { id: 5, request });
    let [Command::Answer { id: 5, answer: Err(refusal) }] = commands.as_slice() else {
        panic!("{commands:?}")
    };
    assert_eq!(refusal.code, ErrorCode::NotController);
    assert!(controller.handle(now, Event::Tick).is_empty());
    assert!(controller.handle(now, Event::Deactivated).is_empty());
}

#[test]
fn the_first_controller_begins_the_cluster_and_later_ones_bring_their_settings() {
    let mut cluster = Cluster::new(settings());
    let state = cluster.image.cluster().unwrap();
    assert_eq!((state.cluster_id.as_str(), state.level), ("test", LEVEL));
    let index = cluster.image.index();
    cluster.new_controller();
    assert_eq!(cluster.image.index(), index);
}

#[test]
fn another_default_of_min_isr_settles_every_partition() {
    let mut cluster = Cluster::of(Settings { min_insync_replicas: 2, ..settings() }, &[1, 2]);
    let mut topic = cluster.new_topic("shop");
    topic.assignments = vec![ids(&[1, 2])];
    cluster.try_create(topic).unwrap();
    cluster.silent(&ids(&[2]));
    assert_eq!(cluster.partition("shop").elr, ids(&[2]));
    cluster.set_min_isr(1);
    cluster.new_controller();
    assert_eq!(cluster.image.cluster().unwrap().min_insync_replicas, 1);
    assert_eq!(cluster.partition("shop").elr, []);
}

#[test]
fn an_empty_entry_of_the_quorum_changes_nothing() {
    let mut cluster = Cluster::of(settings(), &[1]);
    cluster.commits = false;
    let sent = create(&mut cluster, "shop");
    let index = crate::metadata::MetadataIndex::new(cluster.image.index().get() + 1);
    cluster.image.apply(index, &[]);
    cluster.event(Event::Committed { index, records: std::sync::Arc::from([]) });
    assert!(!cluster.answers.contains_key(&sent));
    cluster.commits = true;
    cluster.commit();
    assert!(cluster.answers[&sent].is_ok());
    cluster.start(id(1), Start::default());
}
