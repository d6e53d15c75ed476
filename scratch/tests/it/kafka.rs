//! A scratch Kafka, as kcat sees it.

use std::io::Write;
use std::process::{Command, Stdio};

use tailwater_scratch::Kafka;

#[test]
fn kafka_keeps_what_kcat_wrote_through_a_restart_and_a_crash() {
    if Kafka::available().is_err() && Kafka::prepare().is_err() {
        // No java or no mvn here: `cargo xtask test` says in its closing line what that leaves out.
        return;
    }
    let mut kafka = Kafka::start().unwrap();
    write(&kafka, "one\ntwo\n");
    assert_eq!(read(&kafka), "one\ntwo\n");
    kafka.restart().unwrap();
    write(&kafka, "three\n");
    assert_eq!(read(&kafka), "one\ntwo\nthree\n");
    kafka.kill().unwrap();
    kafka.start_again().unwrap();
    assert_eq!(read(&kafka), "one\ntwo\nthree\n");
}

fn write(kafka: &Kafka, lines: &str) {
    let mut kcat = Command::new("kcat")
        .args(["-P", "-t", "changes", "-p", "0", "-b", &kafka.bootstrap()])
        .stdin(Stdio::piped())
        .spawn()
        .expect("kcat is installed");
    kcat.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(kcat.wait().unwrap().success());
}

fn read(kafka: &Kafka) -> String {
    let output = Command::new("kcat")
        .args(["-C", "-e", "-q", "-t", "changes", "-p", "0", "-b", &kafka.bootstrap()])
        .output()
        .expect("kcat is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
