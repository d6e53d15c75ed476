//! What a machine needs before the tests can run, and how it gets there.
//!
//! Packages come from Debian, and are installed only after saying so: by root, or through a `sudo`
//! that asks for no password. MySQL and PostgreSQL 18 come from Debian unstable, into a folder of
//! their own that is entered, not mixed with the system; only root can do that. Apache Kafka's jars
//! come through `mvn`. What is required and cannot be had is an error; the rest becomes a gap that
//! the run names in its closing line.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tailwater_scratch::{Client, Flavor, Kafka, SmallDisk, cache_dir, sid_root};

use crate::shell;

/// A mirror that does not answer must not hold up the tests of everything else.
const SID_LIMIT_SECONDS: &str = "1200";

/// What gets the tool that looks at dependencies.
pub(crate) const CARGO_DENY: [&str; 4] = ["cargo", "install", "--locked", "cargo-deny"];

/// What stands between this machine and all tests: Debian packages, and whether tests that must
/// run depend on them.
struct Missing {
    package: &'static str,
    required: bool,
}

/// Makes this machine ready, as far as it may (`install`) and can.
pub(crate) fn prepare(install: bool) -> Result<()> {
    packages(&missing_packages(), install)?;
    if install {
        make_sid_root();
        fetch_kafka();
    }
    Ok(())
}

/// Makes this machine ready to start PostgreSQL and MariaDB, which is all the demo needs.
pub(crate) fn servers(install: bool) -> Result<()> {
    let mut missing = missing_packages();
    missing.retain(|missing| missing.required);
    packages(&missing, install)
}

fn packages(missing: &[Missing], install: bool) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|missing| missing.package).collect();
    let sudo = if is_root() { None } else { shell::find("sudo") };
    let what = missing_text(&names, sudo.is_some());
    let apt = if install { apt(is_root(), shell::find("apt-get"), sudo) } else { None };
    if let Some(apt) = apt {
        println!("installing from Debian: {}", names.join(" "));
        return apt_install(&apt, &names);
    }
    if missing.iter().any(|missing| missing.required) {
        bail!("{what}");
    }
    println!("{what}");
    Ok(())
}

/// What is missing, and the commands that get it.
fn missing_text(names: &[&str], sudo: bool) -> String {
    let names = names.join(" ");
    let (who, sudo) = if sudo { ("", "sudo ") } else { (", as root", "") };
    format!(
        "missing on this machine: {names}. On Debian{who}: {sudo}apt-get update; \
         {sudo}apt-get install --no-install-recommends {names}"
    )
}

/// What begins a command that installs packages: root's own `apt-get`, or that of a `sudo` which asks
/// nobody for anything.
fn apt(root: bool, apt: Option<PathBuf>, sudo: Option<PathBuf>) -> Option<Vec<OsString>> {
    let apt = apt?.into_os_string();
    let mut words = Vec::new();
    if !root {
        let sudo = sudo?.into_os_string();
        let asked = Command::new(&sudo).args(["-n", "true"]).output();
        if !asked.is_ok_and(|asked| asked.status.success()) {
            return None;
        }
        words.extend([sudo, "-n".into()]);
    }
    // Through `env`, because sudo hands on no variables.
    words.extend(["env".into(), "DEBIAN_FRONTEND=noninteractive".into(), apt]);
    Some(words)
}

fn missing_packages() -> Vec<Missing> {
    let mut missing = Vec::new();
    let mut need = |there: bool, package, required| {
        if !there {
            missing.push(Missing { package, required });
        }
    };
    need(Flavor::Postgres15.available().is_ok(), "postgresql", true);
    need(Flavor::MariaDb.available().is_ok(), "mariadb-server", true);
    need(shell::find("psql").is_some(), "postgresql-client", true);
    need(shell::find("mariadb").is_some(), "mariadb-client", true);
    need(shell::find("kcat").is_some(), "kcat", false);
    need(Client::Librdkafka.available().is_ok(), "librdkafka-dev", false);
    need(sid_root().exists() || shell::find("debootstrap").is_some(), "debootstrap", false);
    need(shell::find("javac").is_some(), "default-jdk-headless", false);
    need(Kafka::available().is_ok() || shell::find("mvn").is_some(), "maven", false);
    missing
}

fn apt_install(apt: &[OsString], names: &[&str]) -> Result<()> {
    let run = |arguments: &[&str]| {
        let mut words = apt.iter().map(OsString::as_os_str).chain(arguments.iter().map(OsStr::new));
        let mut command = Command::new(words.next().context("no command")?);
        shell::run(command.args(words))
    };
    // Lists of a foreign repository may fail to refresh without Debian's being any the worse.
    if let Err(error) = run(&["update", "-q"]) {
        println!("{error:#}: trying to install all the same");
    }
    run(&[&["install", "-y", "-q", "--no-install-recommends"], names].concat())
        .with_context(|| format!("install {}", names.join(" ")))
}

/// Makes the Debian unstable root; without it the tests run on the other servers.
fn make_sid_root() {
    if sid_root().exists() || !is_root() || shell::find("debootstrap").is_none() {
        return;
    }
    // Where we may not mount we could not enter it either.
    if let Err(reason) = SmallDisk::available() {
        println!("no Debian unstable root: {reason}");
        return;
    }
    if let Err(error) = debootstrap(&sid_root()) {
        println!("no Debian unstable root: {error:#}");
    }
}

fn debootstrap(root: &Path) -> Result<()> {
    fs::create_dir_all(cache_dir())?;
    let lock = File::create(root.with_extension("lock"))?;
    lock.lock().context("wait for another process that makes the unstable root")?;
    if root.exists() {
        return Ok(());
    }
    println!("making a Debian unstable root in {} (once; 730 MB, some minutes)", root.display());
    let partial = root.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let log = root.with_extension("log");
    let output = File::create(&log)?;
    let mut command = Command::new("timeout");
    command.args([SID_LIMIT_SECONDS, "debootstrap", "--variant=minbase"]);
    command.args(["--include=mysql-server-core,postgresql-18", "sid"]).arg(&partial);
    command.args(debian_mirror()).stdout(output.try_clone()?).stderr(output);
    shell::run(&mut command).with_context(|| format!("see {}", log.display()))?;
    fs::rename(&partial, root).context("put the unstable root in its place")
}

/// The mirror this machine takes Debian from; `None` leaves it to debootstrap.
fn debian_mirror() -> Option<String> {
    let folder = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    let mut files: Vec<_> = folder.map(|entry| entry.path()).collect();
    files.push("/etc/apt/sources.list".into());
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).find_map(|text| mirror_in(&text))
}

/// The first address in a list of apt sources that serves the whole of Debian.
fn mirror_in(text: &str) -> Option<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| line.starts_with("URIs:") || line.starts_with("deb "))
        .flat_map(str::split_whitespace)
        .find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
}

/// Makes sure of `cargo-deny`, as far as it may and can; says whether it is there.
pub(crate) fn cargo_deny(root: &Path, install: bool) -> bool {
    let there = || shell::find_cargo("cargo-deny").is_some();
    if there() || !install {
        return there();
    }
    println!("installing cargo-deny for this user (once; some minutes)");
    let mut command = shell::cargo_command(root);
    if let Err(error) = shell::run(command.args(&CARGO_DENY[1..])) {
        println!("no cargo-deny: {error:#}");
    }
    there()
}

/// Fetches Kafka's jars; without them the tests run without Kafka.
fn fetch_kafka() {
    if Kafka::available().is_ok() || shell::find("mvn").is_none() {
        return;
    }
    println!("fetching Apache Kafka with mvn (once; 43 MB)");
    if let Err(error) = Kafka::prepare() {
        println!("no Apache Kafka: {error:#}");
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn packages_are_installed_by_root_or_by_a_sudo_that_asks_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            Some(path)
        };
        let (quiet, asks) = (script("quiet", "[ \"$1\" = -n ]"), script("asks", "exit 1"));
        let get = || Some(PathBuf::from("/usr/bin/apt-get"));
        let words = |words: Option<Vec<OsString>>| {
            let words: Vec<String> =
                words?.into_iter().map(|word| word.to_string_lossy().into_owned()).collect();
            Some(words.join(" "))
        };
        let plain = "env DEBIAN_FRONTEND=noninteractive /usr/bin/apt-get";
        assert_eq!(words(apt(true, get(), None)).as_deref(), Some(plain));
        let by_sudo = format!("{} -n {plain}", folder.path().join("quiet").display());
        assert_eq!(words(apt(false, get(), quiet.clone())), Some(by_sudo));
        for (apt_get, sudo) in [(get(), asks), (get(), None), (None, quiet)] {
            assert_eq!(apt(false, apt_get, sudo), None);
        }
    }

    #[test]
    fn what_is_missing_is_named_with_the_commands_that_get_it() {
        let text = missing_text(&["kcat", "maven"], true);
        assert!(text.contains("sudo apt-get update"), "{text}");
        assert!(
            text.ends_with("sudo apt-get install --no-install-recommends kcat maven"),
            "{text}"
        );
        let text = missing_text(&["kcat"], false);
        assert!(text.contains("as root: apt-get") && !text.contains("sudo"), "{text}");
    }

    #[test]
    fn the_mirror_is_found_in_both_forms_of_apt_sources() {
        let stanza =
            "Types: deb\n# URIs: http://old.example/debian\nURIs: http://a.example/debian/\n";
        assert_eq!(mirror_in(stanza).as_deref(), Some("http://a.example/debian/"));
        let line = "deb [arch=amd64] http://b.example/debian bookworm main\n";
        assert_eq!(mirror_in(line).as_deref(), Some("http://b.example/debian"));
    }

    #[test]
    fn a_repository_of_something_else_is_no_mirror() {
        let lines = "deb http://c.example/debian-security bookworm-security main\n\
                     deb http://d.example/apt stable main\n";
        assert_eq!(mirror_in(lines), None);
    }
}
