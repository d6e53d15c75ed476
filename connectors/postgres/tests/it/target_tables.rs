//! Tables made as the source's are, or as near as they come.

use std::sync::Arc;

use tailwater_apply::{Step, TargetConnector as _};
use tailwater_change::{
    Dialect, ForeignKey, Generated, Identity, Index, Kind, ReferentialAction, TableId, TableSchema,
    Value,
};
use tailwater_postgres::target::{Fit, mapping};

use crate::target::{Fixture, column, flavors, insert, int, schema, text};

fn index(name: &str, columns: &[&str], unique: bool, definition: &str) -> Index {
    Index {
        name: name.into(),
        columns: columns.iter().map(|&column| column.to_owned()).collect(),
        unique,
        primary: name.ends_with("_pkey") || name == "PRIMARY",
        definition: definition.into(),
    }
}

fn customers() -> TableSchema {
    let mut id = column("id", Kind::Int { bits: 64, signed: true }, "bigint");
    id.generated = Some(Generated::IdentityAlways);
    let mut email = column("email", text(), "text");
    email.collation = Some("\"C\"".into());
    email.nullable = false;
    let mut since = column("since", Kind::TimestampTz, "timestamp with time zone");
    since.default = Some("now()".into());
    let mut schema = schema("customers", vec![id, email, since], Identity::Key(vec![0]));
    schema.table.schema = "shop".into();
    schema.indexes = vec![
        index(
            "customers_pkey",
            &["id"],
            true,
            "CREATE UNIQUE INDEX customers_pkey ON shop.customers USING btree (id)",
        ),
        index(
            "customers_email",
            &[],
            true,
            "CREATE UNIQUE INDEX customers_email ON shop.customers USING btree (lower(email)) \
             WHERE (email <> ''::text)",
        ),
    ];
    schema
}

fn orders() -> TableSchema {
    let mut id = column("id", int(), "integer");
    id.generated = Some(Generated::IdentityByDefault);
    let mut no = column("no", Kind::Int { bits: 64, signed: true }, "bigint");
    no.default = Some("nextval('order_no'::regclass)".into());
    no.nullable = false;
    let labels = vec!["new".into(), "it's paid".into()];
    let mut state = column("state", Kind::Enum { labels }, "order_state");
    state.default = Some("'new'::order_state".into());
    let cents =
        column("cents", Kind::Decimal { precision: Some(12), scale: Some(2) }, "numeric(12,2)");
    let mut tax = column("tax", Kind::Decimal { precision: None, scale: None }, "numeric");
    tax.generated = Some(Generated::Stored);
    tax.expression = Some("(cents * 0.19)".into());
    let customer = column("customer_id", Kind::Int { bits: 64, signed: true }, "bigint");
    let mut schema =
        schema("orders", vec![id, no, state, cents, tax, customer], Identity::Key(vec![0]));
    schema.table.schema = "shop".into();
    schema.indexes = vec![
        index(
            "orders_pkey",
            &["id"],
            true,
            "CREATE UNIQUE INDEX orders_pkey ON shop.orders USING btree (id)",
        ),
        index(
            "orders_by_customer",
            &["customer_id"],
            false,
            "CREATE INDEX orders_by_customer ON ONLY shop.orders USING btree (customer_id DESC) \
             INCLUDE (no)",
        ),
    ];
    let key = |name: &str, referenced: TableId| ForeignKey {
        name: name.into(),
        columns: vec!["customer_id".into()],
        referenced,
        referenced_columns: vec!["id".into()],
        on_delete: ReferentialAction::Cascade,
        on_update: ReferentialAction::NoAction,
        deferrable: true,
        initially_deferred: true,
    };
    schema.foreign_keys = vec![
        key("orders_customer", TableId::new("shop", "customers")),
        key("orders_elsewhere", TableId::new("shop", "not_captured")),
    ];
    schema
}

#[tokio::test]
async fn a_shop_is_made_and_finished_as_it_was() {
    for flavor in flavors() {
        let mut fixture = Fixture::new(flavor, "").await;
        let to = |table: &TableId| TableId::new("copy", &table.name);
        let route = |table: &TableId| (table.name != "not_captured").then(|| to(table));
        let (customers, orders) = (customers(), orders());
        let mut tables = Vec::new();
        for source in [&customers, &orders] {
            let name = to(&source.table);
            assert_eq!(fixture.connector.check_table(source, &name).await, []);
            assert_eq!(fixture.target.describe(source, &name).await.unwrap(), None);
            fixture.target.create_table(source, &name).await.unwrap();
            assert_eq!(fixture.connector.check_table(source, &name).await, []);
            let target = fixture.target.describe(source, &name).await.unwrap().unwrap();
            let schema = Arc::new(source.clone());
            tables.push(Arc::new(tailwater_apply::Table { schema, target }));
        }
        let customer = insert(
            &tables[0],
            &[Value::Int(41), Value::Text("A@b"), Value::Text("2024-01-01 00:00:00+00")],
        );
        let order = insert(
            &tables[1],
            &[
                Value::Int(7),
                Value::Int(1000),
                Value::Text("it's paid"),
                Value::Text("100.00"),
                Value::Null,
                Value::Int(41),
            ],
        );
        fixture
            .apply(&[
                Step::Insert { table: Arc::clone(&tables[0]), rows: vec![customer] },
                Step::Insert { table: Arc::clone(&tables[1]), rows: vec![order] },
            ])
            .await;
        for _twice in 0..2 {
            for source in [&customers, &orders] {
                fixture.target.finish_table(source, &to(&source.table), &route).await.unwrap();
            }
        }
        let target =
            fixture.target.describe(&customers, &to(&customers.table)).await.unwrap().unwrap();
        assert_eq!(target.unique_keys, [vec![1]]);
        assert!(!target.fires);
        assert_eq!(
            fixture.sql(
                "SELECT indexdef FROM pg_indexes WHERE schemaname = 'copy' ORDER BY indexname"
            ),
            "CREATE UNIQUE INDEX customers_email ON copy.customers USING btree (lower(email)) \
             WHERE (email <> ''::text)\n\
             CREATE UNIQUE INDEX customers_pkey ON copy.customers USING btree (id)\n\
             CREATE INDEX orders_by_customer ON copy.orders USING btree (customer_id DESC) \
             INCLUDE (no)\n\
             CREATE UNIQUE INDEX orders_pkey ON copy.orders USING btree (id)"
        );
        assert_eq!(
            fixture.sql(
                "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
                  WHERE contype = 'f' ORDER BY conname"
            ),
            "orders_customer\tFOREIGN KEY (customer_id) REFERENCES copy.customers(id) \
             ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED"
        );
        // Life goes on where the source stopped.
        fixture.sql("INSERT INTO copy.customers (email) VALUES ('c@d')");
        fixture.sql("INSERT INTO copy.orders (cents, customer_id) VALUES (1, 42)");
        assert_eq!(
            fixture
                .sql("SELECT id, no, state, cents, tax, customer_id FROM copy.orders ORDER BY id"),
            "7\t1000\tit's paid\t100.00\t19.0000\t41\n8\t1001\tnew\t1.00\t0.1900\t42"
        );
    }
}

#[tokio::test]
async fn a_table_of_mysqls_is_made_and_finished() {
    for flavor in flavors() {
        let mut id = column("id", Kind::Int { bits: 32, signed: false }, "int unsigned");
        id.generated = Some(Generated::IdentityByDefault);
        let mut name = column("name", Kind::Text { length: Some(20), fixed: false }, "varchar(20)");
        name.default = Some("none".into());
        let notes = column("notes", text(), "longtext");
        let mut source = schema("things", vec![id, name, notes], Identity::Key(vec![0]));
        source.dialect = Dialect::Mysql;
        source.table.schema = "shop".into();
        source.indexes = vec![
            index("PRIMARY", &["id"], true, "PRIMARY KEY (`id`)"),
            index("by_name", &["name"], true, "UNIQUE KEY `by_name` (`name`)"),
            index("words", &["notes"], false, "FULLTEXT KEY `words` (`notes`)"),
            index("start", &["notes"], true, "UNIQUE KEY `start` (`notes`(10))"),
            index("notes", &["notes"], false, "KEY `notes` (`notes`(10))"),
        ];
        let to = source.table.clone();
        let mut fixture = Fixture::new(flavor, "").await;
        fixture.target.create_table(&source, &to).await.unwrap();
        let target = fixture.target.describe(&source, &to).await.unwrap().unwrap();
        let table = Arc::new(tailwater_apply::Table { schema: Arc::new(source.clone()), target });
        // Too long for an index, and not to be compressed into one.
        let mut seed = 7_u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'!' + u8::try_from(seed >> 33 & 63).unwrap())
        };
        let long: String = (0..20_000).map(|_| next()).collect();
        let rows = vec![insert(
            &table,
            &[Value::Uint(4_000_000_000), Value::Text("a"), Value::Text(&long)],
        )];
        fixture.apply(&[Step::Insert { table, rows }]).await;
        let route = |table: &TableId| Some(table.clone());
        for _twice in 0..2 {
            fixture.target.finish_table(&source, &to, &route).await.unwrap();
        }
        assert_eq!(
            fixture.sql("SELECT indexname FROM pg_indexes WHERE schemaname = 'shop' ORDER BY 1"),
            "things_by_name\nthings_pkey"
        );
        fixture.sql("INSERT INTO shop.things DEFAULT VALUES");
        assert_eq!(
            fixture.sql("SELECT id, name FROM shop.things ORDER BY id"),
            "4000000000\ta\n4000000001\tnone"
        );
    }
}

#[tokio::test]
async fn the_whole_mapping_is_sql_that_the_server_takes() {
    for flavor in flavors() {
        let fixture = Fixture::new(flavor, "CREATE TYPE an_enum AS ENUM ('a')").await;
        for (number, row) in mapping().into_iter().enumerate() {
            let to = row
                .to
                .replace("(p,s)", "(12,2)")
                .replace("(n)", "(12)")
                .replace("an enum", "an_enum");
            fixture.sql(&format!("CREATE TABLE t{number} (c {to})"));
            assert!(row.source == Dialect::Mysql || row.fit == Fit::Exact);
        }
    }
}
