//! `tailwater cluster status`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::{Value as Json, json};
use tailwater_kafka::BrokerId;

use super::admin::Admin;
use super::view::{Node, View};
use super::{NOT_WELL, count, list};
use crate::text::{columns, say};

/// Prints how the cluster stands; the exit code says whether all is well.
///
/// # Errors
/// No node answers.
pub(super) async fn status(admin: &Admin, json: bool) -> anyhow::Result<ExitCode> {
    let view = View::of(admin).await?;
    let problems = view.problems();
    if json {
        say(&as_json(&view, &problems).to_string());
    } else {
        say(&as_text(&view, &problems));
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(NOT_WELL) })
}

/// What each node leads, and of how many partitions it has a replica.
fn loads(view: &View) -> BTreeMap<BrokerId, (usize, usize)> {
    let mut loads: BTreeMap<BrokerId, (usize, usize)> = BTreeMap::new();
    for state in view.partitions.values() {
        for id in &state.replicas {
            loads.entry(*id).or_default().1 += 1;
        }
        if let Some(leader) = state.leader {
            loads.entry(leader).or_default().0 += 1;
        }
    }
    loads
}

/// How a node takes part in the metadata quorum.
fn controller(view: &View, id: BrokerId) -> String {
    let Ok(quorum) = &view.quorum else { return "?".to_owned() };
    let Some(member) = quorum.members.get(&id) else { return "-".to_owned() };
    let role = match (quorum.leader == id, member.votes) {
        (true, _) => "active",
        (false, true) => "voter",
        (false, false) => "observer",
    };
    match member.behind {
        Some(0) => role.to_owned(),
        Some(behind) => format!("{role}, {behind} behind"),
        None => format!("{role}, ? behind"),
    }
}

fn as_text(view: &View, problems: &[String]) -> String {
    let mut text = format!("cluster {}\n\n", view.cluster_id);
    text.push_str(&nodes_text(view));
    text.push_str("\n\n");
    let total = view.partitions.len();
    let moving = view.partitions.iter().filter(|(_, state)| state.is_moving());
    let moving: Vec<_> = moving.collect();
    let single = view.partitions.values().filter(|state| state.target().len() == 1).count();
    text.push_str(&count(total, "partition"));
    if !moving.is_empty() {
        text.push_str(&format!(", {} being moved", moving.len()));
    }
    if single > 0 && view.nodes.len() > 1 {
        text.push_str(&format!(", {single} with one replica only"));
    }
    for (one, state) in moving {
        text.push_str(&format!(
            "\n  {one}: {} -> {} (in sync: {})",
            list(&without(&state.replicas, &state.adding)),
            list(&state.target()),
            list(&state.in_sync)
        ));
    }
    if problems.is_empty() {
        text.push_str("\nall is well");
    }
    for problem in problems {
        text.push_str(&format!("\n! {problem}"));
    }
    text
}

fn nodes_text(view: &View) -> String {
    let heads = ["NODE", "ADDRESS", "RACK", "STATE", "CONTROLLER", "LEADS", "REPLICAS"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let loads = loads(view);
    let row = |id: BrokerId, node: Option<&Node>| {
        let (leads, replicas) = loads.get(&id).copied().unwrap_or_default();
        let state = match node {
            None => "controller only",
            Some(node) if node.in_service => "in service",
            Some(_) => "not in service",
        };
        vec![
            id.to_string(),
            node.map_or_else(|| "-".to_owned(), |node| node.address.clone()),
            node.and_then(|node| node.rack.clone()).unwrap_or_else(|| "-".to_owned()),
            state.to_owned(),
            controller(view, id),
            leads.to_string(),
            replicas.to_string(),
        ]
    };
    rows.extend(view.nodes.iter().map(|(id, node)| row(*id, Some(node))));
    if let Ok(quorum) = &view.quorum {
        let others = quorum.members.keys().filter(|id| !view.nodes.contains_key(id));
        rows.extend(others.map(|id| row(*id, None)));
    }
    columns(&rows)
}

fn without(all: &[BrokerId], some: &[BrokerId]) -> Vec<BrokerId> {
    all.iter().copied().filter(|id| !some.contains(id)).collect()
}

fn as_json(view: &View, problems: &[String]) -> Json {
    let loads = loads(view);
    let nodes: Vec<Json> = view
        .nodes
        .iter()
        .map(|(id, node)| {
            let (leads, replicas) = loads.get(id).copied().unwrap_or_default();
            json!({
                "id": id,
                "address": node.address,
                "rack": node.rack,
                "in_service": node.in_service,
                "leads": leads,
                "replicas": replicas,
            })
        })
        .collect();
    let quorum = view.quorum.as_ref().ok().map(|quorum| {
        let members = quorum.members.iter().map(|(id, member)| {
            json!({
                "id": id,
                "votes": member.votes,
                "behind_entries": member.behind,
                "silent_ms": member.silent.and_then(|silent| u64::try_from(silent.as_millis()).ok()),
            })
        });
        json!({
            "active": quorum.leader,
            "term": quorum.term,
            "controllers": members.collect::<Vec<_>>(),
        })
    });
    let partitions: Vec<Json> = view
        .partitions
        .iter()
        .map(|(one, state)| {
            json!({
                "topic": one.topic,
                "partition": one.partition,
                "leader": state.leader,
                "replicas": state.replicas,
                "in_sync": state.in_sync,
                "adding": state.adding,
                "removing": state.removing,
            })
        })
        .collect();
    json!({
        "cluster_id": view.cluster_id,
        "well": problems.is_empty(),
        "problems": problems,
        "nodes": nodes,
        "quorum": quorum,
        "partitions": partitions,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tailwater_kafka::wire::KafkaUuid;
    use tailwater_kafka::{PartitionId, TopicPartition};

    use super::super::view::{Member, Partition, Quorum};
    use super::*;

    fn view() -> View {
        let ids = |ids: &[i32]| ids.iter().copied().map(BrokerId::new).collect::<Vec<_>>();
        let node = |id: i32, in_service: bool| {
            let address = format!("127.0.0.1:909{id}");
            (BrokerId::new(id), Node { address, rack: Some("a".to_owned()), in_service })
        };
        let member = |id: i32, silent: u64| {
            let silent = Some(Duration::from_millis(silent));
            let directory = KafkaUuid::ZERO;
            (BrokerId::new(id), Member { directory, votes: true, behind: Some(0), silent })
        };
        let leader = BrokerId::new(1);
        let partition = |number: i32, state: Partition| {
            (TopicPartition::new("shop", PartitionId::new(number)), state)
        };
        let whole = Partition {
            leader: Some(leader),
            replicas: ids(&[1, 2]),
            in_sync: ids(&[1, 2]),
            ..Partition::default()
        };
        let growing = Partition {
            replicas: ids(&[1, 2]),
            in_sync: ids(&[1]),
            adding: ids(&[2]),
            ..whole.clone()
        };
        View {
            cluster_id: "c1".to_owned(),
            nodes: [node(1, true), node(2, true)].into(),
            quorum: Ok(Quorum { leader, term: 7, members: [member(1, 0), member(2, 90)].into() }),
            partitions: [partition(0, whole), partition(1, growing)].into(),
        }
    }

    #[test]
    fn a_cluster_that_is_well_says_so() {
        let view = view();
        assert_eq!(view.problems(), Vec::<String>::new());
        assert_eq!(
            as_text(&view, &[]),
            "cluster c1

NODE  ADDRESS         RACK  STATE       CONTROLLER  LEADS  REPLICAS
1     127.0.0.1:9091  a     in service  active      2      2
2     127.0.0.1:9092  a     in service  voter       0      2

2 partitions, 1 being moved
  shop-1: 1 -> 1, 2 (in sync: 1)
all is well"
        );
        assert_eq!(as_json(&view, &[])["well"], true);
    }

    #[test]
    fn each_thing_that_is_not_well_is_named() {
        let mut view = view();
        let second = BrokerId::new(2);
        view.nodes.get_mut(&second).unwrap().in_service = false;
        if let Ok(quorum) = &mut view.quorum {
            quorum.members.get_mut(&second).unwrap().silent = Some(Duration::from_secs(12));
        }
        for state in view.partitions.values_mut() {
            state.in_sync.retain(|id| *id != second);
        }
        let last = view.partitions.values_mut().next_back().unwrap();
        last.leader = None;
        let problems = view.problems();
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(problems[0].contains("node 2 at 127.0.0.1:9092 is not in service"));
        assert_eq!(problems[1], "controller 2 has not answered for 12 s");
        assert_eq!(problems[2], "shop-1 has no leader: it waits for a replica of 1, 2");
        assert_eq!(problems[3], "shop-0 is not in sync on 2 (in sync: 1)");
        let text = as_text(&view, &problems);
        assert!(text.contains("\n! controller 2 has not"), "{text}");
        assert!(!text.contains("all is well"), "{text}");
    }
}
