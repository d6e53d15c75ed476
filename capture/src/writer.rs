//! From a connector's events to records: places, envelopes, chunks, and what may be confirmed.
//!
//! One row is held back, encoded, until the next event shows whether it was the last of its
//! transaction; so most transactions need no end marker. The writer knows which commit is complete
//! with which record, and therefore what the log's acknowledgement allows to confirm.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tailwater_change::{
    Chunks, Commit, Control, EnvelopeWriter, Epoch, Frame, Operation, Ordinal, Place, SchemaId,
    TableId, TableSchema, is_far_behind, key_schema_text, schema_text,
};
use tailwater_kafka::{PartitionHandle, PartitionId, Producer, RecordNumber, TopicPartition};
use tailwater_registry::Registry;

use crate::changes::{Changes, Event, RowEvent, TableSlot};
use crate::config::Config;
use crate::error::{Error, log};
use crate::state::{STATE_KEY, State};
use crate::take_over::identity;

/// Room in a record batch for its header, the record's own framing and its key.
const RECORD_ROOM: usize = 4096;

/// Writes one source's changes topic.
#[derive(Debug)]
pub(crate) struct Writer {
    producer: Producer,
    registry: Registry,
    topic: String,
    to: PartitionHandle,
    control: SchemaId,
    epoch: Epoch,
    clock: fn() -> i64,
    /// When what is being written came: one time for all of it.
    now_ms: i64,
    chunk_bytes: usize,
    attempt: u64,
    slots: Vec<Option<Slot>>,
    /// Rows at or below this are in the log already.
    held: Option<Place>,
    /// Of a stream of which not everything is wanted.
    limit: Option<Limit>,
    /// Tables of the snapshot that are complete and stay so if it breaks off.
    finished: Vec<TableId>,
    open: Option<Open>,
    pending: Pending,
    /// Commits complete in the log once every record below the number is acknowledged.
    awaiting: VecDeque<(RecordNumber, Commit)>,
    appended: Option<RecordNumber>,
    rows: u64,
}

/// What is wanted of a stream between the two parts of a snapshot.
#[derive(Debug)]
pub(crate) struct Limit {
    /// Up to and including here.
    pub(crate) through: Commit,
    /// Rows of these tables: the others come as the snapshot's rest has them.
    pub(crate) tables: HashSet<TableId>,
}

/// The transaction (or snapshot) that is being written.
#[derive(Debug)]
struct Open {
    commit: Commit,
    committed_at_us: Option<i64>,
    /// Rows of it that are in the topic, by this writer or the one before it.
    rows: u64,
    /// What the numbers of its rows begin with: of a snapshot, what the log has of it already.
    base: Ordinal,
    next_ordinal: Ordinal,
    table_rows: u64,
}

#[derive(Debug)]
struct Slot {
    schema: Arc<TableSchema>,
    value_id: SchemaId,
    key_id: Option<SchemaId>,
    /// Whether its rows are not wanted.
    aside: bool,
}

/// The row that waits for what follows it.
#[derive(Debug, Default)]
struct Pending {
    there: bool,
    key: Vec<u8>,
    has_key: bool,
    value: Vec<u8>,
}

/// What the loop must know of the events it gave.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    /// A transaction began: an idle position from before it is no longer news.
    pub(crate) began: bool,
    /// After every transaction: the source said that nothing of ours committed up to here.
    pub(crate) idle_through: Option<Commit>,
    /// The snapshot is complete.
    pub(crate) snapshot_ended: bool,
    /// Everything up to the stream's limit is written; what came behind it was left out.
    pub(crate) reached_limit: bool,
    /// The newest transaction came late: the log may get few large batches instead of many small ones.
    pub(crate) is_far_behind: bool,
}

impl Writer {
    pub(crate) fn new(
        config: &Config,
        registry: Registry,
        mut producer: Producer,
        control: SchemaId,
        epoch: Epoch,
        held: Option<Place>,
    ) -> Self {
        let (producer_id, producer_epoch) = identity(&producer);
        let topic = config.topic();
        let to = producer.register(&TopicPartition::new(topic.clone(), PartitionId::new(0)));
        Self {
            producer,
            registry,
            topic,
            to,
            control,
            epoch,
            clock: config.clock,
            now_ms: (config.clock)(),
            chunk_bytes: config.max_record_bytes.saturating_sub(RECORD_ROOM).max(1),
            // No other attempt has this producer's id and epoch.
            attempt: (producer_id << 48) | ((producer_epoch & 0xFFFF) << 32),
            slots: Vec::new(),
            held,
            limit: None,
            finished: Vec::new(),
            open: None,
            pending: Pending::default(),
            awaiting: VecDeque::new(),
            appended: None,
            rows: 0,
        }
    }

    pub(crate) fn producer(&mut self) -> &mut Producer {
        &mut self.producer
    }

    pub(crate) fn into_producer(self) -> Producer {
        self.producer
    }

    /// Rows appended by this writer.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// From here on the stream is wanted only as far as `limit` says; `None`: all of it.
    pub(crate) fn limit(&mut self, limit: Option<Limit>) {
        self.limit = limit;
    }

    /// Whether not everything of the stream is wanted.
    pub(crate) fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// These tables were finished by whoever wrote before.
    pub(crate) fn keep(&mut self, finished: Vec<TableId>) {
        self.finished = finished;
    }

    /// Tables whose end has been appended and that stay if the snapshot breaks off.
    pub(crate) fn finished(&self) -> &[TableId] {
        &self.finished
    }

    /// The place that the next row of the snapshot gets.
    pub(crate) fn snapshot_place(&self) -> Option<Place> {
        let open = self.open.as_ref()?;
        Some(Place::new(self.epoch, open.commit, open.next_ordinal))
    }

    /// Whether a transaction is open.
    pub(crate) fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// Appends what `changes` says. Awaits only the registry (a new table version) and, between
    /// the chunks of a large row, room in flight.
    pub(crate) async fn write(&mut self, changes: &Changes) -> Result<Written, Error> {
        let mut written = Written::default();
        self.now_ms = (self.clock)();
        let mut newest_us = self.open.as_ref().and_then(|open| open.committed_at_us);
        for event in changes.events() {
            if self.is_beyond_limit(event) {
                written.reached_limit = true;
                break;
            }
            match event {
                Event::Schema { slot, schema } => self.bind(*slot, schema).await?,
                Event::Begin { commit, committed_at_us } => {
                    self.begin(*commit, *committed_at_us)?;
                    newest_us = *committed_at_us;
                    written.began = true;
                    written.idle_through = None;
                }
                Event::Row(row) => self.row(changes, row).await?,
                Event::End { transaction } => {
                    if let Some(commit) = self.end(transaction.as_deref()).await? {
                        written.idle_through = Some(commit);
                    }
                }
                Event::SchemaChange { table, description, .. } => {
                    self.schema_change(table, description).await?;
                }
                Event::Idle { through } => {
                    if self.open.is_some() {
                        return Err(Error::Contract("an idle position inside a transaction"));
                    }
                    written.idle_through = Some(*through);
                }
                Event::TableBegin(slot) => self.table_begin(*slot).await?,
                Event::TableEnd(slot) => self.table_end(*slot).await?,
                Event::SnapshotEnd => {
                    self.snapshot_end().await?;
                    written.snapshot_ended = true;
                }
            }
        }
        written.is_far_behind = is_far_behind(self.now_ms.saturating_mul(1000), newest_us);
        Ok(written)
    }

    /// Whether with this event everything up to the limit has been said.
    fn is_beyond_limit(&self, event: &Event) -> bool {
        let Some(limit) = &self.limit else { return false };
        match event {
            Event::Begin { commit, .. } => *commit > limit.through,
            // Told to the log it would stand above the rest of the snapshot, which has that place.
            Event::Idle { through } => *through >= limit.through,
            _ => false,
        }
    }

    /// Begins the synthetic transaction of a snapshot.
    pub(crate) async fn snapshot_begin(&mut self, commit: Commit) -> Result<(), Error> {
        self.now_ms = (self.clock)();
        self.begin(commit, None)?;
        self.marker(&Control::SnapshotBegin { epoch: self.epoch, commit }).await
    }

    /// Says that the snapshot at `commit` broke off, and what of it counts.
    pub(crate) async fn snapshot_cut(&mut self, commit: Commit) -> Result<(), Error> {
        self.now_ms = (self.clock)();
        self.marker(&Control::SnapshotCut { epoch: self.epoch, commit }).await
    }

    /// Begins the rest of a snapshot that was cut.
    pub(crate) async fn snapshot_rest(&mut self, commit: Commit) -> Result<(), Error> {
        self.now_ms = (self.clock)();
        self.begin(commit, None)?;
        self.marker(&Control::SnapshotRest { epoch: self.epoch, commit }).await
    }

    /// Goes on in the snapshot that is open in the log: its next row gets the place `next`.
    pub(crate) fn snapshot_again(&mut self, next: Place) -> Result<(), Error> {
        self.now_ms = (self.clock)();
        self.begin(next.commit, None)?;
        if let Some(open) = &mut self.open {
            (open.base, open.next_ordinal) = (next.ordinal, next.ordinal);
        }
        Ok(())
    }

    /// Says in the log that nothing of ours committed through `commit`.
    pub(crate) async fn idle(&mut self, commit: Commit) -> Result<(), Error> {
        self.now_ms = (self.clock)();
        self.marker(&Control::Idle { epoch: self.epoch, commit }).await?;
        self.await_acknowledgement(commit);
        Ok(())
    }

    /// The newest commit that is complete among records below `acknowledged`, and how many became
    /// so.
    pub(crate) fn confirmed(&mut self, acknowledged: RecordNumber) -> Option<(Commit, u64)> {
        let mut newest = None;
        let mut count = 0;
        while let Some((number, commit)) = self.awaiting.front()
            && *number < acknowledged
        {
            newest = newest.max(Some(*commit));
            count += 1;
            self.awaiting.pop_front();
        }
        newest.map(|commit| (commit, count))
    }

    /// Whether the log has acknowledged all that was given to this writer, and it was whole.
    pub(crate) fn is_settled(&self) -> bool {
        self.open.is_none() && !self.pending.there && self.awaiting.is_empty()
    }

    async fn bind(&mut self, slot: TableSlot, schema: &Arc<TableSchema>) -> Result<(), Error> {
        let table = &schema.table;
        let broken = |source| Error::Schema { table: table.clone(), source };
        let subject = format!("{}-{}", self.topic, table);
        let value_id = self.register(&subject, &schema_text(schema).map_err(broken)?).await?;
        let key_id = match key_schema_text(schema).map_err(broken)? {
            Some(text) => Some(self.register(&format!("{subject}-key"), &text).await?),
            None => None,
        };
        if self.slots.len() <= slot.0 {
            self.slots.resize_with(slot.0 + 1, || None);
        }
        let aside = self.limit.as_ref().is_some_and(|limit| !limit.tables.contains(table));
        self.slots[slot.0] = Some(Slot { schema: Arc::clone(schema), value_id, key_id, aside });
        Ok(())
    }

    async fn register(&self, subject: &str, text: &str) -> Result<SchemaId, Error> {
        self.registry.register(subject, text).await.map_err(|source| Error::Registry {
            subject: subject.to_owned(),
            source: Box::new(source),
        })
    }

    fn begin(&mut self, commit: Commit, committed_at_us: Option<i64>) -> Result<(), Error> {
        if self.open.is_some() {
            return Err(Error::Contract("a transaction inside a transaction"));
        }
        self.open = Some(Open {
            commit,
            committed_at_us,
            rows: 0,
            base: Ordinal::ZERO,
            next_ordinal: Ordinal::ZERO,
            table_rows: 0,
        });
        Ok(())
    }

    async fn row(&mut self, changes: &Changes, row: &RowEvent) -> Result<(), Error> {
        let Some(open) = &mut self.open else {
            return Err(Error::Contract("a row outside a transaction"));
        };
        let ordinal = Ordinal::new(open.base.get().saturating_add(row.ordinal.get()));
        let place = Place::new(self.epoch, open.commit, ordinal);
        let committed_at_us = open.committed_at_us;
        open.next_ordinal = ordinal.next();
        if matches!(self.slots.get(row.slot.0), Some(Some(slot)) if slot.aside) {
            return Ok(());
        }
        open.rows += 1;
        open.table_rows += 1;
        if self.held.is_some_and(|held| place <= held) {
            return Ok(());
        }
        self.flush_pending().await?;
        let Some(Some(slot)) = self.slots.get(row.slot.0) else {
            return Err(Error::Contract("a row of a table that has no schema"));
        };
        let pending = &mut self.pending;
        pending.there = true;
        pending.value.clear();
        pending.value.extend_from_slice(&Frame::prefix(slot.value_id));
        let mut envelope =
            EnvelopeWriter::begin(&mut pending.value, row.operation, place, committed_at_us);
        envelope.unsent(changes.unsent(&row.unsent));
        if let Some(before) = &row.before {
            envelope.before(changes.image(before), row.before_full);
        }
        if let Some(after) = &row.after {
            envelope.after(changes.image(after));
        }
        pending.key.clear();
        pending.has_key = slot.key_id.is_some() && row.operation != Operation::Truncate;
        if let Some(key_id) = slot.key_id {
            pending.key.extend_from_slice(&Frame::prefix(key_id));
            pending.key.extend_from_slice(changes.image(&row.key));
        }
        self.rows += 1;
        if self.pending.value.len() > self.chunk_bytes {
            // Held back it would be in memory beside the next one: it gets an end marker instead.
            self.flush_pending().await?;
        }
        Ok(())
    }

    /// Ends the transaction. Returns its commit if it had nothing for us: then the source is as
    /// far as that without a record.
    async fn end(&mut self, transaction: Option<&str>) -> Result<Option<Commit>, Error> {
        let Some(open) = self.open.take() else {
            return Err(Error::Contract("the end of no transaction"));
        };
        if self.pending.there {
            EnvelopeWriter::resume(&mut self.pending.value).last(transaction);
            self.flush_pending().await?;
        } else if open.rows == 0 {
            return Ok(Some(open.commit));
        } else if self.held.is_none_or(|held| held < Place::end_of(self.epoch, open.commit)) {
            // Every row was in the log, but perhaps not the end: say it, twice does no harm.
            self.marker(&Control::End {
                epoch: self.epoch,
                commit: open.commit,
                committed_at_us: open.committed_at_us,
                transaction,
                rows: open.rows,
            })
            .await?;
        }
        self.await_acknowledgement(open.commit);
        Ok(None)
    }

    async fn schema_change(&mut self, table: &TableId, description: &str) -> Result<(), Error> {
        let (commit, ordinal) = self
            .open
            .as_ref()
            .map_or((Commit::ZERO, Ordinal::ZERO), |open| (open.commit, open.next_ordinal));
        let place = Place::new(self.epoch, commit, ordinal);
        self.marker(&Control::SchemaChange { place, table: table.clone(), description }).await?;
        self.producer.drain().await.map_err(log("append"))?;
        Err(Error::SchemaChange { table: table.clone(), description: description.to_owned() })
    }

    async fn table_begin(&mut self, slot: TableSlot) -> Result<(), Error> {
        let (place, schema) = self.table_place(slot)?;
        if let Some(open) = &mut self.open {
            open.table_rows = 0;
        }
        self.marker(&Control::TableBegin { place, schema }).await
    }

    async fn table_end(&mut self, slot: TableSlot) -> Result<(), Error> {
        let (place, schema) = self.table_place(slot)?;
        let rows = self.open.as_ref().map_or(0, |open| open.table_rows);
        self.marker(&Control::TableEnd { place, schema, rows }).await?;
        if let Some(Some(Slot { schema, .. })) = self.slots.get(slot.0)
            // Its stream would not say all that happens to it: it is always read to its end at the
            // point where the stream goes on.
            && !schema.changes_unlogged()
        {
            self.finished.push(schema.table.clone());
        }
        Ok(())
    }

    fn table_place(&self, slot: TableSlot) -> Result<(Place, SchemaId), Error> {
        let Some(open) = &self.open else {
            return Err(Error::Contract("a snapshot's table outside a snapshot"));
        };
        let Some(Some(table)) = self.slots.get(slot.0) else {
            return Err(Error::Contract("a snapshot's table that has no schema"));
        };
        tracing::debug!(table = %table.schema.table, "snapshot table boundary");
        Ok((Place::new(self.epoch, open.commit, open.next_ordinal), table.value_id))
    }

    async fn snapshot_end(&mut self) -> Result<(), Error> {
        let Some(open) = self.open.take() else {
            return Err(Error::Contract("the end of no snapshot"));
        };
        self.marker(&Control::SnapshotEnd { epoch: self.epoch, commit: open.commit }).await
    }

    fn await_acknowledgement(&mut self, commit: Commit) {
        if let Some(number) = self.appended {
            self.awaiting.push_back((number, commit));
        }
    }

    async fn marker(&mut self, control: &Control<'_>) -> Result<(), Error> {
        self.flush_pending().await?;
        let mut value = Frame::prefix(self.control).to_vec();
        control.encode(&mut value);
        self.append(None, &value)
    }

    /// Appends the row that was held back.
    async fn flush_pending(&mut self) -> Result<(), Error> {
        if !self.pending.there {
            return Ok(());
        }
        let mut pending = std::mem::take(&mut self.pending);
        let key = pending.has_key.then_some(pending.key.as_slice());
        if key.map_or(0, <[u8]>::len) + pending.value.len() > self.chunk_bytes {
            self.append_chunks(&pending.value).await?;
            pending.value = Vec::new();
        } else {
            self.append(key, &pending.value)?;
        }
        pending.there = false;
        self.pending = pending;
        Ok(())
    }

    async fn append_chunks(&mut self, value: &[u8]) -> Result<(), Error> {
        self.attempt += 1;
        let mut record = Vec::new();
        for chunk in Chunks::new(value, self.chunk_bytes, self.attempt) {
            self.producer.ready().await.map_err(log("append"))?;
            record.clear();
            record.extend_from_slice(&Frame::prefix(self.control));
            chunk.encode(&mut record);
            self.append(None, &record)?;
        }
        Ok(())
    }

    /// Remembers `state` in the log, behind everything appended so far.
    pub(crate) fn state(&mut self, to: &TopicPartition, state: &State) -> Result<(), Error> {
        let json = serde_json::to_vec(state)
            .map_err(|source| Error::State { topic: to.topic.clone(), source })?;
        let to = self.producer.register(to);
        self.producer
            .append(to, Some(STATE_KEY), &[&json], (self.clock)())
            .map_err(log("append the state"))?;
        Ok(())
    }

    fn append(&mut self, key: Option<&[u8]>, value: &[u8]) -> Result<(), Error> {
        let number =
            self.producer.append(self.to, key, &[value], self.now_ms).map_err(log("append"))?;
        self.appended = Some(number);
        Ok(())
    }
}
