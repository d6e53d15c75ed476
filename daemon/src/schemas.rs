//! Which table the records of a schema id are of, remembered.

use std::collections::HashMap;
use std::sync::Arc;

use tailwater_change::{SchemaId, TableSchema, is_control_schema, parse_schema};
use tailwater_registry::Registry;

/// The schemas that were met so far: as many as there were versions of tables.
#[derive(Debug)]
pub(crate) struct Schemas {
    registry: Registry,
    /// `None`: control records.
    met: HashMap<SchemaId, Option<Arc<TableSchema>>>,
}

impl Schemas {
    /// Asks this registry for what it has not met.
    pub(crate) fn new(registry: &Registry) -> Self {
        Self { registry: registry.clone(), met: HashMap::new() }
    }

    /// The table of a schema id; `None` for control records.
    ///
    /// # Errors
    /// The registry does not know the id, cannot be asked, or has a text that is not ours.
    pub(crate) async fn table(&mut self, id: SchemaId) -> anyhow::Result<Option<Arc<TableSchema>>> {
        if let Some(met) = self.met.get(&id) {
            return Ok(met.clone());
        }
        let text = self.registry.schema(id).await?;
        let table =
            if is_control_schema(&text) { None } else { Some(Arc::new(parse_schema(&text)?)) };
        self.met.insert(id, table.clone());
        Ok(table)
    }
}
