//! A log written by hand, a memory target, and a pipeline between them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tailwater_apply::{
    BatchBounds, ChangeLog, Error, LogIdentity, LogReader, Pipeline, PipelineConfig,
    PipelineHandle, SchemaSource, SchemaSourceError, State, Status,
};
use tailwater_change::{CONTROL_SCHEMA, Place, SchemaId, TableSchema, schema_text};
use tailwater_kafka::{Offset, RecordBatch};
use tailwater_memory::MemoryDatabase;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::CONTROL;

/// A log in memory, of one partition or several.
#[derive(Debug, Clone)]
pub(crate) struct TestLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    news: watch::Sender<u64>,
    /// How often a reader had nothing left to read.
    drained: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    identity: LogIdentity,
    partitions: Vec<Partition>,
    groups: BTreeMap<String, Vec<Offset>>,
}

#[derive(Debug, Clone)]
struct Partition {
    start: Offset,
    batches: Vec<RecordBatch>,
}

impl Partition {
    fn of(batches: Vec<RecordBatch>) -> Self {
        Self { start: batches.first().map_or(Offset::ZERO, |batch| batch.base_offset()), batches }
    }
}

impl TestLog {
    pub(crate) fn new(topic_id: &str) -> Self {
        Self::partitioned(topic_id, 1)
    }

    pub(crate) fn partitioned(topic_id: &str, partitions: usize) -> Self {
        let identity =
            LogIdentity { cluster_id: "c".into(), topic_id: topic_id.into(), partitions };
        let partitions = vec![Partition::of(Vec::new()); partitions];
        let inner = Inner { identity, partitions, groups: BTreeMap::new() };
        let (inner, news, drained) =
            (Mutex::new(inner), watch::Sender::new(0), watch::Sender::new(0));
        Self { shared: Arc::new(Shared { inner, news, drained }) }
    }

    pub(crate) fn append(&self, batches: Vec<RecordBatch>) {
        self.append_to(0, batches);
    }

    pub(crate) fn append_to(&self, partition: usize, batches: Vec<RecordBatch>) {
        self.shared.inner.lock().unwrap().partitions[partition].batches.extend(batches);
        self.shared.news.send_modify(|news| *news += 1);
    }

    /// Another topic under the same name.
    pub(crate) fn replace(&self, topic_id: &str, batches: Vec<RecordBatch>) {
        self.replace_all(topic_id, vec![batches]);
    }

    pub(crate) fn replace_all(&self, topic_id: &str, partitions: Vec<Vec<RecordBatch>>) {
        let mut inner = self.shared.inner.lock().unwrap();
        inner.identity.topic_id = topic_id.into();
        inner.identity.partitions = partitions.len();
        inner.partitions = partitions.into_iter().map(Partition::of).collect();
    }

    pub(crate) fn truncate_before(&self, start: Offset) {
        let mut inner = self.shared.inner.lock().unwrap();
        let partition = &mut inner.partitions[0];
        partition.start = start;
        partition.batches.retain(|batch| batch.next_offset() > start);
    }

    /// Waits until a reader that is started after this call has read everything.
    pub(crate) fn drained(&self) -> impl Future<Output = ()> + use<> {
        let mut drained = self.shared.drained.subscribe();
        async move { drained.changed().await.unwrap() }
    }

    pub(crate) fn group(&self, name: &str) -> Option<Offset> {
        self.groups(name)?.first().copied()
    }

    pub(crate) fn groups(&self, name: &str) -> Option<Vec<Offset>> {
        self.shared.inner.lock().unwrap().groups.get(name).cloned()
    }

    pub(crate) fn end(&self) -> Offset {
        self.end_of(0)
    }

    pub(crate) fn end_of(&self, partition: usize) -> Offset {
        let partition = &self.shared.inner.lock().unwrap().partitions[partition];
        partition.batches.last().map_or(partition.start, |batch| batch.next_offset())
    }
}

#[async_trait]
impl ChangeLog for TestLog {
    async fn identity(&self) -> Result<LogIdentity, Error> {
        Ok(self.shared.inner.lock().unwrap().identity.clone())
    }

    async fn start(&self) -> Result<Vec<Offset>, Error> {
        let inner = self.shared.inner.lock().unwrap();
        Ok(inner.partitions.iter().map(|partition| partition.start).collect())
    }

    fn reader(&self, partition: usize, from: Offset, _prefetch: usize) -> Box<dyn LogReader> {
        let news = self.shared.news.subscribe();
        Box::new(TestReader { log: self.clone(), partition, from, news })
    }

    async fn commit(&self, group: &str, offsets: &[(usize, Offset)]) -> Result<(), Error> {
        let mut inner = self.shared.inner.lock().unwrap();
        let none = vec![Offset::ZERO; inner.partitions.len()];
        let committed = inner.groups.entry(group.into()).or_insert(none);
        for &(partition, offset) in offsets {
            committed[partition] = offset;
        }
        Ok(())
    }
}

struct TestReader {
    log: TestLog,
    partition: usize,
    from: Offset,
    news: watch::Receiver<u64>,
}

#[async_trait]
impl LogReader for TestReader {
    async fn next(&mut self) -> Result<Vec<RecordBatch>, Error> {
        loop {
            self.news.borrow_and_update();
            let found: Vec<_> = {
                let inner = self.log.shared.inner.lock().unwrap();
                let inner = &inner.partitions[self.partition];
                if self.from < inner.start {
                    return Err(Error::OffsetOutOfRange {
                        wanted: self.from,
                        log_start: inner.start,
                    });
                }
                let ahead = inner.batches.iter().filter(|batch| batch.next_offset() > self.from);
                ahead.take(3).map(|batch| batch.clone().visible_from(self.from)).collect()
            };
            if let Some(last) = found.last() {
                self.from = last.next_offset();
                return Ok(found);
            }
            self.log.shared.drained.send_modify(|times| *times += 1);
            self.news.changed().await.unwrap();
        }
    }

    fn is_at_end(&self) -> bool {
        self.from >= self.log.end_of(self.partition)
    }
}

/// Schema 1 is the control schema, tables follow from 2.
#[derive(Debug, Default)]
pub(crate) struct TestSchemas {
    texts: HashMap<SchemaId, String>,
}

impl TestSchemas {
    pub(crate) fn new(schemas: &[Arc<TableSchema>]) -> Self {
        let tables = (2..).zip(schemas);
        let mut texts: HashMap<_, _> =
            tables.map(|(id, table)| (SchemaId::new(id), schema_text(table).unwrap())).collect();
        texts.insert(CONTROL, CONTROL_SCHEMA.to_owned());
        Self { texts }
    }
}

#[async_trait]
impl SchemaSource for TestSchemas {
    async fn schema_text(&self, id: SchemaId) -> Result<String, SchemaSourceError> {
        self.texts.get(&id).cloned().ok_or_else(|| SchemaSourceError {
            id,
            passing: false,
            source: "not registered".into(),
        })
    }
}

/// Everything a pipeline runs between.
pub(crate) struct Rig {
    pub(crate) log: TestLog,
    pub(crate) database: MemoryDatabase,
    pub(crate) schemas: Arc<TestSchemas>,
    pub(crate) config: PipelineConfig,
}

/// A pipeline that runs; aborted when dropped.
pub(crate) struct Running {
    pub(crate) handle: PipelineHandle,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Rig {
    pub(crate) fn new(schemas: &[Arc<TableSchema>]) -> Self {
        let mut config = PipelineConfig::new("p", || 5_000);
        config.batch = BatchBounds { rows: 5, ..BatchBounds::default() };
        Self {
            log: TestLog::new("t"),
            database: MemoryDatabase::new(),
            schemas: Arc::new(TestSchemas::new(schemas)),
            config,
        }
    }

    pub(crate) fn start(&self) -> Running {
        let (pipeline, handle) = Pipeline::new(
            self.config.clone(),
            Arc::new(self.log.clone()),
            Arc::clone(&self.schemas) as Arc<dyn SchemaSource>,
            Arc::new(self.database.clone()),
        )
        .unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(pipeline.run(shutdown.clone()));
        Running { handle, shutdown, task }
    }
}

impl Running {
    pub(crate) async fn until(&self, what: impl Fn(&Status) -> bool) -> Status {
        let mut status = self.handle.watch();
        let found = tokio::time::timeout(
            std::time::Duration::from_secs(3600),
            status.wait_for(|status| what(status)),
        )
        .await;
        assert!(found.is_ok(), "never so; now {:?}", self.handle.status());
        found.unwrap().unwrap().clone()
    }

    /// Waits until everything up to `place` is applied and nothing is left.
    pub(crate) async fn applied(&self, place: Place) -> Status {
        self.until(|status| status.caught_up && status.place >= Some(place)).await
    }

    pub(crate) async fn state(&self, state: State) -> Status {
        self.until(|status| status.state == state).await
    }

    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        (&mut self.task).await.unwrap();
    }
}
