//! After the load: secondary indexes, foreign keys, sequences. Every part looks first whether it
//! has been done.

use tailwater_apply::TargetError;
use tailwater_change::{
    Dialect, ForeignKey, Generated, Index, Kind, ReferentialAction, TableId, TableSchema,
};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::create::{key_index, with_path};
use super::error::target_error;
use crate::connect::{literal, quote, quote_table};

/// Completes a table that [`create`](super::create::create) made.
pub(super) async fn finish(
    client: &Client,
    schema: &TableSchema,
    to: &TableId,
    route: &(dyn for<'a> Fn(&'a TableId) -> Option<TableId> + Sync),
) -> Result<(), TargetError> {
    let operation = format!("finishing {to}");
    // Definitions are found first: `route` must not be held while the server works.
    let keys: Vec<(&ForeignKey, TableId)> =
        schema.foreign_keys.iter().filter_map(|key| Some((key, route(&key.referenced)?))).collect();
    let like = schema.dialect.is_like(Dialect::Postgres);
    with_path(client, to, async || {
        for index in secondary(schema) {
            let definition =
                if like { rewritten(index, to) } else { translated(schema, index, to) };
            match definition {
                Some(definition) => make_index(client, index, to, &definition, like).await?,
                None => tracing::warn!(
                    table = %to,
                    index = index.name,
                    "an index of the source has no equal here and is not made"
                ),
            }
        }
        for (key, referenced) in &keys {
            make_foreign_key(client, key, to, referenced).await?;
        }
        for column in &schema.columns {
            let default =
                column.default.as_deref().filter(|default| like && default.contains("nextval("));
            if let Some(default) = default {
                make_sequence(client, to, &column.name, default).await?;
            } else if matches!(
                column.generated,
                Some(Generated::IdentityAlways | Generated::IdentityByDefault)
            ) {
                advance_sequence(client, to, &column.name).await?;
            }
        }
        Ok(())
    })
    .await
    .map_err(|error| target_error(&operation, error))
}

/// All indexes but the one that the table was made with.
fn secondary(schema: &TableSchema) -> impl Iterator<Item = &Index> {
    let key: Vec<&str> =
        schema.key().iter().map(|&index| schema.columns[index].name.as_str()).collect();
    let made = if key.is_empty() { None } else { key_index(schema, &key).map(|i| i.name.clone()) };
    schema.indexes.iter().filter(move |index| Some(&index.name) != made.as_ref())
}

/// What follows `ON table` in a definition of PostgreSQL's own: ` USING btree (…) …`.
fn rewritten(index: &Index, to: &TableId) -> Option<String> {
    let mut rest = index.definition.strip_prefix("CREATE ")?;
    let unique = rest.strip_prefix("UNIQUE ");
    rest = unique.unwrap_or(rest).strip_prefix("INDEX ")?;
    rest = after_identifier(rest)?.strip_prefix(" ON ")?;
    rest = rest.strip_prefix("ONLY ").unwrap_or(rest);
    rest = after_identifier(rest)?;
    if let Some(name) = rest.strip_prefix('.') {
        rest = after_identifier(name)?;
    }
    let unique = if unique.is_some() { "UNIQUE " } else { "" };
    Some(format!("CREATE {unique}INDEX {{}} ON {}{rest}", quote_table(to)))
        .filter(|_| rest.starts_with(" USING "))
}

/// What follows an identifier, quoted or not.
fn after_identifier(text: &str) -> Option<&str> {
    let Some(mut quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '.'])?;
        return text.get(end..);
    };
    loop {
        quoted = quoted.get(quoted.find('"')? + 1..)?;
        match quoted.strip_prefix('"') {
            Some(rest) => quoted = rest,
            None => return Some(quoted),
        }
    }
}

/// The definition of a foreign index on whole columns that have an order here.
fn translated(schema: &TableSchema, index: &Index, to: &TableId) -> Option<String> {
    let definition = index.definition.to_ascii_uppercase();
    let special = ["FULLTEXT", "SPATIAL", "VECTOR"].iter().any(|word| definition.contains(word));
    // `name`(10): a prefix. A unique one says nothing about whole values.
    let prefix = definition.contains("`(") || definition.contains("` (");
    let prefix = prefix
        && index.columns.iter().any(|column| {
            let column = column.to_ascii_uppercase();
            [format!("`{column}`("), format!("`{column}` (")].iter().any(|p| definition.contains(p))
        });
    let orders = |name: &String| {
        let column = schema.column(name)?;
        (schema.columns[column].kind != Kind::Json).then(|| quote(name))
    };
    let columns: Option<Vec<String>> = index.columns.iter().map(orders).collect();
    let columns = columns.filter(|columns| !columns.is_empty() && !special)?;
    if prefix && index.unique {
        return None;
    }
    let unique = if index.unique { "UNIQUE " } else { "" };
    Some(format!("CREATE {unique}INDEX {{}} ON {} ({})", quote_table(to), columns.join(", ")))
}

/// Makes an index under its name, or, where another table's index has that one, under a longer.
async fn make_index(
    client: &Client,
    index: &Index,
    to: &TableId,
    definition: &str,
    like: bool,
) -> Result<(), Error> {
    let long = format!("{}_{}", to.name, index.name);
    // Names of MySQL's indexes are the table's own; here they are the schema's.
    let names = if like { vec![index.name.clone(), long] } else { vec![long] };
    for name in names {
        let owner = client
            .query_opt(
                "SELECT i.indrelid = pg_catalog.to_regclass($3)::oid
                   FROM pg_catalog.pg_class c
                   JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid
                  WHERE n.nspname = $1 AND c.relname = $2",
                &[&to.schema, &name, &quote_table(to)],
            )
            .await?;
        match owner.map(|row| row.get::<_, Option<bool>>(0)) {
            Some(Some(true)) => return Ok(()),
            Some(_) => {}
            None => {
                return create_index(
                    client,
                    index,
                    to,
                    &definition.replacen("{}", &quote(&name), 1),
                )
                .await;
            }
        }
    }
    tracing::warn!(table = %to, index = index.name, "an index is not made: its name is taken");
    Ok(())
}

/// An index that only makes reading faster is left out where a value is too long for it.
async fn create_index(
    client: &Client,
    index: &Index,
    to: &TableId,
    sql: &str,
) -> Result<(), Error> {
    match client.batch_execute(sql).await {
        Err(error) if !index.unique && error.code() == Some(&SqlState::PROGRAM_LIMIT_EXCEEDED) => {
            tracing::warn!(
                table = %to,
                index = index.name,
                "an index is not made: values are too long for it"
            );
            Ok(())
        }
        done => done,
    }
}

async fn make_foreign_key(
    client: &Client,
    key: &ForeignKey,
    to: &TableId,
    referenced: &TableId,
) -> Result<(), Error> {
    let there = client
        .query_opt(
            "SELECT 1 FROM pg_catalog.pg_constraint
              WHERE conrelid = pg_catalog.to_regclass($1)::oid AND conname = $2",
            &[&quote_table(to), &key.name],
        )
        .await?;
    if there.is_some() {
        return Ok(());
    }
    client.batch_execute(&foreign_key_sql(key, to, referenced)).await
}

fn foreign_key_sql(key: &ForeignKey, to: &TableId, referenced: &TableId) -> String {
    let list = |names: &[String]| names.iter().map(|n| quote(n)).collect::<Vec<_>>().join(", ");
    let deferrable = match (key.deferrable, key.initially_deferred) {
        (false, _) => "",
        (true, false) => " DEFERRABLE",
        (true, true) => " DEFERRABLE INITIALLY DEFERRED",
    };
    format!(
        "ALTER TABLE {} ADD CONSTRAINT {} FOREIGN KEY ({}) REFERENCES {} ({}) \
         ON DELETE {} ON UPDATE {}{deferrable}",
        quote_table(to),
        quote(&key.name),
        list(&key.columns),
        quote_table(referenced),
        list(&key.referenced_columns),
        action(key.on_delete),
        action(key.on_update),
    )
}

fn action(action: ReferentialAction) -> &'static str {
    match action {
        ReferentialAction::NoAction => "NO ACTION",
        ReferentialAction::Restrict => "RESTRICT",
        ReferentialAction::Cascade => "CASCADE",
        ReferentialAction::SetNull => "SET NULL",
        ReferentialAction::SetDefault => "SET DEFAULT",
    }
}

/// Sets the identity's sequence beyond the largest value there is.
async fn advance_sequence(client: &Client, to: &TableId, column: &str) -> Result<(), Error> {
    let row = client
        .query_one("SELECT pg_catalog.pg_get_serial_sequence($1, $2)", &[&quote_table(to), &column])
        .await?;
    match row.get::<_, Option<String>>(0) {
        Some(sequence) => set_beyond(client, &sequence, to, column).await,
        // A numeric column, for numbers beyond bigint, cannot have one.
        None => Ok(()),
    }
}

/// Makes the sequence that a default names, sets it and the default.
async fn make_sequence(
    client: &Client,
    to: &TableId,
    column: &str,
    default: &str,
) -> Result<(), Error> {
    // nextval('order_no'::regclass)
    let name = default.split_once("nextval('").and_then(|(_, rest)| rest.split_once("'::"));
    let Some((name, _)) = name else {
        tracing::warn!(table = %to, column, "a default with a sequence is not taken over");
        return Ok(());
    };
    let name = name.replace("''", "'");
    client.batch_execute(&format!("CREATE SEQUENCE IF NOT EXISTS {name}")).await?;
    set_beyond(client, &name, to, column).await?;
    let (table, column) = (quote_table(to), quote(column));
    client.batch_execute(&format!("ALTER TABLE {table} ALTER {column} SET DEFAULT {default}")).await
}

/// Never back: the sequence may be further than the rows.
async fn set_beyond(
    client: &Client,
    sequence: &str,
    to: &TableId,
    column: &str,
) -> Result<(), Error> {
    let sql = format!(
        "SELECT pg_catalog.setval({}::regclass, largest) \
           FROM (SELECT max({})::bigint AS largest FROM {}) m \
          WHERE largest > (SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END \
                             FROM {sequence})",
        literal(sequence),
        quote(column),
        quote_table(to),
    );
    client.batch_execute(&sql).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(name: &str, columns: &[&str], unique: bool, definition: &str) -> Index {
        Index {
            name: name.into(),
            columns: columns.iter().map(|&column| column.into()).collect(),
            unique,
            primary: false,
            definition: definition.into(),
        }
    }

    #[test]
    fn definitions_are_turned_to_the_target() {
        let to = TableId::new("copy", "t");
        let check = |definition: &str, expected: Option<&str>| {
            let index = index("i", &["a"], true, definition);
            assert_eq!(rewritten(&index, &to).as_deref(), expected, "{definition}");
        };
        check(
            "CREATE UNIQUE INDEX i ON public.t USING btree (lower(a)) WHERE (b > 0)",
            Some("CREATE UNIQUE INDEX {} ON \"copy\".\"t\" USING btree (lower(a)) WHERE (b > 0)"),
        );
        check(
            "CREATE INDEX \"x ON \"\"y\" ON ONLY \"a USING .b\".\"t\"\"t\" USING gin (a)",
            Some("CREATE INDEX {} ON \"copy\".\"t\" USING gin (a)"),
        );
        check("CREATE INDEX i ON t", None);
        check("CREATE INDEX \"i", None);
    }
}
