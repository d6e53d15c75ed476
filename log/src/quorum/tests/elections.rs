//! Who leads, and what a minority cannot do.

use super::*;

#[tokio::test(start_paused = true)]
async fn three_nodes_elect_a_leader_and_agree() {
    let cluster = Cluster::of_three().await;
    let mut last = MetadataIndex::ZERO;
    for next in 1..=20 {
        let index = cluster.propose(next).await;
        assert!(index > last);
        last = index;
    }
    let leader = cluster.leader(&[]).await;
    for node in 1..=3 {
        cluster.has(node, 20).await;
        let quorum = cluster.node(node);
        assert_eq!(voters(&quorum), [1, 2, 3]);
        assert_eq!(quorum.watch().borrow().leader, Some(BrokerId::new(leader)));
        assert_eq!(quorum.watch().borrow().is_active(), node == leader);
        assert_eq!(quorum.image(), cluster.node(1).image());
        let After::Entries(entries) = quorum.entries_after(MetadataIndex::ZERO) else {
            panic!("behind after 20 entries");
        };
        assert_eq!(entries.len(), 20);
        assert_eq!(entries.last().unwrap().0, last);
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_lead_names_who_does() {
    let cluster = Cluster::of_three().await;
    let leader = cluster.leader(&[]).await;
    cluster.propose(1).await;
    let other = (1..=3).find(|node| *node != leader).unwrap();
    cluster.has(other, 1).await;
    let error = cluster.node(other).propose(vec![]).await.unwrap_err();
    let known = Some((BrokerId::new(leader), leader.to_string()));
    assert_eq!(error, QuorumError::NotLeader { leader: known });
}

/// Takes the leader away, again and again; how long there was none.
async fn times_without_a_leader(nodes: i32, losses: i64) -> Vec<Duration> {
    let controllers: Vec<i32> = (1..=nodes).collect();
    let mut cluster = Cluster::of(&controllers).await;
    let mut times = Vec::new();
    for next in 1..=losses {
        cluster.propose(next).await;
        // Anywhere between two heartbeats.
        tokio::time::sleep(Duration::from_millis(next.unsigned_abs() * 97 % 500)).await;
        let leader = cluster.leader(&[]).await;
        let stops = next % 3 == 0;
        let began = Instant::now();
        if stops {
            cluster.stop(leader).await;
        } else {
            cluster.isolate(leader);
        }
        let other = cluster.leader(&[leader]).await;
        times.push(began.elapsed());
        assert_eq!(cluster.value(other), next, "an active leader has what was committed");
        if stops {
            cluster.start(leader, &controllers).await;
        }
        cluster.heal();
        until("one leader", || !cluster.node(leader).watch().borrow().is_active()).await;
    }
    times.sort();
    times
}

#[tokio::test(start_paused = true)]
async fn a_lost_leader_is_replaced_soon() {
    for nodes in [3, 5] {
        let times = times_without_a_leader(nodes, 60).await;
        let (best, median, longest) = (times[0], times[30], times[59]);
        println!("of {nodes}: best {best:?}, median {median:?}, longest {longest:?}");
        assert!(median < Duration::from_millis(1500), "took {times:?}");
        assert!(longest < Duration::from_millis(2500), "took {times:?}");
    }
}

/// Makes a follower miss what `cut` says for a while, and sees that the leader leads all the time.
async fn undisturbed(cut: impl Fn(&mut BTreeSet<(i32, i32)>, i32, i32, i32)) {
    let cluster = Cluster::of_three().await;
    cluster.propose(1).await;
    let leader = cluster.leader(&[]).await;
    let others: Vec<i32> = (1..=3).filter(|node| *node != leader).collect();
    let (away, other) = (others[0], others[1]);
    for node in others {
        cluster.has(node, 1).await;
    }
    let quorum = cluster.node(leader);
    let mut watch = quorum.watch();
    let reign = |status: &QuorumStatus| (status.leader, status.term, status.active_since);
    let before = reign(&watch.borrow());
    cut(&mut lock(&cluster.net.cut), leader, away, other);
    let mut next = 1;
    for healed in [false, true] {
        if healed {
            cluster.heal();
        }
        let ends = Instant::now() + Duration::from_secs(20);
        while Instant::now() < ends {
            next += 1;
            quorum.propose(vec![Record::ProducerIds { next }]).await.unwrap();
            // Meets every change of the status there is.
            let quiet = Instant::now() + Duration::from_secs(3);
            while let Ok(changed) = tokio::time::timeout_at(quiet, watch.changed()).await {
                changed.unwrap();
                assert_eq!(reign(&watch.borrow_and_update()), before);
            }
        }
    }
    cluster.has(away, next).await;
    assert_eq!(reign(&cluster.node(leader).watch().borrow()), before);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_comes_back_from_a_partition_disturbs_nobody() {
    undisturbed(|cut, leader, away, other| {
        cut.extend([(away, leader), (leader, away), (away, other), (other, away)]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_does_not_hear_the_leader_does_not_depose_it() {
    undisturbed(|cut, leader, away, _| {
        cut.insert((leader, away));
    })
    .await;
    undisturbed(|cut, leader, away, other| {
        cut.extend([(leader, away), (other, away)]);
    })
    .await;
    // The third is a bridge between the two.
    undisturbed(|cut, leader, away, _| {
        cut.extend([(leader, away), (away, leader)]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_heard_but_hears_nobody_is_replaced() {
    let cluster = Cluster::of_three().await;
    cluster.propose(1).await;
    let old = cluster.leader(&[]).await;
    for other in 1..=3 {
        lock(&cluster.net.cut).insert((other, old));
    }
    let began = Instant::now();
    let new = cluster.leader(&[old]).await;
    println!("took {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
    assert!(!cluster.node(old).watch().borrow().is_active());
    cluster.node(new).propose(vec![Record::ProducerIds { next: 2 }]).await.unwrap();
    let term = cluster.node(new).watch().borrow().term;
    cluster.heal();
    cluster.has(old, 2).await;
    assert_eq!(cluster.leader(&[]).await, new);
    assert_eq!(cluster.node(new).watch().borrow().term, term, "and does not want to be back");
}

#[tokio::test(start_paused = true)]
async fn a_leader_without_a_majority_leads_again_when_there_is_one() {
    let mut cluster = Cluster::of_three().await;
    for next in 1..=4 {
        cluster.propose(next).await;
        let leader = cluster.leader(&[]).await;
        let others: Vec<i32> = (1..=3).filter(|node| *node != leader).collect();
        for node in &others {
            cluster.stop(*node).await;
        }
        until("inactive", || !cluster.node(leader).watch().borrow().is_active()).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        // One of them is enough, whichever of the two then leads.
        cluster.start(others[0], &[1, 2, 3]).await;
        let began = Instant::now();
        let new = cluster.leader(&[]).await;
        assert!(began.elapsed() < Duration::from_millis(2500), "took {:?}", began.elapsed());
        assert_eq!(cluster.value(new), next);
        cluster.start(others[1], &[1, 2, 3]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_minority_commits_nothing() {
    let cluster = Cluster::of_three().await;
    cluster.propose(1).await;
    let old = cluster.leader(&[]).await;
    cluster.isolate(old);
    let quorum = cluster.node(old);
    let lost =
        tokio::spawn(async move { quorum.propose(vec![Record::ProducerIds { next: 666 }]).await });

    let new = cluster.leader(&[old]).await;
    until("given up", || !cluster.node(old).watch().borrow().is_active()).await;
    assert!(!lost.is_finished(), "neither committed nor refused");
    cluster.node(new).propose(vec![Record::ProducerIds { next: 2 }]).await.unwrap();
    assert_eq!(cluster.value(old), 1);

    cluster.heal();
    assert!(matches!(lost.await.unwrap(), Err(QuorumError::NotLeader { .. })));
    for node in 1..=3 {
        cluster.has(node, 2).await;
        let After::Entries(entries) = cluster.node(node).entries_after(MetadataIndex::ZERO) else {
            panic!("behind after two entries");
        };
        assert_eq!(entries.len(), 2, "666 was never committed");
    }
}
