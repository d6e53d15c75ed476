//! `sslmode`, against a server with a certificate of our own authority.

use tailwater_scratch::{Certificates, Flavor, Server};

use crate::source::support::{changes_after, snapshot, source_at};

#[tokio::test]
async fn replication_and_sql_are_encrypted_as_asked() {
    let server = Server::start(Flavor::Postgres15).unwrap();
    let name = server.create_database().unwrap();
    let data = server.sql(&name, "SHOW data_directory").unwrap();
    let certificates = Certificates::make().unwrap();
    certificates.give(std::path::Path::new(data.trim())).unwrap();
    // Relative to the server's data.
    server
        .sql(
            &name,
            "ALTER SYSTEM SET ssl_cert_file = 'server.pem'; ALTER SYSTEM SET ssl_key_file = 'server.key';
             ALTER SYSTEM SET ssl = on; SELECT pg_reload_conf();
             CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1);
             CREATE ROLE strict SUPERUSER LOGIN PASSWORD 'secret';",
        )
        .unwrap();
    std::fs::write(
        server.sql(&name, "SHOW hba_file").unwrap().trim(),
        "host all postgres 127.0.0.1/32 trust\nhostssl all strict 127.0.0.1/32 scram-sha-256\n",
    )
    .unwrap();
    server.sql(&name, "SELECT pg_reload_conf()").unwrap();
    let url =
        |mode: &str| format!("postgres://strict:secret@127.0.0.1:{}/{name}?{mode}", server.port());
    let check = async |mode: &str| source_at(&url(mode), &name, &["public.*"]).check().await;

    let full = format!("sslmode=verify-full&sslrootcert={}", certificates.path("ca.pem").display());
    assert_eq!(check("sslmode=prefer").await, []);
    assert_eq!(check("sslmode=require").await, []);
    assert_eq!(check(&full).await, []);
    let refused = check("sslmode=disable").await;
    assert!(refused[0].to_string().contains("pg_hba.conf"), "{refused:?}");
    let refused = check("sslmode=verify-full").await;
    assert!(refused[0].to_string().contains("sslrootcert"), "{refused:?}");
    let other_name = url(&full).replace("127.0.0.1", "localhost");
    let refused = source_at(&other_name, &name, &["public.*"]).check().await;
    assert!(refused[0].to_string().contains("encryption with localhost"), "{refused:?}");
    let authority_only = other_name.replace("verify-full", "verify-ca");
    assert_eq!(source_at(&authority_only, &name, &["public.*"]).check().await, []);

    let source = source_at(&url(&full), &name, &["public.*"]);
    let (found, resume) = snapshot(&*source).await;
    assert_eq!(found.texts(), ["read [1]"]);
    server.sql(&name, "INSERT INTO t VALUES (2)").unwrap();
    assert_eq!(changes_after(&*source, &resume).await.texts(), ["insert [2]"]);
}
