//! Where a PostgreSQL server is and how a session with it begins.
//!
//! A [`Server`] is a parsed `postgres://` URL. It opens sockets, encrypted as `sslmode` says
//! (`crate::tls`), for both kinds of session: those of tokio-postgres ([`Server::connect`]) and our
//! own framing for replication and bulk reading (`crate::source::wire`). Every session prints
//! values in one form ([`SESSION`]), since text is what both decoders read.

use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use tailwater_capture::SourceError;
use tailwater_change::Problem;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::tls::{Socket, SslMode, Tls};

/// What makes every value print in one way, whatever the server, database or role is set to.
///
/// `row_security = off` turns a policy that would hide rows into an error.
pub(crate) const SESSION: &[(&str, &str)] = &[
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("row_security", "off"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
];

/// Long enough for a loaded server across an ocean, short enough that a wrong address is noticed.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// A database, as its URL names it.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    config: tokio_postgres::Config,
    tls: Tls,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// A person must change something: password, role, database, URL.
    #[error("{0}")]
    Refused(Problem),
    /// The server is not there now.
    #[error("connecting to {address} failed")]
    Unavailable {
        /// Host and port.
        address: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ConnectError {
    /// As `check` reports it.
    pub(crate) fn into_problem(self) -> Problem {
        match self {
            Self::Refused(problem) => problem,
            Self::Unavailable { address, source } => Problem::new(
                format!("cannot connect to {address}: {}", with_causes(&*source)),
                "start the server, or correct host and port in `url`; check listen_addresses, \
                 pg_hba.conf and firewalls",
            ),
        }
    }
}

impl From<ConnectError> for SourceError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Refused(problem) => Self::Refused(problem),
            ConnectError::Unavailable { address, source } => {
                Self::unavailable(format!("connecting to {address}"), source)
            }
        }
    }
}

/// A tokio-postgres session; ends when dropped.
#[derive(Debug)]
pub(crate) struct Session {
    client: Client,
    driver: JoinHandle<()>,
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Closes the socket even where the driver waits on a server that does not answer.
        self.driver.abort();
    }
}

impl Server {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it; the password is never repeated.
    pub(crate) fn parse(url: &str) -> Result<Self, Problem> {
        const FORM: &str = "write it as postgres://user:password@host:5432/database?sslmode=prefer";
        let bad = |what: String| Problem::new(what, FORM);
        let mut parsed =
            url::Url::parse(url).map_err(|error| bad(format!("`url` is not a URL: {error}")))?;
        if !matches!(parsed.scheme(), "postgres" | "postgresql") {
            return Err(bad(format!("`url` has the scheme {}", parsed.scheme())));
        }
        let (mut mode, mut roots, mut rest) = (SslMode::Prefer, None, Vec::new());
        for (name, value) in parsed.query_pairs() {
            match &*name {
                "sslmode" => mode = SslMode::parse(&value)?,
                "sslrootcert" if value != "system" => roots = Some(PathBuf::from(&*value)),
                "sslrootcert" => {}
                "application_name" => {}
                _ => rest.push((name.into_owned(), value.into_owned())),
            }
        }
        parsed.set_query(None);
        if !rest.is_empty() {
            parsed.query_pairs_mut().extend_pairs(rest);
        }
        let mut config: tokio_postgres::Config = parsed
            .as_str()
            .parse()
            .map_err(|error| bad(format!("`url` cannot be used: {}", with_causes(&error))))?;
        let Some(user) = config.get_user().map(str::to_owned) else {
            return Err(bad("`url` names no user".into()));
        };
        if config.get_dbname().is_none_or(str::is_empty) {
            config.dbname(user);
        }
        if config.get_hosts().len() > 1 {
            return Err(bad("`url` names several hosts; Tailwater reads one server".into()));
        }
        // Encryption is the socket's business, which we open ourselves.
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
        let tls = Tls::new(mode, roots)?;
        Ok(Self { config, tls })
    }

    /// The database's name.
    pub(crate) fn database(&self) -> &str {
        self.config.get_dbname().unwrap_or_default()
    }

    /// The role's name.
    pub(crate) fn user(&self) -> &str {
        self.config.get_user().unwrap_or_default()
    }

    /// The password, if the URL has one.
    pub(crate) fn password(&self) -> Option<&[u8]> {
        self.config.get_password()
    }

    /// The server options that the URL gives.
    pub(crate) fn options(&self) -> Option<&str> {
        self.config.get_options()
    }

    /// Host and port, for messages.
    pub(crate) fn address(&self) -> String {
        match self.config.get_hosts().first() {
            Some(Host::Tcp(host)) => format!("{host}:{}", self.port()),
            Some(Host::Unix(path)) => format!("{}/.s.PGSQL.{}", path.display(), self.port()),
            None => format!("localhost:{}", self.port()),
        }
    }

    /// Opens a session.
    ///
    /// # Errors
    /// As the variants say.
    pub(crate) async fn connect(&self, application_name: &str) -> Result<Session, ConnectError> {
        let limit = self.config.get_connect_timeout().copied().unwrap_or(CONNECT_LIMIT);
        match tokio::time::timeout(limit, self.connect_now(application_name)).await {
            Ok(session) => session,
            Err(elapsed) => Err(self.unavailable(elapsed)),
        }
    }

    async fn connect_now(&self, application_name: &str) -> Result<Session, ConnectError> {
        let socket = self.open_socket().await?;
        let mut config = self.config.clone();
        config.application_name(application_name);
        let (client, connection) =
            config.connect_raw(socket, NoTls).await.map_err(|error| self.explain(error))?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                // Whoever uses the client gets an error too, and handles it.
                tracing::debug!(error = %with_causes(&error), "session ended");
            }
        });
        let session = Session { client, driver };
        let settings: String =
            SESSION.iter().map(|(name, value)| format!("SET {name} TO '{value}';")).collect();
        session.batch_execute(&settings).await.map_err(|error| self.explain(error))?;
        Ok(session)
    }

    /// Opens a socket, encrypted as the URL asks, on which nothing has been said yet.
    ///
    /// # Errors
    /// As the variants say.
    pub(crate) async fn open_socket(&self) -> Result<Socket, ConnectError> {
        let host = match self.config.get_hosts().first() {
            #[cfg(unix)]
            Some(Host::Unix(folder)) => {
                let path = folder.join(format!(".s.PGSQL.{}", self.port()));
                let socket =
                    UnixStream::connect(path).await.map_err(|error| self.unavailable(error))?;
                return Ok(Socket::Unix(socket));
            }
            Some(Host::Tcp(host)) => host.as_str(),
            None => "localhost",
        };
        let socket = TcpStream::connect((host, self.port()))
            .await
            .map_err(|error| self.unavailable(error))?;
        socket.set_nodelay(true).map_err(|error| self.unavailable(error))?;
        self.tls.wrap(socket, host, &self.address()).await
    }

    /// The session could not begin because of `source`, which may pass.
    pub(crate) fn unavailable(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ConnectError {
        ConnectError::Unavailable { address: self.address(), source: source.into() }
    }

    /// Why the server refused, where it said so.
    fn explain(&self, error: tokio_postgres::Error) -> ConnectError {
        let Some(said) = error.as_db_error() else {
            if with_causes(&error).contains("password missing") {
                return self.refusal(SqlState::INVALID_PASSWORD.code(), "no password in `url`");
            }
            return self.unavailable(error);
        };
        if is_passing(said.code().code()) {
            return self.unavailable(error);
        }
        self.refusal(said.code().code(), said.message())
    }

    /// The server's refusal of a session, with what to do about it.
    pub(crate) fn refusal(&self, code: &str, message: &str) -> ConnectError {
        if is_passing(code) {
            return self.unavailable(message.to_owned());
        }
        let (user, database) = (quote(self.user()), quote(self.database()));
        let remedy = match code {
            "28P01" => format!(
                "correct user and password in `url`, or set it: ALTER ROLE {user} PASSWORD '…'"
            ),
            "28000" => format!(
                "create the role (CREATE ROLE {user} LOGIN PASSWORD '…'), or allow it in \
                 pg_hba.conf"
            ),
            "3D000" => format!("correct the database in `url`, or CREATE DATABASE {database}"),
            "42501" => format!("GRANT CONNECT ON DATABASE {database} TO {user}"),
            _ => "do what the server's message says".to_owned(),
        };
        ConnectError::Refused(Problem::new(
            format!("{} refuses the session: {message}", self.address()),
            remedy,
        ))
    }

    fn port(&self) -> u16 {
        self.config.get_ports().first().copied().unwrap_or(5432)
    }
}

/// Whether an SQLSTATE may pass by itself: lost connections, crashes and shutdowns, no room left,
/// deadlocks and serialization failures, locks that were not to be had, sessions that were silent
/// inside a transaction.
pub(crate) fn is_passing(code: &str) -> bool {
    let class = code.get(..2).unwrap_or_default();
    matches!(class, "08" | "40" | "53" | "57" | "58" | "XX")
        || matches!(code, "55P03" | "55006" | "25P03")
}

/// What became of `operation`, for a source.
pub(crate) fn source_error(operation: &str, error: tokio_postgres::Error) -> SourceError {
    let Some(said) = error.as_db_error() else {
        return SourceError::unavailable(operation, error);
    };
    if is_passing(said.code().code()) {
        return SourceError::unavailable(operation, error);
    }
    refused(operation, said.code().code(), said.message())
}

/// The server's `message` about `operation`, as something a person must see to.
pub(crate) fn refused(operation: &str, code: &str, message: &str) -> SourceError {
    let remedy = match code {
        "42501" => "grant the privilege it names, or run `tailwater check` for the exact statement",
        _ => "do what the server's message says, then run `tailwater check`",
    };
    SourceError::Refused(Problem::new(format!("{operation}: {message} ({code})"), remedy))
}

/// An error and everything that caused it.
pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A session of the server's, for people.
pub(crate) fn session_named(pid: i32, host: &str) -> String {
    format!("session {pid} of {host}")
}

/// An identifier as SQL spells it.
pub(crate) fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// A table's name as SQL spells it.
pub(crate) fn quote_table(table: &tailwater_change::TableId) -> String {
    format!("{}.{}", quote(&table.schema), quote(&table.name))
}

/// A string as SQL spells it, whatever `standard_conforming_strings` is.
pub(crate) fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_as_libpq_reads_it() {
        let server = Server::parse(
            "postgres://re%40pl:s%3Acret@db.example:6543/shop?sslmode=disable&connect_timeout=3",
        )
        .unwrap();
        assert_eq!((server.user(), server.database()), ("re@pl", "shop"));
        assert_eq!(server.password(), Some(b"s:cret".as_slice()));
        assert_eq!(server.address(), "db.example:6543");
        assert_eq!(Server::parse("postgresql://shop@[::1]").unwrap().database(), "shop");
    }

    #[test]
    fn a_wrong_url_says_what_is_wrong_and_keeps_the_password() {
        for (url, part) in [
            ("mysql://a@b/c", "scheme mysql"),
            ("postgres://host/db", "no user"),
            ("postgres://a:geheim@b/c?sslmode=sometimes", "sslmode"),
            ("postgres://a:geheim@b/c?sslcert=x.pem", "sslcert"),
            ("postgres://a:geheim@b/c?sslrootcert=/no/such.pem&sslmode=verify-full", "/no/such"),
        ] {
            let problem = Server::parse(url).unwrap_err().to_string();
            assert!(problem.contains(part), "{problem}");
            assert!(!problem.contains("geheim"), "{problem}");
            assert!(!format!("{:?}", Server::parse("postgres://a:geheim@b/c")).contains("geheim"));
        }
    }

    #[test]
    fn names_and_strings_are_quoted() {
        assert_eq!(quote("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's \\"), "E'it''s \\\\'");
    }
}
