//! The pipeline as it runs in this process, and what its log says.

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::{Context, bail};
use async_trait::async_trait;
use tailwater_change::{Control, Envelope, Frame, Operation, TableId, TableSchema, identity};
use tailwater_kafka::{
    Limits, Offset, OffsetAt, PartitionId, ReaderConfig, RecordBatch, TopicPartition,
};
use tokio::time::{Instant, timeout_at};

use super::{Changed, Flow, PATIENCE, Seen};
use crate::app::{App, PipelineRole, SourceRole};
use crate::schemas::Schemas;
use crate::wait::{Waited, reach};

/// States of rows that are kept: beyond that a row is known to have changed, not into what.
const STATES: usize = 1 << 18;

/// A running pipeline.
pub(super) struct Live<'a> {
    pub(super) app: &'a App,
    pub(super) role: &'a PipelineRole,
    pub(super) source: &'a SourceRole,
}

#[async_trait]
impl Flow for Live<'_> {
    async fn pass(&self) -> anyhow::Result<()> {
        let goal = self.source.connector.current().await?;
        match reach(self.app, self.role, self.source, goal, Instant::now() + PATIENCE).await {
            Waited::Reached => Ok(()),
            Waited::TimedOut(why) | Waited::Cannot(why) => bail!("{why}"),
        }
    }

    async fn end(&self) -> anyhow::Result<Vec<Offset>> {
        let (topic, client) = (self.role.source.as_str(), &self.app.client);
        let partitions = client.topic(topic).await?.context("the topic is gone")?.partitions;
        let mut ends = Vec::new();
        for partition in (0..partitions).map(PartitionId::new) {
            ends.push(client.list_offsets(topic, partition, OffsetAt::Latest).await?);
        }
        Ok(ends)
    }

    async fn changed(
        &self,
        table: &TableId,
        keys: &BTreeSet<Vec<u8>>,
        span: Range<Vec<Offset>>,
    ) -> anyhow::Result<Changed> {
        let mut walk = Walk {
            table,
            keys,
            schemas: Schemas::new(&self.app.registry),
            changed: Changed::default(),
            states: 0,
        };
        let deadline = Instant::now() + PATIENCE;
        let partitions = (0..).map(PartitionId::new);
        for (partition, (start, end)) in partitions.zip(span.start.into_iter().zip(span.end)) {
            let partition = TopicPartition::new(self.role.source.clone(), partition);
            let mut reader = self.app.client.reader(ReaderConfig::new(partition, start));
            while reader.position() < end {
                let batches = timeout_at(deadline, reader.next()).await;
                for batch in batches.context("the log is not read in time")?? {
                    walk.batch(&batch).await?;
                }
            }
        }
        Ok(walk.changed)
    }
}

/// What is gathered from the records of a span. Those of writers that were superseded and of
/// transactions without an end are taken for changes too: that costs another look.
struct Walk<'a> {
    table: &'a TableId,
    keys: &'a BTreeSet<Vec<u8>>,
    schemas: Schemas,
    changed: Changed,
    states: usize,
}

impl Walk<'_> {
    async fn batch(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        for record in batch.records(Limits::default())? {
            let record = record?;
            let value = record.value.unwrap_or_default();
            let taken = self.take(&value).await;
            taken.with_context(|| format!("record at {}", record.offset))?;
        }
        Ok(())
    }

    async fn take(&mut self, value: &[u8]) -> anyhow::Result<()> {
        let frame = Frame::parse(value)?;
        let Some(schema) = self.schemas.table(frame.schema).await? else {
            // The first chunk of a large row says of which table it is, and that is enough.
            if let Control::Chunk { index: 0, data, .. } = Control::decode(frame.message)? {
                let whole = Frame::parse(data)?;
                let of = self.schemas.table(whole.schema).await?;
                self.changed.vague |= of.is_some_and(|of| of.table == *self.table);
            }
            return Ok(());
        };
        if schema.table == *self.table {
            self.change(&schema, &Envelope::decode(frame.message)?);
        }
        Ok(())
    }

    fn change(&mut self, schema: &TableSchema, envelope: &Envelope<'_>) {
        if envelope.operation == Operation::Truncate {
            self.changed.vague = true;
            return;
        }
        if schema.key().is_empty() {
            self.sum_up(envelope);
            return;
        }
        let key_of = |image| identity(schema, image).map(|key| key.into_owned());
        let (Ok(before), Ok(after)) =
            (envelope.before.map(key_of).transpose(), envelope.after.map(key_of).transpose())
        else {
            self.changed.vague = true;
            return;
        };
        if let Some(before) = before.filter(|before| Some(before) != after.as_ref()) {
            self.became(before, Some(Seen::default()));
        }
        if let (Some(key), Some(row)) = (after, envelope.after) {
            // What was not sent stays as it was, and what that is the log does not say.
            self.became(key, envelope.unsent.is_empty().then(|| Seen::one(row)));
        }
    }

    fn became(&mut self, key: Vec<u8>, state: Option<Seen>) {
        if !self.keys.contains(&key) {
            return;
        }
        let states = self.changed.states.entry(key).or_default();
        if self.states < STATES {
            states.extend(state);
            self.states += 1;
        }
    }

    fn sum_up(&mut self, envelope: &Envelope<'_>) {
        let known = envelope.unsent.is_empty()
            && envelope.before.is_none_or(|_| envelope.before_full)
            && self.states < STATES;
        if !known {
            self.changed.vague = true;
            return;
        }
        let one = |image: Option<&[u8]>| image.map_or(Seen::default(), Seen::one);
        let sum = self.changed.sums.last().copied().unwrap_or_default();
        self.changed.sums.push(sum.plus(one(envelope.after)).minus(one(envelope.before)));
        self.states += 1;
    }
}
