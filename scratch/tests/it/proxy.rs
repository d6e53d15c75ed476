//! The failing network fails as asked, in front of a real server.

use std::sync::mpsc::sync_channel;
use std::time::Duration;

use tailwater_scratch::{Cut, Flavor, Proxy, Server};

const SOON: Duration = Duration::from_secs(20);

/// A database with an empty table `item`, and a proxy in front of its server.
fn table_behind_proxy(flavor: Flavor) -> (&'static Server, String, Proxy) {
    let server = Server::shared(flavor);
    let database = server.create_database().unwrap();
    server.sql(&database, "CREATE TABLE item (id int PRIMARY KEY)").unwrap();
    (server, database, Proxy::start(server.port()).unwrap())
}

#[test]
fn a_cut_before_commit_leaves_nothing_and_one_after_it_leaves_the_row() {
    for flavor in Flavor::matrix() {
        let (server, database, proxy) = table_behind_proxy(flavor);
        let insert = |id: u32| {
            let statements = format!("BEGIN; INSERT INTO item VALUES ({id}); COMMIT;");
            server.sql_through(&proxy, &database, &statements)
        };
        let ids = || server.sql(&database, "SELECT id FROM item ORDER BY id").unwrap();
        insert(1).unwrap();
        assert_eq!(ids(), "1", "{flavor}");

        proxy.cut_on(Cut::Before(b"COMMIT".to_vec()));
        assert!(insert(2).is_err(), "{flavor}");
        proxy.wait_for_cut(SOON).unwrap();
        assert_eq!(ids(), "1", "{flavor}");

        proxy.cut_on(Cut::After(b"COMMIT".to_vec()));
        assert!(insert(3).is_err(), "{flavor}");
        proxy.wait_for_cut(SOON).unwrap();
        assert_eq!(ids(), "1\n3", "{flavor}");

        insert(4).unwrap();
        assert_eq!(ids(), "1\n3\n4", "{flavor}: a cut happens once");
    }
}

#[test]
fn a_stalled_network_delivers_later_and_a_refusing_one_not_at_all() {
    for flavor in Flavor::matrix() {
        let (server, database, proxy) = table_behind_proxy(flavor);
        proxy.stall();
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(1);
            let (proxy, database) = (&proxy, &database);
            scope.spawn(move || {
                sender.send(server.sql_through(proxy, database, "SELECT 7")).unwrap();
            });
            let early = receiver.recv_timeout(Duration::from_millis(300));
            assert!(early.is_err(), "{flavor}: {early:?}");
            proxy.flow();
            assert_eq!(receiver.recv().unwrap().unwrap(), "7", "{flavor}");
        });
        proxy.refuse();
        let refused = server.sql_through(&proxy, &database, "SELECT 7");
        assert!(refused.is_err(), "{flavor}: {refused:?}");
        proxy.flow();
        assert_eq!(server.sql_through(&proxy, &database, "SELECT 7").unwrap(), "7", "{flavor}");
    }
}
