//! The memory target under the contract that all targets are under.

use async_trait::async_trait;
use tailwater_apply::TargetConnector;
use tailwater_change::TableId;
use tailwater_memory::contract::{Subject, target};
use tailwater_memory::{Cell, MemoryDatabase};

pub(crate) struct Memory(pub(crate) MemoryDatabase);

#[async_trait]
impl Subject for Memory {
    fn connector(&self) -> &dyn TargetConnector {
        &self.0
    }

    fn namespace(&self) -> String {
        "public".into()
    }

    async fn rows(&self, table: &TableId) -> Vec<Vec<Option<String>>> {
        let rows = self.0.rows(table).unwrap();
        rows.iter().map(|row| row.iter().map(Cell::text).collect()).collect()
    }
}

#[tokio::test]
async fn memory_keeps_the_contract_of_targets() {
    target(&Memory(MemoryDatabase::new())).await;
}
