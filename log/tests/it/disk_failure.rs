//! Full disks, failing flushes, torn writes: nothing acknowledged is lost, nothing refused stays.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tailwater_kafka::wire::ErrorCode;
use tailwater_log::{Config, FlushPolicy};

use crate::failing_disk::{EMFILE, FailingDisk, Handle};
use crate::support::{
    NOBODY, Scratch, Writer, batch, commit, create_topic, delete_topic, fetch, init_producer,
    list_offset, open, produce, produce_values, read_all, until, until_so, values,
};

const TOPIC: &str = "t";

async fn scratch() -> (Scratch, Arc<FailingDisk>) {
    scratch_with(|_| {}).await
}

async fn scratch_with(adjust: impl FnOnce(&mut Config)) -> (Scratch, Arc<FailingDisk>) {
    let disk = Arc::new(FailingDisk::default());
    let scratch = Scratch::with(|config| {
        on(&disk)(config);
        adjust(config);
    })
    .await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    (scratch, disk)
}

/// Puts a node's files on `disk`.
fn on(disk: &Arc<FailingDisk>) -> impl FnOnce(&mut Config) + use<> {
    let own = Arc::clone(disk);
    move |config| config.disk = Arc::new(Handle(own))
}

/// Waits until a flush has begun that had not when there were `before`.
async fn flushed_after(disk: &FailingDisk, before: u64) {
    until_so("it is not so", || disk.flushes.load(Ordering::SeqCst) > before).await;
}

#[tokio::test]
async fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    let size = u64::try_from(values(&["one"], NOBODY).len()).unwrap();
    for room in [0, 1, 16, 61, size - 1] {
        let (scratch, disk) = scratch().await;
        let writer = init_producer(&scratch.log, Some("role")).await;
        let next = |sequence| values(&["one"], Writer { sequence, ..writer });
        assert_eq!(produce(&scratch.log, TOPIC, next(0)).await, Ok(0));

        disk.room.store(room, Ordering::SeqCst);
        FailingDisk::set(&disk.full, true);
        let refused = Err(ErrorCode::KafkaStorageError);
        assert_eq!(produce(&scratch.log, TOPIC, next(1)).await, refused, "room {room}");
        assert_eq!(produce(&scratch.log, TOPIC, next(1)).await, refused, "and again");
        // What follows the refused one must not overtake it.
        let answer = produce(&scratch.log, TOPIC, next(2)).await;
        assert_eq!(answer, Err(ErrorCode::OutOfOrderSequenceNumber));
        assert_eq!(scratch.status(TOPIC).offline, None);
        assert_eq!(scratch.status(TOPIC).end_offset.get(), 1);
        let segment = scratch.partition_folder(TOPIC).join("00000000000000000000.log");
        assert_eq!(std::fs::metadata(&segment).unwrap().len(), size, "cut back");

        FailingDisk::set(&disk.full, false);
        assert_eq!(produce(&scratch.log, TOPIC, next(1)).await, Ok(1));
        assert_eq!(produce(&scratch.log, TOPIC, next(2)).await, Ok(2));
        let folder = scratch.die();
        let log = open(folder.path(), |_| {}).await;
        assert_eq!(read_all(&log, TOPIC).await.len(), 3);
    }
}

#[tokio::test]
async fn the_first_batch_of_a_producer_that_did_not_fit_is_still_its_first() {
    let (scratch, disk) = scratch().await;
    let writer = init_producer(&scratch.log, Some("role")).await;
    FailingDisk::set(&disk.full, true);
    let refused = produce(&scratch.log, TOPIC, values(&["a"], writer)).await;
    assert_eq!(refused, Err(ErrorCode::KafkaStorageError));
    FailingDisk::set(&disk.full, false);
    let second = Writer { sequence: 1, ..writer };
    let answer = produce(&scratch.log, TOPIC, values(&["b"], second)).await;
    assert_eq!(answer, Err(ErrorCode::OutOfOrderSequenceNumber));
    assert_eq!(produce(&scratch.log, TOPIC, values(&["a"], writer)).await, Ok(0));
    assert_eq!(produce(&scratch.log, TOPIC, values(&["b"], second)).await, Ok(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_producer_gets_through_a_full_disk_in_order_and_once() {
    use tailwater_kafka::{
        Client, ClientConfig, Node, PartitionId, ProducerConfig, TopicPartition, Transport,
    };
    let (scratch, disk) = scratch().await;
    let node: Arc<dyn Node> = Arc::<tailwater_log::Log>::clone(&scratch.log);
    let transport = Transport::in_process(node);
    let client = Client::connect(ClientConfig::default(), transport).await.unwrap();
    let config =
        ProducerConfig { transactional_id: Some("role".to_owned()), ..ProducerConfig::default() };
    let mut producer = client.producer(config).await.unwrap();
    let handle = producer.register(&TopicPartition::new(TOPIC, PartitionId::new(0)));
    let mut refused = 0;
    for number in 0..300 {
        // Full for a while, with batches in flight, again and again.
        if number % 100 == 30 {
            disk.room.store(number, Ordering::SeqCst);
            FailingDisk::set(&disk.full, true);
        }
        producer.append(handle, None, &[number.to_string().as_bytes()], 1).unwrap();
        producer.flush();
        if number % 100 == 60 {
            let before = disk.refusals.load(Ordering::SeqCst);
            until_so("it is not so", || disk.refusals.load(Ordering::SeqCst) >= before + 2).await;
            refused += 1;
            FailingDisk::set(&disk.full, false);
        }
        tokio::task::yield_now().await;
    }
    producer.drain().await.unwrap();
    assert_eq!(refused, 3);
    let all: Vec<_> =
        read_all(&scratch.log, TOPIC).await.into_iter().map(|(_, text)| text).collect();
    let expected: Vec<_> = (0..300).map(|number| number.to_string()).collect();
    assert_eq!(all, expected);
}

#[tokio::test]
async fn a_failed_flush_takes_the_partition_offline_and_acknowledges_nothing() {
    let (scratch, disk) = scratch().await;
    produce_values(&scratch.log, TOPIC, &["kept"]).await;
    FailingDisk::set(&disk.flush_fails, true);
    let refused = Err(ErrorCode::KafkaStorageError);
    assert_eq!(produce(&scratch.log, TOPIC, values(&["lost"], NOBODY)).await, refused);
    // Once failed, never trusted again: not even if the disk says it is well.
    FailingDisk::set(&disk.flush_fails, false);
    assert_eq!(produce(&scratch.log, TOPIC, values(&["more"], NOBODY)).await, refused);
    let data = fetch(&scratch.log, TOPIC, 0).await;
    assert_eq!(Err(ErrorCode::from(data.error_code)), refused);
    let reason = scratch.status(TOPIC).offline.expect("offline");
    assert!(reason.contains("flush") && reason.contains("the disk is gone"), "{reason}");
    // A restart finds what was acknowledged.
    let folder = scratch.die();
    let log = open(folder.path(), |_| {}).await;
    assert_eq!(read_all(&log, TOPIC).await[0], (0, "kept".to_owned()));
}

#[tokio::test]
async fn a_write_that_cannot_be_taken_back_takes_the_partition_offline() {
    let (scratch, disk) = scratch().await;
    produce_values(&scratch.log, TOPIC, &["kept"]).await;
    disk.room.store(20, Ordering::SeqCst);
    FailingDisk::set(&disk.full, true);
    FailingDisk::set(&disk.cut_fails, true);
    let answer = produce(&scratch.log, TOPIC, values(&["torn"], NOBODY)).await;
    assert_eq!(answer, Err(ErrorCode::KafkaStorageError));
    assert!(scratch.status(TOPIC).offline.is_some());
    let folder = scratch.die();
    let log = open(folder.path(), |_| {}).await;
    assert_eq!(read_all(&log, TOPIC).await, [(0, "kept".to_owned())]);
}

#[tokio::test]
async fn one_flush_serves_all_that_wait_and_nothing_shows_before_it() {
    let (scratch, disk) = scratch().await;
    produce_values(&scratch.log, TOPIC, &["first"]).await;
    disk.hold(true);
    let before = disk.flushes.load(Ordering::SeqCst);
    let mut writing = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let log = Arc::clone(&scratch.log);
        let next = batch(&[(Some("k"), "next", 2000)], NOBODY);
        writing.spawn(async move { produce(&log, TOPIC, next).await.unwrap() });
    }
    // All are in the log, one flush is under way, and nobody sees or hears of them.
    until_so("it is not so", || scratch.status(TOPIC).end_offset.get() == 21).await;
    flushed_after(&disk, before).await;
    assert_eq!(scratch.status(TOPIC).high_watermark.get(), 1);
    assert_eq!(read_all(&scratch.log, TOPIC).await.len(), 1);
    assert_eq!(list_offset(&scratch.log, TOPIC, -1).await.1, 1);
    assert_eq!(list_offset(&scratch.log, TOPIC, -3).await, (ErrorCode::None, 0, 1000));
    assert!(writing.try_join_next().is_none());

    disk.hold(false);
    while let Some(done) = writing.join_next().await {
        done.unwrap();
    }
    let flushes = disk.flushes.load(Ordering::SeqCst) - before;
    assert!(flushes <= 2, "{flushes} flushes for 20 batches");
    assert_eq!(read_all(&scratch.log, TOPIC).await.len(), 21);
}

#[tokio::test]
async fn the_flush_policy_decides_what_waits_for_a_flush() {
    for (policy, flushed) in [(FlushPolicy::Always, true), (FlushPolicy::Never, false)] {
        let (scratch, disk) = scratch_with(|config| config.flush = policy).await;
        let before = disk.flushes.load(Ordering::SeqCst);
        produce_values(&scratch.log, TOPIC, &["a"]).await;
        let flushes = disk.flushes.load(Ordering::SeqCst) - before;
        assert_eq!(flushes > 0, flushed, "{policy:?}");
        assert_eq!(list_offset(&scratch.log, TOPIC, -1).await.1, 1);
        // A stop flushes under every policy, and a crash of the process loses nothing.
        let scratch = scratch.restart(|_| {}).await;
        assert_eq!(read_all(&scratch.log, TOPIC).await.len(), 1);
    }
}

#[tokio::test]
async fn an_interval_flushes_by_itself() {
    let interval = FlushPolicy::Interval(Duration::from_millis(5));
    let (scratch, disk) = scratch_with(|config| config.flush = interval).await;
    let before = disk.flushes.load(Ordering::SeqCst);
    produce_values(&scratch.log, TOPIC, &["a"]).await;
    flushed_after(&disk, before).await;
}

#[tokio::test]
async fn without_file_descriptors_requests_fail_and_partitions_stay() {
    let (scratch, disk) = scratch_with(|config| {
        config.segment_bytes = 1024;
        config.tail_bytes = 0;
    })
    .await;
    for number in 0..30 {
        produce_values(&scratch.log, TOPIC, &[&format!("value {number}")]).await;
    }
    disk.open_error.store(EMFILE, Ordering::SeqCst);
    let storage = ErrorCode::KafkaStorageError;
    assert_eq!(ErrorCode::from(fetch(&scratch.log, TOPIC, 0).await.error_code), storage);
    assert_eq!(list_offset(&scratch.log, TOPIC, 5).await.0, storage);
    // What needs no new segment is taken, until one is needed.
    let mut refused = Ok(0);
    let mut taken = 30;
    while let Ok(offset) = refused {
        taken = taken.max(offset + 1);
        refused = produce(&scratch.log, TOPIC, values(&["more"], NOBODY)).await;
    }
    assert_eq!(refused, Err(storage));
    assert_eq!(scratch.status(TOPIC).offline, None);

    disk.open_error.store(0, Ordering::SeqCst);
    assert_eq!(produce(&scratch.log, TOPIC, values(&["more"], NOBODY)).await, Ok(taken));
    let all = read_all(&scratch.log, TOPIC).await;
    assert_eq!(i64::try_from(all.len()).unwrap(), taken + 1);
    // And the next start finds nothing in the way.
    let folder = scratch.die();
    let log = open(folder.path(), |config| config.segment_bytes = 1024).await;
    assert_eq!(read_all(&log, TOPIC).await, all);
}

#[tokio::test]
async fn an_index_that_leads_astray_is_not_believed() {
    let scratch = Scratch::with(|config| {
        config.segment_bytes = 16 << 10;
        config.tail_bytes = 0;
    })
    .await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    let large = "x".repeat(1500);
    for _ in 0..30 {
        produce_values(&scratch.log, TOPIC, &[&large]).await;
    }
    let all = read_all(&scratch.log, TOPIC).await;
    let index = scratch.partition_folder(TOPIC).join("00000000000000000000.index");
    let whole = std::fs::read(&index).unwrap();
    // Header and first entry stand; the others lead inside of a batch, too far, or nowhere.
    let (kept, entries) = whole.split_at(40 + 16);
    assert!(entries.len() >= 32, "{} entries", entries.len() / 16);
    for position in [1, 4097, 12_000, u32::MAX] {
        let mut damaged = kept.to_vec();
        for entry in entries.chunks_exact(16) {
            damaged.extend(1_u32.to_be_bytes());
            damaged.extend(position.to_be_bytes());
            damaged.extend(&entry[8..]);
        }
        std::fs::write(&index, damaged).unwrap();
        assert_eq!(read_all(&scratch.log, TOPIC).await, all, "position {position}");
        for offset in 0..8 {
            let found = crate::support::texts(fetch(&scratch.log, TOPIC, offset).await.records);
            assert_eq!(found[0].0, offset, "position {position}");
        }
        assert_eq!(list_offset(&scratch.log, TOPIC, 1000).await.1, 0, "position {position}");
    }
    // Cut off, it cannot even be read.
    std::fs::write(&index, &whole[..50]).unwrap();
    assert_eq!(read_all(&scratch.log, TOPIC).await, all);
    assert_eq!(scratch.status(TOPIC).offline, None);
}

#[tokio::test]
async fn what_a_failed_flush_left_in_memory_only_is_on_the_disk_before_it_is_served() {
    let (scratch, disk) = scratch().await;
    produce_values(&scratch.log, TOPIC, &["kept"]).await;
    assert_eq!(commit(&scratch.log, "group", TOPIC, 1).await, ErrorCode::None);
    FailingDisk::set(&disk.flush_fails, true);
    let refused = Err(ErrorCode::KafkaStorageError);
    assert_eq!(produce(&scratch.log, TOPIC, values(&["unsure"], NOBODY)).await, refused);
    assert_ne!(commit(&scratch.log, "group", TOPIC, 2).await, ErrorCode::None);
    FailingDisk::set(&disk.flush_fails, false);

    let folder = scratch.die();
    let log = open(folder.path(), on(&disk)).await;
    let served = read_all(&log, TOPIC).await;
    produce_values(&log, TOPIC, &["more"]).await;
    assert_eq!(commit(&log, "group", TOPIC, 3).await, ErrorCode::None);
    drop(log);
    until_so("it is not so", || {
        std::fs::File::open(folder.path().join("lock")).unwrap().try_lock().is_ok()
    })
    .await;
    disk.cut_power();
    let log = open(folder.path(), |_| {}).await;
    assert_eq!(log.partitions().remove(0).offline, None);
    let all = read_all(&log, TOPIC).await;
    assert_eq!(all[..served.len()], served);
    assert_eq!(all[served.len()..], [(2, "more".to_owned())]);
}

#[tokio::test]
async fn a_panic_in_the_background_stops_one_partition_and_the_work_goes_on() {
    let interval = FlushPolicy::Interval(Duration::from_millis(5));
    let (scratch, disk) = scratch_with(|config| config.flush = interval).await;
    create_topic(&scratch.log, "other", &[]).await;
    FailingDisk::set(&disk.flush_panics, true);
    produce_values(&scratch.log, TOPIC, &["a"]).await;
    until_so("it is not so", || scratch.status(TOPIC).offline.is_some()).await;
    FailingDisk::set(&disk.flush_panics, false);
    // Read first: what is produced may be flushed at once.
    let before = disk.flushes.load(Ordering::SeqCst);
    produce_values(&scratch.log, "other", &["b"]).await;
    flushed_after(&disk, before).await;
    assert_eq!(scratch.status("other").offline, None);
}

#[tokio::test]
async fn a_producer_that_goes_away_while_it_takes_over_has_taken_over() {
    let (scratch, disk) = scratch().await;
    let first = init_producer(&scratch.log, Some("role")).await;
    disk.hold(true);
    let before = disk.flushes.load(Ordering::SeqCst);
    let taking_over = init_producer(&scratch.log, Some("role"));
    tokio::select! {
        biased;
        _ = taking_over => panic!("the flush does not end"),
        () = flushed_after(&disk, before) => {}
    }
    disk.hold(false);
    let next = init_producer(&scratch.log, Some("role")).await;
    assert!(next.id == first.id && next.epoch > first.epoch);
}

#[tokio::test]
async fn a_partition_for_which_there_were_no_files_at_the_start_is_opened_when_there_are() {
    let (scratch, disk) = scratch().await;
    let writer = init_producer(&scratch.log, Some("role")).await;
    assert_eq!(produce(&scratch.log, TOPIC, values(&["kept"], writer)).await, Ok(0));
    create_topic(&scratch.log, "deleted", &[]).await;

    disk.open_error.store(EMFILE, Ordering::SeqCst);
    let scratch = scratch.restart(on(&disk)).await;
    let reason = scratch.status(TOPIC).offline.expect("offline");
    assert!(reason.contains("os error 24"), "{reason}");
    let next = Writer { sequence: 1, ..writer };
    let refused = produce(&scratch.log, TOPIC, values(&["more"], next)).await;
    assert_eq!(refused, Err(ErrorCode::KafkaStorageError));
    assert_eq!(delete_topic(&scratch.log, "deleted").await, ErrorCode::None);

    disk.open_error.store(0, Ordering::SeqCst);
    until_so("it is not so", || scratch.status(TOPIC).leads.is_some()).await;
    // It knows its producers: what comes again is there already.
    assert_eq!(produce(&scratch.log, TOPIC, values(&["kept"], writer)).await, Ok(0));
    assert_eq!(produce(&scratch.log, TOPIC, values(&["more"], next)).await, Ok(1));
    assert_eq!(read_all(&scratch.log, TOPIC).await.len(), 2);
    let deleted = scratch.log.partitions().into_iter().find(|one| one.topic == "deleted");
    assert_eq!(deleted, None, "and the other one stays deleted");
    assert!(!scratch.partition_folder("deleted").exists());
}

#[tokio::test]
async fn a_segment_whose_name_may_be_lost_is_not_written_to() {
    let (scratch, disk) = scratch_with(|config| config.segment_bytes = 1024).await;
    FailingDisk::set(&disk.folder_flush_fails, true);
    let mut taken = 0;
    let refused = loop {
        match produce(&scratch.log, TOPIC, values(&["value"], NOBODY)).await {
            Ok(_) => taken += 1,
            Err(code) => break code,
        }
        assert!(taken < 1000, "no segment was begun");
    };
    assert_eq!(refused, ErrorCode::KafkaStorageError);
    let reason = scratch.status(TOPIC).offline.expect("offline");
    assert!(reason.contains("flush folder") && reason.contains("the folder is gone"), "{reason}");
    let segments = std::fs::read_dir(scratch.partition_folder(TOPIC)).unwrap();
    let names = segments.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let logs: Vec<_> = names.filter(|name| name.ends_with(".log")).collect();
    assert_eq!(logs, ["00000000000000000000.log"]);
    FailingDisk::set(&disk.folder_flush_fails, false);
    let folder = scratch.die();
    let log = open(folder.path(), |config| config.segment_bytes = 1024).await;
    assert_eq!(read_all(&log, TOPIC).await.len(), taken);
}

/// A topic is made by the controller; a partition that the node cannot make yet serves nobody, and is
/// made as soon as that is possible.
async fn is_made_later(scratch: Scratch, allow: impl Fn()) {
    assert_eq!(create_topic(&scratch.log, "more", &[]).await, ErrorCode::None);
    let refused = produce(&scratch.log, "more", values(&["a"], NOBODY)).await.unwrap_err();
    assert_eq!(refused, ErrorCode::NotLeaderOrFollower);
    // It is tried again now and then; what an attempt has made goes with it.
    until_so("something is left", || !scratch.partition_folder("more").exists()).await;
    allow();
    let produced = async || produce(&scratch.log, "more", values(&["a"], NOBODY)).await;
    until(produced, Result::is_ok).await.unwrap();
    let scratch = scratch.restart(|_| {}).await;
    assert_eq!(scratch.log.partitions().len(), 2);
    assert_eq!(read_all(&scratch.log, "more").await.len(), 1);
}

#[tokio::test]
async fn a_topic_whose_name_may_be_lost_is_made_later() {
    let (scratch, disk) = scratch().await;
    FailingDisk::set(&disk.folder_flush_fails, true);
    is_made_later(scratch, || FailingDisk::set(&disk.folder_flush_fails, false)).await;
}

#[tokio::test]
async fn a_topic_for_which_there_are_no_files_is_made_later() {
    let (scratch, disk) = scratch().await;
    disk.open_error.store(EMFILE, Ordering::SeqCst);
    is_made_later(scratch, || disk.open_error.store(0, Ordering::SeqCst)).await;
}

#[tokio::test]
async fn a_node_whose_metadata_cannot_be_flushed_says_that_it_has_stopped() {
    let (scratch, disk) = scratch().await;
    let log = Arc::clone(&scratch.log);
    let (tell, told) = tokio::sync::oneshot::channel();
    tokio::spawn(async move { tell.send(log.stopped().await) });
    FailingDisk::set(&disk.flush_fails, true);
    // It needs an entry of the metadata's log; its answer does not come.
    let creating = async {
        create_topic(&scratch.log, "other", &[]).await;
        std::future::pending::<()>().await;
    };
    let reason = tokio::select! {
        reason = told => reason.unwrap(),
        () = creating => unreachable!("it never ends"),
    };
    assert!(reason.contains("the disk is gone"), "{reason}");
}
