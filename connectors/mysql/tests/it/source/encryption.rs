//! `ssl-mode`, against servers with a certificate of our own authority.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use tailwater_capture::SourceConnector;
use tailwater_mysql::source::{SourceConfig, connector};
use tailwater_mysql::target::TargetConfig;
use tailwater_scratch::Server;

use super::support::{Tail, flavors, run, snapshot};

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .current_dir(folder)
        .args(arguments.split(' '))
        .output()
        .expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An authority in `ca.pem`, another in `other.pem`, and in the server's folder a certificate of
/// the first for 127.0.0.1.
fn certificates(folder: &Path, data: &Path) {
    let key = "-newkey rsa:2048 -nodes";
    for name in ["ca", "other"] {
        let subject = format!("-days 2 -subj /CN={name}");
        openssl(folder, &format!("req -x509 {key} -keyout {name}.key -out {name}.pem {subject}"));
    }
    openssl(folder, &format!("req {key} -keyout server.key -out server.csr -subj /CN=server"));
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1").unwrap();
    openssl(
        folder,
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 \
         -extfile names",
    );
    let owner = std::fs::metadata(data).unwrap();
    for file in ["server.key", "server.pem"] {
        std::fs::copy(folder.join(file), data.join(file)).unwrap();
        std::os::unix::fs::chown(data.join(file), Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}

/// A server that has such a certificate, and a folder with what clients need.
fn encrypted(flavor: tailwater_scratch::Flavor) -> (Server, tempfile::TempDir) {
    let mut server = Server::start(flavor).unwrap();
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path(), &server.folder().join("data"));
    // Relative to the server's data.
    server.configure(&[("ssl_cert", "server.pem"), ("ssl_key", "server.key")]).unwrap();
    server.restart().unwrap();
    (server, folder)
}

fn source_at(url: &str, database: &str) -> impl SourceConnector + use<> {
    connector(SourceConfig {
        name: "secure".into(),
        url: url.to_owned(),
        tables: vec![format!("{database}.*")],
        exclude: Vec::new(),
    })
    .unwrap()
}

#[test]
fn the_servers_certificate_is_checked_as_asked() {
    for flavor in flavors() {
        let (server, folder) = encrypted(flavor);
        let database = server.create_database().unwrap();
        server
            .sql(&database, "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
            .unwrap();
        let ca = |file: &str| format!("&ssl-ca={}", folder.path().join(file).display());
        let here = |parameters: &str| format!("{}?{parameters}", server.url(&database));
        let by_name = |parameters: &str| here(parameters).replace("127.0.0.1", "localhost");
        run(async {
            for url in [
                here("ssl-mode=REQUIRED"),
                here(&format!("ssl-mode=VERIFY_CA{}", ca("ca.pem"))),
                here(&format!("ssl-mode=VERIFY_IDENTITY{}", ca("ca.pem"))),
                by_name(&format!("ssl-mode=VERIFY_CA{}", ca("ca.pem"))),
            ] {
                let source = source_at(&url, &database);
                assert_eq!(source.check().await, [], "{url}");
                // Sessions, the snapshot's connection and the binlog's.
                let (read, resume) = snapshot(&source).await;
                assert_eq!(read.script("id"), "=1");
                let mut tail = Tail::open(&source, Some(&resume)).await;
                tail.catch_up(&source).await;
            }
            let full = "ssl-mode=VERIFY_IDENTITY";
            for (url, part, remedy) in [
                (
                    here(&format!("ssl-mode=VERIFY_CA{}", ca("other.pem"))),
                    "UnknownIssuer",
                    "ssl-ca",
                ),
                (here(&format!("{full}{}", ca("other.pem"))), "UnknownIssuer", "ssl-ca"),
                // Mozilla's authorities did not sign it either.
                (here(full), "UnknownIssuer", "ssl-ca"),
                (by_name(&format!("{full}{}", ca("ca.pem"))), "localhost", "VERIFY_CA"),
                (here(&format!("{full}{}", ca("missing.pem"))), "ssl-ca", "ssl-ca"),
            ] {
                let target = TargetConfig { name: "copy".into(), url: url.clone() };
                let target = tailwater_mysql::target::connector(target).unwrap();
                for problems in [
                    source_at(&url, &database).check().await,
                    tailwater_apply::TargetConnector::check(&target).await,
                ] {
                    let [problem] = &problems[..] else { panic!("{url}: {problems:?}") };
                    assert!(problem.what.contains(part), "{url}: {problem}");
                    assert!(problem.remedy.contains(remedy), "{url}: {problem}");
                }
                // It stops at once: trying again would not help.
                let error = source_at(&url, &database).stream(None).await.err().unwrap();
                assert!(matches!(error, tailwater_capture::SourceError::Refused(_)), "{error:?}");
            }
        });
    }
}
