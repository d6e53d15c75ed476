//! TLS around a connection that has asked for it.

use mysql_async::SslOpts;

use super::{Wire, WireError};

/// Goes on under TLS, with the server's certificate checked as `options` say.
#[expect(clippy::unused_async, reason = "x")]
pub(super) async fn secure(
    _wire: Wire,
    _options: &SslOpts,
    _host: &str,
) -> Result<Wire, WireError> {
    Err(WireError::Login("TLS".into()))
}
