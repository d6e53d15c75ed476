//! Encryption as `sslmode` asks for it, in the words of PostgreSQL's own clients.
//!
//! | `sslmode` | encrypted | certificate |
//! |---|---|---|
//! | `disable` | never | |
//! | `allow`, `prefer` (default) | if the server can | not checked |
//! | `require` | always | not checked, unless `sslrootcert` is given: then as `verify-ca` |
//! | `verify-ca` | always | signed by a known authority |
//! | `verify-full` | always | and made out to this host |
//!
//! Known authorities are those of `sslrootcert` (a PEM file), else Mozilla's.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tailwater_change::Problem;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::connect::ConnectError;
use crate::gathering::Gathering;

/// How much encryption the URL asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SslMode {
    /// Never.
    Disable,
    /// If the server can.
    Prefer,
    /// Always.
    Require,
    /// Always, with a certificate of a known authority.
    VerifyCa,
    /// Always, with a certificate for this host.
    VerifyFull,
}

impl SslMode {
    /// The mode called `name`.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn parse(name: &str) -> Result<Self, Problem> {
        Ok(match name {
            "disable" => Self::Disable,
            "allow" | "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            other => {
                return Err(Problem::new(
                    format!("`url` has sslmode={other}"),
                    "use disable, prefer, require, verify-ca or verify-full",
                ));
            }
        })
    }
}

/// How sockets are encrypted.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    mode: SslMode,
    config: Option<Arc<ClientConfig>>,
}

impl Tls {
    /// Encryption of `mode`, trusting the authorities in the PEM file `roots`.
    ///
    /// # Errors
    /// The file cannot be used.
    pub(crate) fn new(mode: SslMode, roots: Option<PathBuf>) -> Result<Self, Problem> {
        if mode == SslMode::Disable {
            return Ok(Self { mode, config: None });
        }
        let provider = Arc::new(ring::default_provider());
        let check = match (mode, &roots) {
            (SslMode::VerifyFull, _) => Check::Host,
            (SslMode::VerifyCa, _) | (SslMode::Require, Some(_)) => Check::Authority,
            _ => Check::Nothing,
        };
        let inner = match check {
            Check::Nothing => None,
            Check::Authority | Check::Host => Some(verifier(roots, &provider)?),
        };
        let signatures = provider.signature_verification_algorithms;
        let verifier = Verifier { check, inner, signatures };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Problem::new(format!("TLS cannot be set up: {error}"), REPORT))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(Self { mode, config: Some(Arc::new(config)) })
    }

    /// Encrypts `socket` to `host`, where the server can and the mode wants it.
    ///
    /// # Errors
    /// The server cannot although it must, its certificate does not pass, or it went away.
    pub(crate) async fn wrap(
        &self,
        mut socket: TcpStream,
        host: &str,
        address: &str,
    ) -> Result<Socket, ConnectError> {
        let Some(config) = &self.config else {
            return Ok(Socket::Tcp(Gathering::new(socket)));
        };
        let lost = |source: io::Error| ConnectError::Unavailable {
            address: address.to_owned(),
            source: source.into(),
        };
        // SSLRequest: length, then the magic number. The answer is one byte, before anything else.
        socket.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await.map_err(lost)?;
        let answer = socket.read_u8().await.map_err(lost)?;
        match answer {
            b'S' => {}
            b'N' if self.mode == SslMode::Prefer => {
                return Ok(Socket::Tcp(Gathering::new(socket)));
            }
            _ => {
                return Err(ConnectError::Refused(Problem::new(
                    format!("{address} does not encrypt, and `url` asks for it by sslmode"),
                    "switch it on at the server (ssl = on), or use sslmode=disable",
                )));
            }
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|error| {
            ConnectError::Refused(Problem::new(
                format!("{host} is not a name that TLS knows: {error}"),
                "use a host name or an IP address",
            ))
        })?;
        let encrypted =
            TlsConnector::from(Arc::clone(config)).connect(name, Gathering::new(socket)).await;
        let encrypted = encrypted.map_err(|error| match error.get_ref() {
            Some(inner) if inner.is::<Error>() => ConnectError::Refused(Problem::new(
                format!("encryption with {address} failed: {inner}"),
                "give the server's authority as sslrootcert, use the host name that the \
                 certificate names, or choose another sslmode",
            )),
            _ => lost(error),
        })?;
        Ok(Socket::Tls(Box::new(encrypted)))
    }
}

const REPORT: &str = "report this: it is a mistake of Tailwater's";

fn verifier(
    roots: Option<PathBuf>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, Problem> {
    let mut store = RootCertStore::empty();
    let remedy = "give a readable PEM file with the authority's certificate as sslrootcert";
    match roots {
        None => store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let bad = |error: &dyn std::fmt::Display| {
                Problem::new(format!("sslrootcert {}: {error}", path.display()), remedy)
            };
            for certificate in CertificateDer::pem_file_iter(&path).map_err(|e| bad(&e))? {
                let certificate = certificate.map_err(|e| bad(&e))?;
                store.add(certificate).map_err(|e| bad(&e))?;
            }
        }
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider))
        .build()
        .map_err(|error| Problem::new(format!("sslrootcert: {error}"), remedy))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Nothing,
    Authority,
    Host,
}

/// Checks as much of a certificate as the mode says; signatures always.
#[derive(Debug)]
struct Verifier {
    check: Check,
    inner: Option<Arc<WebPkiServerVerifier>>,
    signatures: rustls::crypto::WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(inner) = &self.inner else { return Ok(ServerCertVerified::assertion()) };
        let verified =
            inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.check == Check::Authority => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.signatures)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.signatures)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_schemes()
    }
}

/// A connection to a server.
#[derive(Debug)]
pub(crate) enum Socket {
    /// Plain TCP.
    Tcp(Gathering),
    /// A Unix socket.
    Unix(UnixStream),
    /// TCP with TLS.
    Tls(Box<TlsStream<Gathering>>),
}

impl Socket {
    /// From here on, lets what comes gather while much does.
    pub(crate) fn gather(&mut self) {
        match self {
            Self::Tcp(socket) => socket.gather(),
            // Seldom a server's that is replicated: watched as any other.
            Self::Unix(_) => {}
            Self::Tls(socket) => socket.get_mut().0.gather(),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(socket) => Pin::new(socket).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Unix(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Tls(socket) => Pin::new(socket).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Self::Unix(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}
