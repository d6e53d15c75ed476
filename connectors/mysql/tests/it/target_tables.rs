//! Tables that are there, and tables that are made.

use tailwater_change::{
    Column, Dialect, ForeignKey, Generated, Identity, Index, Kind, ReferentialAction, TableSchema,
    Value,
};

use crate::target::{Bench, column, insert, inserts, int, on_every_flavor, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_take_the_rows_is_refused_with_every_reason() {
    on_every_flavor(async |mut bench| {
        bench.sql(
            "CREATE TABLE t (id INT NOT NULL, a SMALLINT, b INT NOT NULL, extra INT NOT NULL) \
             ENGINE = MyISAM",
        );
        let schema =
            bench.schema("t", vec![int("id", 1), int("a", 2), int("b", 3), int("gone", 4)]);
        let problems = bench.connector.check_table(&schema, &schema.table).await;
        let whole: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let whole = whole.join("\n");
        for part in
            ["MyISAM", "ENGINE = InnoDB", "t.a", "NOT NULL", "gone", "extra", "ADD PRIMARY KEY"]
        {
            assert!(whole.contains(part), "{part} in {whole}");
        }
        assert!(bench.target.describe(&schema, &schema.table).await.is_err());
        let absent = bench.id("absent");
        assert_eq!(bench.target.describe(&schema, &absent).await.unwrap(), None);
        assert_eq!(bench.connector.check_table(&schema, &absent).await, []);
    })
    .await;
}

/// The statement makes the column as Tailwater would: under a collation that this server has, and
/// that tells texts apart as the source does.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_column_comes_with_the_statement_that_adds_it() {
    on_every_flavor(async |mut bench| {
        bench.sql("CREATE TABLE t (id INT NOT NULL PRIMARY KEY)");
        let mut like = bench.schema("t", vec![int("id", 1), text("c", 2, 9)]);
        let other_brands = match bench.dialect() {
            Dialect::Mysql => "utf8mb4_nopad_bin",
            _ => "utf8mb4_0900_bin",
        };
        like.columns[1].collation = Some(other_brands.into());
        let mut postgres = bench.schema("t", vec![int("id", 1), text("c", 2, 9)]);
        postgres.dialect = Dialect::Postgres;
        postgres.columns[1].collation = None;
        for schema in [like, postgres] {
            let problems = bench.connector.check_table(&schema, &schema.table).await;
            let (statement, _) = problems[0].remedy.split_once(", then").unwrap();
            bench.sql(statement.strip_prefix("run ").unwrap());
            let table = bench.table(schema).await;
            let row = |(id, c)| insert(&table, &[Value::Int(id), Value::Text(c)]);
            let rows = [(1, "a"), (2, "A"), (3, "a ")].map(row).to_vec();
            bench.applied(inserts(&table, rows)).await;
            assert_eq!(bench.sql("SELECT COUNT(DISTINCT c) FROM t"), "3", "{}", problems[0]);
            bench.sql("DELETE FROM t; ALTER TABLE t DROP COLUMN c");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_fire_and_that_is_said() {
    on_every_flavor(async |mut bench| {
        bench.sql(
            "CREATE TABLE t (id INT NOT NULL PRIMARY KEY); CREATE TABLE seen (id INT); \
             CREATE TRIGGER watch AFTER INSERT ON t FOR EACH ROW INSERT INTO seen VALUES (NEW.id)",
        );
        let schema = bench.schema("t", vec![int("id", 1)]);
        let table = bench.table(schema).await;
        assert!(table.target.fires);
        bench.applied(inserts(&table, vec![insert(&table, &[Value::Int(1)])])).await;
        assert_eq!(bench.sql("SELECT * FROM seen"), "1");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_hides_cascades_needs_the_same_ones_here() {
    on_every_flavor(async |bench: Bench| {
        bench.sql(
            "CREATE TABLE p (id INT NOT NULL PRIMARY KEY); \
             CREATE TABLE t (id INT NOT NULL PRIMARY KEY, p INT)",
        );
        let mut schema = bench.schema("t", vec![int("id", 1), int("p", 2)]);
        schema.hides_cascades = true;
        schema.foreign_keys = vec![foreign_key(&bench, "to_p", "p")];
        let problems = bench.connector.check_table(&schema, &schema.table).await;
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].what.contains("to_p"));
        bench.sql("ALTER TABLE t ADD FOREIGN KEY (p) REFERENCES p (id) ON DELETE CASCADE ON UPDATE NO ACTION");
        assert_eq!(bench.connector.check_table(&schema, &schema.table).await, []);
    })
    .await;
}

/// The problem names column, collation and the statement; the statement is one.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_tells_fewer_texts_apart_than_the_source_is_refused() {
    on_every_flavor(async |mut bench| {
        bench.sql(
            "CREATE TABLE t (id INT NOT NULL, name VARCHAR(40) CHARACTER SET utf8mb4 \
             COLLATE utf8mb4_general_ci NOT NULL DEFAULT 'it''s', mail VARCHAR(40) \
             CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci, PRIMARY KEY (id, name), \
             UNIQUE KEY (mail))",
        );
        let short = |name, field, native| {
            column(name, field, Kind::Text { length: Some(40), fixed: false }, native)
        };
        let postgres = "character varying(40)";
        let columns = vec![int("id", 1), short("name", 2, postgres), short("mail", 3, postgres)];
        let mut schema = bench.schema("t", columns);
        schema.dialect = Dialect::Postgres;
        schema.identity = Identity::Key(vec![0, 1]);
        schema.columns[1].nullable = false;
        let mut like = bench.schema("t", vec![int("id", 1), text("name", 2, 40)]);
        like.identity = Identity::Key(vec![0, 1]);
        like.columns[1].nullable = false;
        assert_eq!(bench.connector.check_table(&like, &schema.table).await.len(), 1);
        like.columns[1].collation = Some("utf8mb4_unicode_520_ci".into());
        assert_eq!(bench.connector.check_table(&like, &schema.table).await, []);

        // Of PostgreSQL's texts, those that do not tell case apart either.
        for citext in ["citext", "public.citext"] {
            schema.columns[1].native = citext.into();
            assert_eq!(bench.connector.check_table(&schema, &schema.table).await, [], "{citext}");
        }
        schema.columns[1].native = postgres.into();

        let problems = bench.connector.check_table(&schema, &schema.table).await;
        assert_eq!(problems.len(), 1, "{problems:?}");
        for part in ["t.name", "utf8mb4_general_ci"] {
            assert!(problems[0].what.contains(part), "{}", problems[0]);
        }
        let error = bench.target.describe(&schema, &schema.table).await.unwrap_err();
        assert!(error.to_string().contains("t.name"), "{error}");
        bench.sql(&problems[0].remedy);
        assert_eq!(bench.connector.check_table(&schema, &schema.table).await, []);
        let table = bench.table(schema).await;
        assert!(table.target.identity_is_bytes);
        let one = |name| [Value::Int(1), Value::Text(name), Value::Null];
        let rows = ["a", "A", "a "].map(|name| insert(&table, &one(name))).to_vec();
        bench.applied(inserts(&table, rows)).await;
    })
    .await;
}

/// The keys that are made at the end of a load are taken for what they are; where one cannot be
/// made, as the parent is not captured, the tables would part without a word.
#[tokio::test(flavor = "multi_thread")]
async fn hidden_cascades_are_there_when_the_load_is_over_or_it_is_refused() {
    on_every_flavor(async |mut bench| {
        let mut schema = bench.schema("t", vec![int("id", 1), int("p", 2)]);
        schema.hides_cascades = true;
        schema.foreign_keys = vec![foreign_key(&bench, "to_p", "p")];
        // What a key has that says nothing of updates, in the words of either server.
        for (nth, action) in
            [ReferentialAction::Restrict, ReferentialAction::NoAction].into_iter().enumerate()
        {
            let names = [format!("t{nth}"), format!("p{nth}")];
            schema.table = bench.id(&names[0]);
            schema.foreign_keys[0].referenced = bench.id(&names[1]);
            schema.foreign_keys[0].on_update = action;
            let parent = bench.schema(&names[1], vec![int("id", 1)]);
            bench.target.create_table(&parent, &parent.table).await.unwrap();
            bench.target.create_table(&schema, &schema.table).await.unwrap();
            let table = bench.table(schema.clone()).await;
            let row = vec![insert(&table, &[Value::Int(1), Value::Null])];
            bench.applied(inserts(&table, row)).await;
            let to = schema.table.clone();
            let none = |_: &tailwater_change::TableId| None;
            bench.target.finish_table(&schema, &to, &none).await.unwrap();
            let error = bench.target.follows(&schema, &to).await.unwrap_err();
            assert!(error.to_string().contains("to_p"), "{error}");
            // `check` says so too, but not of a table that is being loaded.
            assert_eq!(bench.connector.check_table(&schema, &to).await.len(), 1);
            bench.progress.state = format!(
                "{{\"tables\":[{{\"table\":{},\"schema\":1,\"loading\":true}}]}}",
                serde_json::to_string(&to).unwrap()
            );
            bench.target.begin().await.unwrap();
            bench.target.commit(&bench.progress).await.unwrap();
            assert_eq!(bench.connector.check_table(&schema, &to).await, []);
            bench.progress.state = "{}".into();
            bench.target.begin().await.unwrap();
            bench.target.commit(&bench.progress).await.unwrap();
            let all = |table: &tailwater_change::TableId| Some(table.clone());
            bench.target.finish_table(&schema, &to, &all).await.unwrap();
            bench.target.follows(&schema, &to).await.unwrap();
            assert_eq!(bench.connector.check_table(&schema, &to).await, []);
        }
    })
    .await;
}

fn foreign_key(bench: &Bench, name: &str, referenced: &str) -> ForeignKey {
    ForeignKey {
        name: name.into(),
        columns: vec!["p".into()],
        referenced: bench.id(referenced),
        referenced_columns: vec!["id".into()],
        on_delete: ReferentialAction::Cascade,
        on_update: ReferentialAction::NoAction,
        deferrable: false,
        initially_deferred: false,
    }
}

fn index(name: &str, columns: &[&str], unique: bool, definition: &str) -> Index {
    Index {
        name: name.into(),
        columns: columns.iter().map(|name| (*name).to_owned()).collect(),
        unique,
        primary: name == "PRIMARY",
        definition: definition.into(),
    }
}

fn made(bench: &Bench) -> TableSchema {
    let mut counter = column("id", 1, Kind::Int { bits: 64, signed: false }, "bigint unsigned");
    counter.generated = Some(Generated::IdentityByDefault);
    let mut name = text("name", 2, 40);
    name.collation = Some("utf8mb4_unicode_520_ci".into());
    name.default = Some("'it''s'".into());
    let double = Column {
        generated: Some(Generated::Virtual),
        expression: Some("(`p` * 2)".into()),
        ..int("double_p", 4)
    };
    let mut schema = bench.schema("t", vec![counter, name, int("p", 3), double]);
    schema.indexes = vec![
        index("PRIMARY", &["id"], true, "PRIMARY KEY (`id`)"),
        index("by_name", &["name"], true, "UNIQUE KEY `by_name` (`name`(10))"),
        index("by_p", &["p", "name"], false, "KEY `by_p` (`p`,`name`)"),
    ];
    schema.foreign_keys =
        vec![foreign_key(bench, "to_p", "p"), foreign_key(bench, "out", "missing")];
    schema.options =
        Some("ENGINE=MyISAM DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_520_ci".into());
    schema
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_table_is_made_loaded_and_finished() {
    on_every_flavor(async |mut bench| {
        let schema = made(&bench);
        let other = format!("{}_copy", bench.database);
        let to = tailwater_change::TableId::new(&other, "t");
        bench.target.create_table(&schema, &to).await.unwrap();
        bench.target.create_table(&schema, &to).await.unwrap();
        let parent = bench.schema("p", vec![int("id", 1)]);
        let parent_to = tailwater_change::TableId::new(&other, "p");
        bench.target.create_table(&parent, &parent_to).await.unwrap();
        assert!(bench.target.is_empty(&to).await.unwrap());
        assert_eq!(bench.connector.check_table(&schema, &to).await, []);

        let target = bench.target.describe(&schema, &to).await.unwrap().unwrap();
        assert!(target.unique_keys.is_empty());
        let table = std::sync::Arc::new(tailwater_apply::Table {
            schema: std::sync::Arc::new(schema.clone()),
            target,
        });
        let row = |id, name| [Value::Uint(id), Value::Text(name), Value::Int(7), Value::Null];
        let rows = vec![insert(&table, &row(0, "a")), insert(&table, &row(41, "b"))];
        bench.applied(inserts(&table, rows)).await;
        assert!(!bench.target.is_empty(&to).await.unwrap());

        let captured = bench.id("p");
        let route = |table: &tailwater_change::TableId| {
            (*table == captured).then(|| tailwater_change::TableId::new(&other, &table.name))
        };
        bench.target.finish_table(&schema, &to, &route).await.unwrap();
        bench.target.finish_table(&schema, &to, &route).await.unwrap();
        let target = bench.target.describe(&schema, &to).await.unwrap().unwrap();
        assert_eq!(target.unique_keys, [vec![1]]);
        let show = bench.sql(&format!("SHOW CREATE TABLE {other}.t"));
        for part in [
            "ENGINE=InnoDB",
            "AUTO_INCREMENT",
            "UNIQUE KEY `by_name` (`name`(10))",
            "KEY `by_p`",
            "CONSTRAINT `to_p` FOREIGN KEY (`p`) REFERENCES `p` (`id`) ON DELETE CASCADE",
            "utf8mb4_unicode_520_ci",
        ] {
            assert!(show.contains(part), "{part} in {show}");
        }
        assert!(!show.contains("missing"));
        bench.sql(&format!(
            "INSERT INTO {other}.p VALUES (7); INSERT INTO {other}.t (p) VALUES (7)"
        ));
        assert_eq!(
            bench.sql(&format!("SELECT id, name, double_p FROM {other}.t ORDER BY id")),
            "0\ta\t14\n41\tb\t14\n42\tit's\t14"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn collations_of_the_other_brand_get_a_stand_in() {
    on_every_flavor(async |mut bench| {
        for (nth, collation) in [
            "utf8mb4_0900_ai_ci",
            "utf8mb4_uca1400_nopad_as_cs",
            "utf8mb4_0900_bin",
            "utf8mb4_nopad_bin",
        ]
        .into_iter()
        .enumerate()
        {
            let mut key = text("id", 1, 20);
            key.collation = Some(collation.into());
            let mut schema = bench.schema(&format!("c{nth}"), vec![key, int("v", 2)]);
            schema.options =
                Some(format!("ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE={collation}"));
            bench.target.create_table(&schema, &schema.table).await.unwrap();
            let table = bench.table(schema).await;
            assert_eq!(table.target.identity_is_bytes, nth >= 2, "{collation}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_table_keeps_its_indexes_as_far_as_mysql_has_them() {
    on_every_flavor(async |mut bench| {
        let number = column("id", 1, Kind::Int { bits: 32, signed: true }, "integer");
        let long =
            |name, field| column(name, field, Kind::Text { length: None, fixed: false }, "text");
        let short = column(
            "mail",
            3,
            Kind::Text { length: Some(100), fixed: false },
            "character varying(100)",
        );
        let mut schema = bench.schema("t", vec![number, long("name", 2), short, long("body", 4)]);
        schema.dialect = Dialect::Postgres;
        schema.columns[0].generated = Some(Generated::IdentityAlways);
        schema.indexes = vec![
            index(
                "t_pkey",
                &["id"],
                true,
                "CREATE UNIQUE INDEX t_pkey ON public.t USING btree (id)",
            ),
            index(
                "by_mail",
                &["mail"],
                true,
                "CREATE UNIQUE INDEX by_mail ON public.t USING btree (mail)",
            ),
            index(
                "by_name",
                &["name"],
                false,
                "CREATE INDEX by_name ON public.t USING btree (name)",
            ),
            index(
                "only",
                &["body"],
                true,
                "CREATE UNIQUE INDEX only ON public.t USING btree (body)",
            ),
            index("words", &["body"], false, "CREATE INDEX words ON public.t USING gin (body)"),
            index(
                "part",
                &["mail"],
                true,
                "CREATE UNIQUE INDEX part ON t USING btree (mail) WHERE id > 5",
            ),
        ];
        schema.indexes[0].primary = true;
        bench.target.create_table(&schema, &schema.table).await.unwrap();
        bench.target.finish_table(&schema, &schema.table, &|_| None).await.unwrap();
        let show = bench.sql("SHOW CREATE TABLE t");
        for part in
            ["AUTO_INCREMENT", "UNIQUE KEY `by_mail` (`mail`)", "KEY `by_name` (`name`(191))"]
        {
            assert!(show.contains(part), "{part} in {show}");
        }
        // Two rows of the source are two here, and two of its unique values.
        let texts = "SELECT DISTINCT collation_name FROM information_schema.columns \
             WHERE table_schema = DATABASE() AND collation_name IS NOT NULL";
        let binary = bench.sql(texts);
        assert!(["utf8mb4_nopad_bin", "utf8mb4_0900_bin"].contains(&binary.as_str()), "{binary}");
        for part in ["only", "words", "part"] {
            assert!(!show.contains(&format!("`{part}`")), "{part} in {show}");
        }
        // Refused: keys without a bound, numbers without one.
        schema.identity = Identity::Key(vec![1]);
        schema.columns[3] =
            column("body", 4, Kind::Decimal { precision: None, scale: None }, "numeric");
        let absent = bench.id("absent");
        let problems = bench.connector.check_table(&schema, &absent).await;
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(bench.target.create_table(&schema, &absent).await.is_err());
    })
    .await;
}
