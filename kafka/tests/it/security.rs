//! TLS and SASL towards a broker.

use std::sync::Arc;

use async_trait::async_trait;
use tailwater_kafka::{
    BrokerId, Client, Disposition, Error, Node, ProducerConfig, RequestContext, SaslConfig,
    SaslMechanism, Security, ServerConfig, TlsConfig, Transport, serve,
    test_util::MemoryNode,
    wire::{
        ApiKey, ApiRange, ErrorCode, KafkaString, Request, RequestHeader, Response,
        sasl_authenticate_response::SaslAuthenticateResponseData,
        sasl_handshake_response::SaslHandshakeResponseData,
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};
use tokio_util::sync::CancellationToken;

use crate::harness::{at, quick, read_all, spec};

const AUTHORITY: &[u8] = include_bytes!("../testdata/tls/authority.pem");
const CERTIFICATE: &[u8] = include_bytes!("../testdata/tls/broker.pem");
const KEY: &[u8] = include_bytes!("../testdata/tls/broker.key.pem");

/// A broker that knows one user.
struct Guarded {
    inner: MemoryNode,
    apis: Vec<ApiRange>,
}

#[async_trait]
impl Node for Guarded {
    fn node_id(&self) -> BrokerId {
        self.inner.node_id()
    }

    fn supported_apis(&self) -> &[ApiRange] {
        &self.apis
    }

    async fn handle(
        &self,
        context: &RequestContext,
        header: &RequestHeader,
        request: Request,
    ) -> Response {
        match request {
            Request::SaslHandshake(request) => {
                let known = request.mechanism.as_str() == "PLAIN";
                let code =
                    if known { ErrorCode::None } else { ErrorCode::UnsupportedSaslMechanism };
                SaslHandshakeResponseData::default()
                    .with_error_code(code.into())
                    .with_mechanisms(vec![KafkaString::from_static("PLAIN")])
                    .into()
            }
            Request::SaslAuthenticate(request) => {
                let known = &request.auth_bytes[..] == b"\0capture\0secret";
                let code =
                    if known { ErrorCode::None } else { ErrorCode::SaslAuthenticationFailed };
                SaslAuthenticateResponseData::default().with_error_code(code.into()).into()
            }
            Request::ApiVersions(_) => tailwater_kafka::wire::advertised(&self.apis).into(),
            other => self.inner.handle(context, header, other).await,
        }
    }
}

/// A guarded broker, and TLS in front of it: the port of each.
async fn start(shutdown: &CancellationToken) -> (u16, u16, JoinSet<()>) {
    let inner = MemoryNode::new();
    let mut apis = inner.supported_apis().to_vec();
    apis.push(ApiRange::new(ApiKey::SaslHandshake, 0, 1));
    apis.push(ApiRange::new(ApiKey::SaslAuthenticate, 0, 2));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain = listener.local_addr().unwrap().port();
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let encrypted = front.local_addr().unwrap().port();
    inner.advertise("localhost", encrypted);
    let node = Arc::new(Guarded { inner, apis });
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(node, listener, ServerConfig::default(), shutdown.clone()));
    let acceptor = acceptor();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = front.accept().await.unwrap();
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut broker = TcpStream::connect(("127.0.0.1", plain)).await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut stream, &mut broker).await);
            });
        }
    });
    (plain, encrypted, tasks)
}

fn acceptor() -> TlsAcceptor {
    let chain = CertificateDer::pem_slice_iter(CERTIFICATE).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

fn user(mechanism: SaslMechanism, password: &str) -> Option<SaslConfig> {
    Some(SaslConfig { mechanism, username: "capture".to_owned(), password: password.to_owned() })
}

fn our_authority() -> Option<TlsConfig> {
    Some(TlsConfig { authorities_pem: Some(AUTHORITY.to_vec()), identity_pem: None })
}

#[tokio::test]
async fn everything_works_over_tls_with_a_password() {
    let shutdown = CancellationToken::new();
    let (_, port, _tasks) = start(&shutdown).await;
    let security = Security { tls: our_authority(), sasl: user(SaslMechanism::Plain, "secret") };
    let address = vec![format!("localhost:{port}")];
    let transport = Transport::tcp_secured(address, &security).unwrap();
    let client = Client::connect(quick(), transport).await.unwrap();
    client.create_topic(&spec("shop", 1)).await.unwrap();
    let mut producer = client.producer(ProducerConfig::default()).await.unwrap();
    let handle = producer.register(&at("shop", 0));
    for n in 0..100 {
        let value = n.to_string();
        producer.append(handle, None, &[value.as_bytes()], 1).unwrap();
    }
    producer.close().await.unwrap();
    let wanted: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    assert_eq!(read_all(&client, &at("shop", 0)).await, wanted);
}

#[tokio::test]
async fn a_wrong_password_or_mechanism_is_for_the_operator_and_is_not_shown() {
    let shutdown = CancellationToken::new();
    let (port, _, _tasks) = start(&shutdown).await;
    for (sasl, says) in [
        (user(SaslMechanism::Plain, "hunter2"), "authenticate as \"capture\""),
        (user(SaslMechanism::ScramSha512, "hunter2"), "not offered, but PLAIN"),
    ] {
        let security = Security { tls: None, sasl };
        let address = vec![format!("127.0.0.1:{port}")];
        let transport = Transport::tcp_secured(address, &security).unwrap();
        let error = Client::connect(quick(), transport).await.unwrap_err();
        assert!(matches!(error, Error::Authentication { .. }), "{error}");
        assert_eq!(error.disposition(), Disposition::Operator);
        assert!(error.to_string().contains(says), "{error}");
        assert!(!format!("{security:?} {error:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn a_broker_that_our_authorities_do_not_know_is_not_spoken_to() {
    let shutdown = CancellationToken::new();
    let (_, port, _tasks) = start(&shutdown).await;
    let security = Security { tls: Some(TlsConfig::default()), sasl: None };
    let address = vec![format!("localhost:{port}")];
    let transport = Transport::tcp_secured(address, &security).unwrap();
    let error = Client::connect(quick(), transport).await.unwrap_err();
    assert!(matches!(error, Error::NoBroker { .. }), "{error}");

    let nonsense = TlsConfig { authorities_pem: Some(b"nonsense".to_vec()), identity_pem: None };
    let security = Security { tls: Some(nonsense), sasl: None };
    let error = Transport::tcp_secured(Vec::new(), &security).unwrap_err();
    assert!(matches!(error, Error::TlsConfig { .. }), "{error}");
}
