//! What is there after a restart.

use super::*;
use crate::storage::testing::Failing;

#[tokio::test(start_paused = true)]
async fn a_member_alone_leads_at_once_and_keeps_what_it_acknowledged() {
    let mut cluster = Cluster::new();
    for next in 1..=10 {
        let began = Instant::now();
        cluster.start(1, &[1]).await;
        cluster.leader(&[]).await;
        assert!(began.elapsed() < Duration::from_millis(50), "took {:?}", began.elapsed());
        assert_eq!(cluster.value(1), next - 1);
        cluster.propose(next).await;
        cluster.stop(1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn all_members_may_restart_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::of_three().await;
    for next in 1..=5 {
        cluster.propose(next).await;
        for node in 1..=3 {
            cluster.stop(node).await;
        }
        for node in 1..=3 {
            cluster.start(node, &[1, 2, 3]).await;
        }
        for node in 1..=3 {
            cluster.has(node, next).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_torn_append_is_cut_and_copied_anew() {
    let mut cluster = Cluster::of_three().await;
    cluster.propose(1).await;
    cluster.propose(2).await;
    let node = (1..=3).find(|node| !cluster.node(*node).watch().borrow().is_active()).unwrap();
    cluster.has(node, 2).await;
    cluster.stop(node).await;
    let entries = cluster.folders[&node].path().join("metadata/entries.log");
    let length = std::fs::metadata(&entries).unwrap().len();
    std::fs::File::options().write(true).open(&entries).unwrap().set_len(length - 3).unwrap();
    let leader = cluster.leader(&[]).await;
    cluster.start(node, &[1, 2, 3]).await;
    cluster.propose(3).await;
    cluster.has(node, 3).await;
    let quorum = cluster.node(leader);
    assert!(quorum.watch().borrow().is_active(), "{:?}", quorum.watch().borrow());
}

#[tokio::test(start_paused = true)]
async fn who_was_away_for_long_catches_up_by_a_snapshot() {
    let cluster = catch_up_by_a_snapshot(SNAPSHOT_PART_BYTES).await;
    assert_eq!(*lock(&cluster.net.parts), 0);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_too_large_for_one_message_comes_in_parts() {
    let cluster = catch_up_by_a_snapshot(16).await;
    let parts = *lock(&cluster.net.parts);
    assert!(parts > 5, "{parts} parts");
}

async fn catch_up_by_a_snapshot(part_bytes: usize) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.snapshot_after = 20;
    cluster.snapshot_part_bytes = part_bytes;
    for node in 1..=3 {
        cluster.start(node, &[1, 2, 3]).await;
    }
    for node in 1..=3 {
        cluster.joined(node).await;
    }
    let away = 3;
    cluster.stop(away).await;
    for next in 1..=100 {
        cluster.propose(next).await;
    }
    let leader = cluster.node(cluster.leader(&[]).await);
    until("purged", || leader.shared.raft.metrics().borrow().purged.is_some()).await;
    let purged = leader.shared.raft.metrics().borrow().purged.unwrap();
    assert!(purged.index > 50, "purged through {purged}");

    cluster.start(away, &[1, 2, 3]).await;
    cluster.has(away, 100).await;
    assert!(matches!(cluster.node(away).entries_after(MetadataIndex::ZERO), After::Behind { .. }));
    // And it has it on disk: alone it knows it at once.
    cluster.propose(101).await;
    cluster.has(away, 101).await;
    for node in 1..=3 {
        cluster.stop(node).await;
    }
    cluster.start(away, &[1, 2, 3]).await;
    assert!(cluster.value(away) >= 80, "{}", cluster.value(away));
    cluster
}

#[tokio::test(start_paused = true)]
async fn a_damaged_log_is_refused_with_its_place() {
    let mut cluster = Cluster::new();
    cluster.start(1, &[1]).await;
    for next in 1..=3 {
        cluster.propose(next).await;
    }
    cluster.stop(1).await;
    let entries = cluster.folders[&1].path().join("metadata/entries.log");
    let mut bytes = std::fs::read(&entries).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&entries, bytes).unwrap();
    let link = Arc::new(Link { from: 1, net: Arc::clone(&cluster.net) });
    let error = Quorum::open(cluster.config(1, &[1]), link).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}

async fn alone_on(failing: &Failing) -> (Cluster, Quorum) {
    let mut cluster = Cluster::new();
    cluster.folders.insert(1, tempfile::tempdir().unwrap());
    let disk = Arc::new(failing.clone());
    let config = QuorumConfig { disk, ..cluster.config(1, &[1]) };
    let link = Arc::new(Link { from: 1, net: Arc::clone(&cluster.net) });
    let quorum = Quorum::open(config, link).await.unwrap();
    lock(&cluster.net.nodes).insert(1, quorum.clone());
    cluster.propose(1).await;
    (cluster, quorum)
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_flush_nothing_is_acknowledged_until_a_restart() {
    let failing = Failing::default();
    let (mut cluster, quorum) = alone_on(&failing).await;
    failing.fail_flushes(true);
    let propose = || quorum.propose(vec![Record::ProducerIds { next: 2 }]);
    assert!(matches!(propose().await, Err(QuorumError::Stopped { .. })));
    failing.fail_flushes(false);
    let error = propose().await.unwrap_err();
    assert!(
        error.to_string().contains("a flush failed")
            || error.to_string().contains("could not flush"),
        "{error}"
    );
    until("told", || quorum.watch().borrow().stopped.is_some()).await;
    assert!(!quorum.watch().borrow().is_active());
    cluster.stop(1).await;
    cluster.start(1, &[1]).await;
    cluster.leader(&[]).await;
    assert!([1, 2].contains(&cluster.value(1)));
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_waited_for() {
    let failing = Failing::default();
    let (cluster, quorum) = alone_on(&failing).await;
    let before = quorum.watch().borrow().active_since.unwrap();
    failing.fill(true);
    let proposing = quorum.clone();
    let proposed =
        tokio::spawn(async move { proposing.propose(vec![Record::ProducerIds { next: 2 }]).await });
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!proposed.is_finished());
    assert!(!quorum.watch().borrow().is_active(), "others could have a leader by now");
    failing.fill(false);
    let index = proposed.await.unwrap().unwrap();
    assert_eq!(cluster.value(1), 2);
    until("active", || quorum.watch().borrow().is_active()).await;
    let since = quorum.watch().borrow().active_since.unwrap();
    assert!(before < index && index < since, "settled before it is active again");
    // And a member that waits for room can be closed.
    failing.fill(true);
    let proposing = quorum.clone();
    let proposed =
        tokio::spawn(async move { proposing.propose(vec![Record::ProducerIds { next: 3 }]).await });
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.stop(1).await;
    assert!(proposed.await.unwrap().is_err());
}
