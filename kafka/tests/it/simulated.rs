//! The client over a network that a test makes up: what a broken line and a silent broker mean.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tailwater_kafka::test_util::MemoryNode;
use tailwater_kafka::wire::{ApiRange, Request, RequestHeader, Response};
use tailwater_kafka::{Client, ClientConfig, Line, Network, Node, RequestContext, Transport};

/// One broker; the first lines to it do what the test says.
#[derive(Debug)]
struct OneBroker {
    node: Arc<MemoryNode>,
    first: Behaviour,
    lines: AtomicUsize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Answers,
    Breaks,
    IsSilent,
}

#[derive(Debug)]
struct TestLine {
    node: Arc<MemoryNode>,
    behaviour: Behaviour,
    closed: AtomicBool,
}

#[async_trait]
impl Network for OneBroker {
    async fn connect(&self, address: &str) -> io::Result<Arc<dyn Line>> {
        if address != "127.0.0.1:9092" {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let first = self.lines.fetch_add(1, Ordering::SeqCst) == 0;
        let behaviour = if first { self.first } else { Behaviour::Answers };
        Ok(Arc::new(TestLine { node: Arc::clone(&self.node), behaviour, closed: false.into() }))
    }
}

#[async_trait]
impl Line for TestLine {
    fn supported_apis(&self) -> Vec<ApiRange> {
        self.node.supported_apis().to_vec()
    }

    async fn call(&self, header: RequestHeader, request: Request) -> io::Result<Response> {
        match self.behaviour {
            _ if self.is_closed() => Err(io::ErrorKind::NotConnected.into()),
            Behaviour::Answers => {
                Ok(self.node.handle(&RequestContext::IN_PROCESS, &header, request).await)
            }
            Behaviour::Breaks => {
                self.close();
                Err(io::ErrorKind::ConnectionReset.into())
            }
            Behaviour::IsSilent => std::future::pending().await,
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
}

async fn lines_needed(first: Behaviour) -> usize {
    let node = Arc::new(MemoryNode::new());
    let network = Arc::new(OneBroker { node, first, lines: AtomicUsize::new(0) });
    let config =
        ClientConfig { request_timeout: Duration::from_secs(5), ..ClientConfig::default() };
    let bootstrap = vec!["127.0.0.1:1".to_owned(), "127.0.0.1:9092".to_owned()];
    let way = Transport::simulated(bootstrap, Arc::clone(&network) as Arc<dyn Network>);
    let client = Client::connect(config, way).await.unwrap();
    client.cluster_id().await.unwrap();
    network.lines.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn a_line_is_used_until_it_breaks_or_stays_silent() {
    assert_eq!(lines_needed(Behaviour::Answers).await, 1);
    assert_eq!(lines_needed(Behaviour::Breaks).await, 2);
    assert_eq!(lines_needed(Behaviour::IsSilent).await, 2);
}

#[tokio::test(start_paused = true)]
async fn no_broker_is_an_error_that_names_the_addresses() {
    let node = Arc::new(MemoryNode::new());
    let first = Behaviour::Answers;
    let network = Arc::new(OneBroker { node, first, lines: AtomicUsize::new(0) });
    let way = Transport::simulated(vec!["127.0.0.1:1".to_owned()], network);
    let error = Client::connect(ClientConfig::default(), way).await.unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}
