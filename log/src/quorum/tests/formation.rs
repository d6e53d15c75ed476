//! How nodes get into a cluster, and out of it.

use super::*;

#[tokio::test(start_paused = true)]
async fn nobody_begins_a_cluster_while_somebody_does_not_answer() {
    let mut cluster = Cluster::new();
    cluster.start(1, &[1, 2, 3]).await;
    cluster.start(2, &[1, 2, 3]).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    for node in [1, 2] {
        let status = cluster.node(node).watch().borrow().clone();
        assert_eq!(status.leader, None);
        assert_eq!(status.waiting_for.unwrap(), "an answer of controller 3 at 3");
    }
    cluster.start(3, &[1, 2, 3]).await;
    cluster.propose(1).await;
    for node in 1..=3 {
        cluster.has(node, 1).await;
        cluster.joined(node).await;
        assert_eq!(cluster.node(node).watch().borrow().waiting_for, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cluster_of_one_grows_to_three() {
    let mut cluster = Cluster::new();
    cluster.start(1, &[1]).await;
    cluster.propose(1).await;
    cluster.start(2, &[1, 2]).await;
    cluster.joined(2).await;
    cluster.start(3, &[1, 2, 3]).await;
    cluster.joined(3).await;
    cluster.has(3, 1).await;
    until("three voters", || voters(&cluster.node(1)) == [1, 2, 3]).await;
    // The one it began with is not needed any more.
    cluster.stop(1).await;
    cluster.propose(2).await;
    cluster.has(3, 2).await;
    // Its own configuration knew only itself.
    cluster.start(1, &[1]).await;
    cluster.has(1, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_member_whose_disk_was_lost_comes_back_as_another() {
    let mut cluster = Cluster::of_three().await;
    cluster.propose(1).await;
    for node in 1..=3 {
        let before = cluster.node(node).directory();
        cluster.stop(node).await;
        cluster.lose_disk(node);
        cluster.propose(i64::from(node) * 10).await;
        cluster.start(node, &[1, 2, 3]).await;
        assert_ne!(cluster.node(node).directory(), before);
        cluster.joined(node).await;
        cluster.has(node, i64::from(node) * 10).await;
        until("three voters", || voters(&cluster.node(node)) == [1, 2, 3]).await;
    }
    for node in 1..=3 {
        cluster.has(node, 30).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_disk_does_not_vote_again() {
    let mut cluster = Cluster::of_three().await;
    cluster.propose(1).await;
    let leader = cluster.leader(&[]).await;
    let others: Vec<i32> = (1..=3).filter(|node| *node != leader).collect();
    // One follower never hears of the next entry, which the other acknowledges and then loses.
    let (behind, amnesiac) = (others[0], others[1]);
    cluster.isolate(behind);
    cluster.propose(2).await;
    cluster.stop(amnesiac).await;
    cluster.lose_disk(amnesiac);
    cluster.stop(leader).await;
    cluster.heal();
    cluster.start(amnesiac, &[1, 2, 3]).await;
    // With the vote of the empty disk there would be a majority that knows nothing of entry 2.
    tokio::time::sleep(Duration::from_secs(60)).await;
    for node in [behind, amnesiac] {
        assert!(!cluster.node(node).watch().borrow().is_active());
    }
    cluster.start(leader, &[1, 2, 3]).await;
    cluster.joined(amnesiac).await;
    for node in 1..=3 {
        cluster.has(node, 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_removed_stays_removed() {
    let mut cluster = Cluster::of_three().await;
    cluster.propose(1).await;
    let leader = cluster.leader(&[]).await;
    let removed = (1..=3).find(|node| *node != leader).unwrap();
    cluster.node(leader).remove_voter(BrokerId::new(removed)).await.unwrap();
    assert!(!voters(&cluster.node(leader)).contains(&removed));
    cluster.stop(removed).await;
    cluster.start(removed, &[1, 2, 3]).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!voters(&cluster.node(leader)).contains(&removed));
    assert_eq!(cluster.leader(&[]).await, leader, "it does not disturb the others");

    // Until someone wants it back.
    let node = BrokerId::new(removed);
    let directory = cluster.node(removed).directory();
    let term = cluster.node(leader).watch().borrow().term;
    cluster.node(leader).add_voter(node, removed.to_string(), directory).await.unwrap();
    assert_eq!(cluster.node(leader).watch().borrow().term, term);
    cluster.propose(2).await;
    cluster.has(removed, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_can_be_removed_and_the_last_voter_cannot() {
    let cluster = Cluster::of_three().await;
    for left in [2, 1] {
        let leader = cluster.leader(&[]).await;
        cluster.node(leader).remove_voter(BrokerId::new(leader)).await.unwrap();
        until("gone", || !cluster.node(leader).watch().borrow().is_active()).await;
        let next = cluster.leader(&[leader]).await;
        assert_eq!(voters(&cluster.node(next)).len(), left);
        cluster.stop(leader).await;
    }
    let last = cluster.leader(&[]).await;
    let error = cluster.node(last).remove_voter(BrokerId::new(last)).await.unwrap_err();
    assert!(matches!(error, QuorumError::Refused { .. }), "{error}");
    cluster.propose(7).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_is_cut_while_they_find_each_other_there_is_one_cluster() {
    let seed: u64 = 20_261_123;
    println!("seed {seed}");
    let mut random = seed;
    let mut draw = move |below: u64| {
        // Knuth's MMIX generator; its high bits are good enough to choose links.
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    for _ in 0..12 {
        let mut cluster = Cluster::new();
        let mut waiting = vec![1, 2, 3];
        for _ in 0..12 {
            if !waiting.is_empty() && draw(2) == 0 {
                let choice = usize::try_from(draw(waiting.len() as u64)).unwrap();
                cluster.start(waiting.swap_remove(choice), &[1, 2, 3]).await;
            }
            {
                let mut cut = lock(&cluster.net.cut);
                cut.clear();
                for from in 1..=3 {
                    for to in 1..=3 {
                        if draw(3) == 0 {
                            cut.insert((from, to));
                        }
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(100 + draw(1500))).await;
        }
        cluster.heal();
        for node in waiting {
            cluster.start(node, &[1, 2, 3]).await;
        }
        let value = i64::try_from(draw(1 << 30)).unwrap() + 1;
        cluster.propose(value).await;
        for node in 1..=3 {
            cluster.has(node, value).await;
            assert_eq!(voters(&cluster.node(node)), [1, 2, 3]);
        }
        for node in 1..=3 {
            cluster.stop(node).await;
        }
    }
}
