//! From a TCP connection to a session: greeting, TLS, authentication.
//!
//! The plugins' arithmetic is `mysql_common`'s; this is the conversation around it.

use bytes::{BufMut, BytesMut};
use mysql_common::auth::plugins::{AuthProc, ChallengeResponsePlugin, Context, Response};
use mysql_common::constants::CapabilityFlags;
use mysql_common::io::ParseBuf;
use mysql_common::packets::{AuthPlugin, HandshakePacket};
use tokio::net::TcpStream;

use super::{Wire, WireError, refusal, tls};
use crate::connect::Endpoint;

/// `utf8mb4_general_ci`, which every server has.
const COLLATION: u8 = 45;

/// The largest packet we say we take: the protocol's limit, one GiB.
const PACKET_BYTES: u32 = 1 << 30;

/// Challenges that the server may send before it must have decided.
const ROUNDS: usize = 16;

/// What the server said of itself.
#[derive(Debug, Clone)]
pub(crate) struct Greeting {
    pub(crate) connection_id: u32,
}

/// What the plugins ask.
struct Login<'a> {
    password: &'a [u8],
    secure: bool,
    scramble: Vec<u8>,
}

impl Context for &Login<'_> {
    fn pass(&self) -> &[u8] {
        self.password
    }

    fn is_ipc_transport(&self) -> bool {
        false
    }

    fn is_tls_transport(&self) -> bool {
        self.secure
    }

    fn scramble(&self) -> &[u8] {
        &self.scramble
    }

    fn server_key_pem(&self) -> Option<&[u8]> {
        None
    }
}

/// Connects and logs in.
pub(super) async fn login(endpoint: &Endpoint) -> Result<Wire, WireError> {
    let opts = endpoint.opts();
    let stream = TcpStream::connect((opts.ip_or_hostname(), opts.tcp_port())).await?;
    stream.set_nodelay(true)?;
    let mut wire = Wire {
        link: Box::new(stream),
        buffer: BytesMut::new(),
        joined: BytesMut::new(),
        sequence: 0,
        greeting: Greeting { connection_id: 0 },
    };
    let packet = wire.read_packet().await?;
    if packet.first() == Some(&0xFF) {
        return Err(refusal(&packet));
    }
    let greeting = ParseBuf(&packet)
        .parse::<HandshakePacket<'_>>(())
        .map_err(|_| WireError::Protocol("a greeting that cannot be read"))?
        .into_owned();
    wire.greeting = Greeting { connection_id: greeting.connection_id() };

    let mut flags = CapabilityFlags::CLIENT_PROTOCOL_41
        | CapabilityFlags::CLIENT_SECURE_CONNECTION
        | CapabilityFlags::CLIENT_LONG_PASSWORD
        | CapabilityFlags::CLIENT_TRANSACTIONS
        | CapabilityFlags::CLIENT_PLUGIN_AUTH;
    let secure = opts.ssl_opts().is_some();
    if let Some(options) = opts.ssl_opts() {
        if !greeting.capabilities().contains(CapabilityFlags::CLIENT_SSL) {
            return Err(WireError::Login(
                "the server offers no TLS, which the url asks for".into(),
            ));
        }
        flags |= CapabilityFlags::CLIENT_SSL;
        wire.send(&response_head(flags)).await?;
        wire = tls::secure(wire, options, opts.ip_or_hostname()).await?;
    }
    let login = Login {
        password: opts.pass().unwrap_or_default().as_bytes(),
        secure,
        scramble: greeting.nonce().into_iter().chain(std::iter::repeat(0)).take(20).collect(),
    };
    let plugin = match greeting.auth_plugin() {
        Some(AuthPlugin::CachingSha2Password) => AuthPlugin::CachingSha2Password,
        _ => AuthPlugin::MysqlNativePassword,
    };
    authenticate(&mut wire, login, flags, &plugin, opts.user().unwrap_or_default()).await?;
    Ok(wire)
}

async fn authenticate(
    wire: &mut Wire,
    mut login: Login<'_>,
    flags: CapabilityFlags,
    plugin: &AuthPlugin<'_>,
    user: &str,
) -> Result<(), WireError> {
    let mut procedure = begin(plugin)?;
    let scramble = login.scramble.clone();
    let first = step(&mut procedure, &login, &scramble)?.unwrap_or_default();
    let mut packet = response_head(flags);
    packet.extend_from_slice(user.as_bytes());
    packet.push(0);
    packet.push(u8::try_from(first.len()).map_err(|_| WireError::Protocol("a long scramble"))?);
    packet.extend_from_slice(&first);
    packet.extend_from_slice(plugin.as_bytes());
    packet.push(0);
    wire.send(&packet).await?;

    for _ in 0..ROUNDS {
        let packet = wire.read_packet().await?;
        let answer = match &packet[..] {
            [0, ..] => return Ok(()),
            [1, challenge @ ..] => step(&mut procedure, &login, challenge)?,
            [0xFE, switch @ ..] => {
                let mut parts = switch.splitn(2, |byte| *byte == 0);
                let plugin = AuthPlugin::from_bytes(parts.next().unwrap_or_default());
                let challenge = parts.next().unwrap_or_default();
                let challenge = challenge.strip_suffix(&[0]).unwrap_or(challenge);
                if plugin == AuthPlugin::MysqlClearPassword && !login.secure {
                    return Err(WireError::Login(
                        "the account wants its password in clear text: only over TLS \
                         (?ssl-mode=VERIFY_IDENTITY)"
                            .into(),
                    ));
                }
                procedure = begin(&plugin)?;
                login.scramble = challenge.to_vec();
                step(&mut procedure, &login, challenge)?
            }
            other => return Err(refusal(other)),
        };
        if let Some(answer) = answer {
            wire.send(&answer).await?;
        }
    }
    Err(WireError::Protocol("the login does not end"))
}

fn begin(plugin: &AuthPlugin<'_>) -> Result<AuthProc, WireError> {
    plugin.init().map_err(|error| WireError::Login(error.to_string()))
}

fn step(
    procedure: &mut AuthProc,
    login: &Login<'_>,
    challenge: &[u8],
) -> Result<Option<Vec<u8>>, WireError> {
    match procedure.run(login, challenge) {
        Ok(Response::Next { packet } | Response::Last { packet }) => Ok(packet),
        Err(error) => Err(WireError::Login(format!("the login failed: {error}"))),
    }
}

/// What the login packet and the request for TLS begin with.
fn response_head(flags: CapabilityFlags) -> Vec<u8> {
    let mut packet = Vec::with_capacity(128);
    packet.put_u32_le(flags.bits());
    packet.put_u32_le(PACKET_BYTES);
    packet.put_u8(COLLATION);
    packet.put_bytes(0, 23);
    packet
}
