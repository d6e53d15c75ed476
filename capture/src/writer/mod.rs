//! From a connector's events to records: places, envelopes, chunks, and what may be confirmed.
//!
//! One row is held back, encoded, until the next event shows whether it was the last of its
//! transaction; so most transactions need no end marker. The writer knows which commit is complete
//! with which record, and therefore what the log's acknowledgement allows to confirm.
//!
//! With several partitions ([`lanes`]) a row is held back in each. Those that have nothing of a
//! transaction learn of its end all the same, in the same round: an end marker says that nothing of
//! it, nor of what is before it, is to come, so one for the newest of the round is enough.
//! Everything that is not a row goes to every partition, in one order.

mod lane;
mod lanes;
mod snapshot;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tailwater_change::{
    Commit, Control, Epoch, Operation, Ordinal, Place, SchemaId, TableId, TableSchema,
    is_far_behind, key_schema_text, schema_text,
};
use tailwater_kafka::{Producer, RecordNumber, TopicPartition};
use tailwater_registry::Registry;

use self::lanes::{End, Lanes, Record};
use crate::changes::{Changes, Event, RowEvent, TableSlot};
use crate::config::Config;
use crate::error::Error;
use crate::routing::{PartitionBy, Route, Routing};
use crate::state::State;

/// Writes one source's changes topic.
#[derive(Debug)]
pub(crate) struct Writer {
    registry: Registry,
    topic: String,
    lanes: Lanes,
    partition_by: PartitionBy,
    epoch: Epoch,
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
        producer: Producer,
        control: SchemaId,
        epoch: Epoch,
        held: &[Option<Place>],
    ) -> Self {
        Self {
            registry,
            topic: config.topic(),
            lanes: Lanes::new(config, producer, control, epoch, held),
            partition_by: config.partition_by,
            epoch,
            slots: Vec::new(),
            limit: None,
            finished: Vec::new(),
            open: None,
            awaiting: VecDeque::new(),
            ended: Vec::new(),
            ended_at_us: None,
        }
    }

    pub(crate) fn producer(&mut self) -> &mut Producer {
        self.lanes.producer()
    }

    pub(crate) fn into_producer(self) -> Producer {
        self.lanes.into_producer()
    }

    /// Rows appended by this writer.
    pub(crate) fn rows(&self) -> u64 {
        self.lanes.rows()
    }

    /// From here on the stream is wanted only as far as `limit` says; `None`: all of it.
    pub(crate) fn limit(&mut self, limit: Option<Limit>) {
        self.limit = limit;
    }

    /// Whether not everything of the stream is wanted.
    pub(crate) fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Whether a transaction is open.
    pub(crate) fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// Appends what `changes` says. Awaits only the registry (a new table version) and, between
    /// the chunks of a large row, room in flight.
    pub(crate) async fn write(&mut self, changes: &Changes) -> Result<Written, Error> {
        let mut written = Written::default();
        let now_ms = self.lanes.look_at_clock();
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
        if self.lanes.count() > 1 {
            self.tell_lanes().await?;
        }
        written.is_far_behind = is_far_behind(now_ms.saturating_mul(1000), newest_us);
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

    /// Says in the log that nothing of ours committed through `commit`.
    pub(crate) async fn idle(&mut self, commit: Commit) -> Result<(), Error> {
        self.lanes.look_at_clock();
        self.lanes.idle(commit).await?;
        self.await_acknowledgement(commit);
        Ok(())
    }

    /// Remembers `state` in the log, behind everything appended so far.
    pub(crate) fn state(&mut self, to: &TopicPartition, state: &State) -> Result<(), Error> {
        self.lanes.state(to, state)
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
        self.open.is_none() && self.lanes.are_flushed() && self.awaiting.is_empty()
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
        let routing = Routing::of(self.partition_by, self.lanes.count(), schema);
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
        self.lanes.begin();
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
        if self.lanes.count() == 1 {
            return self.lanes.put(0, &record).await;
        }
        let route = slot.routing.route(&slot.schema, changes, row);
        match route.map_err(|_error| Error::Contract("an old row that does not decode"))? {
            Route::To(lane) => self.lanes.put(lane, &record).await,
            Route::All => self.lanes.put_in(0..self.lanes.count(), &record).await,
            Route::Both(from, to) => self.lanes.put_in([from, to], &record).await,
            Route::Moved { from, key, to } => {
                let gone = Record {
                    operation: Operation::Delete,
                    key: key_id.map(|id| (id, key.as_ref())),
                    after: None,
                    ..record
                };
                self.lanes.put(from, &gone).await?;
                let come = Record { operation: Operation::Insert, before: None, ..record };
                self.lanes.put(to, &come).await
            }
        }
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
        let Open { commit, committed_at_us, .. } = open;
        self.lanes.end(End { commit, committed_at_us, transaction }).await?;
        if self.lanes.count() == 1 {
            self.await_acknowledgement(commit);
        } else {
            self.ended.push(commit);
            self.ended_at_us = committed_at_us;
        }
        Ok(None)
    }

    /// The end of a round: no partition is left without word of what the others have.
    async fn tell_lanes(&mut self) -> Result<(), Error> {
        self.tell_ends()?;
        let Some(open) = &self.open else { return Ok(()) };
        let (Some(ordinal), snapshot) = (open.next_ordinal.before(), open.snapshot) else {
            return Ok(());
        };
        let place = Place::new(self.epoch, open.commit, ordinal);
        self.lanes.tell_reached(place, snapshot).await
    }

    /// Says the newest end to the partitions that had nothing of its transaction.
    fn tell_ends(&mut self) -> Result<(), Error> {
        let Some(&commit) = self.ended.last() else { return Ok(()) };
        let committed_at_us = self.ended_at_us;
        self.lanes.tell_end(End { commit, committed_at_us, transaction: None })?;
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
        let said = Control::SchemaChange { place, table: table.clone(), description };
        self.lanes.marker(&said).await?;
        self.lanes.drain().await?;
        Err(Error::SchemaChange { table: table.clone(), description: description.to_owned() })
    }

    fn await_acknowledgement(&mut self, commit: Commit) {
        if let Some(number) = self.lanes.appended() {
            self.awaiting.push_back((number, commit));
        }
    }
}
