//! What a stream says: transactions in order, from every position on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tailwater_change::Operation;
use tailwater_scratch::{Flavor, Server};

use super::support::{Item, Tail, flavors, on_each, run, snapshot, source, source_of};

const TABLES: &str = "CREATE TABLE a (id int PRIMARY KEY, v varchar(20));
     CREATE TABLE b (id int PRIMARY KEY, v varchar(20));
     CREATE TABLE other (id int PRIMARY KEY);
     CREATE TABLE keyless (x int, y int);";

#[test]
fn transactions_come_whole_and_in_order() {
    on_each(async |server, database| {
        server.sql(database, TABLES).unwrap();
        server.sql(database, "INSERT INTO a VALUES (1, 'x')").unwrap();
        let source = source(server, database);
        let (read, resume) = snapshot(&*source).await;
        assert_eq!(read.script("id"), "=1");
        let mut tail = Tail::open(&*source, Some(&resume)).await;
        server
            .sql(
                database,
                "BEGIN; INSERT INTO a VALUES (2, 'y'), (3, 'z'); INSERT INTO b VALUES (1, 'b');
                 UPDATE a SET v = 'w' WHERE id > 1; COMMIT;
                 BEGIN; INSERT INTO a VALUES (9, 'gone'); ROLLBACK;
                 BEGIN; INSERT INTO a VALUES (4, 'kept'); SAVEPOINT s;
                 INSERT INTO a VALUES (5, 'gone'); ROLLBACK TO s; COMMIT;
                 UPDATE a SET id = 40 WHERE id = 4;
                 DELETE FROM a WHERE id = 1;",
            )
            .unwrap();
        tail.catch_up(&*source).await;
        assert_eq!(tail.recorder.script("id"), "+2 +3 +1 ~2 ~3 | +4 | 4>40 | -1 |");
        let rows = tail.recorder.rows();
        assert_eq!(
            rows.iter().map(|row| row.ordinal).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4, 0, 0, 0]
        );
        let begins = tail.recorder.begins();
        assert!(begins.is_sorted() && begins[0] > resume.after);
        let ends = tail.recorder.items.iter();
        assert!(
            ends.filter(|item| matches!(item, Item::End(Some(gtid)) if gtid.contains([':', '-'])))
                .count()
                == 4
        );
    });
}

#[test]
fn ordinals_count_rows_of_every_table() {
    on_each(async |server, database| {
        server.sql(database, TABLES).unwrap();
        server
            .sql(database, "CREATE TABLE odd (id int, b bit(9), s set('x','y'), p point, t blob)")
            .unwrap();
        let source = source_of(server, database, &["a"]);
        let (_, resume) = snapshot(&*source).await;
        let mut tail = Tail::open(&*source, Some(&resume)).await;
        server
            .sql(
                database,
                "BEGIN; INSERT INTO other VALUES (1), (2); INSERT INTO a VALUES (1, 'x');
                 INSERT INTO odd VALUES (1, b'101', 'x,y', POINT(1, 2), 't'), (2, NULL, '', NULL, '');
                 UPDATE odd SET id = 3; INSERT INTO a VALUES (2, 'x'); COMMIT;
                 INSERT INTO other VALUES (3);",
            )
            .unwrap();
        tail.catch_up(&*source).await;
        assert_eq!(tail.recorder.script("id"), "+1 +2 |");
        let rows = tail.recorder.rows();
        assert_eq!(rows.iter().map(|row| row.ordinal).collect::<Vec<_>>(), [2, 7]);
    });
}

#[test]
fn a_table_without_a_key_gives_whole_rows() {
    on_each(async |server, database| {
        server.sql(database, TABLES).unwrap();
        let source = source_of(server, database, &["keyless"]);
        let (_, resume) = snapshot(&*source).await;
        let mut tail = Tail::open(&*source, Some(&resume)).await;
        server
            .sql(
                database,
                "INSERT INTO keyless VALUES (1, 2), (1, NULL); UPDATE keyless SET x = 3 WHERE y = 2;
                 DELETE FROM keyless;",
            )
            .unwrap();
        tail.catch_up(&*source).await;
        let rows = tail.recorder.rows();
        assert!(rows.iter().all(|row| row.key.is_empty()));
        assert_eq!(rows[2].before.as_ref().unwrap()["y"], "2");
        assert_eq!(tail.recorder.script("y"), "+2 +NULL | 2>2 | -2 -NULL |");
    });
}

/// Resumes at each transaction: as complete, and as cut off anywhere.
#[test]
fn resumes_at_every_transaction() {
    on_each(async |server, database| {
        server.sql(database, TABLES).unwrap();
        let source = source(server, database);
        let (_, resume) = snapshot(&*source).await;
        let mut tail = Tail::open(&*source, Some(&resume)).await;
        for id in 0..3 {
            server
                .sql(database, &format!("INSERT INTO a VALUES ({id}, 'x'), ({id} + 10, 'y')"))
                .unwrap();
        }
        server.sql(database, "FLUSH BINARY LOGS; INSERT INTO a VALUES (3, 'x')").unwrap();
        tail.catch_up(&*source).await;
        assert_eq!(tail.recorder.script("id"), "+0 +10 | +1 +11 | +2 +12 | +3 |");
        let begins = tail.recorder.begins();
        let expected = ["+1 +11 | +2 +12 | +3 |", "+2 +12 | +3 |", "+3 |", ""];
        for (at, begin) in begins.iter().enumerate() {
            let mut after = Tail::open(&*source, Some(&tail.resume(*begin, false))).await;
            after.catch_up(&*source).await;
            assert_eq!(after.recorder.script("id"), expected[at]);
            let mut again = Tail::open(&*source, Some(&tail.resume(*begin, true))).await;
            again.catch_up(&*source).await;
            assert_eq!(again.recorder.begins(), begins[at..]);
            assert_eq!(again.recorder.rows(), tail.recorder.rows()[2 * at..]);
        }
        // After an idle position too.
        let idle = tail.recorder.items.iter().rev().find_map(|item| match item {
            Item::Idle(through) => Some(*through),
            _ => None,
        });
        let mut later = Tail::open(&*source, Some(&tail.resume(idle.unwrap(), false))).await;
        server.sql(database, "INSERT INTO a VALUES (7, 'x')").unwrap();
        later.catch_up(&*source).await;
        assert_eq!(later.recorder.script("id"), "+7 |");
    });
}

#[test]
fn a_stream_from_now_says_where_it_began() {
    on_each(async |server, database| {
        server.sql(database, TABLES).unwrap();
        server.sql(database, "INSERT INTO a VALUES (1, 'x')").unwrap();
        let source = source(server, database);
        let mut tail = Tail::open(&*source, None).await;
        tail.next().await.unwrap();
        assert!(matches!(tail.recorder.items[0], Item::Idle(_)));
        server.sql(database, "INSERT INTO a VALUES (2, 'x')").unwrap();
        tail.catch_up(&*source).await;
        assert_eq!(tail.recorder.script("id"), "+2 |");
        let said = tail.recorder.items.len();
        tail.stream.probe().await.unwrap();
        tail.next().await.unwrap();
        assert!(tail.recorder.items.len() > said);
    });
}

#[test]
fn files_rotate_and_servers_restart() {
    for flavor in flavors() {
        let mut server = Server::start(flavor).unwrap();
        let database = server.create_database().unwrap();
        server.sql(&database, TABLES).unwrap();
        run(async {
            let source = source(&server, &database);
            let (_, resume) = snapshot(&*source).await;
            let mut tail = Tail::open(&*source, Some(&resume)).await;
            for id in 0..4 {
                let sql = format!("INSERT INTO a VALUES ({id}, 'x'); FLUSH BINARY LOGS;");
                server.sql(&database, &sql).unwrap();
            }
            tail.catch_up(&*source).await;
            assert_eq!(tail.recorder.script("id"), "+0 | +1 | +2 | +3 |");
            let last = *tail.recorder.begins().last().unwrap();
            let resume = tail.resume(last, false);
            for orderly in [true, false] {
                server.sql(&database, "INSERT INTO b VALUES (RAND() * 1000000, 'x')").unwrap();
                if orderly {
                    server.restart().unwrap();
                } else {
                    server.kill().unwrap();
                    server.start_again().unwrap();
                }
                server.sql(&database, "INSERT INTO b VALUES (RAND() * 1000000, 'y')").unwrap();
                assert!(tail.stream.confirm(last).await.is_ok());
            }
            assert_eq!(tail.failure().await.disposition(), tailwater_change::Disposition::Retry);
            let mut tail = Tail::open(&*source, Some(&resume)).await;
            tail.catch_up(&*source).await;
            assert_eq!(tail.recorder.rows().len(), 4);
        });
    }
}

/// The log holds some rows of a transaction when the connection breaks or the server dies: it
/// comes again whole, each row at the same place, so that capture goes on behind the last it has.
#[test]
fn a_transaction_goes_on_behind_the_row_at_which_its_stream_broke() {
    for flavor in flavors() {
        let mut server = Server::start(flavor).unwrap();
        let database = server.create_database().unwrap();
        server.sql(&database, TABLES).unwrap();
        run(async {
            for (round, dies) in [(0, false), (1, true)] {
                let source = source_of(&server, &database, &["a", "b"]);
                let (_, resume) = snapshot(&*source).await;
                let mut tail = Tail::open(&*source, Some(&resume)).await;
                let rows = |from: usize| {
                    let first = round * 100_000 + from;
                    let row = |id| format!("({id}, 'a row of some bytes')");
                    (first..first + 10_000).map(row).collect::<Vec<_>>().join(",")
                };
                let sql = format!(
                    "BEGIN; INSERT INTO a VALUES {}; INSERT INTO other VALUES ({round}), ({round} + 10);
                     INSERT INTO b VALUES {}; COMMIT",
                    rows(0),
                    rows(10_000)
                );
                server.sql(&database, &sql).unwrap();
                while tail.recorder.rows().len() < 300 {
                    tail.next().await.unwrap();
                }
                if dies {
                    server.kill().unwrap();
                    server.start_again().unwrap();
                }
                let held = tail.recorder.rows();
                let begin = *tail.recorder.begins().last().unwrap();
                assert!(
                    held.len() < 20_000
                        && held.last().unwrap().ordinal == u64::try_from(held.len() - 1).unwrap()
                );
                let resume = tail.resume(begin, true);
                drop(tail);
                let source = source_of(&server, &database, &["a", "b"]);
                let mut tail = Tail::open(&*source, Some(&resume)).await;
                tail.catch_up(&*source).await;
                let all = tail.recorder.rows();
                assert_eq!(tail.recorder.begins(), [begin]);
                assert_eq!(all[..held.len()], held);
                // Two rows of a table that is not captured stand in the middle.
                let ordinals: Vec<u64> = all.iter().map(|row| row.ordinal).collect();
                let expected: Vec<u64> = (0..10_000).chain(10_002..20_002).collect();
                assert_eq!(ordinals, expected);
            }
        });
    }
}

#[test]
fn partial_images_say_what_they_leave_out() {
    on_each(async |server, database| {
        server
            .sql(database, "CREATE TABLE p (id int PRIMARY KEY, a int, b varchar(9), c text)")
            .unwrap();
        let source = source(server, database);
        let (_, resume) = snapshot(&*source).await;
        let mut tail = Tail::open(&*source, Some(&resume)).await;
        server
            .sql(
                database,
                "SET SESSION binlog_row_image = 'MINIMAL';
                 INSERT INTO p (id, a) VALUES (1, 10); UPDATE p SET a = 11;
                 UPDATE p SET id = 2; DELETE FROM p;
                 SET SESSION binlog_row_image = 'NOBLOB';
                 INSERT INTO p VALUES (3, 30, 'b', 'c'); UPDATE p SET a = 31;
                 UPDATE p SET c = 'd';",
            )
            .unwrap();
        tail.catch_up(&*source).await;
        assert_eq!(tail.recorder.script("id"), "+1 | ~1 | 1>2 | -2 | +3 | ~3 | ~3 |");
        let rows = tail.recorder.rows();
        let after = |at: usize, column: &str| rows[at].after.as_ref().unwrap()[column].clone();
        assert_eq!(after(0, "c"), "NULL");
        assert_eq!(
            (after(1, "id"), after(1, "a"), after(1, "b")),
            ("1".into(), "11".into(), "unsent".into())
        );
        assert_eq!((after(5, "b"), after(5, "c")), ("b".into(), "unsent".into()));
        assert_eq!(after(6, "c"), "d");
        assert_eq!(rows[3].operation, Operation::Delete);
    });
}

#[test]
fn large_rows_and_many_rows_come_through() {
    on_each(async |server, database| {
        server.sql(database, "CREATE TABLE l (id int PRIMARY KEY, big longtext)").unwrap();
        let source = source(server, database);
        server.sql(database, "INSERT INTO l VALUES (0, REPEAT('snap', 5000000))").unwrap();
        let (read, resume) = snapshot(&*source).await;
        assert_eq!(read.rows()[0].after.as_ref().unwrap()["big"].len(), 20_000_000);
        let mut tail = Tail::open(&*source, Some(&resume)).await;
        server.sql(database, "INSERT INTO l VALUES (1, REPEAT('x', 20000000))").unwrap();
        let many: Vec<String> = (2..20_002).map(|id| format!("({id}, '{id}')")).collect();
        server.sql(database, &format!("INSERT INTO l VALUES {}", many.join(","))).unwrap();
        tail.catch_up(&*source).await;
        let rows = tail.recorder.rows();
        assert_eq!(rows.len(), 20_001);
        assert_eq!(rows[0].after.as_ref().unwrap()["big"].len(), 20_000_000);
        assert_eq!(rows[20_000].ordinal, 19_999);
    });
}

#[test]
fn compressed_events_are_read() {
    on_each(async |server, database| {
        server.sql(database, "CREATE TABLE c (id int PRIMARY KEY, v text)").unwrap();
        let source = source(server, database);
        let (_, resume) = snapshot(&*source).await;
        let mut tail = Tail::open(&*source, Some(&resume)).await;
        let switch = if server.flavor() == Flavor::MariaDb {
            "SET GLOBAL log_bin_compress = ON; SET GLOBAL log_bin_compress_min_len = 10;"
        } else {
            "SET SESSION binlog_transaction_compression = ON;"
        };
        server
            .sql(
                database,
                &format!(
                    "{switch} BEGIN; INSERT INTO c VALUES (1, REPEAT('x', 1000)), (2, REPEAT('y', 1000));
                     UPDATE c SET v = REPEAT('z', 2000); DELETE FROM c WHERE id = 1; COMMIT;
                     INSERT INTO c VALUES (3, REPEAT('x', 1000));"
                ),
            )
            .unwrap();
        if server.flavor() == Flavor::MariaDb {
            server.sql(database, "SET GLOBAL log_bin_compress = OFF").unwrap();
        }
        tail.catch_up(&*source).await;
        assert_eq!(tail.recorder.script("id"), "+1 +2 ~1 ~2 -1 | +3 |");
        for (at, begin) in tail.recorder.begins().into_iter().enumerate() {
            let mut after = Tail::open(&*source, Some(&tail.resume(begin, true))).await;
            after.catch_up(&*source).await;
            assert_eq!(after.recorder.begins(), tail.recorder.begins()[at..]);
        }
    });
}

#[test]
fn generated_invisible_and_odd_columns_do_not_confuse() {
    on_each(async |server, database| {
        server
            .sql(
                database,
                "CREATE TABLE g (id int AUTO_INCREMENT PRIMARY KEY, a int,
                    v int GENERATED ALWAYS AS (a + 1) VIRTUAL, s int GENERATED ALWAYS AS (a + 2) STORED,
                    i int INVISIBLE DEFAULT 5, t text, `odd ``name` int, UNIQUE KEY (t(20)), KEY (v));
                 INSERT INTO g (a, t) VALUES (1, 'x');",
            )
            .unwrap();
        let source = source(server, database);
        let (read, resume) = snapshot(&*source).await;
        let mut tail = Tail::open(&*source, Some(&resume)).await;
        server.sql(database, "INSERT INTO g (a, t) VALUES (1, 'y'); UPDATE g SET a = 7").unwrap();
        tail.catch_up(&*source).await;
        assert_eq!(read.script("id"), "=1");
        assert_eq!(tail.recorder.script("id"), "+2 | ~1 ~2 |");
        let first = read.rows()[0].after.clone().unwrap();
        assert_eq!((first["i"].as_str(), first["v"].as_str()), ("5", "NULL"));
    });
}

/// Ends the writer also when the test fails.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_snapshot_under_load_and_its_stream_lose_nothing() {
    on_each(async |server, database| {
        server.sql(database, TABLES).unwrap();
        let stop = Stop(Arc::new(AtomicBool::new(false)));
        let (stopped, name) = (Arc::clone(&stop.0), database.to_owned());
        let writer = std::thread::spawn(move || {
            let mut id = 0;
            while !stopped.load(Ordering::Relaxed) {
                let mut sql = String::new();
                for _ in 0..20 {
                    id += 1;
                    sql.push_str(&format!("INSERT INTO a VALUES ({id}, 'x');"));
                }
                server.sql(&name, &sql).unwrap();
            }
            id
        });
        let source = source_of(server, database, &["a"]);
        let mut seen = Vec::new();
        for _ in 0..3 {
            let (read, resume) = snapshot(&*source).await;
            seen.push((read.rows().len(), Tail::open(&*source, Some(&resume)).await));
        }
        drop(stop);
        let written = writer.join().unwrap();
        for (read, mut tail) in seen {
            tail.catch_up(&*source).await;
            assert_eq!(read + tail.recorder.rows().len(), written);
        }
    });
}
