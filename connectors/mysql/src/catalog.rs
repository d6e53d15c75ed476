//! What tables there are and what they are like, read from `information_schema`.
//!
//! [`CatalogTable`] is what the server says; [`CatalogTable::schema`] is the same as a
//! [`TableSchema`], or the reasons why some column cannot flow. `SHOW CREATE TABLE` gives indexes
//! in the server's own words: `information_schema` does not know all of their parts.

use std::collections::{BTreeMap, HashMap};

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row, Value as Sql};
use tailwater_change::{
    Column, ForeignKey, Generated, Identity, Index, Problem, ReferentialAction, TableId,
    TableSchema,
};

use crate::charset::Charset;
use crate::connect::{Server, quote_name, quote_table, quote_text};
use crate::types::ColumnType;

/// Databases of the server and of Tailwater itself: never captured.
const OWN: &str =
    "'mysql', 'information_schema', 'performance_schema', 'sys', 'tailwater', '#innodb_redo'";

/// A table as the catalog describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CatalogTable {
    /// Its name.
    pub(crate) table: TableId,
    /// `InnoDB`.
    pub(crate) engine: String,
    /// The default for its columns, with its character set.
    pub(crate) collation: Option<String>,
    pub(crate) charset: Option<String>,
    /// Whether the server keeps old row versions in it (MariaDB).
    pub(crate) system_versioned: bool,
    /// In their order.
    pub(crate) columns: Vec<CatalogColumn>,
    /// The primary key first.
    pub(crate) indexes: Vec<Index>,
    /// From this table.
    pub(crate) foreign_keys: Vec<ForeignKey>,
}

/// A column as the catalog describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CatalogColumn {
    pub(crate) name: String,
    /// From 1.
    pub(crate) position: u32,
    /// COLUMN_TYPE: complete, `int(10) unsigned`.
    pub(crate) native: String,
    /// As it stands behind DEFAULT in a definition.
    pub(crate) default: Option<String>,
    pub(crate) nullable: bool,
    pub(crate) charset: Option<String>,
    pub(crate) collation: Option<String>,
    pub(crate) generated: Option<Generated>,
    pub(crate) expression: Option<String>,
    /// Whether the server sets it to the time of an update that does not name it.
    pub(crate) on_update: bool,
}

/// Every base table outside the server's own databases that `wanted` picks.
pub(crate) async fn tables(
    conn: &mut Conn,
    server: Server,
    wanted: impl Fn(&TableId) -> bool,
) -> Result<Vec<CatalogTable>, mysql_async::Error> {
    read(conn, server, &format!("t.table_schema NOT IN ({OWN})"), wanted).await
}

/// The table called `name`, if there is one.
pub(crate) async fn table(
    conn: &mut Conn,
    server: Server,
    name: &TableId,
) -> Result<Option<CatalogTable>, mysql_async::Error> {
    let condition = format!(
        "t.table_schema = {} AND t.table_name = {}",
        quote_text(&name.schema),
        quote_text(&name.name)
    );
    Ok(read(conn, server, &condition, |_| true).await?.pop())
}

impl CatalogTable {
    /// Columns of the primary key as indexes into `columns`; none without one.
    pub(crate) fn primary_key(&self) -> Option<Vec<usize>> {
        let primary = self.indexes.iter().find(|index| index.primary)?;
        primary.columns.iter().map(|name| self.column(name)).collect()
    }

    /// The index of the column with this name.
    pub(crate) fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    /// The table as rows of it will be read.
    ///
    /// # Errors
    /// One problem per column whose values could not arrive equal.
    pub(crate) fn schema(&self, server: Server) -> Result<TableSchema, Vec<Problem>> {
        let (mut columns, mut problems) = (Vec::new(), Vec::new());
        for column in &self.columns {
            match self.convert(column) {
                Ok(column) => columns.push(column),
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut options = format!("ENGINE={}", self.engine);
        if let (Some(charset), Some(collation)) = (&self.charset, &self.collation) {
            options.push_str(&format!(" DEFAULT CHARSET={charset} COLLATE={collation}"));
        }
        Ok(TableSchema {
            table: self.table.clone(),
            dialect: server.dialect,
            columns,
            identity: self.primary_key().map_or(Identity::Full, Identity::Key),
            indexes: self.indexes.clone(),
            foreign_keys: self.foreign_keys.clone(),
            hides_cascades: server.hides_cascades(),
            options: Some(options),
        })
    }

    fn convert(&self, column: &CatalogColumn) -> Result<Column, Problem> {
        let refused = |why: String| {
            Problem::new(
                format!("column {}.{}: {why}", self.table, column.name),
                format!(
                    "exclude the table {}, or convert the column to a type that is captured",
                    self.table
                ),
            )
        };
        let kind = ColumnType::parse(&column.native).map_err(|error| refused(error.to_string()))?;
        if kind.has_charset() {
            let name = column.charset.as_deref().unwrap_or_default();
            Charset::named(name)
                .ok_or_else(|| refused(format!("character set {name} is not supported")))?;
        }
        Ok(Column {
            name: column.name.clone(),
            field: column.position,
            kind: kind.kind(),
            native: column.native.clone(),
            nullable: column.nullable,
            default: column.default.clone(),
            charset: column.charset.clone(),
            collation: column.collation.clone(),
            generated: column.generated,
            expression: column.expression.clone(),
        })
    }
}

/// Puts tables that foreign keys point to before those that point, where there is no circle.
pub(crate) fn order_by_foreign_keys(tables: Vec<TableSchema>) -> Vec<TableSchema> {
    let index: HashMap<TableId, usize> =
        tables.iter().enumerate().map(|(at, table)| (table.table.clone(), at)).collect();
    let mut placed = vec![false; tables.len()];
    let mut order = Vec::with_capacity(tables.len());
    while order.len() < tables.len() {
        let ready = |at: &usize, placed: &[bool]| {
            tables[*at]
                .foreign_keys
                .iter()
                .all(|key| index.get(&key.referenced).is_none_or(|to| to == at || placed[*to]))
        };
        let mut round: Vec<usize> =
            (0..tables.len()).filter(|at| !placed[*at] && ready(at, &placed)).collect();
        if round.is_empty() {
            // A circle: any order is as good as another.
            round = (0..tables.len()).filter(|at| !placed[*at]).take(1).collect();
        }
        for at in round {
            placed[at] = true;
            order.push(at);
        }
    }
    let mut tables: Vec<Option<TableSchema>> = tables.into_iter().map(Some).collect();
    order.into_iter().filter_map(|at| tables[at].take()).collect()
}

async fn read(
    conn: &mut Conn,
    server: Server,
    condition: &str,
    wanted: impl Fn(&TableId) -> bool,
) -> Result<Vec<CatalogTable>, mysql_async::Error> {
    let mut found: BTreeMap<TableId, CatalogTable> = BTreeMap::new();
    for row in rows(conn, &format!("{TABLES} WHERE {condition} AND {KINDS}")).await? {
        let table = CatalogTable::of(&row);
        if wanted(&table.table) {
            found.insert(table.table.clone(), table);
        }
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    for row in rows(conn, &format!("{COLUMNS} WHERE {condition} {COLUMNS_ORDER}")).await? {
        if let Some(table) = found.get_mut(&row.table()) {
            table.columns.push(CatalogColumn::of(&row, server));
        }
    }
    for row in rows(conn, &format!("{FOREIGN_KEYS} WHERE {condition} {FOREIGN_KEYS_ORDER}")).await?
    {
        if let Some(table) = found.get_mut(&row.table()) {
            table.add_foreign_key(&row);
        }
    }
    for row in rows(conn, &format!("{INDEXES} WHERE {condition} {INDEXES_ORDER}")).await? {
        if let Some(table) = found.get_mut(&row.table()) {
            table.add_index(&row);
        }
    }
    for table in found.values_mut().filter(|table| !table.indexes.is_empty()) {
        let create = format!("SHOW CREATE TABLE {}", quote_table(&table.table));
        let text = rows(conn, &create).await?.first().map(|row| row.text(1)).unwrap_or_default();
        for index in &mut table.indexes {
            index.definition = definition(&text, index).unwrap_or_default();
        }
    }
    Ok(found.into_values().collect())
}

const TABLES: &str = "SELECT t.table_schema, t.table_name, t.engine, t.table_collation, \
     a.character_set_name, t.table_type FROM information_schema.tables t \
     LEFT JOIN information_schema.collations a ON a.collation_name = t.table_collation";

/// Views, sequences and temporary tables are not tables of rows.
const KINDS: &str = "t.table_type IN ('BASE TABLE', 'SYSTEM VERSIONED')";

const COLUMNS: &str = "SELECT t.table_schema, t.table_name, t.column_name, t.ordinal_position, \
     t.column_type, t.column_default, t.is_nullable, t.character_set_name, t.collation_name, \
     t.extra, t.generation_expression FROM information_schema.columns t";

const COLUMNS_ORDER: &str = "ORDER BY t.table_schema, t.table_name, t.ordinal_position";

const INDEXES: &str = "SELECT t.table_schema, t.table_name, t.index_name, t.non_unique, \
     t.column_name FROM information_schema.statistics t";

const INDEXES_ORDER: &str = "ORDER BY t.table_schema, t.table_name, \
     t.index_name <> 'PRIMARY', t.non_unique, t.index_name, t.seq_in_index";

const FOREIGN_KEYS: &str = "SELECT t.table_schema, t.table_name, t.constraint_name, \
     t.column_name, t.referenced_table_schema, t.referenced_table_name, \
     t.referenced_column_name, r.delete_rule, r.update_rule \
     FROM information_schema.key_column_usage t \
     JOIN information_schema.referential_constraints r \
     ON r.constraint_schema = t.constraint_schema AND r.constraint_name = t.constraint_name \
     AND r.table_name = t.table_name";

const FOREIGN_KEYS_ORDER: &str = "AND t.referenced_table_name IS NOT NULL \
     ORDER BY t.table_schema, t.table_name, t.constraint_name, t.ordinal_position";

/// A catalog row: every value as text.
struct Texts(Vec<Option<String>>);

async fn rows(conn: &mut Conn, sql: &str) -> Result<Vec<Texts>, mysql_async::Error> {
    let rows: Vec<Row> = conn.query(sql).await?;
    Ok(rows.into_iter().map(|row| Texts(row.unwrap().into_iter().map(text_of).collect())).collect())
}

fn text_of(value: Sql) -> Option<String> {
    match value {
        Sql::NULL => None,
        Sql::Bytes(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        other => Some(other.as_sql(true)),
    }
}

impl Texts {
    fn get(&self, at: usize) -> Option<String> {
        self.0.get(at).cloned().flatten()
    }

    fn text(&self, at: usize) -> String {
        self.get(at).unwrap_or_default()
    }

    fn table(&self) -> TableId {
        TableId::new(self.text(0), self.text(1))
    }
}

impl CatalogTable {
    fn of(row: &Texts) -> Self {
        Self {
            table: row.table(),
            engine: row.text(2),
            collation: row.get(3),
            charset: row.get(4),
            system_versioned: row.text(5) == "SYSTEM VERSIONED",
            columns: Vec::new(),
            indexes: Vec::new(),
            foreign_keys: Vec::new(),
        }
    }

    fn add_index(&mut self, row: &Texts) {
        let name = row.text(2);
        if self.indexes.last().is_none_or(|index| index.name != name) {
            self.indexes.push(Index {
                primary: name == "PRIMARY",
                name,
                columns: Vec::new(),
                unique: row.text(3) == "0",
                definition: String::new(),
            });
        }
        // A part without a column is an expression: then the columns say nothing.
        if let (Some(index), Some(column)) = (self.indexes.last_mut(), row.get(4)) {
            index.columns.push(column);
        }
    }

    fn add_foreign_key(&mut self, row: &Texts) {
        let name = row.text(2);
        if self.foreign_keys.last().is_none_or(|key| key.name != name) {
            self.foreign_keys.push(ForeignKey {
                name,
                columns: Vec::new(),
                referenced: TableId::new(row.text(4), row.text(5)),
                referenced_columns: Vec::new(),
                on_delete: action(&row.text(7)),
                on_update: action(&row.text(8)),
                deferrable: false,
                initially_deferred: false,
            });
        }
        if let Some(key) = self.foreign_keys.last_mut() {
            key.columns.push(row.text(3));
            key.referenced_columns.push(row.text(6));
        }
    }
}

impl CatalogColumn {
    fn of(row: &Texts, server: Server) -> Self {
        let extra = row.text(9).to_ascii_uppercase();
        let generated = if extra.contains("STORED GENERATED") || extra.contains("PERSISTENT") {
            Some(Generated::Stored)
        } else if extra.contains("VIRTUAL GENERATED") {
            Some(Generated::Virtual)
        } else {
            extra.contains("AUTO_INCREMENT").then_some(Generated::IdentityByDefault)
        };
        let computed = matches!(generated, Some(Generated::Stored | Generated::Virtual));
        Self {
            name: row.text(2),
            position: row.text(3).parse().unwrap_or(0),
            native: row.text(4),
            default: row.get(5).and_then(|default| default_clause(default, &extra, server)),
            nullable: row.text(6) == "YES",
            charset: row.get(7),
            collation: row.get(8),
            generated,
            expression: row.get(10).filter(|_| computed).map(|text| unescape(&text, server)),
            on_update: extra.contains("ON UPDATE"),
        }
    }
}

/// MariaDB prints the clause itself, and `NULL` where there is none. MySQL prints a literal's bare
/// value, or an expression and says so in EXTRA.
fn default_clause(default: String, extra: &str, server: Server) -> Option<String> {
    if server.is_mariadb() {
        return (!default.eq_ignore_ascii_case("NULL")).then_some(default);
    }
    if !extra.contains("DEFAULT_GENERATED") {
        return Some(if default.starts_with("b'") { default } else { quote_text(&default) });
    }
    if default.to_ascii_uppercase().starts_with("CURRENT_TIMESTAMP") {
        return Some(default);
    }
    Some(format!("({})", unescape(&default, server)))
}

/// MySQL escapes the quotes of expressions in `information_schema`.
fn unescape(expression: &str, server: Server) -> String {
    if server.is_mariadb() { expression.to_owned() } else { expression.replace("\\'", "'") }
}

fn action(rule: &str) -> ReferentialAction {
    match rule {
        "CASCADE" => ReferentialAction::Cascade,
        "SET NULL" => ReferentialAction::SetNull,
        "SET DEFAULT" => ReferentialAction::SetDefault,
        "RESTRICT" => ReferentialAction::Restrict,
        _ => ReferentialAction::NoAction,
    }
}

/// The index's line in `SHOW CREATE TABLE`, without the comma that ends it.
fn definition(create: &str, index: &Index) -> Option<String> {
    let named = format!("KEY {} (", quote_name(&index.name));
    create.lines().map(|line| line.trim().trim_end_matches(',')).find_map(|line| {
        let is_it = if index.primary {
            line.starts_with("PRIMARY KEY (")
        } else {
            let kind = line.split_once(&named).map(|(kind, _)| kind);
            matches!(kind, Some("" | "UNIQUE " | "FULLTEXT " | "SPATIAL "))
        };
        is_it.then(|| line.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use tailwater_change::Dialect;

    use super::*;

    #[test]
    fn definitions_are_the_servers_own_lines() {
        let create = "CREATE TABLE `t` (\n  `id` int(11) NOT NULL,\n  PRIMARY KEY (`id`),\n  \
                      UNIQUE KEY `u` (`a`(10) DESC,`b`) USING BTREE,\n  KEY `k``1` (`b`)\n) \
                      ENGINE=InnoDB";
        let index = |name: &str| Index {
            name: name.into(),
            columns: Vec::new(),
            unique: false,
            primary: name == "PRIMARY",
            definition: String::new(),
        };
        let check = |name, expected: &str| {
            assert_eq!(definition(create, &index(name)).as_deref(), Some(expected));
        };
        check("PRIMARY", "PRIMARY KEY (`id`)");
        check("u", "UNIQUE KEY `u` (`a`(10) DESC,`b`) USING BTREE");
        check("k`1", "KEY `k``1` (`b`)");
    }

    #[test]
    fn defaults_are_clauses_whatever_the_catalog_prints() {
        let mysql = Server { dialect: Dialect::Mysql, version: (9, 7, 0) };
        let mariadb = Server { dialect: Dialect::Mariadb, version: (10, 11, 0) };
        let check = |server, printed: &str, extra, expected: Option<&str>| {
            assert_eq!(default_clause(printed.into(), extra, server).as_deref(), expected);
        };
        check(mysql, "it's", "", Some("'it''s'"));
        check(mysql, "CURRENT_TIMESTAMP(6)", "DEFAULT_GENERATED", Some("CURRENT_TIMESTAMP(6)"));
        check(mysql, "concat(_utf8mb4\\'a\\')", "DEFAULT_GENERATED", Some("(concat(_utf8mb4'a'))"));
        check(mariadb, "'it''s'", "", Some("'it''s'"));
        check(mariadb, "NULL", "", None);
    }
}
