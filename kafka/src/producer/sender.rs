//! The producer's sender: a task that carries batches from the ledger to the leaders and answers
//! back.
//!
//! It waits in one place and decides nothing: what may be sent and what a response means is the
//! ledger's. Requests of one connection go out in order; a request holds at most one batch of
//! a partition, and those of all partitions of a leader that are ready together.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};
use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};

use super::{
    Acknowledged, Shared,
    ledger::{Dispatch, DispatchBody, Outcome},
};
use crate::{
    client::{Backoff, Cluster, Connections, Pinned, Route},
    error::{Disposition, Error},
    ids::{Offset, Sequence, TopicPartition},
    transport::Connection,
    wire::{
        ApiKey, ErrorCode, KafkaString,
        produce_request::{PartitionProduceData, ProduceRequestData, TopicProduceData},
        produce_response::ProduceResponseData,
    },
};

/// Bytes of batches in one request, far below the 100 MiB that brokers take.
const REQUEST_BYTES: usize = 8 << 20;

/// All in-sync replicas.
const ACKS_ALL: i16 = -1;

pub(super) async fn run(
    cluster: Arc<Cluster>,
    shared: Arc<Shared>,
    publish: watch::Sender<Acknowledged>,
) {
    // How long a broker may wait for its replicas: less than we wait for it, so that it answers.
    let acks_timeout = cluster.settings.request_timeout / 2;
    let mut sender = Sender {
        acks_timeout_ms: i32::try_from(acks_timeout.as_millis()).unwrap_or(i32::MAX),
        shared,
        publish,
        connections: Arc::new(Mutex::new(Connections::new(cluster))),
        routes: Vec::new(),
        topics: Vec::new(),
        in_flight: FuturesUnordered::new(),
        lookup: None,
        lookup_pause: Backoff::FIRST,
        lookup_after: Instant::now(),
        settled: 0,
    };
    loop {
        let now = Instant::now();
        sender.send(now);
        let alarm = sender.alarm(now);
        if sender.publish() {
            return;
        }
        let event = sender.next(alarm).await;
        sender.apply(event);
    }
}

struct Sender {
    acks_timeout_ms: i32,
    shared: Arc<Shared>,
    publish: watch::Sender<Acknowledged>,
    connections: Arc<Mutex<Connections>>,
    /// By partition handle; `None` until looked up, and again after a failed attempt.
    routes: Vec<Option<Route>>,
    /// By partition handle.
    topics: Vec<Pinned>,
    in_flight: FuturesUnordered<BoxFuture<'static, Round>>,
    lookup: Option<BoxFuture<'static, Looked>>,
    lookup_pause: std::time::Duration,
    lookup_after: Instant,
    /// Acknowledged batches that the producer was woken for.
    settled: u64,
}

/// A request that was answered, or never will be.
struct Round {
    connection: Connection,
    batches: Vec<Sent>,
    result: Result<ProduceResponseData, Arc<Error>>,
}

struct Sent {
    index: usize,
    name: TopicPartition,
    base_sequence: Sequence,
}

struct Looked {
    indexes: Vec<usize>,
    routes: Result<Vec<Result<Route, Error>>, Error>,
}

impl Looked {
    /// By partition: a lookup that failed as a whole failed for each.
    fn flattened(self) -> Vec<(usize, Result<Route, Arc<Error>>)> {
        match self.routes {
            Ok(routes) => {
                let routes = routes.into_iter().map(|route| route.map_err(Arc::new));
                self.indexes.into_iter().zip(routes).collect()
            }
            Err(error) => {
                let error = Arc::new(error);
                let failed = |index| (index, Err(Arc::clone(&error)));
                self.indexes.into_iter().map(failed).collect()
            }
        }
    }
}

enum Event {
    Answered(Round),
    Looked(Looked),
    Woken,
}

impl Sender {
    /// Cancel-safe waits only; what they wait for lives in `self`.
    async fn next(&mut self, alarm: Option<Instant>) -> Event {
        let alarm = async {
            match alarm {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let lookup = async {
            match &mut self.lookup {
                Some(lookup) => lookup.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(round) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                Event::Answered(round)
            }
            looked = lookup => Event::Looked(looked),
            () = self.shared.work.notified() => Event::Woken,
            () = alarm => Event::Woken,
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Answered(round) => self.settle(&round),
            Event::Looked(looked) => self.route(looked),
            Event::Woken => {}
        }
    }

    /// Sends all that may be sent, in rounds of one batch per partition.
    fn send(&mut self, now: Instant) {
        loop {
            let sendable = self.shared.ledger().sendable(now);
            let mut by_connection: BTreeMap<u64, (Connection, Vec<usize>)> = BTreeMap::new();
            let mut homeless = Vec::new();
            for index in sendable {
                if self.routes.len() <= index {
                    self.routes.resize(index + 1, None);
                    self.topics.resize_with(index + 1, Pinned::default);
                }
                match self.routes[index].as_ref().filter(|it| !it.connection.is_closed()) {
                    Some(Route { connection, .. }) => {
                        let entry = by_connection.entry(connection.id());
                        entry.or_insert_with(|| (connection.clone(), Vec::new())).1.push(index);
                    }
                    None => homeless.push(index),
                }
            }
            if by_connection.is_empty() {
                self.look_up(now, homeless);
                return;
            }
            for (connection, indexes) in by_connection.into_values() {
                self.send_round(now, connection, &indexes);
            }
        }
    }

    fn send_round(&mut self, now: Instant, connection: Connection, indexes: &[usize]) {
        let mut request =
            ProduceRequestData::default().with_acks(ACKS_ALL).with_timeout_ms(self.acks_timeout_ms);
        let mut batches = Vec::new();
        let mut bytes = 0;
        for index in indexes {
            let Some(dispatch) = self.shared.ledger().dispatch(now, *index) else {
                continue;
            };
            let Dispatch { partition: index, name, base_sequence, body } = dispatch;
            let body = match body {
                DispatchBody::Encoded(body) => body,
                DispatchBody::Records(builder, stamp) => {
                    let encoded = builder.finish(stamp);
                    let body = encoded.as_ref().map(Clone::clone).unwrap_or_default();
                    self.shared.ledger().encoded(index, base_sequence, encoded);
                    body
                }
            };
            bytes += body.len();
            let partition = PartitionProduceData::default()
                .with_index(name.partition.get())
                .with_records(Some(body));
            push_partition(&mut request.topic_data, &name.topic, partition);
            batches.push(Sent { index, name, base_sequence });
            if bytes >= REQUEST_BYTES {
                break;
            }
        }
        if self.shared.ledger().failed().is_some() || batches.is_empty() {
            return;
        }
        self.in_flight.push(
            async move {
                let result = connection.call(request).await.map_err(Arc::new);
                Round { connection, batches, result }
            }
            .boxed(),
        );
    }

    fn settle(&mut self, round: &Round) {
        let now = Instant::now();
        let mut ledger = self.shared.ledger();
        for Sent { index, name, base_sequence } in &round.batches {
            let outcome = match &round.result {
                Err(error) => Outcome::Lost(Arc::clone(error)),
                Ok(response) => outcome(&round.connection, name, response),
            };
            if ledger.settle(now, *index, *base_sequence, outcome) {
                self.routes[*index] = None;
            }
        }
    }

    /// Starts to look up the leaders of `indexes`, one lookup at a time.
    fn look_up(&mut self, now: Instant, indexes: Vec<usize>) {
        if indexes.is_empty() || self.lookup.is_some() || now < self.lookup_after {
            return;
        }
        let ledger = self.shared.ledger();
        let names: Vec<_> = indexes.iter().map(|index| ledger.name(*index)).collect();
        drop(ledger);
        let connections = Arc::clone(&self.connections);
        self.lookup = Some(
            async move {
                let routes = connections.lock().await.leaders(&names).await;
                Looked { indexes, routes }
            }
            .boxed(),
        );
    }

    fn route(&mut self, looked: Looked) {
        self.lookup = None;
        let mut complete = true;
        let mut ledger = self.shared.ledger();
        for (index, route) in looked.flattened() {
            let of = ledger.name(index);
            let checked =
                route.and_then(|route| self.topics[index].check(&of, route).map_err(Arc::new));
            match checked {
                Ok(route) => self.routes[index] = Some(route),
                Err(error) => {
                    complete = false;
                    if error.disposition() == Disposition::Retry {
                        ledger.note_no_leader(index, error);
                    } else {
                        ledger.fail(error);
                    }
                }
            }
        }
        drop(ledger);
        if complete {
            self.lookup_pause = Backoff::FIRST;
        } else {
            self.lookup_after = Instant::now() + self.lookup_pause;
            self.lookup_pause = (self.lookup_pause * 2).min(Backoff::LONGEST);
        }
    }

    /// When to look again though nothing happens.
    fn alarm(&self, now: Instant) -> Option<Instant> {
        let ledger_alarm = self.shared.ledger().next_alarm(now);
        let lookup_alarm =
            (self.lookup.is_none() && self.lookup_after > now).then_some(self.lookup_after);
        ledger_alarm.into_iter().chain(lookup_alarm).min()
    }

    /// Says how far things are; `true` if the producer has failed and the task ends.
    fn publish(&mut self) -> bool {
        let ledger = self.shared.ledger();
        let below = ledger.acknowledged_below();
        let settled = ledger.acknowledged_batches();
        let failed = ledger.failed().map(Arc::clone);
        drop(ledger);
        let ended = failed.is_some();
        self.publish.send_if_modified(|known| {
            let changed = known.below != below || ended;
            // After a failure it stands still, as promised.
            known.below = known.below.max(below);
            known.failed = failed;
            changed
        });
        // Only for news: a producer that waits for room would otherwise wake us in turn, and so on.
        if ended || settled != self.settled {
            self.settled = settled;
            self.shared.settled.notify_one();
        }
        ended
    }
}

fn push_partition(
    topics: &mut Vec<TopicProduceData>,
    topic: &str,
    partition: PartitionProduceData,
) {
    match topics.iter_mut().find(|it| it.name.as_str() == topic) {
        Some(it) => it.partition_data.push(partition),
        None => topics.push(
            TopicProduceData::default()
                .with_name(KafkaString::from(topic.to_owned()))
                .with_partition_data(vec![partition]),
        ),
    }
}

fn outcome(
    connection: &Connection,
    of: &TopicPartition,
    response: &ProduceResponseData,
) -> Outcome {
    let partition = response
        .responses
        .iter()
        .filter(|topic| topic.name.as_str() == of.topic)
        .flat_map(|topic| &topic.partition_responses)
        .find(|partition| partition.index == of.partition.get());
    let Some(partition) = partition else {
        let problem = "without a partition it was sent";
        return Outcome::Lost(Arc::new(connection.unexpected(ApiKey::Produce, problem)));
    };
    match ErrorCode::from(partition.error_code) {
        ErrorCode::None => Outcome::Acknowledged(Offset::new(partition.base_offset)),
        code => {
            let message = partition.error_message.as_ref().map(|it| it.as_str().to_owned());
            Outcome::Refused(code, message)
        }
    }
}
