//! Tables for random scripts.

use std::sync::Arc;

use tailwater_change::{Column, Dialect, Identity, Index, Kind, TableId, TableSchema};

/// Three tables `(id, a, b)`: `one` with the key `id`, `two` with a unique key over `a` besides, and
/// `bag` without any key.
pub fn sample_tables() -> Vec<Arc<TableSchema>> {
    let key = || Identity::Key(vec![0]);
    vec![
        sample_table("one", key(), &[]),
        sample_table("two", key(), &["a"]),
        sample_table("bag", Identity::Full, &[]),
    ]
}

/// A table `(id, a, b)`, with a unique key over each of `unique`.
pub fn sample_table(name: &str, identity: Identity, unique: &[&str]) -> Arc<TableSchema> {
    let index = |column: &&str| Index {
        name: format!("{name}_{column}"),
        columns: vec![(*column).to_owned()],
        unique: true,
        primary: false,
        definition: String::new(),
    };
    Arc::new(TableSchema {
        table: TableId::new("public", name),
        dialect: Dialect::Postgres,
        columns: vec![
            Column::nullable("id", 1, Kind::Int { bits: 64, signed: true }, "text"),
            Column::nullable("a", 2, Kind::Int { bits: 64, signed: true }, "text"),
            Column::nullable("b", 3, Kind::Text { length: None, fixed: false }, "text"),
        ],
        identity,
        indexes: unique.iter().map(index).collect(),
        foreign_keys: Vec::new(),
        hides_cascades: false,
        options: None,
    })
}
