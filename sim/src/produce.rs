//! Producers and readers on topics. What is acknowledged is read once and in order, and what was
//! read once under an offset stands there for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tailwater_kafka::{
    Client, Limits, Offset, OffsetAt, PartitionHandle, PartitionId, Producer, ProducerConfig,
    ReaderConfig, RecordNumber, TopicPartition, TopicSpec,
};
use tokio::task::JoinSet;

use crate::chaos;
use crate::dice::{Dice, ms};
use crate::machine::{Machine, Make};
use crate::world::World;

/// How long the system may take to do what it owes once nothing goes wrong any more.
const PATIENCE: Duration = Duration::from_secs(180);

/// The values at the offsets of a partition.
type Values = BTreeMap<i64, String>;

/// What was done and seen.
#[derive(Debug, Default)]
struct History {
    /// By partition and producer's life: what it appended, in order.
    appended: BTreeMap<(TopicPartition, String), Vec<String>>,
    acknowledged: BTreeSet<String>,
    read: BTreeMap<TopicPartition, Values>,
    committed: BTreeMap<TopicPartition, Commits>,
}

impl History {
    /// The partitions of which a commit has been acknowledged.
    fn committed(&self) -> BTreeSet<TopicPartition> {
        let done = self.committed.iter().filter(|(_, commits)| commits.is_any_done);
        done.map(|(partition, _)| partition.clone()).collect()
    }
}

/// Where a group said that it is on a partition.
#[derive(Debug, Default)]
struct Commits {
    asked: BTreeSet<Offset>,
    is_any_done: bool,
}

/// The readers' group.
const GROUP: &str = "readers";

/// A run of this workload.
#[derive(Debug, Clone)]
struct Run {
    world: World,
    brokers: Vec<String>,
    partitions: Vec<TopicPartition>,
    history: Arc<Mutex<History>>,
    /// Records of each producer, and the pause between two.
    records: usize,
    pause: Duration,
}

/// Runs the workload to its end.
pub(crate) async fn run(world: &World) -> Result<(), String> {
    let dice = world.dice("produce");
    let make = Make::throw(&dice);
    let machines = Machine::start_all(world, &make);
    let brokers: Vec<String> = machines.iter().map(|machine| machine.address()).collect();
    let topics = topics(&dice, world.replication_factor());
    let partitions = topics.iter().flat_map(|topic| {
        (0..topic.partitions)
            .map(|number| TopicPartition::new(topic.name.clone(), PartitionId::new(number)))
    });
    let run = Run {
        world: world.clone(),
        brokers,
        partitions: partitions.collect(),
        history: Arc::default(),
        records: dice.pick(10..120),
        pause: dice.time(ms(1)..ms(400)),
    };
    let hosts: Vec<String> =
        (0..dice.pick(1..4)).map(|number| format!("writer-{number}")).collect();
    let mut clients = hosts.clone();
    clients.push("reader".to_owned());
    let mut readers = JoinSet::new();
    let mut writers = JoinSet::new();
    let working = async {
        run.make_topics(&topics).await;
        for partition in run.partitions.clone() {
            readers.spawn(run.clone().follow(partition));
        }
        for host in hosts {
            writers.spawn(run.clone().write(host));
        }
        let time = dice.time(ms(2000)..ms(40_000));
        chaos::run(world, &machines, &clients, time).await;
        while writers.join_next().await.is_some() {}
    };
    let limit = PATIENCE + Duration::from_secs(60);
    if tokio::time::timeout(limit, working).await.is_err() {
        return Err("producers do not get through although nothing goes wrong any more".into());
    }
    run.write_last().await?;
    chaos::check_machines(&machines).await?;
    let judged = tokio::time::timeout(PATIENCE, run.judge()).await;
    judged.unwrap_or_else(|_| Err("the log cannot be read to its end".into()))
}

fn topics(dice: &Dice, replication_factor: i16) -> Vec<TopicSpec> {
    (0..dice.pick(1..3))
        .map(|number| {
            let partitions = i32::try_from(dice.pick(1..4)).unwrap_or(1);
            TopicSpec::new(format!("topic-{number}"), partitions, replication_factor)
        })
        .collect()
}

impl Run {
    async fn make_topics(&self, topics: &[TopicSpec]) {
        let client = self.world.client("reader", &self.brokers).await;
        for topic in topics {
            while let Err(error) = client.create_topic(topic).await {
                self.world.trace.note("reader", format_args!("{}: {error}", topic.name));
                tokio::time::sleep(ms(200)).await;
            }
        }
    }

    /// Writes all its records, in one life of a producer after the other.
    async fn write(self, host: String) {
        let dice = self.world.dice(&host);
        let mut left = self.records;
        let transactional_id = dice.chance(0.5).then(|| host.clone());
        for life in 0.. {
            let client = self.world.client(&host, &self.brokers).await;
            let config = ProducerConfig {
                transactional_id: transactional_id.clone(),
                batch_bytes: 1500,
                linger: dice.time(ms(1)..ms(200)),
                delivery_timeout: Duration::from_secs(60),
                ..ProducerConfig::default()
            };
            let Ok(producer) = client.producer(config).await else { continue };
            let mut writer = Writer {
                run: &self,
                dice: &dice,
                name: format!("{host}.{life}"),
                producer,
                handles: Vec::new(),
                values: Vec::new(),
                told: 0,
            };
            left -= writer.live(left).await;
            if left == 0 {
                return;
            }
        }
    }

    /// One more record for every partition: whatever has happened, writes go on.
    async fn write_last(&self) -> Result<(), String> {
        let client = self.world.client("reader", &self.brokers).await;
        let failed = |error| format!("nothing can be written any more: {error:?}");
        let producer = client.producer(ProducerConfig::default()).await.map_err(failed)?;
        let dice = self.world.dice("last");
        let mut writer = Writer {
            run: self,
            dice: &dice,
            name: "last".to_owned(),
            producer,
            handles: Vec::new(),
            values: Vec::new(),
            told: 0,
        };
        let partitions = self.partitions.iter();
        writer.handles = partitions.map(|one| writer.producer.register(one)).collect();
        for (number, partition) in self.partitions.iter().enumerate() {
            writer.append(number, partition, number).map_err(failed)?;
        }
        writer.producer.drain().await.map_err(failed)?;
        writer.learn();
        Ok(())
    }

    /// Reads a partition for ever, and looks whether what it reads stays.
    async fn follow(self, partition: TopicPartition) {
        let client = self.world.client("reader", &self.brokers).await;
        let dice = self.world.dice(&format!("reader {partition}"));
        let mut from = Offset::ZERO;
        loop {
            let config = ReaderConfig {
                max_bytes: 4096,
                retry_timeout: Duration::from_secs(20),
                ..ReaderConfig::new(partition.clone(), from)
            };
            let mut reader = client.reader(config);
            loop {
                match reader.next().await {
                    Ok(batches) => {
                        let values = values(batches);
                        self.see(&partition, values.into_iter().collect());
                        if dice.chance(0.2) {
                            self.commit(&client, &partition, reader.position()).await;
                        }
                    }
                    Err(error @ tailwater_kafka::Error::OffsetOutOfRange { .. }) => {
                        self.world.fail(format!("{partition} lost what was read: {error}"));
                        return;
                    }
                    Err(error) => {
                        let what = format_args!("{partition}: {error}");
                        self.world.trace.note("reader", what);
                        break;
                    }
                }
            }
            from = reader.position();
        }
    }

    async fn commit(&self, client: &Client, partition: &TopicPartition, offset: Offset) {
        let of = || partition.clone();
        self.history().committed.entry(of()).or_default().asked.insert(offset);
        if client.commit_offsets(GROUP, &[(of(), offset)]).await.is_ok() {
            self.history().committed.entry(of()).or_default().is_any_done = true;
        }
    }

    fn see(&self, partition: &TopicPartition, values: Values) {
        let mut history = self.history();
        let read = history.read.entry(partition.clone()).or_default();
        for (offset, value) in values {
            let known = read.entry(offset).or_insert_with(|| value.clone());
            if *known != value {
                let what = format!("{partition} at {offset}: {known} was read, now {value}");
                self.world.fail(what);
            }
        }
    }

    /// Reads everything once more and compares it with what was done and seen.
    async fn judge(&self) -> Result<(), String> {
        let client = self.world.client("reader", &self.brokers).await;
        let mut kept = BTreeMap::new();
        for partition in &self.partitions {
            kept.insert(partition.clone(), self.read_all(&client, partition).await?);
        }
        // Readers go on: what is done while the group is asked for need not be in the answer.
        let committed = self.history().committed();
        let groups = client.fetch_offsets(GROUP, &self.partitions).await;
        let groups = groups.map_err(|error| format!("ask for the group's offsets: {error:?}"))?;
        let history = self.history();
        check_once(&history, &kept)?;
        check_order(&history, &kept)?;
        check_group(&history, &committed, self.partitions.iter().zip(groups))?;
        for (partition, read) in &history.read {
            for (offset, value) in read {
                let now = kept.get(partition).and_then(|values| values.get(offset));
                if now != Some(value) {
                    return Err(format!("{partition} at {offset}: {value} was read, now {now:?}"));
                }
            }
        }
        let records: usize = kept.values().map(BTreeMap::len).sum();
        let what = format_args!("{records} kept, {} acknowledged", history.acknowledged.len());
        self.world.trace.note("oracle", what);
        Ok(())
    }

    async fn read_all(
        &self,
        client: &Client,
        partition: &TopicPartition,
    ) -> Result<Values, String> {
        let TopicPartition { topic, partition: number } = partition.clone();
        let failed = |error| format!("read {partition} again: {error:?}");
        let end = client.list_offsets(&topic, number, OffsetAt::Latest).await.map_err(failed)?;
        let mut reader = client.reader(ReaderConfig::new(partition.clone(), Offset::ZERO));
        let mut all = Values::new();
        while reader.position() < end {
            all.extend(values(reader.next().await.map_err(failed)?));
        }
        Ok(all)
    }

    fn history(&self) -> std::sync::MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One life of a producer.
struct Writer<'a> {
    run: &'a Run,
    dice: &'a Dice,
    name: String,
    producer: Producer,
    handles: Vec<PartitionHandle>,
    /// By record number.
    values: Vec<String>,
    /// How many of them are known to be acknowledged.
    told: usize,
}

impl Writer<'_> {
    /// Appends up to `count` records; how many it did before it died or had done them all.
    async fn live(&mut self, count: usize) -> usize {
        let partitions = self.run.partitions.clone();
        self.handles = partitions.iter().map(|one| self.producer.register(one)).collect();
        let crashes = self.dice.chance(0.3);
        let until = if crashes { self.dice.pick(1..count + 1) } else { count };
        for number in 0..until {
            let at = self.dice.pick(0..partitions.len());
            if let Err(error) = self.append(number, &partitions[at], at) {
                self.note(format_args!("failed: {error}"));
                return number;
            }
            if self.dice.chance(0.1) {
                self.producer.flush();
            }
            tokio::time::sleep(self.dice.time(self.run.pause / 10..self.run.pause * 2)).await;
            self.learn();
        }
        if crashes && until < count {
            self.note(format_args!("crashes after {until}"));
            return until;
        }
        if let Err(error) = self.producer.drain().await {
            self.note(format_args!("failed at its end: {error}"));
        }
        self.learn();
        until
    }

    fn append(
        &mut self,
        number: usize,
        partition: &TopicPartition,
        at: usize,
    ) -> Result<RecordNumber, tailwater_kafka::Error> {
        let padding = "x".repeat(self.dice.pick(0..300));
        let value = format!("{}#{number} {padding}", self.name);
        let parts = [value.as_bytes()];
        let appended =
            self.producer.append(self.handles[at], None, &parts, crate::trace::now_ms())?;
        let key = (partition.clone(), self.name.clone());
        self.run.history().appended.entry(key).or_default().push(value.clone());
        self.values.push(value);
        Ok(appended)
    }

    /// Notes what is acknowledged by now.
    fn learn(&mut self) {
        let below = self.producer.acknowledged().borrow().below.get();
        let below = usize::try_from(below).unwrap_or(usize::MAX).min(self.values.len());
        let mut history = self.run.history();
        history.acknowledged.extend(self.values[self.told..below].iter().cloned());
        self.told = below;
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.run.world.trace.note(&self.name, what);
    }
}

/// What is acknowledged is there, and nothing is there twice.
fn check_once(history: &History, kept: &BTreeMap<TopicPartition, Values>) -> Result<(), String> {
    let mut places = BTreeMap::new();
    for (partition, values) in kept {
        for (offset, value) in values {
            if let Some(first) = places.insert(value, (partition, offset)) {
                return Err(format!("{value} stands at {first:?} and at {partition} {offset}"));
            }
        }
    }
    match history.acknowledged.iter().find(|value| !places.contains_key(value)) {
        Some(lost) => Err(format!("{lost} was acknowledged and is lost")),
        None => Ok(()),
    }
}

/// Of each producer's life a partition has a beginning of what it appended, in its order.
fn check_order(history: &History, kept: &BTreeMap<TopicPartition, Values>) -> Result<(), String> {
    for ((partition, life), appended) in &history.appended {
        let prefix = format!("{life}#");
        let values = kept.get(partition).into_iter().flat_map(BTreeMap::values);
        let found: Vec<&String> = values.filter(|value| value.starts_with(&prefix)).collect();
        if !found.iter().copied().eq(appended.iter().take(found.len())) {
            return Err(format!("{partition}: of {life} there is {found:?}, not {appended:?}"));
        }
    }
    Ok(())
}

/// What the group has committed is one of the offsets it asked for, and not lost: `committed` are the
/// partitions where something was before it was looked at. An earlier offset may stand there: a request
/// that was sent again may arrive twice.
fn check_group<'a>(
    history: &History,
    committed: &BTreeSet<TopicPartition>,
    found: impl Iterator<Item = (&'a TopicPartition, Option<Offset>)>,
) -> Result<(), String> {
    for (partition, found) in found {
        let Some(commits) = history.committed.get(partition) else { continue };
        let is_well = match found {
            Some(found) => commits.asked.contains(&found),
            None => !committed.contains(partition),
        };
        if !is_well {
            return Err(format!("{partition}: the group is at {found:?}, not one of {commits:?}"));
        }
    }
    Ok(())
}

fn values(batches: Vec<tailwater_kafka::RecordBatch>) -> Vec<(i64, String)> {
    let records = batches.into_iter().flat_map(|batch| {
        let records = batch.records(Limits::default()).expect("its checksum is right");
        records.map(|record| record.expect("its checksum is right")).collect::<Vec<_>>()
    });
    let text = |value: Option<bytes::Bytes>| {
        String::from_utf8_lossy(&value.unwrap_or_default()).into_owned()
    };
    records.map(|record| (record.offset.get(), text(record.value))).collect()
}
