//! What a stream must know to go on: where it belongs and by which schemas its rows are read.
//!
//! Relation messages lack field numbers, keys and defaults, and today's catalog may be ahead of
//! the stream. So the schemas by which the log's rows were written travel with the position (in
//! [`SourceState`], as JSON), and every Relation message is compared with them: a DDL is noticed at
//! the row where it takes effect, even if it was made while nobody was reading.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use tailwater_capture::{ServerIdentity, SourceError, SourceState};
use tailwater_change::{Problem, TableId, TableSchema};

use crate::catalog::{CatalogTable, ReplicaIdentity};
use crate::source::pgoutput::Relation;

/// A server, told from every other, and which of its histories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct System {
    /// The system identifier, which copies of a server share.
    pub(crate) identifier: String,
    /// The timeline, which a promoted copy changes.
    pub(crate) timeline: u32,
}

impl System {
    /// As capture compares it.
    pub(crate) fn identity(&self) -> ServerIdentity {
        ServerIdentity(format!("{}/{}", self.identifier, self.timeline))
    }
}

/// The stream's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The server.
    pub(crate) system: System,
    /// The replication slot.
    pub(crate) slot: String,
    /// The publication.
    pub(crate) publication: String,
    /// The captured tables.
    pub(crate) tables: Vec<KnownTable>,
}

impl State {
    /// As the state topic keeps it.
    ///
    /// # Errors
    /// Never in practice: no map in it has keys that JSON lacks.
    pub(crate) fn to_source_state(&self) -> Result<SourceState, SourceError> {
        serde_json::to_string(self).map(SourceState).map_err(|error| SourceError::Protocol {
            operation: "writing the source's state".into(),
            detail: error.to_string(),
        })
    }

    /// What was kept.
    ///
    /// # Errors
    /// Another program wrote it.
    pub(crate) fn from_source_state(state: &SourceState) -> Result<Self, SourceError> {
        serde_json::from_str(&state.0).map_err(|error| {
            SourceError::Refused(Problem::new(
                format!("the state topic's PostgreSQL position cannot be read: {error}"),
                "run this source with the version of Tailwater that wrote it, or take a new \
                 snapshot: `tailwater resync`",
            ))
        })
    }
}

/// A table as its rows in the log are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownTable {
    /// Its OID.
    pub(crate) oid: u32,
    /// How old rows are logged.
    pub(crate) replica_identity: ReplicaIdentity,
    /// Type OID and modifier per column of the schema.
    pub(crate) types: Vec<(u32, i32)>,
    /// OIDs of the leaf partitions: what happens to one of them alone is never told.
    #[serde(default)]
    pub(crate) leaves: Option<Vec<u32>>,
    /// The table.
    pub(crate) schema: TableSchema,
}

impl From<CatalogTable> for KnownTable {
    fn from(table: CatalogTable) -> Self {
        Self {
            oid: table.oid,
            replica_identity: table.replica_identity,
            types: table.types,
            leaves: Some(table.leaves.into_keys().collect()),
            schema: table.schema,
        }
    }
}

impl KnownTable {
    /// Indexes of the columns that a Relation message and its rows have, in their order.
    pub(crate) fn flowing(&self) -> Vec<usize> {
        let columns = self.schema.columns.iter().enumerate();
        columns.filter(|(_, column)| column.flows()).map(|(index, _)| index).collect()
    }

    /// What `relation` says differently; `None` if it is the same table.
    pub(crate) fn difference(&self, relation: &Relation<'_>) -> Option<String> {
        let mut found = String::new();
        let mut say = |what: String| {
            let _infallible = write!(found, "{}{what}", if found.is_empty() { "" } else { ", " });
        };
        let name = TableId::new(relation.namespace, relation.name);
        if name != self.schema.table {
            say(format!("renamed to {name}"));
        }
        let identity = ReplicaIdentity::from_letter(relation.replica_identity);
        let same_identity = identity == Some(self.replica_identity);
        if !same_identity {
            say("replica identity changed".into());
        }
        let compare_keys = same_identity && self.flags_keys();
        let known: Vec<_> = self
            .flowing()
            .into_iter()
            .map(|index| (&self.schema.columns[index], self.types[index], index))
            .collect();
        for (column, types, index) in &known {
            let sent = relation.columns.iter().find(|sent| sent.name == column.name);
            match sent {
                None => say(format!("column {} dropped", column.name)),
                Some(sent) if (sent.type_oid, sent.typmod) != *types => {
                    say(format!("column {} is no longer {}", column.name, column.native));
                }
                Some(sent) if compare_keys && sent.key != self.schema.key().contains(index) => {
                    say(format!("column {} joined or left the key", column.name));
                }
                Some(_) => {}
            }
        }
        for sent in &relation.columns {
            if !known.iter().any(|(column, ..)| column.name == sent.name) {
                say(format!("column {} added", sent.name));
            }
        }
        let same_order = known.len() != relation.columns.len()
            || known.iter().zip(&relation.columns).all(|((c, ..), sent)| c.name == sent.name);
        if found.is_empty() && !same_order {
            found = "a column was dropped and added again".into();
        }
        (!found.is_empty()).then_some(found)
    }

    /// Whether Relation messages mark just the key's columns: with FULL they mark all.
    fn flags_keys(&self) -> bool {
        matches!(self.replica_identity, ReplicaIdentity::Default | ReplicaIdentity::Index)
    }

    /// What became of partitions that the stream never tells: rows left or came with them.
    pub(crate) fn repartitioned(&self, now: &CatalogTable) -> Option<String> {
        let leaves = self.leaves.as_ref()?;
        if leaves.iter().any(|leaf| !now.leaves.contains_key(leaf)) {
            return Some("a partition was detached or dropped".into());
        }
        let mut leaves_now = now.leaves.iter();
        leaves_now
            .any(|(leaf, made_there)| !made_there && !leaves.contains(leaf))
            .then(|| "a partition was attached".into())
    }

    /// What today's catalog shows that no Relation message would: a table or column that was
    /// dropped and made again under its name.
    pub(crate) fn replaced(&self, now: &CatalogTable) -> Option<String> {
        if now.oid != self.oid {
            return Some("dropped and created again".into());
        }
        let now = &now.schema;
        self.schema.columns.iter().find_map(|column| {
            let found = &now.columns[now.column(&column.name)?];
            (found.field != column.field && found.native == column.native)
                .then(|| format!("column {} dropped and added again", column.name))
        })
    }
}

/// The problem of a table whose definition changed, and what to do.
pub(crate) fn schema_changed(table: &TableId, what: &str) -> Problem {
    Problem::new(
        format!("the definition of {table} changed on the source: {what}"),
        "make the same change on the targets, then take a new snapshot: `tailwater resync`",
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use tailwater_change::{Column, Dialect, Identity, Kind};

    use super::*;
    use crate::source::pgoutput::RelationColumn;

    pub(crate) fn column(name: &str, field: u32, kind: Kind, native: &str) -> Column {
        Column::nullable(name, field, kind, native)
    }

    /// `public.t (id integer PRIMARY KEY, name text, raw bytea)`.
    pub(crate) fn known(replica_identity: ReplicaIdentity) -> KnownTable {
        KnownTable {
            oid: 16385,
            replica_identity,
            types: vec![(23, -1), (25, -1), (17, -1)],
            leaves: None,
            schema: TableSchema {
                table: TableId::new("public", "t"),
                dialect: Dialect::Postgres,
                columns: vec![
                    column("id", 1, Kind::Int { bits: 32, signed: true }, "integer"),
                    column("name", 2, Kind::Text { length: None, fixed: false }, "text"),
                    column("raw", 4, Kind::Bytes { length: None, fixed: false }, "bytea"),
                ],
                identity: Identity::Key(vec![0]),
                indexes: Vec::new(),
                foreign_keys: Vec::new(),
                hides_cascades: false,
                options: None,
            },
        }
    }

    fn relation() -> Relation<'static> {
        let column = |key, name, type_oid| RelationColumn { key, name, type_oid, typmod: -1 };
        Relation {
            oid: 16385,
            namespace: "public",
            name: "t",
            replica_identity: b'd',
            columns: vec![
                column(true, "id", 23),
                column(false, "name", 25),
                column(false, "raw", 17),
            ],
        }
    }

    #[test]
    fn every_change_of_a_relation_is_named() {
        let known = known(ReplicaIdentity::Default);
        let check = |change: &dyn Fn(&mut Relation<'static>), expected: Option<&str>| {
            let mut relation = relation();
            change(&mut relation);
            assert_eq!(known.difference(&relation).as_deref(), expected);
        };
        let extra = RelationColumn { key: false, name: "more", type_oid: 25, typmod: -1 };
        check(&|_| {}, None);
        check(&|r| r.columns.push(extra.clone()), Some("column more added"));
        check(&|r| r.columns.retain(|c| c.name != "name"), Some("column name dropped"));
        check(&|r| r.columns[0].type_oid = 20, Some("column id is no longer integer"));
        check(&|r| r.columns[1].key = true, Some("column name joined or left the key"));
        check(&|r| r.columns.swap(1, 2), Some("a column was dropped and added again"));
        check(&|r| r.replica_identity = b'f', Some("replica identity changed"));
        check(
            &|r| {
                r.name = "u";
                r.columns[1].name = "label";
            },
            Some("renamed to public.u, column name dropped, column label added"),
        );
    }

    #[test]
    fn the_state_comes_back() {
        let state = State {
            system: System { identifier: "7300".into(), timeline: 1 },
            slot: "tailwater_shop".into(),
            publication: "tailwater_shop".into(),
            tables: vec![known(ReplicaIdentity::Index)],
        };
        let kept = state.to_source_state().unwrap();
        assert_eq!(State::from_source_state(&kept).unwrap(), state);
        assert!(State::from_source_state(&SourceState("{}".into())).is_err());
    }
}
