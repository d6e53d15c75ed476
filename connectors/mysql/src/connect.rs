//! Where the server is and how we speak to it: the URL, ordinary sessions, names quoted as SQL.
//!
//! Every session begins under the same contract: time zone UTC, a fixed `sql_mode`, `utf8mb4`. What
//! a value looks like must not depend on the server's configuration.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, DriverError, Error, IoError, Opts, OptsBuilder, SslOpts, TlsError};
use rustls::CertificateError;
use tailwater_change::{Dialect, Problem, TableId};
use url::Url;

/// The settings of every session. `NO_BACKSLASH_ESCAPES` stays off: [`quote_text`] relies on it.
pub(crate) const SESSION: &[&str] = &[
    "SET NAMES utf8mb4",
    "SET time_zone = '+00:00'",
    "SET sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,NO_ENGINE_SUBSTITUTION'",
    "SET autocommit = 1",
];

/// What connecting, logging in and fixing the settings may take together. A host that takes a
/// connection and says nothing would otherwise hold us for ever.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// `opening` in reasonable time, or what `late` makes of it.
pub(crate) async fn in_time<T, E>(
    opening: impl Future<Output = Result<T, E>>,
    late: impl FnOnce(io::Error) -> E,
) -> Result<T, E> {
    let opened = tokio::time::timeout(CONNECT_LIMIT, opening).await;
    opened.unwrap_or_else(|_elapsed| {
        let limit = CONNECT_LIMIT.as_secs();
        let silence = format!("the server did not answer within {limit} s");
        Err(late(io::Error::new(io::ErrorKind::TimedOut, silence)))
    })
}

/// A driver's error for a server that is silent.
pub(crate) fn silent(error: io::Error) -> mysql_async::Error {
    mysql_async::Error::Io(error.into())
}

/// A server, its account and the TLS that is asked for.
#[derive(Clone)]
pub(crate) struct Endpoint {
    opts: Opts,
}

impl fmt::Debug for Endpoint {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = (self.opts.ip_or_hostname(), self.opts.tcp_port());
        write!(f, "mysql://{}@{host}:{port}", self.opts.user().unwrap_or_default())
    }
}

impl Endpoint {
    /// Reads `mysql://user:password@host:port/database?ssl-mode=…&ssl-ca=…`.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let bad = |why: String| {
            Problem::new(
                format!("the url of a MySQL server cannot be read: {why}"),
                "write it as mysql://user:password@host:port/database, special characters in the \
                 password percent-encoded, optionally with ?ssl-mode=VERIFY_IDENTITY&ssl-ca=FILE",
            )
        };
        let mut url = Url::parse(text).map_err(|error| bad(error.to_string()))?;
        if !matches!(url.scheme(), "mysql" | "mariadb") {
            return Err(bad(format!("its scheme is {}", url.scheme())));
        }
        let tls = Tls::of(&url).map_err(bad)?;
        url.set_query(None);
        let plain = url.as_str().replacen("mariadb://", "mysql://", 1);
        let opts = Opts::from_url(&plain).map_err(|error| bad(error.to_string()))?;
        let builder = OptsBuilder::from_opts(opts)
            .prefer_socket(false)
            .tcp_nodelay(true)
            .ssl_opts(tls.options())
            .setup(SESSION.iter().map(|sql| (*sql).to_owned()).collect());
        Ok(Self { opts: builder.into() })
    }

    /// The database that the URL names.
    pub(crate) fn database(&self) -> Option<&str> {
        self.opts.db_name().filter(|name| !name.is_empty())
    }

    /// The driver's options: address, account, TLS, the session contract as setup statements.
    pub(crate) fn opts(&self) -> &Opts {
        &self.opts
    }

    /// Why the server refused a session, if a person must see to it.
    pub(crate) fn refusal(&self, error: &mysql_async::Error) -> Option<Problem> {
        if let Error::Driver(DriverError::UnknownAuthPlugin { name }) = error {
            return Some(self.unknown_login(name));
        }
        let Error::Server(said) = error else { return self.tls_refusal(error) };
        let remedy = match said.code {
            // ER_ACCESS_DENIED_ERROR, ER_ACCESS_DENIED_NO_PASSWORD_ERROR.
            1045 | 1698 => {
                "correct user and password in `url`, or set it: ALTER USER … IDENTIFIED BY '…'"
                    .to_owned()
            }
            // ER_DBACCESS_DENIED_ERROR, ER_BAD_DB_ERROR. Without a privilege both are possible.
            1044 | 1049 => {
                let database = quote_name(self.database().unwrap_or_default());
                let user = quote_text(self.opts.user().unwrap_or_default());
                format!(
                    "correct the database in `url`, or CREATE DATABASE {database}, or GRANT ALL \
                     ON {database}.* TO {user}"
                )
            }
            // ER_HOST_NOT_PRIVILEGED.
            1130 => "create the account for the host that Tailwater runs on".to_owned(),
            _ => return None,
        };
        let what = format!("{self} refuses the session: {}", said.message);
        Some(Problem::new(what, remedy))
    }

    /// For an account that it does not have, a server asks for any login method: who guesses names
    /// is not to see which there are.
    fn unknown_login(&self, method: &str) -> Problem {
        Problem::new(
            format!("{self} asks for the login method {method}, which is not supported"),
            "correct the user in `url`; if the account is there, ALTER USER … IDENTIFIED WITH \
             caching_sha2_password BY '…'",
        )
    }

    /// Why there is no encryption, if a person must see to it.
    fn tls_refusal(&self, error: &mysql_async::Error) -> Option<Problem> {
        let host = self.opts.ip_or_hostname();
        if matches!(error, Error::Driver(DriverError::NoClientSslFlagFromServer)) {
            return Some(Problem::new(
                format!("{self} offers no encryption, which the url asks for"),
                "give the server a certificate (ssl_cert and ssl_key in its configuration), or set \
                 ssl-mode=DISABLED in `url`",
            ));
        }
        let Error::Io(error) = error else { return None };
        let why = match error {
            IoError::Tls(TlsError::Tls(why)) => why,
            IoError::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref()) {
                Some(why) => why,
                // No connection ends so: it is the file.
                None if error.kind() == io::ErrorKind::NotFound => {
                    return Some(ssl_ca(&format!("the file of ssl-ca cannot be read: {error}")));
                }
                None => return None,
            },
            IoError::Tls(other) => return Some(ssl_ca(&format!("ssl-ca: {other}"))),
        };
        let what = format!("encryption with {host} failed: {why}");
        match why {
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => Some(Problem::new(
                what,
                "write one of the certificate's names as the host in `url`, or set \
                 ssl-mode=VERIFY_CA, which takes every name",
            )),
            rustls::Error::InvalidCertificate(_) => Some(ssl_ca(&what)),
            _ => None,
        }
    }

    /// Opens a session under the contract.
    pub(crate) async fn connect(&self) -> Result<Conn, mysql_async::Error> {
        in_time(Conn::new(self.opts.clone()), silent).await
    }
}

fn ssl_ca(what: &str) -> Problem {
    Problem::new(
        what,
        "set ssl-ca in `url` to the file with the authority that signed the server's certificate",
    )
}

/// The name that the driver asks a certificate for where any will do. It passes over a wrong name
/// if `NotValidForName` stands in rustls' text of the error, which since 0.23 says the name that was
/// asked for and not that word. So that is what it asks for. All else is checked before the name.
const ANY_HOST: &str = "NotValidForName";

/// TLS as MySQL's own clients spell it.
enum Tls {
    Disabled,
    Required { ca: Option<PathBuf> },
    VerifyCa { ca: Option<PathBuf> },
    VerifyIdentity { ca: Option<PathBuf> },
}

impl Tls {
    fn of(url: &Url) -> Result<Self, String> {
        let (mut mode, mut ca) = (None, None);
        for (key, value) in url.query_pairs() {
            match &*key {
                "ssl-mode" | "sslmode" | "ssl_mode" => mode = Some(value.to_ascii_uppercase()),
                "ssl-ca" | "sslrootcert" | "ssl_ca" => ca = Some(PathBuf::from(&*value)),
                other => return Err(format!("its parameter {other} is unknown")),
            }
        }
        Ok(match mode.as_deref().map(|mode| mode.replace('-', "_")).as_deref() {
            None if ca.is_some() => Self::VerifyCa { ca },
            None | Some("DISABLED" | "DISABLE") => Self::Disabled,
            Some("REQUIRED" | "REQUIRE") => Self::Required { ca },
            Some("VERIFY_CA") => Self::VerifyCa { ca },
            Some("VERIFY_IDENTITY" | "VERIFY_FULL") => Self::VerifyIdentity { ca },
            Some(other) => return Err(format!("its ssl-mode {other} is unknown")),
        })
    }

    fn options(self) -> Option<SslOpts> {
        let with = |ca: Option<PathBuf>| {
            let own = ca.is_some();
            let roots = ca.into_iter().map(Into::into).collect();
            SslOpts::default().with_root_certs(roots).with_disable_built_in_roots(own)
        };
        match self {
            Self::Disabled => None,
            Self::Required { ca } => Some(
                with(ca)
                    .with_danger_accept_invalid_certs(true)
                    .with_danger_skip_domain_validation(true),
            ),
            Self::VerifyCa { ca } => Some(
                with(ca)
                    .with_danger_skip_domain_validation(true)
                    .with_danger_tls_hostname_override(Some(ANY_HOST)),
            ),
            Self::VerifyIdentity { ca } => Some(with(ca)),
        }
    }
}

/// What the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Server {
    /// MySQL or MariaDB.
    pub(crate) dialect: Dialect,
    /// Major, minor, patch.
    pub(crate) version: (u16, u16, u16),
}

impl Server {
    /// Asks the server.
    pub(crate) async fn of(conn: &mut Conn) -> Result<Self, mysql_async::Error> {
        let text: Option<String> = conn.query_first("SELECT VERSION()").await?;
        Ok(Self::parse(&text.unwrap_or_default()))
    }

    /// Reads `10.11.6-MariaDB-1`, `8.0.36`.
    pub(crate) fn parse(text: &str) -> Self {
        let dialect = if text.contains("MariaDB") { Dialect::Mariadb } else { Dialect::Mysql };
        let mut numbers = text
            .split(|c: char| !c.is_ascii_digit())
            .map(|number| number.parse::<u16>().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Self { dialect, version: (next(), next(), next()) }
    }

    /// Whether it is MariaDB.
    pub(crate) fn is_mariadb(self) -> bool {
        self.dialect == Dialect::Mariadb
    }

    /// Whether it executes cascades without logging the rows they change.
    pub(crate) fn hides_cascades(self) -> bool {
        self.is_mariadb() || self.version < (9, 6, 0)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor, patch) = self.version;
        write!(f, "{} {major}.{minor}.{patch}", self.dialect)
    }
}

/// `name` as an SQL identifier.
pub(crate) fn quote_name(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// The table as an SQL identifier.
pub(crate) fn quote_table(table: &TableId) -> String {
    format!("{}.{}", quote_name(&table.schema), quote_name(&table.name))
}

/// `text` as an SQL string literal, under our `sql_mode`.
pub(crate) fn quote_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('\'');
    for character in text.chars() {
        match character {
            '\'' => out.push_str("''"),
            '\\' => out.push_str("\\\\"),
            '\0' => out.push_str("\\0"),
            other => out.push(other),
        }
    }
    out.push('\'');
    out
}

/// The server's lock of `name`, as an SQL expression. Names of locks have 64 characters and do not
/// differ by case; a name that is longer, or not plain lower case, is `prefix` and the first hex
/// digits of its SHA2-256, 48 at most.
pub(crate) fn lock_name(prefix: &str, name: &str) -> String {
    const LONGEST: usize = 64;
    let plain = prefix.len() + name.len() <= LONGEST
        && name.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.".contains(&byte)
        });
    if plain {
        return quote_text(&format!("{prefix}{name}"));
    }
    let digits = (LONGEST - prefix.len()).min(48);
    format!("CONCAT({}, LEFT(SHA2({}, 256), {digits}))", quote_text(prefix), quote_text(name))
}

/// The session that has the lock `name` (an SQL expression), for people.
pub(crate) async fn lock_holder(conn: &mut Conn, name: &str) -> Result<String, Error> {
    let id: Option<Option<u64>> = conn.query_first(format!("SELECT IS_USED_LOCK({name})")).await?;
    let Some(id) = id.flatten() else { return Ok("its session has just ended".into()) };
    // One's own sessions are shown to everybody.
    let sessions: Vec<mysql_async::Row> = conn.query("SHOW PROCESSLIST").await?;
    let host = sessions.iter().find(|row| row.get::<u64, _>("Id") == Some(id));
    let host = host.and_then(|row| row.get::<String, _>("Host"));
    Ok(format!("session {id} of {}", host.as_deref().unwrap_or("another account")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_never_shows_its_password() {
        let endpoint = Endpoint::parse("mysql://app:geh%40eim@db.example:3307/shop").unwrap();
        assert_eq!(format!("{endpoint:?}"), "Endpoint(mysql://app@db.example:3307)");
        assert_eq!(endpoint.database(), Some("shop"));
        assert_eq!(endpoint.opts().pass(), Some("geh@eim"));
        assert!(Endpoint::parse("postgres://a@b/c").is_err());
        assert!(Endpoint::parse("mysql://a@b/c?ssl-mode=maybe").is_err());
        let tls = Endpoint::parse("mariadb://a@b/c?ssl-mode=VERIFY_IDENTITY").unwrap();
        assert!(tls.opts().ssl_opts().is_some());
    }

    #[test]
    fn a_login_method_that_is_not_ours_is_not_tried_for_ever() {
        let endpoint = Endpoint::parse("mysql://app:geheim@db/shop").unwrap();
        let plugin = DriverError::UnknownAuthPlugin { name: "sha256_password".into() };
        let problem = endpoint.refusal(&Error::Driver(plugin)).unwrap();
        assert!(problem.what.contains("app@db") && problem.what.contains("sha256_password"));
        assert!(endpoint.refusal(&Error::Driver(DriverError::ConnectionClosed)).is_none());
    }

    #[test]
    fn lock_names_stay_within_their_length_and_case() {
        assert_eq!(lock_name("tailwater.", "shop_to_copy"), "'tailwater.shop_to_copy'");
        assert!(lock_name("tailwater.", "Shop").contains("LEFT(SHA2('Shop', 256), 48)"));
        assert!(lock_name("tailwater.", &"a".repeat(54)).starts_with("'tailwater.aa"));
        assert!(lock_name("tailwater.", &"a".repeat(55)).contains("SHA2("));
        assert!(lock_name("tailwater:source:", &"a".repeat(48)).contains("256), 47)"));
    }

    #[test]
    fn versions_tell_the_servers_apart() {
        let mariadb = Server::parse("10.11.6-MariaDB-0+deb12u1-log");
        assert_eq!((mariadb.dialect, mariadb.version), (Dialect::Mariadb, (10, 11, 6)));
        assert!(mariadb.hides_cascades());
        assert!(Server::parse("8.0.36").hides_cascades());
        assert!(!Server::parse("9.7.0-debian").hides_cascades());
    }
}
