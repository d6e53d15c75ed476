//! What the database's catalog says about tables, as [`TableSchema`]s.
//!
//! Used on both ends: the source captures by it, the target compares with it. It does not judge:
//! what keeps a table from being captured is listed in [`CatalogTable`] and judged by `check`.

use std::collections::{BTreeMap, HashMap};

use tailwater_change::{
    Column, Dialect, ForeignKey, Generated, Identity, Index, Kind, ReferentialAction, TableId,
    TableSchema,
};
use tokio_postgres::{Client, Error, Row};

use crate::connect::quote;
use crate::types;

/// A table as the catalog has it.
#[derive(Debug, Clone)]
pub(crate) struct CatalogTable {
    /// Its OID.
    pub(crate) oid: u32,
    /// The table; without the columns in `refused`.
    pub(crate) schema: TableSchema,
    /// Type OID and modifier of each column of the schema, as a Relation message has them.
    pub(crate) types: Vec<(u32, i32)>,
    /// Columns of types that are not captured.
    pub(crate) refused: Vec<RefusedColumn>,
    /// How old rows are logged.
    pub(crate) replica_identity: ReplicaIdentity,
    /// Whether the identity can be had from what is logged: not for a table without a primary key
    /// whose replica identity is the default, or nothing.
    pub(crate) identifiable: bool,
    /// Whether it is the root of partitions.
    pub(crate) partitioned: bool,
    /// OIDs of its leaf partitions, and whether each was made as one: not what was a table before.
    pub(crate) leaves: BTreeMap<u32, bool>,
    /// Leaf partitions whose replica identity is another than the root's.
    pub(crate) deviating_partitions: Vec<TableId>,
    /// Whether its changes are in the WAL: not for unlogged tables.
    pub(crate) logged: bool,
    /// Whether policies may hide rows from us.
    pub(crate) row_security: bool,
    /// Its owner.
    pub(crate) owner: String,
    /// Whether we may read all of it.
    pub(crate) readable: bool,
    /// Whether we own it, directly or by a role.
    pub(crate) owned: bool,
}

/// A column that cannot be captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RefusedColumn {
    /// Its name.
    pub(crate) name: String,
    /// Its type as the catalog spells it.
    pub(crate) native: String,
}

/// `REPLICA IDENTITY` of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReplicaIdentity {
    /// The primary key.
    Default,
    /// Nothing.
    Nothing,
    /// The whole old row.
    Full,
    /// A unique index.
    Index,
}

impl ReplicaIdentity {
    /// What `pg_class.relreplident` and the Relation message say.
    pub(crate) fn from_letter(letter: u8) -> Option<Self> {
        Some(match letter {
            b'd' => Self::Default,
            b'n' => Self::Nothing,
            b'f' => Self::Full,
            b'i' => Self::Index,
            _ => return None,
        })
    }
}

/// The table named by the columns `at` and after.
fn table_id(row: &Row, at: usize) -> TableId {
    TableId::new(row.get::<_, String>(at), row.get::<_, String>(at + 1))
}

/// Names of all tables that could be captured: ordinary ones and partition roots, permanent or
/// unlogged, outside the system's schemas and ours.
pub(crate) async fn table_names(client: &Client) -> Result<Vec<(u32, TableId)>, Error> {
    let rows = client
        .query(
            "SELECT c.oid, n.nspname::text, c.relname::text
               FROM pg_catalog.pg_class c
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
                AND c.relpersistence <> 't'
                AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'tailwater')
                AND n.nspname !~ '^pg_'
              ORDER BY 2, 3",
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), table_id(row, 1))).collect())
}

/// The tables that `wanted` picks, parents of foreign keys before their children where that is
/// possible.
pub(crate) async fn read_tables(
    client: &Client,
    wanted: impl Fn(&TableId) -> bool,
) -> Result<Vec<CatalogTable>, Error> {
    let names = table_names(client).await?;
    let oids: Vec<u32> =
        names.iter().filter(|(_, table)| wanted(table)).map(|(oid, _)| *oid).collect();
    if oids.is_empty() {
        return Ok(Vec::new());
    }
    let mut tables: BTreeMap<u32, CatalogTable> =
        client.query(TABLES, &[&oids]).await?.iter().map(|row| (row.get(0), table(row))).collect();
    for row in client.query(COLUMNS, &[&oids]).await? {
        if let Some(table) = tables.get_mut(&row.get::<_, u32>(0)) {
            add_column(table, &row);
        }
    }
    for row in client.query(INDEXES, &[&oids]).await? {
        if let Some(table) = tables.get_mut(&row.get::<_, u32>(0)) {
            add_index(table, &row);
        }
    }
    for row in client.query(FOREIGN_KEYS, &[&oids]).await? {
        if let Some(table) = tables.get_mut(&row.get::<_, u32>(0)) {
            table.schema.foreign_keys.push(foreign_key(&row));
        }
    }
    for row in client.query(LEAVES, &[&oids]).await? {
        if let Some(table) = tables.get_mut(&row.get::<_, u32>(0)) {
            table.leaves.insert(row.get(1), row.get(2));
        }
    }
    for row in client.query(DEVIATING_PARTITIONS, &[&oids]).await? {
        if let Some(table) = tables.get_mut(&row.get::<_, u32>(0)) {
            table.deviating_partitions.push(table_id(&row, 1));
        }
    }
    // In the order of names, so that nothing depends on OIDs.
    Ok(parents_first(oids.iter().filter_map(|oid| tables.remove(oid)).collect()))
}

const TABLES: &str = "
    SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'p', c.relpersistence = 'p',
           c.relreplident::text, pg_catalog.pg_get_userbyid(c.relowner)::text,
           pg_catalog.row_security_active(c.oid),
           pg_catalog.has_schema_privilege(n.oid, 'USAGE')
               AND pg_catalog.has_table_privilege(c.oid, 'SELECT'),
           pg_catalog.pg_has_role(c.relowner, 'USAGE')
      FROM pg_catalog.pg_class c
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid = ANY($1)";

fn table(row: &Row) -> CatalogTable {
    let letter = row.get::<_, String>(5).bytes().next().unwrap_or_default();
    CatalogTable {
        oid: row.get(0),
        schema: TableSchema {
            table: table_id(row, 1),
            dialect: Dialect::Postgres,
            columns: Vec::new(),
            identity: Identity::Full,
            indexes: Vec::new(),
            foreign_keys: Vec::new(),
            hides_cascades: false,
            options: None,
        },
        types: Vec::new(),
        refused: Vec::new(),
        replica_identity: ReplicaIdentity::from_letter(letter).unwrap_or(ReplicaIdentity::Nothing),
        identifiable: letter == b'f',
        partitioned: row.get(3),
        leaves: BTreeMap::new(),
        deviating_partitions: Vec::new(),
        logged: row.get(4),
        row_security: row.get(7),
        owner: row.get(6),
        readable: row.get(8),
        owned: row.get(9),
    }
}

const COLUMNS: &str = "
    SELECT a.attrelid, a.attname::text, a.attnum, a.atttypid, a.atttypmod,
           pg_catalog.format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
           pg_catalog.pg_get_expr(d.adbin, d.adrelid), a.attidentity::text, a.attgenerated::text,
           CASE WHEN a.attcollation <> t.typcollation THEN l.collname::text END,
           CASE WHEN k.nspname <> 'pg_catalog' THEN k.nspname::text END,
           CASE WHEN t.typtype = 'e' THEN ARRAY(
               SELECT e.enumlabel::text FROM pg_catalog.pg_enum e
                WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) END,
           EXISTS (
               SELECT FROM pg_catalog.pg_depend p
                 JOIN pg_catalog.pg_class s ON s.oid = p.objid AND s.relkind = 'S'
                WHERE p.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                  AND p.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                  AND p.refobjid = a.attrelid AND p.refobjsubid = a.attnum AND p.deptype = 'a')
      FROM pg_catalog.pg_attribute a
      JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
      LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
      LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
      LEFT JOIN pg_catalog.pg_namespace k ON k.oid = l.collnamespace
     WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped
     ORDER BY a.attrelid, a.attnum";

fn add_column(table: &mut CatalogTable, row: &Row) {
    let (name, native): (String, String) = (row.get(1), row.get(5));
    let (oid, typmod): (u32, i32) = (row.get(3), row.get(4));
    let labels: Option<Vec<String>> = row.get(12);
    let kind = match labels {
        Some(labels) => Some(Kind::Enum { labels }),
        None => types::builtin(oid, typmod),
    };
    let Some(kind) = kind else {
        table.refused.push(RefusedColumn { name, native });
        return;
    };
    let expression: Option<String> = row.get(7);
    let owns_sequence: bool = row.get(13);
    let serial = owns_sequence && expression.as_deref().is_some_and(|e| e.starts_with("nextval("));
    let generated = match (row.get::<_, String>(9).as_str(), row.get::<_, String>(8).as_str()) {
        ("s", _) => Some(Generated::Stored),
        ("v", _) => Some(Generated::Virtual),
        (_, "a") => Some(Generated::IdentityAlways),
        (_, "d") => Some(Generated::IdentityByDefault),
        _ if serial => Some(Generated::IdentityByDefault),
        _ => None,
    };
    let computed = matches!(generated, Some(Generated::Stored | Generated::Virtual));
    let (default, expression) = match expression {
        expression if computed => (None, expression),
        // A sequence of the source's: the target makes its own.
        _ if generated.is_some() => (None, None),
        default => (default, None),
    };
    let collation = row.get::<_, Option<String>>(10).map(|collation| {
        let schema: Option<String> = row.get(11);
        match schema {
            Some(schema) => format!("{}.{}", quote(&schema), quote(&collation)),
            None => quote(&collation),
        }
    });
    let field = u32::try_from(row.get::<_, i16>(2)).unwrap_or_default();
    table.types.push((oid, typmod));
    table.schema.columns.push(Column {
        name,
        field,
        kind,
        native,
        nullable: row.get(6),
        default,
        charset: None,
        collation,
        generated,
        expression,
    });
}

const INDEXES: &str = "
    SELECT i.indrelid, c.relname::text, i.indisunique, i.indisprimary, i.indisreplident,
           i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL,
           pg_catalog.pg_get_indexdef(i.indexrelid),
           ARRAY(SELECT a.attname::text
                   FROM pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY k(number, place)
                   JOIN pg_catalog.pg_attribute a
                     ON a.attrelid = i.indrelid AND a.attnum = k.number
                  WHERE k.place <= i.indnkeyatts AND i.indexprs IS NULL ORDER BY k.place)
      FROM pg_catalog.pg_index i
      JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
     WHERE i.indrelid = ANY($1) AND i.indisvalid AND i.indislive
     ORDER BY i.indrelid, i.indisprimary DESC, c.relname";

fn add_index(table: &mut CatalogTable, row: &Row) {
    let columns: Vec<String> = row.get(7);
    let (primary, replica, usable): (bool, bool, bool) = (row.get(3), row.get(4), row.get(5));
    let identifies = usable
        && match table.replica_identity {
            // The whole old row is logged, so any key will do; the primary key is one.
            ReplicaIdentity::Default | ReplicaIdentity::Full => primary,
            ReplicaIdentity::Index => replica,
            ReplicaIdentity::Nothing => false,
        };
    if identifies {
        let key: Option<Vec<usize>> =
            columns.iter().map(|name| table.schema.column(name)).collect();
        // Missing only where a key column's type is refused, which is reported anyhow.
        if let Some(key) = key {
            table.schema.identity = Identity::Key(key);
        }
        table.identifiable = true;
    }
    table.schema.indexes.push(Index {
        name: row.get(1),
        columns,
        unique: row.get(2),
        primary,
        definition: row.get(6),
    });
}

const FOREIGN_KEYS: &str = "
    SELECT f.conrelid, f.conname::text,
           ARRAY(SELECT a.attname::text
                   FROM pg_catalog.unnest(f.conkey) WITH ORDINALITY k(number, place)
                   JOIN pg_catalog.pg_attribute a
                     ON a.attrelid = f.conrelid AND a.attnum = k.number ORDER BY k.place),
           n.nspname::text, c.relname::text,
           ARRAY(SELECT a.attname::text
                   FROM pg_catalog.unnest(f.confkey) WITH ORDINALITY k(number, place)
                   JOIN pg_catalog.pg_attribute a
                     ON a.attrelid = f.confrelid AND a.attnum = k.number ORDER BY k.place),
           f.confdeltype::text, f.confupdtype::text, f.condeferrable, f.condeferred
      FROM pg_catalog.pg_constraint f
      JOIN pg_catalog.pg_class c ON c.oid = f.confrelid
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE f.contype = 'f' AND f.conrelid = ANY($1) AND f.conparentid = 0
     ORDER BY f.conrelid, f.conname";

fn foreign_key(row: &Row) -> ForeignKey {
    ForeignKey {
        name: row.get(1),
        columns: row.get(2),
        referenced: table_id(row, 3),
        referenced_columns: row.get(5),
        on_delete: action(row.get::<_, &str>(6)),
        on_update: action(row.get::<_, &str>(7)),
        deferrable: row.get(8),
        initially_deferred: row.get(9),
    }
}

fn action(letter: &str) -> ReferentialAction {
    match letter {
        "r" => ReferentialAction::Restrict,
        "c" => ReferentialAction::Cascade,
        "n" => ReferentialAction::SetNull,
        "d" => ReferentialAction::SetDefault,
        _ => ReferentialAction::NoAction,
    }
}

/// A table's type is made with it, by one transaction; so is its place below a root if it was made
/// there. ATTACH makes the place alone, of what may have rows. (What one transaction makes, fills and
/// attaches cannot be told from that.)
const LEAVES: &str = "
    WITH RECURSIVE below (root, oid, made_there) AS (
        SELECT r.oid, r.oid, true FROM pg_catalog.pg_class r
         WHERE r.oid = ANY($1) AND r.relkind = 'p'
        UNION ALL
        SELECT b.root, i.inhrelid, b.made_there AND i.xmin = t.xmin
          FROM below b
          JOIN pg_catalog.pg_inherits i ON i.inhparent = b.oid
          JOIN pg_catalog.pg_type t ON t.typrelid = i.inhrelid)
    SELECT b.root, b.oid, b.made_there
      FROM below b JOIN pg_catalog.pg_class l ON l.oid = b.oid
     WHERE l.relkind <> 'p'";

/// What is logged of a row in a partition is the partition's to say, not the root's.
const DEVIATING_PARTITIONS: &str = "
    SELECT r.oid, n.nspname::text, l.relname::text
      FROM pg_catalog.pg_class r
     CROSS JOIN LATERAL pg_catalog.pg_partition_tree(r.oid) p
      JOIN pg_catalog.pg_class l ON l.oid = p.relid
      JOIN pg_catalog.pg_namespace n ON n.oid = l.relnamespace
     WHERE r.oid = ANY($1) AND r.relkind = 'p' AND p.isleaf AND l.relkind = 'r'
       AND l.relreplident <> r.relreplident
     ORDER BY 2, 3";

/// Orders tables so that foreign keys point backwards, except in cycles.
fn parents_first(tables: Vec<CatalogTable>) -> Vec<CatalogTable> {
    let index: HashMap<TableId, usize> =
        tables.iter().enumerate().map(|(i, table)| (table.schema.table.clone(), i)).collect();
    let parents: Vec<Vec<usize>> = tables
        .iter()
        .map(|table| {
            let keys = table.schema.foreign_keys.iter();
            keys.filter_map(|key| index.get(&key.referenced).copied()).collect()
        })
        .collect();
    let mut order = Vec::with_capacity(tables.len());
    let mut seen = vec![false; tables.len()];
    for start in 0..tables.len() {
        // Depth first with a stack of our own: chains of foreign keys may be long.
        let mut stack = vec![(start, 0)];
        if std::mem::replace(&mut seen[start], true) {
            continue;
        }
        while let Some((table, next)) = stack.pop() {
            match parents[table].get(next) {
                None => order.push(table),
                Some(&parent) => {
                    stack.push((table, next + 1));
                    if !std::mem::replace(&mut seen[parent], true) {
                        stack.push((parent, 0));
                    }
                }
            }
        }
    }
    let mut tables: Vec<Option<CatalogTable>> = tables.into_iter().map(Some).collect();
    order.into_iter().filter_map(|table| tables[table].take()).collect()
}
