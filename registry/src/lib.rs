//! Schemas: ids and versions, kept in a topic.
