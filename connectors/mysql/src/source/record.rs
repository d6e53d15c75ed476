//! Records what real servers send, for the decoder's tests: `testdata/binlog`.
//!
//! `cargo test -p tailwater-mysql --lib record -- --ignored` makes all recordings anew.

use std::path::Path;

use tailwater_scratch::{Flavor, Server};

use super::binlog::Recording;
use super::session::Session;
use super::{MysqlSource, catalog, stream};
use crate::connect::Endpoint;
use crate::source::filter::Filter;

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, n bigint unsigned, d decimal(20,5),
     f float, g double, c char(8), v varchar(300), x text, b binary(4), y varbinary(9), z blob,
     da date, ti time(3), dt datetime(6), ts timestamp(2) NULL, yr year, e enum('a','ß'),
     l varchar(9) CHARACTER SET latin1, j json);
     CREATE TABLE other (id int, s set('a','b'), bi bit(9));";

const CHANGES: &str = "BEGIN; INSERT INTO t VALUES
     (1, 18446744073709551615, -12.34567, 1.5, -2.5e100, 'ch', 'väl', 'text', 'bi', x'00ff', x'',
      '2024-02-29', '-838:59:58.125', '9999-12-31 23:59:59.999999', '2038-01-19 03:14:07', 2155, 'ß',
      'äöü', '{\"a\": [1, 2.5, \"x\", null]}'),
     (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
      NULL, NULL, NULL);
     INSERT INTO other VALUES (1, 'a,b', b'101'); UPDATE t SET v = REPEAT('v', 299) WHERE id = 1;
     UPDATE t SET id = 3 WHERE id = 2; DELETE FROM t WHERE id = 1; COMMIT;
     FLUSH BINARY LOGS; TRUNCATE TABLE t;
     SET SESSION binlog_row_image = 'MINIMAL'; INSERT INTO t (id, n) VALUES (4, 4);
     UPDATE t SET n = 5; DELETE FROM t;";

#[test]
#[ignore = "makes recordings, tests nothing"]
fn record() {
    for (name, flavor, before) in [
        ("mariadb", Flavor::MariaDb, ""),
        (
            "mariadb_compressed",
            Flavor::MariaDb,
            "SET GLOBAL log_bin_compress_min_len = 10; SET GLOBAL log_bin_compress = ON;",
        ),
        ("mysql", Flavor::MySql, ""),
        ("mysql_compressed", Flavor::MySql, "SET SESSION binlog_transaction_compression = ON;"),
    ] {
        let server = Server::start(flavor).unwrap();
        server.create_database_named("shop").unwrap();
        server.sql("shop", TABLES).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(record_one(name, &server, before));
    }
}

async fn record_one(name: &str, server: &Server, before: &str) {
    let source = MysqlSource {
        name: "shop".into(),
        endpoint: Endpoint::parse(&server.url("shop")).unwrap(),
        filter: Filter::new(&["shop.t".into()], &[], None).unwrap(),
    };
    let mut session = Session::open(&source.endpoint).await.unwrap();
    let from = session.end().await.unwrap();
    let schemas = catalog(&source, &mut session).await.unwrap();
    let recording = Recording {
        dialect: session.server.dialect,
        base: from.file.base().to_owned(),
        file: from.file.number(),
        position: from.position,
        patterns: vec!["shop.t".into()],
        schemas: schemas.iter().map(|schema| (**schema).clone()).collect(),
        collations: session.collations().await.unwrap().into_iter().collect(),
    };
    server.sql("shop", &format!("{before}{CHANGES}")).unwrap();
    let end = session.end().await.unwrap();
    let mut wire = stream::dump(&source, &from.file, from.position).await.unwrap();
    let (mut bytes, mut file) = (Vec::new(), from.file.number());
    loop {
        let packet = wire.read_packet().await.unwrap();
        let event = &packet[1..];
        bytes.extend(u32::try_from(event.len()).unwrap().to_le_bytes());
        bytes.extend(event);
        let next = u32::from_le_bytes(event[13..17].try_into().unwrap());
        // A rotation that is in the file itself.
        file += u64::from(event[4] == 4 && next != 0);
        if file == end.file.number() && u64::from(next) == end.position {
            break;
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/binlog");
    std::fs::write(folder.join(format!("{name}.bin")), bytes).unwrap();
    let json = serde_json::to_string(&recording).unwrap();
    std::fs::write(folder.join(format!("{name}.json")), json).unwrap();
}
