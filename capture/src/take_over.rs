//! Becoming the writer of a source, and learning what the log holds.
//!
//! The order is the point (DESIGN 4): InitProducerId fences the older writer at the log; an open
//! marker in every partition tells readers, and partitions that the log's fence has not reached,
//! whose records count from here; only then are the state and the tails below the markers read.
//! Read earlier, a batch of the old writer could land behind what was read.
//!
//! Each partition may end elsewhere: [`Tails`] says what they hold together.

use tailwater_change::{CONTROL_SCHEMA, CONTROL_SUBJECT, Control, Epoch, Frame, SchemaId};
use tailwater_kafka::{
    Client, Limits, Offset, OffsetAt, PartitionId, Producer, ProducerConfig, ReaderConfig,
    RecordBatch, TopicPartition, TopicSpec,
};
use tailwater_registry::Registry;

use crate::ServerIdentity;
use crate::TailError;
use crate::config::Config;
use crate::error::{Error, log};
use crate::state::{OPEN_KEY, Phase, STATE_KEY, State};
use crate::tail::{Tail, TailScan};
use crate::tails::Tails;

/// How long the log may not take a batch before the source is shown as `retrying` and says why: a
/// person who looks at a log that is away or full learns of it while he looks. Taking over again
/// costs less than a second.
const DELIVERY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);
/// What a batch waits for more while the log is far behind; else each round of rows is flushed.
const LINGER: std::time::Duration = std::time::Duration::from_millis(20);

/// The writer that counts, and where it goes on.
#[derive(Debug)]
pub(crate) struct TakenOver {
    pub(crate) producer: Producer,
    pub(crate) control: SchemaId,
    /// The state as the last writer left it; none on the first start.
    pub(crate) state: Option<State>,
    /// Where the log ends, on all partitions together.
    pub(crate) tail: Tail,
    /// Where each of them ends.
    pub(crate) tails: Tails,
    /// Where our open markers stand in the partitions of the changes topic.
    pub(crate) open_offsets: Vec<Offset>,
    /// Without a state: the newest epoch that the topic has seen all the same.
    pub(crate) earlier_epoch: Option<Epoch>,
    /// Whom the open marker names.
    pub(crate) server: ServerIdentity,
}

impl TakenOver {
    /// The epoch of what was written last.
    pub(crate) fn epoch(&self) -> Epoch {
        self.state.as_ref().map_or(Epoch::FIRST, |state| state.epoch)
    }

    /// An epoch above everything that the log holds, and above `other`.
    pub(crate) fn later_epoch(&self, other: Epoch) -> Epoch {
        // Without a state, but perhaps not without a history: what the topic holds of an earlier
        // life must not stand above what follows.
        let newest = self.state.as_ref().map(|state| state.epoch).or(self.earlier_epoch);
        newest.unwrap_or(Epoch::new(0)).max(other).next()
    }
}

/// How many records the first look at the tail reads; each further look doubles it.
const TAIL_WINDOW: i64 = 1024;

/// What a look at the tail may hold in memory.
const TAIL_BYTES: usize = 4 << 20;

/// Takes over the source named by `config`, which is `server`. Who begins anew (`resync`) does not
/// need to understand what the log holds: that may be what keeps him from going on.
pub(crate) async fn take_over(
    config: &Config,
    client: &Client,
    registry: &Registry,
    server: ServerIdentity,
    resync: bool,
) -> Result<TakenOver, Error> {
    create_topics(config, client).await?;
    let control = registry.register(CONTROL_SUBJECT, CONTROL_SCHEMA).await.map_err(|source| {
        Error::Registry { subject: CONTROL_SUBJECT.into(), source: Box::new(source) }
    })?;
    let producer_config = ProducerConfig {
        transactional_id: Some(config.transactional_id()),
        in_flight_bytes: config.in_flight_bytes,
        delivery_timeout: DELIVERY_TIMEOUT,
        linger: LINGER,
        ..ProducerConfig::default()
    };
    let mut producer = client.producer(producer_config).await.map_err(log("take over the log"))?;

    let state_topic = TopicPartition::new(config.state_topic(), PartitionId::new(0));
    let controls = controls(registry, control).await?;
    let marker = Marker { control, server: &server, clock: config.clock };
    marker.append(&mut producer, &state_topic, Some(OPEN_KEY), Epoch::new(0))?;
    producer.drain().await.map_err(log("append the open marker"))?;
    let state = match read_state(config, client, &controls, &producer).await {
        // What it cannot say, the changes do: which epochs are taken.
        Err(Error::State { .. }) if resync => None,
        state => state?,
    };

    if let Some(state) = &state
        && !resync
    {
        check_partition_by(config, state)?;
    }
    let epoch = state.as_ref().map_or(Epoch::FIRST, |state| state.epoch);
    let open_offsets = open(config, client, &marker, &mut producer, epoch).await?;
    let mut tails = Vec::new();
    let mut epochs = Vec::new();
    for (partition, &open_offset) in open_offsets.iter().enumerate() {
        let log = Reading { client, controls: &controls, topic: config.topic(), partition };
        tails.push(match (&state, resync) {
            (Some(state), false) => log.tail(state, open_offset).await?,
            _ => Tail::Unknown,
        });
        if state.is_none() {
            epochs.push(log.epoch(open_offset, resync).await?);
        }
    }
    let (tails, lacking) = Tails::new(tails).complete();
    for (partition, lacks) in lacking {
        let mut value = Frame::prefix(control).to_vec();
        lacks.control().encode(&mut value);
        let to = producer.register(&changes(config, partition));
        producer.append(to, None, &[&value], (config.clock)()).map_err(log("append"))?;
    }
    producer.drain().await.map_err(log("append"))?;
    let earlier_epoch = epochs.into_iter().flatten().max();
    let tail = tails.common();
    Ok(TakenOver { producer, control, state, tail, tails, open_offsets, earlier_epoch, server })
}

/// A partition of the topic of changes.
fn changes(config: &Config, number: usize) -> TopicPartition {
    TopicPartition::new(config.topic(), partition_id(number))
}

fn partition_id(number: usize) -> PartitionId {
    PartitionId::new(i32::try_from(number).unwrap_or(i32::MAX))
}

/// Rows of one identity stay where its past is. (A topic with another count of partitions is refused
/// when it is to be made.)
fn check_partition_by(config: &Config, state: &State) -> Result<(), Error> {
    match state.partition_by {
        Some(found) if found != config.partition_by => {
            Err(Error::PartitionBy { found, wanted: config.partition_by })
        }
        _ => Ok(()),
    }
}

/// Puts an open marker into every partition; where they stand.
async fn open(
    config: &Config,
    client: &Client,
    marker: &Marker<'_>,
    producer: &mut Producer,
    epoch: Epoch,
) -> Result<Vec<Offset>, Error> {
    let topic = config.topic();
    for partition in 0..config.partitions {
        marker.append(producer, &changes(config, partition), None, epoch)?;
    }
    producer.drain().await.map_err(log("append the open marker"))?;
    let mut offsets = Vec::new();
    for partition in 0..config.partitions {
        // Nobody but us can append any more: the marker is the last record.
        let end = client.list_offsets(&topic, partition_id(partition), OffsetAt::Latest).await;
        offsets.push(Offset::new(end.map_err(log("find the end of the topic"))?.get() - 1));
    }
    Ok(offsets)
}

/// Every id that the schema of control records has had: what another version wrote is read too.
async fn controls(registry: &Registry, now: SchemaId) -> Result<Vec<SchemaId>, Error> {
    let versions = registry.versions(CONTROL_SUBJECT).await.map_err(|source| Error::Registry {
        subject: CONTROL_SUBJECT.into(),
        source: Box::new(source),
    })?;
    Ok(versions.into_iter().map(|(_, id)| id).chain([now]).collect())
}

async fn create_topics(config: &Config, client: &Client) -> Result<(), Error> {
    let spec = |name: String, partitions: i32, configs: &[(&str, &str)]| TopicSpec {
        name,
        partitions,
        replication_factor: config.replication_factor,
        configs: configs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    };
    let partitions = i32::try_from(config.partitions).unwrap_or(i32::MAX);
    let changes = spec(config.topic(), partitions, &[]);
    client.create_topic(&changes).await.map_err(log("create the topic"))?;
    client
        .create_topic(&spec(config.state_topic(), 1, &[("cleanup.policy", "compact")]))
        .await
        .map_err(log("create the state topic"))?;
    Ok(())
}

/// What every open marker of a take-over says.
struct Marker<'a> {
    control: SchemaId,
    server: &'a ServerIdentity,
    clock: fn() -> i64,
}

impl Marker<'_> {
    fn append(
        &self,
        producer: &mut Producer,
        to: &TopicPartition,
        key: Option<&[u8]>,
        epoch: Epoch,
    ) -> Result<(), Error> {
        let mut value = Frame::prefix(self.control).to_vec();
        let (producer_id, producer_epoch) = identity(producer);
        let server = self.server.0.as_str();
        Control::Open { producer_id, producer_epoch, epoch, server }.encode(&mut value);
        let to = producer.register(to);
        producer
            .append(to, key, &[&value], (self.clock)())
            .map_err(log("append the open marker"))?;
        Ok(())
    }
}

/// The producer's id and epoch as markers carry them.
pub(crate) fn identity(producer: &Producer) -> (u64, u64) {
    (
        u64::try_from(producer.producer_id().get()).unwrap_or_default(),
        u64::try_from(producer.producer_epoch().get()).unwrap_or_default(),
    )
}

/// The state of the last writer before our open marker.
async fn read_state(
    config: &Config,
    client: &Client,
    controls: &[SchemaId],
    producer: &Producer,
) -> Result<Option<State>, Error> {
    let topic = config.state_topic();
    let log = Reading { client, controls, topic: topic.clone(), partition: 0 };
    let (start, end) = (log.offset(OffsetAt::Earliest).await?, log.offset(OffsetAt::Latest).await?);
    let mut state = None;
    // Whoever opened last is the one whose state counts; before any marker, anyone's.
    let mut opened: Option<(u64, u64)> = None;
    let own = identity(producer);
    log.range(start, end, |batch, offset, key, value| {
        let writer = batch_identity(batch);
        if key == Some(OPEN_KEY) {
            if let Ok(Control::Open { producer_id, producer_epoch, .. }) =
                Frame::parse(value).map_err(drop).and_then(|frame| {
                    if !controls.contains(&frame.schema) {
                        return Err(());
                    }
                    Control::decode(frame.message).map_err(drop)
                })
                && writer == (producer_id, producer_epoch)
                && writer != own
            {
                opened = Some(writer);
            }
        } else if key == Some(STATE_KEY) && opened.is_none_or(|opened| opened == writer) {
            let parsed = serde_json::from_slice(value)
                .map_err(|source| Error::State { topic: format!("{topic}@{offset}"), source })?;
            state = Some(parsed);
        }
        Ok(())
    })
    .await?;
    Ok(state)
}

/// A partition of a topic, being read.
struct Reading<'a> {
    client: &'a Client,
    controls: &'a [SchemaId],
    topic: String,
    partition: usize,
}

impl Reading<'_> {
    /// The newest place below our open marker, among the records of the writer before us.
    async fn tail(&self, state: &State, open_offset: Offset) -> Result<Tail, Error> {
        let known = state.partition(self.partition);
        let start = self.offset(OffsetAt::Earliest).await?.get();
        // Below the last writer's own marker stands what it had read itself, and it is in its state.
        let floor = start.max(known.open_offset);
        let writer = (state.producer_id, state.producer_epoch);
        let mut window = TAIL_WINDOW;
        loop {
            let from = floor.max(open_offset.get() - window);
            let mut scan = TailScan::new(self.controls);
            self.range(Offset::new(from), open_offset, |batch, offset, _, value| {
                if batch_identity(batch) != writer {
                    return Ok(());
                }
                scan.record(value).map_err(|source| self.unreadable(offset, source))
            })
            .await?;
            match scan.tail() {
                Tail::Unknown if from > floor => window *= 2,
                // Retention may have taken rows of the snapshot of which the state does not know.
                Tail::Unknown if state.phase == Phase::Snapshot && start > known.open_offset => {
                    return Ok(Tail::Unknown);
                }
                Tail::Unknown => return Ok(known.tail()),
                // An idle position that was told late is no step back.
                Tail::At { place, .. }
                    if place < known.place && state.phase == Phase::Streaming =>
                {
                    return Ok(Tail::At { place: known.place, whole: known.whole });
                }
                found => return Ok(found),
            }
        }
    }

    /// The newest epoch of a topic whose state is gone: of its last record that has a place. Told
    /// so, it passes over records that cannot be read: those around them name the epoch as well.
    async fn epoch(&self, open_offset: Offset, lenient: bool) -> Result<Option<Epoch>, Error> {
        let start = self.offset(OffsetAt::Earliest).await?.get();
        let mut window = TAIL_WINDOW;
        loop {
            let from = start.max(open_offset.get() - window);
            let mut scan = TailScan::new(self.controls);
            self.range(Offset::new(from), open_offset, |_, offset, _, value| {
                match scan.record(value) {
                    Err(source) if !lenient => Err(self.unreadable(offset, source)),
                    Ok(()) | Err(_) => Ok(()),
                }
            })
            .await?;
            if scan.epoch().is_some() || from == start {
                return Ok(scan.epoch());
            }
            window *= 2;
        }
    }

    fn unreadable(&self, offset: i64, source: TailError) -> Error {
        Error::Tail { topic: self.topic.clone(), offset, source }
    }

    async fn offset(&self, at: OffsetAt) -> Result<Offset, Error> {
        let offset = self.client.list_offsets(&self.topic, partition_id(self.partition), at).await;
        offset.map_err(log("find the ends of a topic"))
    }

    /// Gives every record of `[from, end)` to `take`: its batch, offset, key and value.
    async fn range(
        &self,
        from: Offset,
        end: Offset,
        mut take: impl FnMut(&RecordBatch, i64, Option<&[u8]>, &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if from >= end {
            return Ok(());
        }
        let partition = TopicPartition::new(self.topic.clone(), partition_id(self.partition));
        let corrupt = |source| {
            let partition = partition.clone();
            log("read a topic")(tailwater_kafka::Error::CorruptBatch {
                partition,
                offset: from,
                source,
            })
        };
        let mut reader = self.client.reader(ReaderConfig {
            max_bytes: TAIL_BYTES,
            ..ReaderConfig::new(partition.clone(), from)
        });
        while reader.position() < end {
            for batch in reader.next().await.map_err(log("read a topic"))? {
                for record in batch.records(Limits::default()).map_err(corrupt)? {
                    let record = record.map_err(corrupt)?;
                    if record.offset < from || record.offset >= end {
                        continue;
                    }
                    let value = record.value.as_deref().unwrap_or_default();
                    take(&batch, record.offset.get(), record.key.as_deref(), value)?;
                }
            }
        }
        Ok(())
    }
}

fn batch_identity(batch: &RecordBatch) -> (u64, u64) {
    (
        u64::try_from(batch.producer_id().get()).unwrap_or(u64::MAX),
        u64::try_from(batch.producer_epoch().get()).unwrap_or(u64::MAX),
    )
}
