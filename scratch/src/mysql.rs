//! MySQL and MariaDB: initialisation, settings, readiness.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::flavor::{Flavor, Programs, run};

/// What capture needs, and limits that tests would otherwise run into.
///
/// Redo log and binlog are written at each commit and not flushed: that survives SIGKILL.
const SETTINGS: &[(&str, &str)] = &[
    ("bind_address", "127.0.0.1"),
    ("skip_name_resolve", "1"),
    ("log_bin", "binlog"),
    ("binlog_format", "ROW"),
    ("binlog_row_image", "FULL"),
    ("binlog_row_metadata", "FULL"),
    ("sync_binlog", "0"),
    ("innodb_flush_log_at_trx_commit", "2"),
    ("innodb_buffer_pool_size", "128M"),
    ("local_infile", "1"),
    ("max_allowed_packet", "1G"),
    ("max_connections", "200"),
    // Tests break connections on purpose; the server must not shut us out for it.
    ("max_connect_errors", "1000000000"),
    ("character_set_server", "utf8mb4"),
    ("default_time_zone", "+00:00"),
];

const MARIADB_SETTINGS: &[(&str, &str)] = &[("log_slave_updates", "1"), ("gtid_strict_mode", "1")];

const MYSQL_SETTINGS: &[(&str, &str)] = &[
    ("gtid_mode", "ON"),
    ("enforce_gtid_consistency", "ON"),
    ("mysqlx", "0"),
    ("secure_file_priv", "NULL"),
];

/// Accounts of a new MySQL: a root that comes over TCP from loopback, without a password, because
/// `caching_sha2_password` then needs neither TLS nor the server's public key.
const MYSQL_ACCOUNTS: &str = "CREATE USER root@'127.0.0.1' IDENTIFIED BY '';
GRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;
";

/// Makes a data folder `data` in `folder`, which belongs to the server's user.
pub(crate) fn initialise(flavor: Flavor, programs: &Programs, folder: &Path) -> Result<()> {
    let data = format!("--datadir={}", programs.seen(folder, "data"));
    if flavor == Flavor::MariaDb {
        let mut install = programs.command("../bin/mariadb-install-db", folder);
        install.args(["--no-defaults", "--auth-root-authentication-method=normal"]);
        install.args(["--skip-test-db", "--skip-name-resolve"]);
        return run(install.arg(data));
    }
    fs::write(folder.join("accounts.sql"), MYSQL_ACCOUNTS)?;
    let mut mysqld = programs.command("mysqld", folder);
    mysqld.args(["--no-defaults", "--initialize-insecure", "--disable-log-bin", "--mysqlx=0"]);
    mysqld.arg(format!("--init-file={}", programs.seen(folder, "accounts.sql")));
    run(mysqld.arg(data))?;
    // The server's UUID; each copy makes one of its own.
    fs::remove_file(folder.join("data/auto.cnf")).context("remove the template's server uuid")
}

/// Writes the option file of a fresh server on `port`.
pub(crate) fn configure(
    flavor: Flavor,
    programs: &Programs,
    folder: &Path,
    port: u16,
    settings: &[(&str, &str)],
) -> Result<()> {
    let number = port.to_string();
    let path = |name| programs.seen(folder, name);
    let (data, socket, pid) = (path("data"), path("run/socket"), path("run/pid"));
    let own = [
        ("port", number.as_str()),
        // Servers of one test differ, as they must to replicate from each other.
        ("server_id", number.as_str()),
        ("datadir", &data),
        ("socket", &socket),
        ("pid_file", &pid),
        ("tmpdir", &data),
    ];
    let brand = if flavor == Flavor::MySql { MYSQL_SETTINGS } else { MARIADB_SETTINGS };
    fs::write(folder.join("my.cnf"), "[mysqld]\n").context("write my.cnf")?;
    let all: Vec<_> = SETTINGS.iter().chain(brand).chain(&own).chain(settings).copied().collect();
    add_settings(folder, &all)
}

/// Adds settings to the option file; the last of a name counts. An empty value: the bare name.
pub(crate) fn add_settings(folder: &Path, settings: &[(&str, &str)]) -> Result<()> {
    let path = folder.join("my.cnf");
    let mut text = fs::read_to_string(&path).context("read my.cnf")?;
    for (name, value) in settings {
        if value.is_empty() {
            writeln!(text, "{name}")?;
        } else {
            writeln!(text, "{name}={value}")?;
        }
    }
    fs::write(&path, text).context("write my.cnf")
}

/// The command that runs the server.
pub(crate) fn server(flavor: Flavor, programs: &Programs, folder: &Path) -> Command {
    let program = if flavor == Flavor::MySql { "mysqld" } else { "mariadbd" };
    let mut command = programs.command(program, folder);
    command.arg(format!("--defaults-file={}", programs.seen(folder, "my.cnf")));
    command
}

/// Whether the server greets who connects: it opens its port only after recovery.
pub(crate) fn ready(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else {
        return false;
    };
    // A greeting is a packet whose payload, behind four bytes of header, begins with protocol 10.
    let mut head = [0; 5];
    stream.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
        && stream.read_exact(&mut head).is_ok()
        && head[4] == 10
}
