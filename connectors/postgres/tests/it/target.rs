//! The target on real servers: what the modules below share, and the session's own promises.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tailwater_apply::{
    Change, ConflictPolicy, Progress, RowImage, Step, StepOutcome, Table, Target, TargetConnector,
    TargetError,
};
use tailwater_change::{
    Column, Commit, Dialect, Disposition, Epoch, Identity, Kind, Operation, Ordinal, Place,
    RowWriter, TableId, TableSchema, Value,
};
use tailwater_postgres::target::{PostgresTarget, TargetConfig, connector};
use tailwater_scratch::{Flavor, Server};

/// Every PostgreSQL of this machine.
pub(crate) fn flavors() -> Vec<Flavor> {
    Flavor::matrix().into_iter().filter(|flavor| flavor.is_postgres()).collect()
}

pub(crate) fn int() -> Kind {
    Kind::Int { bits: 32, signed: true }
}

pub(crate) fn text() -> Kind {
    Kind::Text { length: None, fixed: false }
}

/// A nullable column of PostgreSQL's.
pub(crate) fn column(name: &str, kind: Kind, native: &str) -> Column {
    Column::nullable(name, 0, kind, native)
}

/// The table `public.<name>` of PostgreSQL's; fields number themselves.
pub(crate) fn schema(name: &str, mut columns: Vec<Column>, identity: Identity) -> TableSchema {
    for (column, field) in columns.iter_mut().zip(1..) {
        column.field = field;
    }
    if let Identity::Key(key) = &identity {
        for &index in key {
            columns[index].nullable = false;
        }
    }
    TableSchema {
        table: TableId::new("public", name),
        dialect: Dialect::Postgres,
        columns,
        identity,
        indexes: Vec::new(),
        foreign_keys: Vec::new(),
        hides_cascades: false,
        options: None,
    }
}

/// `id int primary key, k int, v text`.
pub(crate) fn simple(name: &str) -> TableSchema {
    let columns = vec![
        column("id", int(), "integer"),
        column("k", int(), "integer"),
        column("v", text(), "text"),
    ];
    schema(name, columns, Identity::Key(vec![0]))
}

pub(crate) fn row(schema: &TableSchema, values: &[Value<'_>]) -> Bytes {
    assert_eq!(schema.columns.len(), values.len());
    let mut row = Vec::new();
    let mut writer = RowWriter::new(&mut row);
    for (column, value) in schema.columns.iter().zip(values) {
        writer.column(column.field, *value);
    }
    row.into()
}

/// A session, a database, and the tables that have been described.
pub(crate) struct Fixture {
    pub(crate) server: &'static Server,
    pub(crate) database: String,
    pub(crate) connector: PostgresTarget,
    pub(crate) target: Box<dyn Target>,
}

impl Fixture {
    /// A database of its own on which `sql` has run.
    pub(crate) async fn new(flavor: Flavor, sql: &str) -> Self {
        let server = Server::shared(flavor);
        let database = server.create_database().unwrap();
        server.sql(&database, sql).unwrap();
        Self::with_url(server, &database, server.url(&database)).await
    }

    pub(crate) async fn with_url(server: &'static Server, database: &str, url: String) -> Self {
        let connector = connector(TargetConfig { name: "copy".into(), url }).unwrap();
        let target = connector.connect().await.unwrap();
        Self { server, database: database.into(), connector, target }
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        self.server.sql(&self.database, sql).unwrap()
    }

    pub(crate) async fn describe(&mut self, schema: TableSchema) -> Arc<Table> {
        let name = schema.table.clone();
        let target = self.target.describe(&schema, &name).await.unwrap().unwrap();
        Arc::new(Table { schema: Arc::new(schema), target })
    }

    /// Replays in a transaction of its own.
    pub(crate) async fn replay(
        &mut self,
        changes: &[Change],
        policy: ConflictPolicy,
    ) -> Result<u64, TargetError> {
        self.target.begin().await.unwrap();
        self.target.savepoint().await.unwrap();
        let replayed = self.target.replay(changes, policy).await;
        match replayed {
            Ok(repaired) => {
                self.end().await?;
                Ok(repaired)
            }
            Err(error) => {
                self.target.rollback().await.unwrap();
                Err(error)
            }
        }
    }

    /// Executes steps in a transaction of its own; all must be applied.
    pub(crate) async fn apply(&mut self, steps: &[Step]) {
        self.target.begin().await.unwrap();
        self.target.savepoint().await.unwrap();
        for step in steps {
            assert_eq!(self.target.step(step).await.unwrap(), StepOutcome::Applied);
        }
        self.end().await.unwrap();
    }

    /// Executes a step that is refused; nothing stays of it.
    pub(crate) async fn refused(&mut self, step: &Step) -> String {
        self.target.begin().await.unwrap();
        self.target.savepoint().await.unwrap();
        let outcome = self.target.step(step).await.unwrap();
        self.target.rollback_to_savepoint().await.unwrap();
        self.target.rollback().await.unwrap();
        let why = match outcome {
            StepOutcome::Refused(why) => Some(why),
            StepOutcome::Applied => None,
        };
        why.expect("the step is refused")
    }

    async fn end(&mut self) -> Result<(), TargetError> {
        let current = self.target.take_over_if_needed().await;
        let ended = self.target.commit(&current).await;
        if ended.is_err() {
            self.target.rollback().await.unwrap();
        }
        ended
    }
}

/// Commits of tests that are not about progress.
#[async_trait::async_trait]
trait TakeOver {
    async fn take_over_if_needed(&mut self) -> Progress;
}

#[async_trait::async_trait]
impl TakeOver for Box<dyn Target> {
    async fn take_over_if_needed(&mut self) -> Progress {
        match self.progress("test").await.unwrap() {
            Some(progress) => progress,
            None => self.take_over(&initial("test")).await.unwrap(),
        }
    }
}

pub(crate) fn initial(pipeline: &str) -> Progress {
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

fn change(table: &Arc<Table>, operation: Operation) -> Change {
    Change {
        table: Arc::clone(table),
        operation,
        before: None,
        after: None,
        unsent: Vec::new(),
        place: Place::new(Epoch::FIRST, Commit::lsn(7), Ordinal::ZERO),
    }
}

pub(crate) fn insert(table: &Arc<Table>, values: &[Value<'_>]) -> Change {
    Change { after: Some(row(&table.schema, values)), ..change(table, Operation::Insert) }
}

/// `unsent`: where `values` say so.
pub(crate) fn update(table: &Arc<Table>, values: &[Value<'_>]) -> Change {
    let unsent = table.schema.columns.iter().zip(values);
    let unsent = unsent.filter(|(_, value)| value.is_unsent()).map(|(column, _)| column.field);
    Change {
        unsent: unsent.collect(),
        after: Some(row(&table.schema, values)),
        ..change(table, Operation::Update)
    }
}

pub(crate) fn update_from(
    table: &Arc<Table>,
    before: &[Value<'_>],
    values: &[Value<'_>],
) -> Change {
    let full = matches!(table.schema.identity, Identity::Full);
    let before = Some(RowImage { bytes: row(&table.schema, before), full });
    Change { before, ..update(table, values) }
}

pub(crate) fn delete(table: &Arc<Table>, before: &[Value<'_>]) -> Change {
    let full = matches!(table.schema.identity, Identity::Full);
    let before = Some(RowImage { bytes: row(&table.schema, before), full });
    Change { before, ..change(table, Operation::Delete) }
}

pub(crate) fn truncate(table: &Arc<Table>) -> Change {
    change(table, Operation::Truncate)
}

pub(crate) const SIMPLE: &str = "CREATE TABLE t (id int PRIMARY KEY, k int UNIQUE, v text)";

#[tokio::test]
async fn the_lock_is_one_sessions_and_ends_with_it() {
    for flavor in flavors() {
        let mut first = Fixture::new(flavor, "").await;
        let mut second = first.connector.connect().await.unwrap();
        assert!(first.target.try_lock("shop").await.unwrap());
        assert!(!second.try_lock("shop").await.unwrap());
        assert!(second.try_lock("other").await.unwrap());
        drop(first.target);
        // The driver's task ends when it is next looked at: not while we block.
        let (server, database) = (first.server, first.database);
        tokio::task::spawn_blocking(move || {
            tailwater_scratch::wait_until(Duration::from_secs(60), "the lock", || {
                let held = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
                             WHERE locktype = 'advisory' AND datname = current_database()";
                Ok((server.sql(&database, held)? == "1").then_some(()))
            })
        })
        .await
        .unwrap()
        .unwrap();
        assert!(second.try_lock("shop").await.unwrap());
    }
}

#[tokio::test]
async fn progress_comes_back_and_the_fence_rises() {
    for flavor in flavors() {
        let mut fixture = Fixture::new(flavor, "").await;
        assert_eq!(fixture.target.progress("shop").await.unwrap(), None);
        let taken = fixture.target.take_over(&initial("shop")).await.unwrap();
        assert_eq!(taken, Progress { fence: 1, ..initial("shop") });
        let moved = Progress {
            cluster_id: "other".into(),
            next_offset: i64::MAX,
            place: Place::end_of(Epoch::new(u32::MAX), Commit::binlog(u64::MAX, u64::MAX - 1)),
            state: "{\"ü\":1}".into(),
            ..taken
        };
        fixture.target.begin().await.unwrap();
        fixture.target.commit(&moved).await.unwrap();
        assert_eq!(fixture.target.progress("shop").await.unwrap(), Some(moved.clone()));
        let again = fixture.target.take_over(&initial("shop")).await.unwrap();
        assert_eq!(again, Progress { fence: 2, ..moved });
        fixture.connector.forget("shop").await.unwrap();
        assert_eq!(fixture.target.progress("shop").await.unwrap(), None);
    }
}

#[tokio::test]
async fn whoever_is_fenced_commits_nothing() {
    for flavor in flavors() {
        let mut fixture = Fixture::new(flavor, SIMPLE).await;
        let table = fixture.describe(simple("t")).await;
        let ours = fixture.target.take_over(&initial("shop")).await.unwrap();
        fixture.target.begin().await.unwrap();
        let rows = vec![insert(&table, &[Value::Int(1), Value::Null, Value::Null])];
        let step = Step::Insert { table: Arc::clone(&table), rows };
        assert_eq!(fixture.target.step(&step).await.unwrap(), StepOutcome::Applied);
        let mut other = fixture.connector.connect().await.unwrap();
        let theirs = other.take_over(&initial("shop")).await.unwrap();
        let error = fixture.target.commit(&ours).await.unwrap_err();
        assert!(matches!(error, TargetError::Fenced { ours: 1 }), "{error:?}");
        assert_eq!(fixture.sql("SELECT count(*) FROM t"), "0");
        assert_eq!(other.progress("shop").await.unwrap(), Some(theirs));
    }
}

/// A COMMIT that waits for a standby which is not there has taken effect by the time the session
/// is ended: only the progress row knows.
#[tokio::test]
async fn a_session_that_dies_in_commit_leaves_the_answer_in_the_progress() {
    let settings = [("synchronous_standby_names", "ghost"), ("synchronous_commit", "local")];
    let server: &'static Server =
        Box::leak(Box::new(Server::start_with(Flavor::Postgres15, &settings).unwrap()));
    let database = server.create_database().unwrap();
    server.sql(&database, SIMPLE).unwrap();
    let mut fixture = Fixture::with_url(server, &database, server.url(&database)).await;
    let table = fixture.describe(simple("t")).await;
    let ours = fixture.target.take_over(&initial("shop")).await.unwrap();
    server
        .sql(&database, &format!("ALTER DATABASE {database} SET synchronous_commit = on"))
        .unwrap();
    let mut target = fixture.connector.connect().await.unwrap();
    target.begin().await.unwrap();
    let rows = vec![insert(&table, &[Value::Int(1), Value::Null, Value::Null])];
    let step = Step::Insert { table: Arc::clone(&table), rows };
    assert_eq!(target.step(&step).await.unwrap(), StepOutcome::Applied);
    let moved = Progress { next_offset: 42, ..ours };
    let killer = tokio::task::spawn_blocking({
        let database = database.clone();
        move || {
            tailwater_scratch::wait_until(Duration::from_secs(60), "the wait", || {
                let end = "SET synchronous_commit = local;
                           SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                            WHERE wait_event = 'SyncRep'";
                Ok((server.sql(&database, end)? == "1").then_some(()))
            })
        }
    });
    let error = target.commit(&moved).await.unwrap_err();
    killer.await.unwrap().unwrap();
    assert!(matches!(error, TargetError::UnknownOutcome(_)), "{error:?}");
    assert_eq!(error.disposition(), Disposition::Retry);
    assert_eq!(fixture.target.progress("shop").await.unwrap(), Some(moved));
}

/// Whether a crash takes back what is not flushed is up to the server; what a later commit has
/// flushed it may not.
#[tokio::test]
async fn a_commit_flushes_those_before_it_that_did_not_wait() {
    let delayed = [("wal_writer_delay", "10s")];
    let mut server = Server::start_with(Flavor::Postgres15, &delayed).unwrap();
    let database = server.create_database().unwrap();
    let connector =
        connector(TargetConfig { name: "copy".into(), url: server.url(&database) }).unwrap();
    let mut target = connector.connect().await.unwrap();
    let ours = target.take_over(&initial("shop")).await.unwrap();
    target.begin().await.unwrap();
    let soon = Progress { next_offset: 42, ..ours.clone() };
    assert!(!target.commit_soon(&soon).await.unwrap(), "said to be flushed");
    assert_eq!(target.progress("shop").await.unwrap(), Some(soon.clone()));
    server.kill().unwrap();
    server.start_again().unwrap();
    let mut target = connector.connect().await.unwrap();
    let left = target.progress("shop").await.unwrap().unwrap();
    assert!(left == ours || left == soon, "{left:?}");

    let ours = target.take_over(&initial("shop")).await.unwrap();
    target.begin().await.unwrap();
    target.commit_soon(&Progress { next_offset: 43, ..ours.clone() }).await.unwrap();
    target.begin().await.unwrap();
    let safe = Progress { next_offset: 44, ..ours };
    target.commit(&safe).await.unwrap();
    server.kill().unwrap();
    server.start_again().unwrap();
    let mut target = connector.connect().await.unwrap();
    assert_eq!(target.progress("shop").await.unwrap(), Some(safe));
}

#[tokio::test]
async fn a_server_that_goes_away_is_tried_again() {
    for flavor in flavors() {
        let mut fixture = Fixture::new(flavor, SIMPLE).await;
        fixture.target.begin().await.unwrap();
        fixture.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
              WHERE application_name = 'tailwater apply' AND datname = current_database()",
        );
        let table = simple("t");
        let error = fixture.target.describe(&table, &table.table).await.unwrap_err();
        assert_eq!(error.disposition(), Disposition::Retry, "{error:?}");
    }
}

#[tokio::test]
async fn a_plain_role_is_told_what_it_lacks_and_can_work() {
    for flavor in flavors() {
        let server = Server::shared(flavor);
        let database = server.create_database().unwrap();
        let role = format!("app_{database}");
        server
            .sql(
                &database,
                &format!(
                    "CREATE ROLE {role} LOGIN;
                     CREATE TABLE parent (id int PRIMARY KEY, k int, v text);
                     CREATE TABLE child (id int PRIMARY KEY, k int REFERENCES parent, v text);
                     GRANT SELECT, INSERT, UPDATE, DELETE ON parent, child TO {role};
                     CREATE TABLE denied (id int PRIMARY KEY, k int, v text);"
                ),
            )
            .unwrap();
        let url = server.url(&database).replace("postgres@", &format!("{role}@"));
        let mut fixture = {
            let connector =
                connector(TargetConfig { name: "copy".into(), url: url.clone() }).unwrap();
            let problems = connector.check().await;
            let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
            let grant = format!("GRANT SET ON PARAMETER session_replication_role TO \"{role}\"");
            assert!(said.iter().any(|problem| problem.contains(&grant)), "{said:?}");
            let create = format!("GRANT CREATE ON DATABASE \"{database}\" TO \"{role}\"");
            assert!(said.iter().any(|problem| problem.contains(&create)), "{said:?}");
            server
                .sql(&database, &format!("GRANT CREATE ON DATABASE {database} TO {role}"))
                .unwrap();
            let denied = simple("denied");
            let said = connector.check_table(&denied, &denied.table).await;
            assert!(
                said.iter().any(|p| p.remedy.contains("GRANT INSERT, UPDATE, DELETE, SELECT ON")),
                "{said:?}"
            );
            Fixture::with_url(server, &database, url).await
        };
        let parent = fixture.describe(simple("parent")).await;
        let child = fixture.describe(simple("child")).await;
        assert!(parent.target.fires && child.target.fires);
        let row = |id, k| [Value::Int(id), k, Value::Null];
        let changes = vec![
            insert(&parent, &row(1, Value::Null)),
            insert(&child, &row(1, Value::Int(1))),
            delete(&child, &row(1, Value::Null)),
            delete(&parent, &row(1, Value::Null)),
            insert(&parent, &row(2, Value::Null)),
            insert(&child, &row(2, Value::Int(2))),
        ];
        assert_eq!(fixture.replay(&changes, ConflictPolicy::Stop).await.unwrap(), 0);
        assert_eq!(fixture.sql("SELECT id, k FROM child"), "2\t2");
        let orphan = [insert(&child, &row(3, Value::Int(9)))];
        let error = fixture.replay(&orphan, ConflictPolicy::Repair).await.unwrap_err();
        assert!(error.to_string().contains("child_k_fkey"), "{error}");
        let denied = simple("denied");
        let denied = fixture.describe(denied).await;
        let changes = [insert(&denied, &row(1, Value::Null))];
        let error = fixture.replay(&changes, ConflictPolicy::Stop).await.unwrap_err();
        assert!(matches!(&error, TargetError::Refused(p) if p.remedy.contains("grant")), "{error}");
    }
}
