//! A target table as steps need it: which columns flow, in which form, and what tells rows apart.

use tailwater_apply::{TargetError, TargetTable};
use tailwater_change::{
    Column, Dialect, ForeignKey, Generated, Identity, Kind, Problem, ReferentialAction, TableId,
    TableSchema, Value,
};

use super::collation::{self, equal_is_same_bytes};
use super::mapping::{Abilities, Usage, accept, mapping};
use super::spell::{Form, SpellError};
use crate::catalog::{CatalogColumn, CatalogTable};
use crate::connect::{quote_name, quote_table, quote_text};
use crate::types::ColumnType;

/// A column that flows, on the target.
#[derive(Debug, Clone)]
pub(super) struct Field {
    /// Its index in the source's schema, and so in a row's values.
    pub(super) source: usize,
    /// Its name as SQL.
    pub(super) name: String,
    /// How its values are spelled.
    pub(super) form: Form,
    /// The target's type.
    pub(super) ty: ColumnType,
    /// The type as a temporary table takes it, collation included: an index on the target's column
    /// serves comparisons only under the same one.
    pub(super) definition: String,
    /// Whether `LOAD DATA` must be told that the bytes are UTF-8.
    pub(super) convert: bool,
    /// Whether the server would set it on an update that does not name it.
    pub(super) on_update: bool,
}

/// A target table described for one version of its source.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// As apply sees it.
    pub(super) target: TargetTable,
    /// Its name as SQL.
    pub(super) table: String,
    /// The source's version.
    pub(super) schema: TableSchema,
    /// Columns that flow.
    pub(super) fields: Vec<Field>,
    /// Positions in `fields` of the identity; none: all columns are.
    pub(super) key: Vec<usize>,
    /// Those of `key` whose texts may be equal on the target and be different bytes.
    pub(super) folding: Vec<usize>,
    /// Unique indexes that are the identity.
    pub(super) identity_indexes: Vec<String>,
    /// Whether updates and deletes must fire the target's own cascades.
    pub(super) cascades: bool,
    /// Where REPLACE is an update, the names of all that the table has as long as it is one.
    pub(super) replaces: Option<Vec<String>>,
}

/// What is around a table besides its catalog entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings {
    /// Whether it has triggers.
    pub(super) triggers: bool,
    /// Whether other tables' foreign keys point here.
    pub(super) referenced: bool,
    /// Whether they change rows when this table's rows change.
    pub(super) cascades_from_here: bool,
}

impl Shape {
    /// Describes `catalog` for rows of `schema`.
    ///
    /// # Errors
    /// Every reason why the table cannot take them.
    pub(super) fn of(
        schema: &TableSchema,
        catalog: &CatalogTable,
        around: Surroundings,
        abilities: &Abilities,
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let fields = fields(schema, catalog, abilities, &mut problems);
        problems.extend(engine_problem(catalog));
        problems.extend(extra_problems(schema, catalog));
        problems.extend(collation_problems(schema, catalog, abilities));
        let identity_indexes = identity_indexes(schema, catalog, &mut problems);
        if !problems.is_empty() {
            return Err(problems);
        }
        let position = |index: &usize| fields.iter().position(|field| field.source == *index);
        let key: Vec<usize> = schema.key().iter().filter_map(position).collect();
        let folding: Vec<usize> = key
            .iter()
            .copied()
            .filter(|at| fields[*at].ty.has_charset() && !is_bytes(schema, catalog, &fields[*at]))
            .collect();
        let cascades = schema.hides_cascades
            && (around.cascades_from_here
                || catalog.foreign_keys.iter().any(ForeignKey::changes_rows));
        let target = TargetTable {
            name: catalog.table.clone(),
            identity_is_bytes: !key.is_empty()
                && key.iter().all(|at| is_bytes(schema, catalog, &fields[*at])),
            unique_keys: unique_keys(schema, catalog, &identity_indexes),
            fires: around.triggers || cascades,
        };
        let replaces = (target.identity_is_bytes
            && folding.is_empty()
            && !target.fires
            && !around.referenced
            && identity_indexes.len() == 1
            && flows_whole(schema, catalog)
            && !catalog.system_versioned)
            .then(|| has(catalog))
            .filter(|has| has.len() == catalog.columns.len() + 1);
        let table = quote_table(&catalog.table);
        let schema = schema.clone();
        Ok(Self {
            target,
            table,
            schema,
            fields,
            key,
            folding,
            identity_indexes,
            cascades,
            replaces,
        })
    }

    /// Whether all columns together are the identity.
    pub(super) fn is_full(&self) -> bool {
        self.key.is_empty()
    }

    /// Why `value` of `field` cannot be sent.
    pub(super) fn unspeakable(&self, field: &Field, error: SpellError) -> TargetError {
        let column = format!("column {} of {}", field.name, self.target.name);
        match error {
            SpellError::Unholdable(_) => TargetError::Refused(Problem::new(
                format!("{column}: {error}"),
                "change the value in the source and skip the transaction, or make the target's \
                 column longtext, which takes it as text",
            )),
            SpellError::Mismatch => {
                TargetError::Bug { operation: column, detail: error.to_string() }
            }
        }
    }

    /// What asks for the names of [`replaces`](Self::replaces), and of triggers, which it has none of.
    pub(super) fn ask_what_it_has(&self) -> String {
        let TableId { schema, name } = &self.target.name;
        let (schema, name) = (quote_text(schema), quote_text(name));
        let of = format!("WHERE table_schema = {schema} AND table_name = {name}");
        format!(
            "SELECT CAST(column_name AS BINARY) FROM information_schema.columns {of} \
             UNION ALL SELECT DISTINCT CAST(index_name AS BINARY) \
             FROM information_schema.statistics {of} AND non_unique = 0 \
             UNION ALL SELECT CAST(trigger_name AS BINARY) FROM information_schema.triggers \
             WHERE event_object_schema = {schema} AND event_object_table = {name}"
        )
    }

    /// Whether `values` has the column at all.
    pub(super) fn is_unsent(&self, field: &Field, values: &[Value<'_>]) -> bool {
        values[field.source].is_unsent()
    }
}

fn fields(
    schema: &TableSchema,
    catalog: &CatalogTable,
    abilities: &Abilities,
    problems: &mut Vec<Problem>,
) -> Vec<Field> {
    let mut fields = Vec::with_capacity(schema.columns.len());
    for (source, column) in schema.columns.iter().enumerate().filter(|(_, column)| column.flows()) {
        let Some(to) = find(catalog, &column.name) else {
            problems.push(Problem::new(
                format!("table {} has no column {}", catalog.table, column.name),
                // As it would be made here.
                match mapping(schema.dialect, column, Usage::of(schema, source), abilities) {
                    Ok(made) => format!(
                        "run ALTER TABLE {} ADD COLUMN {} {}, then `tailwater resume`",
                        quote_table(&catalog.table),
                        quote_name(&column.name),
                        made.spelled
                    ),
                    Err(_) => "add it to the target's table with the source's type".to_owned(),
                },
            ));
            continue;
        };
        match accept(schema.dialect, column, to) {
            Ok((form, ty)) => fields.push(field(source, to, form, ty, abilities.dialect)),
            Err(why) => problems.push(Problem::new(
                format!("column {}.{}: {why}", catalog.table, column.name),
                "change the target's column so that it takes every value of the source's",
            )),
        }
    }
    fields
}

fn field(source: usize, to: &CatalogColumn, form: Form, ty: ColumnType, on: Dialect) -> Field {
    let mut definition = to.native.clone();
    if let (Some(charset), Some(collation)) = (&to.charset, &to.collation) {
        definition.push_str(&format!(" CHARACTER SET {charset} COLLATE {collation}"));
    }
    let unicode = matches!(to.charset.as_deref(), Some("utf8mb4" | "utf8mb3" | "utf8"));
    Field {
        source,
        name: quote_name(&to.name),
        form,
        // MySQL's JSON takes no bytes, other character sets would take them for their own.
        convert: if ty == ColumnType::Json {
            on == Dialect::Mysql
        } else {
            ty.has_charset() && !unicode
        },
        ty,
        definition,
        on_update: to.on_update,
    }
}

/// MySQL's column names do not differ by case.
fn find<'a>(catalog: &'a CatalogTable, name: &str) -> Option<&'a CatalogColumn> {
    catalog
        .columns
        .iter()
        .find(|column| column.name == name)
        .or_else(|| catalog.columns.iter().find(|column| column.name.eq_ignore_ascii_case(name)))
}

fn engine_problem(catalog: &CatalogTable) -> Option<Problem> {
    let transactional = ["innodb", "rocksdb", "tokudb"]
        .iter()
        .any(|engine| catalog.engine.eq_ignore_ascii_case(engine));
    (!transactional).then(|| {
        Problem::new(
            format!(
                "table {} is of engine {}, which has no transactions",
                catalog.table, catalog.engine
            ),
            format!("ALTER TABLE {} ENGINE = InnoDB", quote_table(&catalog.table)),
        )
    })
}

/// Whether the column is filled with what comes from the source.
fn flows(schema: &TableSchema, column: &CatalogColumn) -> bool {
    schema.columns.iter().any(|from| from.flows() && same_name(&from.name, &column.name))
}

/// Whether a row has nothing that does not come from the source, or from what does.
fn flows_whole(schema: &TableSchema, catalog: &CatalogTable) -> bool {
    let computed = |column: &CatalogColumn| {
        matches!(column.generated, Some(Generated::Stored | Generated::Virtual))
    };
    catalog.columns.iter().all(|column| computed(column) || flows(schema, column))
}

/// The names of its columns and of its unique indexes, sorted.
fn has(catalog: &CatalogTable) -> Vec<String> {
    let columns = catalog.columns.iter().map(|column| column.name.clone());
    let indexes = catalog.indexes.iter().filter(|index| index.unique);
    let mut has: Vec<String> = columns.chain(indexes.map(|index| index.name.clone())).collect();
    has.sort_unstable();
    has
}

/// Columns that only the target has must fill themselves.
fn extra_problems(schema: &TableSchema, catalog: &CatalogTable) -> Vec<Problem> {
    catalog
        .columns
        .iter()
        .filter(|column| !flows(schema, column))
        .filter(|column| !column.nullable && column.default.is_none() && column.generated.is_none())
        .map(|column| {
            Problem::new(
                format!(
                    "column {}.{} is not in the source, takes no NULL and has no default",
                    catalog.table, column.name
                ),
                "give it a default or let it take NULL",
            )
        })
        .collect()
}

/// Text columns of the key that tell fewer texts apart than the source does: two of its rows would
/// be one here.
fn collation_problems(
    schema: &TableSchema,
    catalog: &CatalogTable,
    abilities: &Abilities,
) -> Vec<Problem> {
    let key = schema.key().iter().map(|index| &schema.columns[*index]);
    let pairs = key.filter_map(|column| Some((column, find(catalog, &column.name)?)));
    pairs
        .filter(|(column, to)| tells_bytes_apart(schema.dialect, column) && !is_enum(to))
        .filter_map(|(_, to)| Some((to, to.charset.as_deref()?, to.collation.as_deref()?)))
        .filter(|(_, _, collation)| !collation::is_binary(collation))
        .map(|(to, charset, collation)| {
            let default = to.default.as_ref().map(|it| format!(" DEFAULT {it}"));
            Problem::new(
                format!(
                    "column {}.{} is part of the key, and its collation {collation} takes keys for \
                     equal that the source tells apart",
                    catalog.table, to.name
                ),
                format!(
                    "ALTER TABLE {} MODIFY {} {} CHARACTER SET {charset} COLLATE {} NOT NULL{}",
                    quote_table(&catalog.table),
                    quote_name(&to.name),
                    to.native,
                    collation::exact(charset, &abilities.collations),
                    default.unwrap_or_default()
                ),
            )
        })
        .collect()
}

/// Whether the source holds texts of different bytes for different. Numbers and dates that stand
/// in a text have one spelling each.
fn tells_bytes_apart(source: Dialect, column: &Column) -> bool {
    if !matches!(column.kind, Kind::Text { .. } | Kind::Enum { .. }) {
        return false;
    }
    if source.is_like(Dialect::Mysql) {
        return column.collation.as_deref().is_some_and(collation::is_binary);
    }
    // With its schema, where that is not on the source's search path.
    column.native.rsplit('.').next() != Some("citext")
}

fn is_enum(column: &CatalogColumn) -> bool {
    matches!(ColumnType::parse(&column.native), Ok(ColumnType::Enum { .. }))
}

/// Whether the index compares whole columns, so that it tells rows apart exactly as they do.
fn whole_columns(index: &tailwater_change::Index) -> bool {
    !index.columns.is_empty()
        && !index.definition.contains("((")
        && index
            .columns
            .iter()
            .all(|column| !index.definition.contains(&format!("{}(", quote_name(column))))
}

fn same_name(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

pub(super) fn same_names(one: &[String], other: &[String]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same_name(one, other))
}

fn identity_indexes(
    schema: &TableSchema,
    catalog: &CatalogTable,
    problems: &mut Vec<Problem>,
) -> Vec<String> {
    let Identity::Key(key) = &schema.identity else { return Vec::new() };
    let names: Vec<&str> = key.iter().map(|index| schema.columns[*index].name.as_str()).collect();
    let not_null = |name: &str| find(catalog, name).is_some_and(|column| !column.nullable);
    let within = |index: &&tailwater_change::Index| {
        index.unique
            && whole_columns(index)
            && index
                .columns
                .iter()
                .all(|column| names.iter().any(|name| same_name(name, column)) && not_null(column))
    };
    let found: Vec<_> = catalog.indexes.iter().filter(within).collect();
    if found.is_empty() {
        let columns: Vec<String> = names.iter().map(|name| quote_name(name)).collect();
        problems.push(Problem::new(
            format!("table {} has no unique key on {}", catalog.table, columns.join(", ")),
            format!(
                "ALTER TABLE {} ADD PRIMARY KEY ({})",
                quote_table(&catalog.table),
                columns.join(", ")
            ),
        ));
    }
    found
        .into_iter()
        .filter(|index| index.columns.len() == names.len())
        .map(|index| index.name.clone())
        .collect()
}

fn unique_keys(
    schema: &TableSchema,
    catalog: &CatalogTable,
    identity_indexes: &[String],
) -> Vec<Vec<usize>> {
    let all = || (0..schema.columns.len()).filter(|at| schema.columns[*at].flows()).collect();
    let others = catalog
        .indexes
        .iter()
        .filter(|index| index.unique && !identity_indexes.contains(&index.name));
    let mut keys = Vec::new();
    for index in others {
        let mut columns: Vec<usize> = Vec::new();
        let mut computed = index.columns.is_empty() || index.definition.contains("((");
        for name in &index.columns {
            let source = schema.columns.iter().position(|column| same_name(&column.name, name));
            match source.filter(|at| schema.columns[*at].flows()) {
                Some(at) => columns.push(at),
                None => computed |= find(catalog, name).is_some_and(|it| it.expression.is_some()),
            }
        }
        if computed {
            columns = all();
        }
        // An index of columns that only the target has is the target's own affair.
        if !columns.is_empty() {
            keys.push(columns);
        }
    }
    keys
}

/// Whether equal values of the key column are equal bytes in the row message, and the reverse.
fn is_bytes(schema: &TableSchema, catalog: &CatalogTable, field: &Field) -> bool {
    let column = &schema.columns[field.source];
    let like = schema.dialect.is_like(Dialect::Mysql);
    match &field.ty {
        ColumnType::Int { .. }
        | ColumnType::Year
        | ColumnType::VarBinary { .. }
        | ColumnType::Blob
        | ColumnType::Binary { .. }
        | ColumnType::Date
        | ColumnType::Time { .. }
        | ColumnType::DateTime { .. }
        | ColumnType::Timestamp { .. }
        // Labels are told apart by their number.
        | ColumnType::Enum { .. } => true,
        // A fixed scale has one spelling per value.
        ColumnType::Decimal { .. } => match &column.kind {
            Kind::Decimal { scale, .. } => scale.is_some(),
            _ => true,
        },
        ColumnType::Float | ColumnType::Double | ColumnType::Json => false,
        ColumnType::Char { .. } | ColumnType::VarChar { .. } | ColumnType::Text => {
            let collation = find(catalog, &column.name)
                .and_then(|column| column.collation.as_deref())
                .unwrap_or_default();
            // Padding does not matter where no value ends in a space.
            let never_padded = column.kind == Kind::Uuid
                || (like && matches!(field.ty, ColumnType::Char { .. }));
            equal_is_same_bytes(collation) || (never_padded && collation.ends_with("_bin"))
        }
    }
}

/// Whether two actions do the same. InnoDB refuses under NO ACTION as it does under RESTRICT, and
/// MariaDB calls a key that was made with one by the name of the other.
fn same_effect(one: ReferentialAction, other: ReferentialAction) -> bool {
    let changes = |action| match action {
        ReferentialAction::Cascade => Some(true),
        ReferentialAction::SetNull => Some(false),
        // InnoDB has no SET DEFAULT.
        ReferentialAction::NoAction
        | ReferentialAction::Restrict
        | ReferentialAction::SetDefault => None,
    };
    changes(one) == changes(other)
}

/// Foreign keys whose cascades the source does not log and the target does not have.
pub(super) fn missing_cascades(schema: &TableSchema, catalog: &CatalogTable) -> Vec<Problem> {
    if !schema.hides_cascades {
        return Vec::new();
    }
    let has = |wanted: &ForeignKey| {
        catalog.foreign_keys.iter().any(|key| {
            same_names(&key.columns, &wanted.columns)
                && same_names(&key.referenced_columns, &wanted.referenced_columns)
                && same_effect(key.on_delete, wanted.on_delete)
                && same_effect(key.on_update, wanted.on_update)
        })
    };
    schema
        .foreign_keys
        .iter()
        .filter(|key| key.changes_rows() && !has(key))
        .map(|key| {
            Problem::new(
                format!(
                    "the source cascades into {} through foreign key {} without logging the rows; \
                     the target's table {} has no such key",
                    schema.table, key.name, catalog.table
                ),
                "capture the table that it points to as well and create the same foreign key with the \
                 same actions on the target, or replace the cascade by statements of the application",
            )
        })
        .collect()
}

/// `to` where messages name it.
pub(super) fn on(operation: &str, to: &TableId) -> String {
    format!("{operation} {to}")
}
