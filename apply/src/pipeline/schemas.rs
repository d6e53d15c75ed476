//! Schemas by id: asked for once, kept for the life of the pipeline.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use tailwater_change::{Disposition, SchemaId, TableSchema, is_control_schema, parse_schema};
use tailwater_registry::Registry;

use super::{Error, SchemaSourceError};

/// Where schemas come from.
#[async_trait]
pub trait SchemaSource: Send + Sync {
    /// The text registered under `id`.
    ///
    /// # Errors
    /// It cannot be had now, or not at all.
    async fn schema_text(&self, id: SchemaId) -> Result<String, SchemaSourceError>;
}

#[async_trait]
impl SchemaSource for Registry {
    async fn schema_text(&self, id: SchemaId) -> Result<String, SchemaSourceError> {
        let text = self.schema(id).await.map_err(|error| SchemaSourceError {
            id,
            passing: error.disposition() == Disposition::Retry,
            source: error.into(),
        })?;
        Ok(text.to_string())
    }
}

/// What an id stands for.
#[derive(Debug, Clone)]
pub(super) enum Meaning {
    Control,
    Table(Arc<TableSchema>),
}

/// Remembers what was asked.
pub(super) struct Schemas {
    source: Arc<dyn SchemaSource>,
    known: HashMap<SchemaId, Meaning>,
}

impl Schemas {
    pub(super) fn new(source: Arc<dyn SchemaSource>) -> Self {
        Self { source, known: HashMap::new() }
    }

    pub(super) fn source(&self) -> Arc<dyn SchemaSource> {
        Arc::clone(&self.source)
    }

    pub(super) async fn get(&mut self, id: SchemaId) -> Result<Meaning, Error> {
        if let Some(meaning) = self.known.get(&id) {
            return Ok(meaning.clone());
        }
        let text = self.source.schema_text(id).await?;
        let meaning = if is_control_schema(&text) {
            Meaning::Control
        } else {
            let schema = parse_schema(&text).map_err(|source| Error::SchemaText { id, source })?;
            Meaning::Table(Arc::new(schema))
        };
        self.known.insert(id, meaning.clone());
        Ok(meaning)
    }
}
