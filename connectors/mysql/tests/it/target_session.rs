//! Who applies, how far it has come, and what happens around a COMMIT.

use std::time::Duration;

use tailwater_apply::{StepOutcome, TargetError};
use tailwater_change::{Disposition, Value};
use tailwater_scratch::{Cut, Proxy, Server};

use crate::target::{
    Bench, connector_for, flavors, initial, insert, inserts, int, on_every_flavor,
};

#[tokio::test(flavor = "multi_thread")]
async fn one_holds_the_lock_and_the_fence_keeps_out_who_lost_it() {
    on_every_flavor(async |mut bench| {
        bench.sql("CREATE TABLE t (id INT NOT NULL PRIMARY KEY)");
        let schema = bench.schema("t", vec![int("id", 1)]);
        let table = bench.table(schema).await;
        let pipeline = bench.progress.pipeline.clone();
        let mut other = bench.connector.connect().await.unwrap();
        assert!(!other.try_lock(&pipeline).await.unwrap());
        assert!(
            other
                .try_lock("Another \u{e9} of a very long name that does not fit into a lock")
                .await
                .unwrap()
        );

        // It takes over without the lock, as after a partition of the network.
        let theirs = other.take_over(&initial(&pipeline)).await.unwrap();
        assert_eq!(theirs.fence, bench.progress.fence + 1);
        bench.target.begin().await.unwrap();
        let step = inserts(&table, vec![insert(&table, &[Value::Int(1)])]);
        assert_eq!(bench.target.step(&step).await.unwrap(), StepOutcome::Applied);
        let error = bench.target.commit(&bench.progress).await.unwrap_err();
        assert_eq!(error.disposition(), Disposition::Fenced);
        assert_eq!(bench.sql("SELECT COUNT(*) FROM t"), "0");

        // The lock ends with the session.
        drop(bench.target);
        tailwater_scratch::wait_until(Duration::from_secs(30), "the lock is free", || {
            let user = format!("SELECT IS_FREE_LOCK('tailwater.{pipeline}')");
            let free = bench.server.sql("", &user)?;
            Ok((free.trim() == "1").then_some(()))
        })
        .unwrap();
        assert!(other.try_lock(&pipeline).await.unwrap());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_comes_back_as_it_was_written_and_can_be_forgotten() {
    on_every_flavor(async |mut bench| {
        let mut progress = bench.progress.clone();
        progress.next_offset = i64::MAX;
        progress.state = format!("{{\"x\":\"{}\"}}", "\u{1f600}'\\".repeat(30_000));
        bench.target.begin().await.unwrap();
        bench.target.commit(&progress).await.unwrap();
        let read = bench.target.progress(&progress.pipeline).await.unwrap();
        assert_eq!(read, Some(progress.clone()));
        // The same once more: nothing changes, and that is no lost fence.
        bench.target.begin().await.unwrap();
        bench.target.commit(&progress).await.unwrap();
        bench.connector.forget(&progress.pipeline).await.unwrap();
        assert_eq!(bench.target.progress(&progress.pipeline).await.unwrap(), None);
        bench.target.begin().await.unwrap();
        let error = bench.target.commit(&progress).await.unwrap_err();
        assert!(matches!(error, TargetError::Fenced { .. }), "{error:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lost_in_commit_is_an_unknown_outcome_that_the_row_settles() {
    for flavor in flavors() {
        let server = Server::shared(flavor);
        for happened in [false, true] {
            let proxy = Proxy::start(server.port()).unwrap();
            let database = server.create_database().unwrap();
            let connector = connector_for(server.url_through(&proxy, &database));
            let mut bench = Bench::with(server, database, connector).await;
            bench.sql("CREATE TABLE t (id INT NOT NULL PRIMARY KEY)");
            let schema = bench.schema("t", vec![int("id", 1)]);
            let table = bench.table(schema).await;
            bench.target.begin().await.unwrap();
            let step = inserts(&table, vec![insert(&table, &[Value::Int(1)])]);
            assert_eq!(bench.target.step(&step).await.unwrap(), StepOutcome::Applied);
            let pattern = b"COMMIT".to_vec();
            proxy.cut_on(if happened { Cut::After(pattern) } else { Cut::Before(pattern) });
            let mut progress = bench.progress.clone();
            progress.next_offset = 42;
            let error = bench.target.commit(&progress).await.unwrap_err();
            assert!(matches!(error, TargetError::UnknownOutcome(_)), "{error:?}");
            assert_eq!(error.disposition(), Disposition::Retry);

            let mut again = bench.connector.connect().await.unwrap();
            let read = again.progress(&progress.pipeline).await.unwrap().unwrap();
            assert_eq!(read.next_offset == 42, happened);
            assert_eq!(bench.sql("SELECT COUNT(*) FROM t"), if happened { "1" } else { "0" });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_tried_again() {
    for flavor in flavors() {
        let server = Server::shared(flavor);
        let proxy = Proxy::start(server.port()).unwrap();
        let database = server.create_database().unwrap();
        let connector = connector_for(server.url_through(&proxy, &database));
        let mut bench = Bench::with(server, database, connector).await;
        bench.sql("CREATE TABLE t (id INT NOT NULL PRIMARY KEY)");
        let schema = bench.schema("t", vec![int("id", 1)]);
        let table = bench.table(schema).await;
        bench.target.begin().await.unwrap();
        proxy.cut();
        let rows = (0..500).map(|id| insert(&table, &[Value::Int(id)])).collect();
        let error = bench.target.step(&inserts(&table, rows)).await.unwrap_err();
        assert!(matches!(error, TargetError::Unavailable { .. }), "{error:?}");
        let mut again = bench.connector.connect().await.unwrap();
        assert!(again.is_empty(&table.target.name).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_is_content_with_a_good_server_and_names_what_is_wrong() {
    on_every_flavor(async |bench: Bench| {
        assert_eq!(bench.connector.check().await, []);
        let nobody =
            connector_for(format!("mysql://nobody:no@127.0.0.1:{}/x", bench.server.port()));
        let problems = nobody.check().await;
        assert_eq!(problems.len(), 1, "{problems:?}");
        bench.sql("DROP USER IF EXISTS poor; CREATE USER poor IDENTIFIED BY ''");
        bench.sql(&format!("GRANT ALL ON `{}`.* TO poor", bench.database));
        let poor = connector_for(format!(
            "mysql://poor@127.0.0.1:{}/{}",
            bench.server.port(),
            bench.database
        ));
        let problems = poor.check().await;
        assert!(problems.iter().any(|it| it.remedy.contains("GRANT")), "{problems:?}");
        bench.sql("GRANT ALL ON `tailwater`.* TO poor");
        assert_eq!(poor.check().await, []);
    })
    .await;
}
