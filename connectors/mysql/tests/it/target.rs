//! What the tests of the target share: a database on each flavor, schemas and rows by hand.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails where it stands, and says on which server"
)]

use std::sync::Arc;

use bytes::Bytes;
use tailwater_apply::{
    Change, ConflictPolicy, Progress, RowImage, Step, StepOutcome, Table, Target, TargetConnector,
    TargetError,
};
use tailwater_change::{
    Column, Commit, Dialect, Epoch, Identity, Kind, Operation, Ordinal, Place, RowWriter, TableId,
    TableSchema, Value,
};
use tailwater_mysql::target::{TargetConfig, connector};
use tailwater_scratch::{Flavor, Server};

/// The flavors that speak MySQL's protocol, as far as this machine has them.
pub(crate) fn flavors() -> Vec<Flavor> {
    Flavor::matrix().into_iter().filter(|flavor| !flavor.is_postgres()).collect()
}

/// Runs a test on every flavor, each with a database of its own.
pub(crate) async fn on_every_flavor(test: impl AsyncFn(Bench)) {
    for flavor in flavors() {
        let bench = Bench::on(Server::shared(flavor)).await;
        println!("{flavor}");
        test(bench).await;
    }
}

/// A session on a target with a database of its own.
pub(crate) struct Bench {
    pub(crate) server: &'static Server,
    pub(crate) database: String,
    pub(crate) connector: Box<dyn TargetConnector>,
    pub(crate) target: Box<dyn Target>,
    pub(crate) progress: Progress,
}

pub(crate) fn connector_for(url: String) -> Box<dyn TargetConnector> {
    Box::new(connector(TargetConfig { name: "copy".into(), url }).unwrap())
}

impl Bench {
    pub(crate) async fn on(server: &'static Server) -> Self {
        let database = server.create_database().unwrap();
        let connector = connector_for(server.url(&database));
        Self::with(server, database, connector).await
    }

    /// On a server with settings of its own, which lives as long as the test program.
    pub(crate) async fn on_own(flavor: Flavor, settings: &[(&str, &str)]) -> Self {
        let server = Server::start_with(flavor, settings).unwrap();
        Self::on(Box::leak(Box::new(server))).await
    }

    pub(crate) async fn with(
        server: &'static Server,
        database: String,
        connector: Box<dyn TargetConnector>,
    ) -> Self {
        let mut target = connector.connect().await.unwrap();
        let initial = initial(&database);
        assert!(target.try_lock(&initial.pipeline).await.unwrap());
        assert_eq!(target.progress(&initial.pipeline).await.unwrap(), None);
        let progress = target.take_over(&initial).await.unwrap();
        assert_eq!(progress.fence, 1);
        Self { server, database, connector, target, progress }
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        self.server.sql(&self.database, sql).unwrap().trim_end().to_owned()
    }

    pub(crate) fn dialect(&self) -> Dialect {
        if self.server.flavor() == Flavor::MySql { Dialect::Mysql } else { Dialect::Mariadb }
    }

    pub(crate) fn id(&self, name: &str) -> TableId {
        TableId::new(&self.database, name)
    }

    /// A schema of the table as if a source of the same kind had it.
    pub(crate) fn schema(&self, name: &str, columns: Vec<Column>) -> TableSchema {
        TableSchema {
            table: self.id(name),
            dialect: self.dialect(),
            columns,
            identity: Identity::Key(vec![0]),
            indexes: Vec::new(),
            foreign_keys: Vec::new(),
            hides_cascades: false,
            options: None,
        }
    }

    /// Describes the table under the schema's own name.
    pub(crate) async fn table(&mut self, schema: TableSchema) -> Arc<Table> {
        let to = schema.table.clone();
        let target = self.target.describe(&schema, &to).await.unwrap().expect("the table is there");
        Arc::new(Table { schema: Arc::new(schema), target })
    }

    /// One step as a transaction of its own: committed if applied, undone if refused.
    pub(crate) async fn step(&mut self, step: Step) -> StepOutcome {
        self.target.begin().await.unwrap();
        self.target.savepoint().await.unwrap();
        let outcome = self.target.step(&step).await.unwrap();
        if outcome != StepOutcome::Applied {
            self.target.rollback_to_savepoint().await.unwrap();
        }
        self.target.commit(&self.progress).await.unwrap();
        outcome
    }

    pub(crate) async fn applied(&mut self, step: Step) {
        assert_eq!(self.step(step).await, StepOutcome::Applied);
    }

    pub(crate) async fn refused(&mut self, step: Step) {
        let outcome = self.step(step).await;
        assert!(matches!(outcome, StepOutcome::Refused(_)), "{outcome:?}");
    }

    /// A replay as a transaction of its own; after an error a new session.
    pub(crate) async fn replay(
        &mut self,
        changes: &[Change],
        policy: ConflictPolicy,
    ) -> Result<u64, TargetError> {
        self.target.begin().await.unwrap();
        match self.target.replay(changes, policy).await {
            Ok(repaired) => {
                self.target.commit(&self.progress).await.unwrap();
                Ok(repaired)
            }
            Err(error) => {
                self.target.rollback().await.unwrap();
                Err(error)
            }
        }
    }
}

pub(crate) fn initial(pipeline: &str) -> Progress {
    Progress {
        pipeline: pipeline.into(),
        cluster_id: "cluster".into(),
        topic_id: "topic".into(),
        next_offset: 0,
        place: Place::new(Epoch::FIRST, Commit::binlog(1, 4), Ordinal::END),
        fence: 0,
        state: "{\"it's\":\"\\\\\"}".into(),
    }
}

pub(crate) fn column(name: &str, field: u32, kind: Kind, native: &str) -> Column {
    Column { nullable: field != 1, ..Column::nullable(name, field, kind, native) }
}

pub(crate) fn int(name: &str, field: u32) -> Column {
    column(name, field, Kind::Int { bits: 32, signed: true }, "int")
}

pub(crate) fn text(name: &str, field: u32, length: u32) -> Column {
    Column {
        charset: Some("utf8mb4".into()),
        collation: Some("utf8mb4_bin".into()),
        ..column(
            name,
            field,
            Kind::Text { length: Some(length), fixed: false },
            &format!("varchar({length})"),
        )
    }
}

/// A row message.
pub(crate) fn row(schema: &TableSchema, values: &[Value<'_>]) -> Bytes {
    let mut out = Vec::new();
    let mut writer = RowWriter::new(&mut out);
    for (column, value) in schema.columns.iter().zip(values) {
        writer.column(column.field, *value);
    }
    out.into()
}

fn place(ordinal: usize) -> Place {
    let ordinal = Ordinal::new(u64::try_from(ordinal).unwrap());
    Place::new(Epoch::FIRST, Commit::binlog(1, 8), ordinal)
}

/// A change of the one transaction that tests make.
pub(crate) fn change(
    table: &Arc<Table>,
    operation: Operation,
    before: Option<&[Value<'_>]>,
    after: Option<&[Value<'_>]>,
) -> Change {
    let unsent = after.map_or_else(Vec::new, |values| {
        values
            .iter()
            .zip(&table.schema.columns)
            .filter(|(value, _)| value.is_unsent())
            .map(|(_, column)| column.field)
            .collect()
    });
    Change {
        table: Arc::clone(table),
        operation,
        before: before.map(|values| RowImage { bytes: row(&table.schema, values), full: true }),
        after: after.map(|values| row(&table.schema, values)),
        unsent,
        place: place(0),
    }
}

pub(crate) fn insert(table: &Arc<Table>, values: &[Value<'_>]) -> Change {
    change(table, Operation::Insert, None, Some(values))
}

pub(crate) fn update(table: &Arc<Table>, values: &[Value<'_>]) -> Change {
    change(table, Operation::Update, None, Some(values))
}

pub(crate) fn moved(table: &Arc<Table>, from: &[Value<'_>], to: &[Value<'_>]) -> Change {
    change(table, Operation::Update, Some(from), Some(to))
}

pub(crate) fn delete(table: &Arc<Table>, values: &[Value<'_>]) -> Change {
    change(table, Operation::Delete, Some(values), None)
}

pub(crate) fn inserts(table: &Arc<Table>, rows: Vec<Change>) -> Step {
    Step::Insert { table: Arc::clone(table), rows }
}

pub(crate) fn updates(table: &Arc<Table>, rows: Vec<Change>) -> Step {
    Step::Update { table: Arc::clone(table), rows }
}

pub(crate) fn deletes(table: &Arc<Table>, rows: Vec<Change>) -> Step {
    Step::Delete { table: Arc::clone(table), rows }
}
