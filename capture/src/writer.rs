//! From a connector's events to records: places, envelopes, chunks, and what may be confirmed.
//!
//! One row is held back, encoded, until the next event shows whether it was the last of its
//! transaction; so most transactions need no end marker. The writer knows which commit is complete
//! with which record, and therefore what the log's acknowledgement allows to confirm.
//!
//! With several partitions ([`Lane`]) a row is held back in each. Those that have nothing of a
//! transaction learn of its end all the same, in the same round: an end marker says that nothing of
//! it, nor of what is before it, is to come, so one for the newest of the round is enough.
//! Everything that is not a row goes to every partition, in one order.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tailwater_change::{
    Chunks, Commit, Control, EnvelopeWriter, Epoch, Frame, Operation, Ordinal, Place, SchemaId,
    TableId, TableSchema, is_far_behind, key_schema_text, schema_text,
};
use tailwater_kafka::{PartitionId, Producer, RecordNumber, TopicPartition};
use tailwater_registry::Registry;

use crate::changes::{Changes, Event, RowEvent, TableSlot};
use crate::config::Config;
use crate::error::{Error, log};
use crate::lane::{Lane, Pending};
use crate::routing::{PartitionBy, Route, Routing};
use crate::state::{STATE_KEY, State};
use crate::take_over::identity;

/// Room in a record batch for its header, the record's own framing and its key.
const RECORD_ROOM: usize = 4096;

/// How long a partition may have nothing of a transaction that is being written before it is told
/// how far that is: until then, who merges the partitions waits for it.
const SILENCE_MS: i64 = 1_000;

/// Writes one source's changes topic.
#[derive(Debug)]
pub(crate) struct Writer {
    producer: Producer,
    registry: Registry,
    topic: String,
    /// The topic's partitions, by their number.
    lanes: Vec<Lane>,
    partition_by: PartitionBy,
    control: SchemaId,
    epoch: Epoch,
    clock: fn() -> i64,
    /// When what is being written came: one time for all of it.
    now_ms: i64,
    chunk_bytes: usize,
    attempt: u64,
    slots: Vec<Option<Slot>>,
    /// Of a stream of which not everything is wanted.
    limit: Option<Limit>,
    /// Tables of the snapshot that are complete and stay so if it breaks off.
    finished: Vec<TableId>,
    open: Option<Open>,
    /// Commits complete in the log once every record below the number is acknowledged.
    awaiting: VecDeque<(RecordNumber, Commit)>,
    /// Commits of this round, of which not every partition knows yet.
    ended: Vec<Commit>,
    /// When the newest of them was, on the source.
    ended_at_us: Option<i64>,
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
    snapshot: bool,
}

#[derive(Debug)]
struct Slot {
    schema: Arc<TableSchema>,
    value_id: SchemaId,
    key_id: Option<SchemaId>,
    routing: Routing,
    /// Whether its rows are not wanted.
    aside: bool,
}

/// A row as it goes into one partition.
struct Record<'a> {
    operation: Operation,
    place: Place,
    committed_at_us: Option<i64>,
    value_id: SchemaId,
    /// With the id of its schema; none for tables without one.
    key: Option<(SchemaId, &'a [u8])>,
    before: Option<(&'a [u8], bool)>,
    after: Option<&'a [u8]>,
    unsent: &'a [u32],
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
        held: &[Option<Place>],
    ) -> Self {
        let (producer_id, producer_epoch) = identity(&producer);
        let topic = config.topic();
        let now_ms = (config.clock)();
        let mut lane = |(partition, held): (i32, &Option<Place>)| {
            let partition = TopicPartition::new(topic.clone(), PartitionId::new(partition));
            Lane::new(producer.register(&partition), *held, now_ms)
        };
        let lanes = (0..).zip(held).map(&mut lane).collect();
        Self {
            producer,
            registry,
            topic,
            lanes,
            partition_by: config.partition_by,
            control,
            epoch,
            clock: config.clock,
            now_ms,
            chunk_bytes: config.max_record_bytes.saturating_sub(RECORD_ROOM).max(1),
            // No other attempt has this producer's id and epoch.
            attempt: (producer_id << 48) | ((producer_epoch & 0xFFFF) << 32),
            slots: Vec::new(),
            limit: None,
            finished: Vec::new(),
            open: None,
            awaiting: VecDeque::new(),
            ended: Vec::new(),
            ended_at_us: None,
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
        if self.lanes.len() > 1 {
            self.tell_lanes().await?;
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
        self.begin_part(commit)?;
        self.marker(&Control::SnapshotBegin { epoch: self.epoch, commit }).await
    }

    /// Says that the snapshot at `commit` broke off, and what of it counts.
    pub(crate) async fn snapshot_cut(&mut self, commit: Commit) -> Result<(), Error> {
        self.now_ms = (self.clock)();
        self.marker(&Control::SnapshotCut { epoch: self.epoch, commit }).await
    }

    /// Begins the rest of a snapshot that was cut.
    pub(crate) async fn snapshot_rest(&mut self, commit: Commit) -> Result<(), Error> {
        self.begin_part(commit)?;
        self.marker(&Control::SnapshotRest { epoch: self.epoch, commit }).await
    }

    /// Goes on in the snapshot that is open in the log: its next row gets the place `next`.
    pub(crate) fn snapshot_again(&mut self, next: Place) -> Result<(), Error> {
        self.begin_part(next.commit)?;
        if let Some(open) = &mut self.open {
            (open.base, open.next_ordinal) = (next.ordinal, next.ordinal);
        }
        Ok(())
    }

    fn begin_part(&mut self, commit: Commit) -> Result<(), Error> {
        self.now_ms = (self.clock)();
        self.begin(commit, None)?;
        if let Some(open) = &mut self.open {
            open.snapshot = true;
        }
        Ok(())
    }

    /// Says in the log that nothing of ours committed through `commit`.
    pub(crate) async fn idle(&mut self, commit: Commit) -> Result<(), Error> {
        self.now_ms = (self.clock)();
        self.marker(&Control::Idle { epoch: self.epoch, commit }).await?;
        for lane in &mut self.lanes {
            lane.tell(Place::end_of(self.epoch, commit), self.now_ms);
        }
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
        self.open.is_none()
            && self.lanes.iter().all(|lane| !lane.pending.there)
            && self.awaiting.is_empty()
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
        let routing = Routing::of(self.partition_by, self.lanes.len(), schema);
        let schema = Arc::clone(schema);
        self.slots[slot.0] = Some(Slot { schema, value_id, key_id, routing, aside });
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
            snapshot: false,
        });
        for lane in &mut self.lanes {
            lane.rows = 0;
        }
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
        let Some(Some(slot)) = self.slots.get(row.slot.0) else {
            return Err(Error::Contract("a row of a table that has no schema"));
        };
        if slot.aside {
            return Ok(());
        }
        open.rows += 1;
        open.table_rows += 1;
        let key_id = slot.key_id.filter(|_| row.operation != Operation::Truncate);
        let record = Record {
            operation: row.operation,
            place,
            committed_at_us,
            value_id: slot.value_id,
            key: key_id.map(|id| (id, changes.image(&row.key))),
            before: row.before.as_ref().map(|before| (changes.image(before), row.before_full)),
            after: row.after.as_ref().map(|after| changes.image(after)),
            unsent: changes.unsent(&row.unsent),
        };
        if self.lanes.len() == 1 {
            return self.put(0, &record).await;
        }
        let route = slot.routing.route(&slot.schema, changes, row);
        match route.map_err(|_error| Error::Contract("an old row that does not decode"))? {
            Route::To(lane) => self.put(lane, &record).await,
            Route::All => self.put_in(0..self.lanes.len(), &record).await,
            Route::Both(from, to) => self.put_in([from, to], &record).await,
            Route::Moved { from, key, to } => {
                let gone = Record {
                    operation: Operation::Delete,
                    key: key_id.map(|id| (id, key.as_ref())),
                    after: None,
                    ..record
                };
                self.put(from, &gone).await?;
                let come = Record { operation: Operation::Insert, before: None, ..record };
                self.put(to, &come).await
            }
        }
    }

    /// The same row in several partitions: who merges them takes it once, and who reads one alone
    /// knows that it concerns others.
    async fn put_in(
        &mut self,
        lanes: impl IntoIterator<Item = usize>,
        record: &Record<'_>,
    ) -> Result<(), Error> {
        for lane in lanes {
            self.put(lane, record).await?;
        }
        Ok(())
    }

    /// Gives the row to a partition, unless that has it.
    async fn put(&mut self, at: usize, record: &Record<'_>) -> Result<(), Error> {
        let lane = &mut self.lanes[at];
        lane.rows += 1;
        if lane.holds(record.place) {
            return Ok(());
        }
        self.flush_pending(at).await?;
        let now_ms = self.now_ms;
        let lane = &mut self.lanes[at];
        lane.tell(record.place, now_ms);
        let pending = &mut lane.pending;
        pending.there = true;
        pending.value.clear();
        pending.value.extend_from_slice(&Frame::prefix(record.value_id));
        let (operation, at_us) = (record.operation, record.committed_at_us);
        let mut envelope =
            EnvelopeWriter::begin(&mut pending.value, operation, record.place, at_us);
        envelope.unsent(record.unsent);
        if let Some((before, full)) = record.before {
            envelope.before(before, full);
        }
        if let Some(after) = record.after {
            envelope.after(after);
        }
        pending.key.clear();
        pending.has_key = record.key.is_some();
        if let Some((id, key)) = record.key {
            pending.key.extend_from_slice(&Frame::prefix(id));
            pending.key.extend_from_slice(key);
        }
        self.rows += 1;
        if self.lanes[at].pending.value.len() > self.chunk_bytes {
            // Held back it would be in memory beside the next one: it gets an end marker instead.
            self.flush_pending(at).await?;
        }
        Ok(())
    }

    /// Ends the transaction. Returns its commit if it had nothing for us: then the source is as
    /// far as that without a record.
    async fn end(&mut self, transaction: Option<&str>) -> Result<Option<Commit>, Error> {
        let Some(open) = self.open.take() else {
            return Err(Error::Contract("the end of no transaction"));
        };
        if open.rows == 0 {
            return Ok(Some(open.commit));
        }
        let end = Place::end_of(self.epoch, open.commit);
        for at in 0..self.lanes.len() {
            let lane = &mut self.lanes[at];
            if lane.pending.there {
                EnvelopeWriter::resume(&mut lane.pending.value).last(transaction);
                lane.tell(end, self.now_ms);
                self.flush_pending(at).await?;
            } else if lane.rows > 0 && !lane.holds(end) {
                // Every row was in the log, but perhaps not the end: say it, twice does no harm.
                let rows = lane.rows;
                self.end_marker(at, open.commit, open.committed_at_us, transaction, rows)?;
            }
        }
        if self.lanes.len() == 1 {
            self.await_acknowledgement(open.commit);
        } else {
            self.ended.push(open.commit);
            self.ended_at_us = open.committed_at_us;
        }
        Ok(None)
    }

    fn end_marker(
        &mut self,
        lane: usize,
        commit: Commit,
        committed_at_us: Option<i64>,
        transaction: Option<&str>,
        rows: u64,
    ) -> Result<(), Error> {
        let epoch = self.epoch;
        let end = Control::End { epoch, commit, committed_at_us, transaction, rows };
        self.lanes[lane].tell(Place::end_of(epoch, commit), self.now_ms);
        self.marker_to(lane, &end)
    }

    /// The end of a round: no partition is left without word of what the others have.
    async fn tell_lanes(&mut self) -> Result<(), Error> {
        self.tell_ends()?;
        let Some(open) = &self.open else { return Ok(()) };
        let (Some(ordinal), snapshot) = (open.next_ordinal.before(), open.snapshot) else {
            return Ok(());
        };
        let place = Place::new(self.epoch, open.commit, ordinal);
        for at in 0..self.lanes.len() {
            let lane = &mut self.lanes[at];
            if lane.knows(place) || lane.silent_ms(self.now_ms) < SILENCE_MS {
                continue;
            }
            self.flush_pending(at).await?;
            self.lanes[at].tell(place, self.now_ms);
            self.marker_to(at, &Control::Reached { place, snapshot })?;
        }
        Ok(())
    }

    /// Says the newest end to the partitions that had nothing of its transaction.
    fn tell_ends(&mut self) -> Result<(), Error> {
        let Some(&newest) = self.ended.last() else { return Ok(()) };
        let end = Place::end_of(self.epoch, newest);
        for at in 0..self.lanes.len() {
            if !self.lanes[at].knows(end) {
                self.end_marker(at, newest, self.ended_at_us, None, 0)?;
            }
        }
        for commit in std::mem::take(&mut self.ended) {
            self.await_acknowledgement(commit);
        }
        Ok(())
    }

    async fn schema_change(&mut self, table: &TableId, description: &str) -> Result<(), Error> {
        let (commit, ordinal) = self
            .open
            .as_ref()
            .map_or((Commit::ZERO, Ordinal::ZERO), |open| (open.commit, open.next_ordinal));
        let place = Place::new(self.epoch, commit, ordinal);
        self.tell_ends()?;
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
        if self.lanes.len() > 1 {
            // Where one partition has the end, all of them have all rows.
            self.flush_all().await?;
            self.producer.drain().await.map_err(log("append"))?;
        }
        self.marker(&Control::SnapshotEnd { epoch: self.epoch, commit: open.commit }).await
    }

    fn await_acknowledgement(&mut self, commit: Commit) {
        if let Some(number) = self.appended {
            self.awaiting.push_back((number, commit));
        }
    }

    /// Says it to every partition.
    async fn marker(&mut self, control: &Control<'_>) -> Result<(), Error> {
        self.flush_all().await?;
        for at in 0..self.lanes.len() {
            self.marker_to(at, control)?;
        }
        Ok(())
    }

    fn marker_to(&mut self, lane: usize, control: &Control<'_>) -> Result<(), Error> {
        let mut value = Frame::prefix(self.control).to_vec();
        control.encode(&mut value);
        self.append(lane, None, &value)
    }

    async fn flush_all(&mut self) -> Result<(), Error> {
        for at in 0..self.lanes.len() {
            self.flush_pending(at).await?;
        }
        Ok(())
    }

    /// Appends the row that was held back.
    async fn flush_pending(&mut self, lane: usize) -> Result<(), Error> {
        if !self.lanes[lane].pending.there {
            return Ok(());
        }
        let mut pending: Pending = std::mem::take(&mut self.lanes[lane].pending);
        let key = pending.has_key.then_some(pending.key.as_slice());
        if key.map_or(0, <[u8]>::len) + pending.value.len() > self.chunk_bytes {
            self.append_chunks(lane, &pending.value).await?;
            pending.value = Vec::new();
        } else {
            self.append(lane, key, &pending.value)?;
        }
        pending.there = false;
        self.lanes[lane].pending = pending;
        Ok(())
    }

    async fn append_chunks(&mut self, lane: usize, value: &[u8]) -> Result<(), Error> {
        self.attempt += 1;
        let mut record = Vec::new();
        for chunk in Chunks::new(value, self.chunk_bytes, self.attempt) {
            self.producer.ready().await.map_err(log("append"))?;
            record.clear();
            record.extend_from_slice(&Frame::prefix(self.control));
            chunk.encode(&mut record);
            self.append(lane, None, &record)?;
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

    fn append(&mut self, lane: usize, key: Option<&[u8]>, value: &[u8]) -> Result<(), Error> {
        let to = self.lanes[lane].to;
        let number = self.producer.append(to, key, &[value], self.now_ms).map_err(log("append"))?;
        self.appended = Some(number);
        Ok(())
    }
}
