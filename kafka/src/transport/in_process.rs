//! A connection to the node of the same process: typed calls, nothing is encoded.
//!
//! A task of its own drives the requests, as a broker's connection task does: they start in the
//! order in which they were called, and a caller that goes away stops none half way.

use std::{sync::Arc, time::Duration};

use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use super::Settings;
use crate::{
    error::Error,
    node::{Node, RequestContext},
    wire::{ApiKey, KafkaString, Request, RequestHeader, Response, supports},
};

/// What stands for an address in errors.
pub(super) const ADDRESS: &str = "the log of this process";

/// Requests between call and task.
const QUEUE: usize = 64;

#[derive(Debug)]
pub(super) struct InProcess {
    client_id: KafkaString,
    request_timeout: Duration,
    requests: mpsc::Sender<Call>,
    /// Aborted when the connection is dropped.
    _task: JoinSet<()>,
}

#[derive(Debug)]
struct Call {
    header: RequestHeader,
    request: Request,
    answer: oneshot::Sender<Response>,
}

impl InProcess {
    pub(super) fn new(node: Arc<dyn Node>, settings: &Settings) -> Self {
        let (requests, calls) = mpsc::channel(QUEUE);
        let mut task = JoinSet::new();
        task.spawn(drive(node, calls));
        Self {
            client_id: settings.client_id.clone(),
            request_timeout: settings.request_timeout,
            requests,
            _task: task,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    pub(super) async fn call(&self, version: i16, request: Request) -> Result<Response, Error> {
        let api = request.api();
        let (answer, answered) = oneshot::channel();
        let header = RequestHeader {
            api,
            version,
            correlation_id: 0,
            client_id: Some(self.client_id.clone()),
        };
        let exchange = async {
            self.requests.send(Call { header, request, answer }).await.map_err(|_| ())?;
            answered.await.map_err(|_| ())
        };
        match timeout(self.request_timeout, exchange).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(())) => Err(lost()),
            Err(_) => Err(timed_out(api, self.request_timeout)),
        }
    }
}

async fn drive(node: Arc<dyn Node>, mut calls: mpsc::Receiver<Call>) {
    let mut running: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(()) = running.next(), if !running.is_empty() => {}
            call = calls.recv() => match call {
                Some(call) => running.push(answer(Arc::clone(&node), call).boxed()),
                None => return,
            }
        }
    }
}

async fn answer(node: Arc<dyn Node>, call: Call) {
    let Call { header, request, answer } = call;
    debug_assert!(supports(node.supported_apis(), header.api, header.version));
    let response = node.handle(&RequestContext::IN_PROCESS, &header, request).await;
    // Nobody waits any more: the call was dropped.
    drop(answer.send(response));
}

fn lost() -> Error {
    Error::ConnectionLost { address: ADDRESS.to_owned() }
}

fn timed_out(api: ApiKey, after: Duration) -> Error {
    Error::RequestTimeout { address: ADDRESS.to_owned(), api, after }
}
