//! TLS around a connection that has asked for it.
//!
//! What is checked says the URL's `ssl-mode`: REQUIRED nothing, VERIFY_CA that a known authority
//! signed the certificate, VERIFY_IDENTITY also that it is made out to the host. Known authorities
//! are those of `ssl-ca` (a PEM file), else Mozilla's.

use std::sync::Arc;

use mysql_async::SslOpts;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio_rustls::TlsConnector;

use super::{Wire, WireError};

/// Goes on under TLS, with the server's certificate checked as `options` say.
pub(super) async fn secure(
    mut wire: Wire,
    options: &SslOpts,
    host: &str,
) -> Result<Wire, WireError> {
    let provider = Arc::new(ring::default_provider());
    let signatures = provider.signature_verification_algorithms;
    let authority = if options.accept_invalid_certs() {
        None
    } else {
        let roots = Arc::new(roots(options).await?);
        let builder = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
        Some(builder.build().map_err(|error| WireError::Login(format!("ssl-ca: {error}")))?)
    };
    let verifier = Verifier { authority, any_host: options.skip_domain_validation(), signatures };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| WireError::Login(format!("TLS cannot be set up: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|error| {
        WireError::Login(format!("{host} is not a name that TLS knows: {error}"))
    })?;
    let secured = TlsConnector::from(Arc::new(config)).connect(name, wire.link).await;
    wire.link = Box::new(secured.map_err(|error| match error.get_ref() {
        Some(inner) if inner.is::<rustls::Error>() => {
            WireError::Login(format!("TLS with {host} failed: {inner}"))
        }
        _ => WireError::Io(error),
    })?);
    Ok(wire)
}

async fn roots(options: &SslOpts) -> Result<RootCertStore, WireError> {
    let mut store = RootCertStore::empty();
    if !options.disable_built_in_roots() {
        store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    for file in options.root_certs() {
        let bad = |error: &dyn std::fmt::Display| WireError::Login(format!("ssl-ca: {error}"));
        let text = file.read().await.map_err(|error| bad(&error))?;
        for certificate in CertificateDer::pem_slice_iter(&text) {
            let certificate = certificate.map_err(|error| bad(&error))?;
            store.add(certificate).map_err(|error| bad(&error))?;
        }
    }
    Ok(store)
}

/// Checks as much of a certificate as the mode says; signatures always.
#[derive(Debug)]
struct Verifier {
    authority: Option<Arc<WebPkiServerVerifier>>,
    any_host: bool,
    signatures: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authority) = &self.authority else { return Ok(ServerCertVerified::assertion()) };
        let checked = authority.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        // The name is looked at last: whoever fails there has passed all else.
        match checked {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.any_host => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.signatures)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.signatures)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_schemes()
    }
}
