//! PostgreSQL: initialisation, settings, identity, readiness.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::flavor::{Programs, run};
use crate::port::random;

/// For tests of replication: room for many slots, quick checks, nothing written twice.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("wal_level", "logical"),
    ("max_connections", "200"),
    ("max_wal_senders", "64"),
    ("max_replication_slots", "64"),
    ("max_prepared_transactions", "16"),
    ("shared_buffers", "128MB"),
    ("fsync", "off"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("log_min_messages", "info"),
    ("jit", "off"),
];

/// Makes a data folder `data` in `folder`, which belongs to the server's user.
pub(crate) fn initialise(programs: &Programs, folder: &Path) -> Result<()> {
    let mut initdb = programs.command("initdb", folder);
    initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]);
    run(initdb.arg("--no-sync").arg("-D").arg(programs.seen(folder, "data")))
}

/// Makes the fresh copy in `folder` a server of its own on `port`.
pub(crate) fn configure(
    programs: &Programs,
    folder: &Path,
    port: u16,
    settings: &[(&str, &str)],
) -> Result<()> {
    let port = port.to_string();
    let sockets = programs.seen(folder, "run");
    let own = [("port", port.as_str()), ("unix_socket_directories", sockets.as_str())];
    let all: Vec<_> = SETTINGS.iter().chain(&own).chain(settings).copied().collect();
    add_settings(folder, &all)?;
    set_identity(&folder.join("data"))
}

/// Adds settings to the configuration file; the last of a name counts.
///
/// Not on the command line: that would win over the `ALTER SYSTEM` of a test.
pub(crate) fn add_settings(folder: &Path, settings: &[(&str, &str)]) -> Result<()> {
    let path = folder.join("data/postgresql.conf");
    let mut text = fs::read_to_string(&path).context("read postgresql.conf")?;
    for (name, value) in settings {
        writeln!(text, "{name} = '{}'", value.replace('\'', "''"))?;
    }
    fs::write(&path, text).context("write postgresql.conf")
}

/// The command that runs the server.
pub(crate) fn server(programs: &Programs, folder: &Path) -> Command {
    let mut command = programs.command("postgres", folder);
    command.arg("-D").arg(programs.seen(folder, "data"));
    command
}

/// Whether the server with process id `pid` takes connections: it says so in its pid file, which
/// lies in `data` as that process sees it.
pub(crate) fn ready(data: &str, pid: u32) -> bool {
    let path = format!("/proc/{pid}/root{data}/postmaster.pid");
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.first() == Some(&pid.to_string().as_str()) && lines.get(7) == Some(&"ready")
}

/// Gives a copied data folder a system identifier of its own.
///
/// Tailwater tells servers apart by it, so copies of one template must differ. It stands first in
/// `pg_control`, under a CRC, and in the long header at the start of each WAL segment, without one.
fn set_identity(data: &Path) -> Result<()> {
    /// `XLogLongPageHeaderData.xlp_sysid`, behind a page header of 20 bytes padded to 24.
    const WAL_SYSTEM_ID: u64 = 24;

    let identity = random().to_le_bytes();
    let path = data.join("global/pg_control");
    let mut control = fs::read(&path).context("read pg_control")?;
    let crc_at = crc_position(&control)?;
    control[..8].copy_from_slice(&identity);
    let crc = crc32c(&control[..crc_at]);
    control[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, control).context("write pg_control")?;
    for entry in fs::read_dir(data.join("pg_wal")).context("list WAL segments")? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let segment = fs::OpenOptions::new().write(true).open(entry.path())?;
            segment.write_all_at(&identity, WAL_SYSTEM_ID).context("write a WAL segment")?;
        }
    }
    Ok(())
}

/// Where `pg_control`'s CRC stands: its place differs by version, its value does not lie.
fn crc_position(control: &[u8]) -> Result<usize> {
    let limit = control.len().min(512).saturating_sub(4);
    let found = (8..limit)
        .step_by(4)
        .find(|at| crc32c(&control[..*at]).to_le_bytes() == control[*at..*at + 4]);
    let Some(at) = found else { bail!("pg_control has no CRC where one was looked for") };
    Ok(at)
}

/// CRC-32C, bit by bit: it runs over 300 bytes, a few dozen times.
fn crc32c(bytes: &[u8]) -> u32 {
    /// Castagnoli's polynomial, reflected.
    const POLYNOMIAL: u32 = 0x82f6_3b78;

    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (POLYNOMIAL * (crc & 1));
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_has_the_published_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_crc_is_found_where_it_stands() {
        let mut control = vec![7u8; 512];
        let crc = crc32c(&control[..288]);
        control[288..292].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(crc_position(&control).unwrap(), 288);
        control[0] = 8;
        assert!(crc_position(&control).is_err());
    }
}
