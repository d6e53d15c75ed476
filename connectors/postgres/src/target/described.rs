//! What a table of the target is like, beside the source's schema: read once, used by every step.

use std::collections::BTreeSet;
use std::sync::Arc;

use tailwater_apply::TargetTable;
use tailwater_change::{Column, Dialect, Identity, Kind, Problem, TableId, TableSchema};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row};

use super::create::add_column_sql;
use super::form::Form;
use super::mapping::fits;
use crate::connect::{quote, quote_table};

/// A column as the target's catalog has it.
#[derive(Debug, Clone)]
pub(super) struct TargetColumn {
    pub(super) name: String,
    /// The type's OID; a domain's base type.
    pub(super) base: u32,
    /// The type's modifier; a domain's.
    pub(super) typmod: i32,
    /// `pg_type.typtype` of the base type.
    pub(super) typtype: u8,
    /// Those of an enum.
    pub(super) labels: Vec<String>,
    /// The type without its modifier, qualified, as SQL spells it.
    pub(super) bare: String,
    /// The type with its modifier, as SQL spells it.
    pub(super) native: String,
    /// The schema of the type, and so of its operators.
    pub(super) type_schema: String,
    pub(super) not_null: bool,
    /// `GENERATED ALWAYS AS IDENTITY`.
    pub(super) identity_always: bool,
    /// `GENERATED … AS IDENTITY`, either way.
    pub(super) identity: bool,
    /// Computed from others: never written.
    pub(super) generated: bool,
    pub(super) has_default: bool,
    /// Whether equal means equal bytes.
    pub(super) deterministic: bool,
}

/// A unique index or exclusion constraint.
#[derive(Debug, Clone)]
pub(super) struct Unique {
    /// What it indexes, as SQL: columns and expressions.
    pub(super) terms: Vec<String>,
    /// Names of the columns in `terms`, if all are columns and there is no predicate.
    pub(super) plain: Option<Vec<String>>,
    /// Names of all columns it depends on.
    pub(super) columns: Vec<String>,
    pub(super) predicate: Option<String>,
    /// Not so for deferrable constraints, which a replica session does not check at all.
    pub(super) immediate: bool,
    pub(super) exclusion: bool,
    pub(super) nulls_equal: bool,
}

/// A table of the target as its catalog has it.
#[derive(Debug, Clone)]
pub(super) struct CatalogEntry {
    pub(super) oid: u32,
    /// `pg_class.relkind`.
    pub(super) relkind: u8,
    pub(super) columns: Vec<TargetColumn>,
    pub(super) uniques: Vec<Unique>,
    pub(super) fires: bool,
    /// Of INSERT, UPDATE, DELETE, SELECT, TRUNCATE: those we do not have.
    pub(super) missing_privileges: Vec<String>,
    pub(super) row_security: bool,
}

impl CatalogEntry {
    /// Reads the table, if it is there. `replica`: whether the session's role for triggers is.
    pub(super) async fn read(
        client: &Client,
        table: &TableId,
        replica: bool,
    ) -> Result<Option<Self>, Error> {
        let params: [&(dyn ToSql + Sync); 3] = [&table.schema, &table.name, &replica];
        let Some(row) = client.query_opt(TABLE, &params).await? else {
            return Ok(None);
        };
        let oid: u32 = row.get(0);
        let columns = client.query(COLUMNS, &[&oid]).await?;
        let uniques = client.query(UNIQUES, &[&oid]).await?;
        Ok(Some(Self {
            oid,
            relkind: letter(&row, 1),
            columns: columns.iter().map(column).collect(),
            uniques: uniques.iter().map(unique).collect(),
            fires: row.get(2),
            missing_privileges: row.get(3),
            row_security: row.get(4),
        }))
    }

    pub(super) fn column(&self, name: &str) -> Option<&TargetColumn> {
        self.columns.iter().find(|column| column.name == name)
    }
}

const TABLE: &str = "
    SELECT c.oid, c.relkind::text,
           EXISTS (
               SELECT FROM pg_catalog.pg_trigger g
                 LEFT JOIN pg_catalog.pg_constraint k ON k.oid = g.tgconstraint
                WHERE g.tgrelid = c.oid AND g.tgenabled <> 'D'
                  AND g.tgenabled <> CASE WHEN $3::boolean THEN 'O' ELSE 'R' END
                  AND k.contype IS DISTINCT FROM 'p' AND k.contype IS DISTINCT FROM 'u'
                  AND k.contype IS DISTINCT FROM 'x')
           OR EXISTS (
               SELECT FROM pg_catalog.pg_rewrite r
                WHERE r.ev_class = c.oid AND r.ev_enabled <> 'D'
                  AND r.ev_enabled <> CASE WHEN $3::boolean THEN 'O' ELSE 'R' END),
           ARRAY(SELECT p FROM pg_catalog.unnest(
                     '{INSERT,UPDATE,DELETE,SELECT,TRUNCATE}'::text[]) p
                  WHERE NOT pg_catalog.has_table_privilege(c.oid, p)),
           pg_catalog.row_security_active(c.oid)
      FROM pg_catalog.pg_class c
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')";

const COLUMNS: &str = "
    WITH RECURSIVE base(number, type, typmod) AS (
        SELECT a.attnum, a.atttypid, a.atttypmod FROM pg_catalog.pg_attribute a
         WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL
        SELECT b.number, t.typbasetype, t.typtypmod FROM base b
          JOIN pg_catalog.pg_type t ON t.oid = b.type AND t.typtype = 'd')
    SELECT a.attname::text, t.oid, b.typmod, t.typtype::text,
           pg_catalog.format_type(a.atttypid, -1),
           pg_catalog.format_type(a.atttypid, a.atttypmod), n.nspname::text, a.attnotnull,
           a.attidentity::text, a.attgenerated <> '', a.atthasdef,
           COALESCE(l.collisdeterministic, true),
           ARRAY(SELECT e.enumlabel::text FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid)
      FROM pg_catalog.pg_attribute a
      JOIN base b ON b.number = a.attnum
      JOIN pg_catalog.pg_type t ON t.oid = b.type AND t.typtype <> 'd'
      JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
      LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
     WHERE a.attrelid = $1
     ORDER BY a.attnum";

fn column(row: &Row) -> TargetColumn {
    let identity = row.get::<_, &str>(8);
    TargetColumn {
        name: row.get(0),
        base: row.get(1),
        typmod: row.get(2),
        typtype: letter(row, 3),
        bare: row.get(4),
        native: row.get(5),
        type_schema: row.get(6),
        not_null: row.get(7),
        identity_always: identity == "a",
        identity: !identity.is_empty(),
        generated: row.get(9),
        has_default: row.get(10),
        deterministic: row.get(11),
        labels: row.get(12),
    }
}

/// A constraint's index depends on the constraint, not on its columns: hence the union. The
/// column for equal nulls is there from 15 on.
const UNIQUES: &str = "
    SELECT ARRAY(SELECT pg_catalog.pg_get_indexdef(i.indexrelid, k, false)
                   FROM pg_catalog.generate_series(1, i.indnkeyatts::integer) k ORDER BY k),
           i.indpred IS NULL AND i.indexprs IS NULL AND NOT i.indisexclusion,
           ARRAY(SELECT a.attname::text
                   FROM pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY k(number, place)
                   JOIN pg_catalog.pg_attribute a
                     ON a.attrelid = i.indrelid AND a.attnum = k.number
                  WHERE k.place <= i.indnkeyatts ORDER BY k.place),
           ARRAY(SELECT a.attname::text FROM pg_catalog.pg_depend d
                   JOIN pg_catalog.pg_attribute a
                     ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                  WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                    AND d.objid = i.indexrelid AND d.refobjid = i.indrelid
                    AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                    AND d.refobjsubid > 0),
           pg_catalog.pg_get_expr(i.indpred, i.indrelid), i.indimmediate, i.indisexclusion,
           COALESCE((pg_catalog.to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false)
      FROM pg_catalog.pg_index i
      JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
     WHERE i.indrelid = $1 AND (i.indisunique OR i.indisexclusion) AND i.indislive
       AND i.indisready
     ORDER BY i.indisprimary DESC, c.relname";

fn unique(row: &Row) -> Unique {
    let keys: Vec<String> = row.get(2);
    let depends: Vec<String> = row.get(3);
    let plain = row.get::<_, bool>(1);
    let columns: BTreeSet<String> = keys.iter().cloned().chain(depends).collect();
    Unique {
        terms: row.get(0),
        plain: plain.then_some(keys),
        columns: columns.into_iter().collect(),
        predicate: row.get(4),
        immediate: row.get(5),
        exclusion: row.get(6),
        nulls_equal: row.get(7),
    }
}

/// The letter of a `"char"` column cast to text.
fn letter(row: &Row, index: usize) -> u8 {
    row.get::<_, &str>(index).bytes().next().unwrap_or_default()
}

/// A source's table and what it is on the target: all that steps on it need.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) schema: TableSchema,
    pub(super) name: TableId,
    /// The name as SQL spells it.
    pub(super) sql: String,
    /// Tells its temporary tables from others'.
    pub(super) number: u32,
    pub(super) entry: CatalogEntry,
    /// Columns of the schema whose values flow, as indexes.
    pub(super) flows: Vec<usize>,
    /// For each column of the schema that flows, the target's. Others: any.
    columns: Vec<Option<TargetColumn>>,
    /// For each column of the schema, how its values are written.
    pub(super) forms: Vec<Form>,
    /// Whether a replica session would let a second row with the same identity in: then inserts
    /// look first.
    pub(super) unguarded: bool,
}

impl Described {
    /// Puts both sides together; an error names the column that is missing there, computed, or of
    /// a type that would change values without a word: round them, cut them, drop spaces.
    pub(super) fn new(
        schema: &TableSchema,
        name: &TableId,
        number: u32,
        entry: CatalogEntry,
    ) -> Result<Self, Problem> {
        let flows: Vec<usize> =
            (0..schema.columns.len()).filter(|&index| schema.columns[index].flows()).collect();
        let mut columns = vec![None; schema.columns.len()];
        let mut forms = vec![Form::Input; schema.columns.len()];
        for &index in &flows {
            let column = &schema.columns[index];
            let Some(target) = entry.column(&column.name) else {
                return Err(Problem::new(
                    format!("{name} has no column {}", column.name),
                    match add_column_sql(schema, column, name) {
                        Some(alter) => format!("run {alter}, then `tailwater resume`"),
                        None => COLUMNS_REMEDY.to_owned(),
                    },
                ));
            };
            if target.generated {
                return Err(Problem::new(
                    format!("column {} of {name} is generated there", column.name),
                    COLUMNS_REMEDY,
                ));
            }
            type_problem(name, column, schema.dialect, target).map_or(Ok(()), Err)?;
            forms[index] = Form::of(&column.kind, target.base, target.typtype);
            columns[index] = Some(target.clone());
        }
        let key: Vec<&str> =
            schema.key().iter().map(|&index| schema.columns[index].name.as_str()).collect();
        let guarded = entry.uniques.iter().any(|unique| unique.immediate && is_over(unique, &key));
        Ok(Self {
            schema: schema.clone(),
            name: name.clone(),
            sql: quote_table(name),
            number,
            unguarded: !key.is_empty() && !guarded,
            entry,
            flows,
            columns,
            forms,
        })
    }

    /// The target's column for the schema's column `index`, which flows.
    pub(super) fn column(&self, index: usize) -> &TargetColumn {
        self.columns[index].as_ref().expect("only columns that flow are asked for")
    }

    /// What the plan must know.
    pub(super) fn target_table(&self) -> TargetTable {
        let key: Vec<&str> = self
            .schema
            .key()
            .iter()
            .map(|&index| self.schema.columns[index].name.as_str())
            .collect();
        let unique_keys = self
            .entry
            .uniques
            .iter()
            .filter(|unique| !is_over(unique, &key))
            .map(|unique| {
                unique.columns.iter().filter_map(|name| self.schema.column(name)).collect()
            })
            .collect();
        let identity = match &self.schema.identity {
            Identity::Key(key) => key.as_slice(),
            Identity::Full => &self.flows,
        };
        TargetTable {
            name: self.name.clone(),
            identity_is_bytes: identity.iter().all(|&index| self.is_bytes(index)),
            unique_keys,
            fires: self.entry.fires,
        }
    }

    /// Columns of the key in which texts of different bytes may be equal on the target.
    pub(super) fn folding(&self) -> impl Iterator<Item = usize> {
        self.schema.key().iter().copied().filter(|&index| {
            let kind = &self.schema.columns[index].kind;
            matches!(kind, Kind::Text { .. } | Kind::Enum { .. } | Kind::Uuid)
                && !self.is_bytes(index)
        })
    }

    /// Whether two values of the column are equal on the target exactly if their canonical forms
    /// are the same bytes.
    fn is_bytes(&self, index: usize) -> bool {
        if !self.schema.columns[index].flows() {
            return false;
        }
        let column = self.column(index);
        match self.forms[index] {
            Form::Bool
            | Form::Int2
            | Form::Int4
            | Form::Int8
            | Form::Uuid
            | Form::Bytea
            | Form::Date
            | Form::Time
            | Form::Timestamp
            | Form::TimestampTz => true,
            // A fixed scale leaves one form per number. Integers in a numeric have none at all.
            Form::Numeric => match &self.schema.columns[index].kind {
                Kind::Decimal { scale, .. } => scale.is_some(),
                _ => true,
            },
            // Padding does not count in bpchar, and json has no equality.
            Form::Text => column.deterministic && !matches!(column.base, 1042 | 114),
            Form::Float4 | Form::Float8 | Form::Jsonb | Form::Input => false,
        }
    }
}

const COLUMNS_REMEDY: &str =
    "give the target's table the source's columns, then `tailwater resume`";

/// Why the target's column does not take what the source's has.
pub(super) fn type_problem(
    to: &TableId,
    column: &Column,
    dialect: Dialect,
    found: &TargetColumn,
) -> Option<Problem> {
    let what = fits(column, dialect, found).err()?;
    Some(Problem::new(
        format!("{to}: {what}"),
        format!(
            "ALTER TABLE {} ALTER COLUMN {} TYPE …, or drop the table and let Tailwater create it; \
             then `tailwater resume`",
            quote_table(to),
            quote(&column.name)
        ),
    ))
}

/// Whether the index is over exactly these columns, and over every row.
fn is_over(unique: &Unique, key: &[&str]) -> bool {
    let Some(plain) = &unique.plain else { return false };
    let plain: BTreeSet<&str> = plain.iter().map(String::as_str).collect();
    !key.is_empty() && plain == key.iter().copied().collect()
}

/// What a step's table is described by.
pub(super) type Shared = Arc<Described>;
