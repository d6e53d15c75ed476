//! Who a client believes it talks to, and who it says it is: TLS and SASL.
//!
//! Secrets live here and nowhere else; no `Debug` shows them.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::error::Error;

/// How connections to a cluster are secured; the default is not at all.
#[derive(Debug, Clone, Default)]
pub struct Security {
    /// Encrypts, and proves the brokers' identity.
    pub tls: Option<TlsConfig>,
    /// Proves ours.
    pub sasl: Option<SaslConfig>,
}

/// TLS towards brokers.
#[derive(Clone, Default)]
pub struct TlsConfig {
    /// Certificates (PEM) of the authorities that sign brokers' certificates; `None` for those
    /// that browsers believe.
    pub authorities_pem: Option<Vec<u8>>,
    /// Our own certificate chain and key (PEM), where brokers ask for one.
    pub identity_pem: Option<Vec<u8>>,
}

impl std::fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsConfig").finish_non_exhaustive()
    }
}

/// A user of the cluster.
#[derive(Clone)]
pub struct SaslConfig {
    /// How the password is proved.
    pub mechanism: SaslMechanism,
    /// The user's name.
    pub username: String,
    /// The user's password.
    pub password: String,
}

impl std::fmt::Debug for SaslConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SaslConfig")
            .field("mechanism", &self.mechanism)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// How a password is proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    /// Sent as it is: only over TLS.
    Plain,
    /// Challenge and response over SHA-256; the broker proves that it knows the password too.
    ScramSha256,
    /// The same over SHA-512.
    ScramSha512,
}

impl SaslMechanism {
    /// The protocol's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// [`Security`], its certificates read.
#[derive(Clone, Default)]
pub(super) struct Secured {
    tls: Option<TlsConnector>,
    pub(super) sasl: Option<Arc<SaslConfig>>,
}

impl Secured {
    pub(super) fn new(security: &Security) -> Result<Self, Error> {
        let tls = security.tls.as_ref().map(connector).transpose()?;
        Ok(Self { tls, sasl: security.sasl.clone().map(Arc::new) })
    }

    /// Encrypts `stream` to `address` (`host:port`), or gives it back where TLS is off.
    pub(super) async fn encrypt(
        &self,
        address: &str,
        stream: TcpStream,
    ) -> std::io::Result<Result<TlsStream<TcpStream>, TcpStream>> {
        let Some(tls) = &self.tls else {
            return Ok(Err(stream));
        };
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
        tls.connect(name, stream).await.map(Ok)
    }
}

fn connector(config: &TlsConfig) -> Result<TlsConnector, Error> {
    let bad = |problem: &str| Error::TlsConfig { problem: problem.to_owned() };
    let mut roots = RootCertStore::empty();
    match &config.authorities_pem {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|_| bad("an authority is not PEM"))?;
                roots.add(certificate).map_err(|_| bad("an authority is not a certificate"))?;
            }
            if roots.is_empty() {
                return Err(bad("the authorities' file holds no certificate"));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(&error.to_string()))?
        .with_root_certificates(roots);
    let client = match &config.identity_pem {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            let chain = chain.map_err(|_| bad("our certificate is not PEM"))?;
            let key = PrivateKeyDer::from_pem_slice(pem)
                .map_err(|_| bad("our identity's file holds no private key"))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| bad(&error.to_string()))?
        }
    };
    Ok(TlsConnector::from(Arc::new(client)))
}
