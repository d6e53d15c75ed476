//! Tables, rows and sessions for the cases.

use std::sync::Arc;

use bytes::Bytes;
use tailwater_apply::{Change, Progress, RowImage, Step, StepOutcome, Table, Target};
use tailwater_change::{
    Column, Dialect, Identity, Index, Kind, Operation, Place, RowWriter, TableId, TableSchema,
    Value,
};

use super::Subject;

/// A row of the cases' tables: `(id, a, b, c)`.
pub(super) type Row<'a> = (i64, Option<i64>, Option<&'a str>, Option<&'a str>);

/// A session in a transaction, with one table.
pub(super) struct Fixture<'a> {
    pub(super) subject: &'a dyn Subject,
    pub(super) target: Box<dyn Target>,
    pub(super) progress: Progress,
    pub(super) table: Arc<Table>,
}

/// `(id bigint primary key, a bigint unique, b text, c text)`, spelled for the target's kind.
pub(super) fn schema(subject: &dyn Subject, name: &str, unique: bool) -> TableSchema {
    let dialect = subject.connector().dialect();
    let postgres = dialect == Dialect::Postgres;
    let int = || (Kind::Int { bits: 64, signed: true }, "bigint");
    let text = || {
        if postgres {
            (Kind::Text { length: None, fixed: false }, "text")
        } else {
            (Kind::Text { length: Some(200), fixed: false }, "varchar(200)")
        }
    };
    let column = |name: &str, field: u32, (kind, native): (Kind, &str)| {
        let is_text = matches!(kind, Kind::Text { .. });
        let mysql_text = |value: &str| (is_text && !postgres).then(|| value.to_owned());
        Column {
            nullable: field != 1,
            charset: mysql_text("utf8mb4"),
            collation: mysql_text("utf8mb4_bin"),
            ..Column::nullable(name, field, kind, native)
        }
    };
    let table = TableId::new(subject.namespace(), name);
    let definition = if postgres {
        format!("CREATE UNIQUE INDEX {name}_a ON {}.{name} USING btree (a)", table.schema)
    } else {
        "UNIQUE KEY `by_a` (`a`)".to_owned()
    };
    let index = Index {
        name: if postgres { format!("{name}_a") } else { "by_a".to_owned() },
        columns: vec!["a".into()],
        unique: true,
        primary: false,
        definition,
    };
    TableSchema {
        table,
        dialect,
        columns: vec![
            column("id", 1, int()),
            column("a", 2, int()),
            column("b", 3, text()),
            column("c", 4, text()),
        ],
        identity: Identity::Key(vec![0]),
        indexes: if unique { vec![index] } else { Vec::new() },
        foreign_keys: Vec::new(),
        hides_cascades: false,
        options: None,
    }
}

impl<'a> Fixture<'a> {
    /// A table of its own, made and finished, with `rows` in it.
    pub(super) async fn new(subject: &'a dyn Subject, name: &str, rows: &[Row<'_>]) -> Self {
        Self::of(subject, schema(subject, name, true), rows).await
    }

    pub(super) async fn of(
        subject: &'a dyn Subject,
        schema: TableSchema,
        rows: &[Row<'_>],
    ) -> Self {
        let mut target = subject.connector().connect().await.unwrap();
        let progress = take_over(target.as_mut(), &schema.table.name).await;
        let (to, schema) = (schema.table.clone(), Arc::new(schema));
        target.create_table(&schema, &to).await.unwrap();
        let route = |table: &TableId| Some(table.clone());
        target.finish_table(&schema, &to, &route).await.unwrap();
        let described = target.describe(&schema, &to).await.unwrap().unwrap();
        let table = Arc::new(Table { schema, target: described });
        target.begin().await.unwrap();
        let mut fixture = Self { subject, target, progress, table };
        if !rows.is_empty() {
            let rows = rows.iter().map(|row| fixture.insert(*row)).collect();
            fixture.applied(&fixture.step_insert(rows)).await;
        }
        fixture
    }

    pub(super) fn image(&self, row: Row<'_>, unsent: &[u32]) -> Bytes {
        let (id, a, b, c) = row;
        let mut out = Vec::new();
        let mut writer = RowWriter::new(&mut out);
        let values = [
            Value::Int(id),
            a.map_or(Value::Null, Value::Int),
            b.map_or(Value::Null, Value::Text),
            c.map_or(Value::Null, Value::Text),
        ];
        for (column, value) in self.table.schema.columns.iter().zip(values) {
            let sent = !unsent.contains(&column.field);
            writer.column(column.field, if sent { value } else { Value::Unsent });
        }
        out.into()
    }

    pub(super) fn key(&self, id: i64) -> RowImage {
        let mut out = Vec::new();
        RowWriter::new(&mut out).column(1, Value::Int(id));
        RowImage { bytes: out.into(), full: false }
    }

    fn change(
        &self,
        operation: Operation,
        before: Option<RowImage>,
        after: Option<Bytes>,
        unsent: &[u32],
    ) -> Change {
        Change {
            table: Arc::clone(&self.table),
            operation,
            before,
            after,
            unsent: unsent.to_vec(),
            place: Place::default(),
        }
    }

    pub(super) fn insert(&self, row: Row<'_>) -> Change {
        self.change(Operation::Insert, None, Some(self.image(row, &[])), &[])
    }

    pub(super) fn update(&self, row: Row<'_>, unsent: &[u32]) -> Change {
        self.change(Operation::Update, None, Some(self.image(row, unsent)), unsent)
    }

    /// An update that gives the row `from` another identity.
    pub(super) fn moved(&self, from: i64, row: Row<'_>, unsent: &[u32]) -> Change {
        let before = Some(self.key(from));
        self.change(Operation::Update, before, Some(self.image(row, unsent)), unsent)
    }

    pub(super) fn delete(&self, id: i64) -> Change {
        self.change(Operation::Delete, Some(self.key(id)), None, &[])
    }

    /// A delete that names the whole row.
    pub(super) fn delete_whole(&self, row: Row<'_>) -> Change {
        let before = RowImage { bytes: self.image(row, &[]), full: true };
        self.change(Operation::Delete, Some(before), None, &[])
    }

    pub(super) fn step_insert(&self, rows: Vec<Change>) -> Step {
        Step::Insert { table: Arc::clone(&self.table), rows }
    }

    pub(super) fn step_update(&self, rows: Vec<Change>) -> Step {
        Step::Update { table: Arc::clone(&self.table), rows }
    }

    pub(super) fn step_delete(&self, rows: Vec<Change>) -> Step {
        Step::Delete { table: Arc::clone(&self.table), rows }
    }

    pub(super) async fn applied(&mut self, step: &Step) {
        let outcome = self.target.step(step).await.unwrap();
        assert_eq!(outcome, StepOutcome::Applied, "{}", self.table.target.name);
    }

    /// That `step` is refused, and that nothing of it is left after going back.
    pub(super) async fn refused(&mut self, step: &Step) {
        self.target.savepoint().await.unwrap();
        let outcome = self.target.step(step).await.unwrap();
        assert!(matches!(outcome, StepOutcome::Refused(_)), "{}", self.table.target.name);
        self.target.rollback_to_savepoint().await.unwrap();
    }

    pub(super) async fn commit(&mut self) {
        self.progress.next_offset += 1;
        self.target.commit(&self.progress).await.unwrap();
    }

    /// That the table has these rows and no others.
    pub(super) async fn assert_rows(&self, expected: &[Row<'_>]) {
        let own = |text: Option<&str>| text.map(str::to_owned);
        let row = |&(id, a, b, c): &Row<'_>| {
            vec![Some(id.to_string()), a.map(|a| a.to_string()), own(b), own(c)]
        };
        let mut expected: Vec<_> = expected.iter().map(row).collect();
        let mut found = self.subject.rows(&self.table.target.name).await;
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{}", self.table.target.name);
    }
}

/// The progress of a new pipeline, taken over.
pub(super) async fn take_over(target: &mut dyn Target, pipeline: &str) -> Progress {
    let before = target.progress(pipeline).await.unwrap();
    assert_eq!(before, None, "{pipeline}");
    target.take_over(&initial(pipeline)).await.unwrap()
}

pub(super) fn initial(pipeline: &str) -> Progress {
    Progress {
        pipeline: pipeline.into(),
        cluster_id: "cluster".into(),
        topic_id: "topic".into(),
        next_offset: 0,
        place: Place::default(),
        fence: 0,
        state: "{}".into(),
    }
}
