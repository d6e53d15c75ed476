//! A foreign reader: the schemas of a topic's records, asked for as Confluent's clients do.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use tailwater_scratch::{Flavor, free_port};

use crate::world::{PATIENCE, World};

fn get(port: u16, path: &str) -> (u16, String) {
    ask(port, "GET", path, "")
}

fn ask(port: u16, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn every_record_s_schema_is_served_as_confluent_serves_it() {
    let mut world = World::new(Flavor::Postgres15, Flavor::Postgres15, 301).unwrap();
    let port = free_port();
    let text = world.configuration(&world.tailwater, "");
    let listener = format!("{text}[schema_registry]\nlisten = \"127.0.0.1:{port}\"\n");
    world.tailwater.configure(&listener).unwrap();
    world.tailwater.start_again().unwrap();
    world.tailwater.wait_for(&world.pipeline, PATIENCE).unwrap();
    let source = &world.from.1;
    let subject = format!("{source}-public.accounts");
    let (status, subjects) = get(port, "/subjects");
    assert_eq!(status, 200);
    assert!(subjects.contains(&format!("\"{subject}\"")), "{subjects}");
    assert!(subjects.contains("\"tailwater-control\""), "{subjects}");
    assert_eq!(get(port, &format!("/subjects/{subject}/versions")), (200, "[1]".to_owned()));
    let (_, latest) = get(port, &format!("/subjects/{subject}/versions/latest"));
    assert!(latest.contains("message Envelope") && latest.contains("\"version\":1"), "{latest}");
    let id = latest.split_once("\"id\":").unwrap().1;
    let id = &id[..id.find([',', '}']).unwrap()];
    let (status, by_id) = get(port, &format!("/schemas/ids/{id}"));
    assert_eq!(status, 200);
    assert!(by_id.contains("\"schemaType\":\"PROTOBUF\""), "{by_id}");
    assert_eq!(get(port, "/subjects/nobody/versions").0, 404);
    assert_eq!(get(port, "/schemas/ids/99999").0, 404);
    assert_eq!(get(port, &format!("/subjects/{subject}/versions/x")).0, 422);
    assert_eq!(get(port, "/"), (200, "{}".to_owned()));
    assert_eq!(get(port, "/mode"), (200, "{\"mode\":\"READONLY\"}".to_owned()));
    // Nobody but capture writes: a registration is refused, and leaves nothing behind.
    let schema = "{\"schemaType\":\"PROTOBUF\",\"schema\":\"syntax = \\\"proto3\\\";\"}";
    for path in [format!("/subjects/{subject}/versions"), "/config".to_owned()] {
        assert_eq!(ask(port, "POST", &path, schema).0, 405, "{path}");
    }
    assert_eq!(get(port, &format!("/subjects/{subject}/versions")), (200, "[1]".to_owned()));
    assert_eq!(ask(port, "POST", "/compatibility", schema).0, 404);
    assert_eq!(get(port, "/nowhere").0, 404);
    world.tailwater.stop().unwrap();
}
