//! MySQL and MariaDB under the contract that all targets are under.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

use async_trait::async_trait;
use tailwater_apply::TargetConnector;
use tailwater_change::TableId;
use tailwater_memory::contract::{Subject, target};
use tailwater_scratch::Server;

use crate::target::{connector_for, flavors};

/// A database of its own, reached by the connector and by the command line client.
struct Real {
    connector: Box<dyn TargetConnector>,
    server: &'static Server,
    database: String,
}

#[async_trait]
impl Subject for Real {
    fn connector(&self) -> &dyn TargetConnector {
        self.connector.as_ref()
    }

    fn namespace(&self) -> String {
        self.database.clone()
    }

    async fn rows(&self, table: &TableId) -> Vec<Vec<Option<String>>> {
        // Hexadecimal: no value can break the client's output into other lines.
        let select =
            format!("SELECT HEX(JSON_ARRAY(CAST(id AS CHAR), CAST(a AS CHAR), b, c)) FROM {table}");
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
async fn mysql_and_mariadb_keep_the_contract_of_targets() {
    for flavor in flavors() {
        println!("{flavor}");
        let server = Server::shared(flavor);
        let database = server.create_database().unwrap();
        let connector = connector_for(server.url(&database));
        target(&Real { connector, server, database }).await;
    }
}
