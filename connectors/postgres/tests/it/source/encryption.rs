//! `sslmode`, against a server with a certificate of our own authority.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use tailwater_scratch::{Flavor, Server};

use crate::source::support::{changes_after, snapshot, source_at};

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .current_dir(folder)
        .args(arguments.split(' '))
        .output()
        .expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An authority in `ca.pem`, and a certificate of it for 127.0.0.1 that the server may read.
fn certificates(folder: &Path, owner: (u32, u32)) {
    let key = "-newkey rsa:2048 -nodes";
    openssl(folder, &format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=ca"));
    openssl(folder, &format!("req {key} -keyout server.key -out server.csr -subj /CN=server"));
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1").unwrap();
    openssl(
        folder,
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 \
         -extfile names",
    );
    for file in ["server.key", "server.pem"] {
        std::os::unix::fs::chown(folder.join(file), Some(owner.0), Some(owner.1)).unwrap();
    }
    std::os::unix::fs::chown(folder, Some(owner.0), Some(owner.1)).unwrap();
}

#[tokio::test]
async fn replication_and_sql_are_encrypted_as_asked() {
    let server = Server::start(Flavor::Postgres15).unwrap();
    let name = server.create_database().unwrap();
    let data = server.sql(&name, "SHOW data_directory").unwrap();
    let owner = std::fs::metadata(data.trim()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path(), (owner.uid(), owner.gid()));
    let path = |file: &str| folder.path().join(file).display().to_string();
    server
        .sql(
            &name,
            &format!(
                "ALTER SYSTEM SET ssl_cert_file = '{}'; ALTER SYSTEM SET ssl_key_file = '{}';
                 ALTER SYSTEM SET ssl = on; SELECT pg_reload_conf();
                 CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1);
                 CREATE ROLE strict SUPERUSER LOGIN PASSWORD 'secret';",
                path("server.pem"),
                path("server.key")
            ),
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

    let full = format!("sslmode=verify-full&sslrootcert={}", path("ca.pem"));
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
