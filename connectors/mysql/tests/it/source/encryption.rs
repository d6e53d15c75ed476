//! `ssl-mode`, against servers with a certificate of our own authority.

use tailwater_capture::SourceConnector;
use tailwater_mysql::source::{SourceConfig, connector};
use tailwater_mysql::target::TargetConfig;
use tailwater_scratch::{Certificates, Flavor, Server};

use super::support::{Tail, flavors, run, snapshot};

/// A server that has a certificate, and what its clients need.
fn encrypted(flavor: Flavor) -> (Server, Certificates) {
    let mut server = Server::start(flavor).unwrap();
    let certificates = Certificates::make().unwrap();
    certificates.give(&server.folder().join("data")).unwrap();
    // Relative to the server's data.
    server.configure(&[("ssl_cert", "server.pem"), ("ssl_key", "server.key")]).unwrap();
    server.restart().unwrap();
    (server, certificates)
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
        let (server, certificates) = encrypted(flavor);
        let database = server.create_database().unwrap();
        server
            .sql(&database, "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
            .unwrap();
        let ca = |file: &str| format!("&ssl-ca={}", certificates.path(file).display());
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
