//! `xtask db up` starts a server that ends with it, however it ends.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tailwater_scratch::{Flavor, wait_until};

struct Up {
    child: Child,
    address: String,
    folder: PathBuf,
}

/// Starts `xtask db up` and reads what it prints.
fn up(flavor: Flavor) -> Up {
    let mut child = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["db", "up", &flavor.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = lines.next().unwrap().unwrap();
    let (_, rest) = url.split_once('@').unwrap();
    let (address, _) = rest.split_once('/').unwrap();
    let place = lines.next().unwrap().unwrap();
    let (_, rest) = place.split_once(" runs in ").unwrap();
    let folder = PathBuf::from(rest.strip_suffix(" until Ctrl-C").unwrap());
    Up { child, address: address.to_owned(), folder }
}

#[test]
fn a_server_does_not_outlive_a_process_that_was_killed() {
    for flavor in Flavor::matrix() {
        let mut up = up(flavor);
        TcpStream::connect(&up.address).unwrap();
        assert!(up.folder.exists());
        // SIGKILL: no handler and no destructor runs.
        up.child.kill().unwrap();
        up.child.wait().unwrap();
        wait_until(Duration::from_secs(60), "end of the server and its folder", || {
            let gone = TcpStream::connect(&up.address).is_err() && !up.folder.exists();
            Ok(gone.then_some(()))
        })
        .unwrap_or_else(|error| panic!("{flavor}: {error:#}"));
    }
}

#[test]
fn an_unknown_server_is_answered_with_the_known_ones() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_xtask")).args(["db", "up", "oracle"]).output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("postgres:15, postgres:18, mariadb, mysql and kafka"), "{text}");
}
