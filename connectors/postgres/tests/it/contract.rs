//! PostgreSQL under the contract that all targets are under.

use async_trait::async_trait;
use tailwater_apply::TargetConnector;
use tailwater_change::TableId;
use tailwater_memory::contract::{Subject, target};
use tailwater_postgres::target::{PostgresTarget, TargetConfig, connector};
use tailwater_scratch::Server;

use crate::target::flavors;

/// A database of its own, reached by the connector and by `psql`.
struct Real {
    connector: PostgresTarget,
    server: &'static Server,
    database: String,
}

#[async_trait]
impl Subject for Real {
    fn connector(&self) -> &dyn TargetConnector {
        &self.connector
    }

    fn namespace(&self) -> String {
        "public".into()
    }

    async fn rows(&self, table: &TableId) -> Vec<Vec<Option<String>>> {
        // Hexadecimal: no value can break the client's output into other lines.
        let select = format!(
            "SELECT encode(convert_to(json_build_array(id::text, a::text, b, c)::text, 'UTF8'), \
             'hex') FROM {table}"
        );
        let printed = self.server.sql(&self.database, &select).unwrap();
        let lines = printed.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(&unhex(line)).unwrap()).collect()
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

#[tokio::test]
async fn postgres_keeps_the_contract_of_targets() {
    for flavor in flavors() {
        println!("{flavor}");
        let server = Server::shared(flavor);
        let database = server.create_database().unwrap();
        let url = server.url(&database);
        let connector = connector(TargetConfig { name: "copy".into(), url }).unwrap();
        target(&Real { connector, server, database }).await;
    }
}
