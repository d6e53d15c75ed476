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

#[tokio::test(start_paused = true)]
async fn a_lost_leader_is_replaced() {
    let cluster = Cluster::of_three().await;
    let mut times = Vec::new();
    for next in 1..=9 {
        cluster.propose(next).await;
        let leader = cluster.leader(&[]).await;
        let began = Instant::now();
        cluster.isolate(leader);
        let other = cluster.leader(&[leader]).await;
        times.push(began.elapsed());
        assert_eq!(cluster.value(other), next, "an active leader has what was committed");
        cluster.heal();
        until("one leader", || !cluster.node(leader).watch().borrow().is_active()).await;
    }
    // Clocks that started together stand for election together, and who wins the tie may lack the
    // last entry: then it takes another timeout, or several.
    times.sort();
    let timeout = QuorumTimeouts::default().election_most;
    assert!(times[0] < 2 * timeout && times[8] < 8 * timeout, "took {times:?}");
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

#[tokio::test(start_paused = true)]
async fn a_leader_whose_majority_was_silent_for_a_while_becomes_active_anew() {
    let cluster = Cluster::of_three().await;
    cluster.propose(1).await;
    let leader = cluster.leader(&[]).await;
    let quorum = cluster.node(leader);
    let before = quorum.watch().borrow().active_since.unwrap();
    // The others hear it, so none of them stands for election, but it does not hear them.
    for other in 1..=3 {
        lock(&cluster.net.cut).insert((other, leader));
    }
    until("inactive", || !quorum.watch().borrow().is_active()).await;
    let waiting = quorum.clone();
    let proposed =
        tokio::spawn(async move { waiting.propose(vec![Record::ProducerIds { next: 2 }]).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.heal();
    until("active", || quorum.watch().borrow().is_active()).await;
    let since = quorum.watch().borrow().active_since.unwrap();
    assert!(since > before);
    assert!(proposed.await.unwrap().unwrap() < since, "settled before it is active again");
    assert_eq!(cluster.value(leader), 2);
}
