//! Which servers there are, and where their programs lie.
//!
//! PostgreSQL 15 and MariaDB come from the machine's packages. MySQL and PostgreSQL 18 lie in a
//! Debian unstable root that `debootstrap` made once, and are started through `chroot` in a private
//! mount namespace, which only root may do.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// A kind and version of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavor {
    /// PostgreSQL 15, from Debian's packages.
    Postgres15,
    /// PostgreSQL 18, from the Debian unstable root unless the machine has it.
    Postgres18,
    /// MariaDB, from Debian's packages.
    MariaDb,
    /// MySQL, from the Debian unstable root.
    MySql,
}

impl Flavor {
    /// Every flavor, in the order of the tests.
    pub const ALL: [Flavor; 4] =
        [Flavor::Postgres15, Flavor::Postgres18, Flavor::MariaDb, Flavor::MySql];

    /// The flavors a test over a matrix runs on: those that must be there, there or not, so that
    /// a missing one fails the test, and those of the unstable root where this machine has it.
    #[must_use]
    pub fn matrix() -> Vec<Flavor> {
        Flavor::ALL
            .into_iter()
            .filter(|flavor| flavor.required() || flavor.available().is_ok())
            .collect()
    }

    /// Whether a run of the tests without it is a failure, not a gap.
    #[must_use]
    pub fn required(self) -> bool {
        matches!(self, Flavor::Postgres15 | Flavor::MariaDb)
    }

    /// Whether a server of this flavor can be started here.
    ///
    /// # Errors
    /// The reason why not, and what to do about it.
    pub fn available(self) -> Result<(), String> {
        Programs::find(self).map(drop).map_err(|error| format!("{error:#}"))
    }

    /// Whether it speaks PostgreSQL's protocol; MySQL's otherwise.
    #[must_use]
    pub fn is_postgres(self) -> bool {
        matches!(self, Flavor::Postgres15 | Flavor::Postgres18)
    }

    /// The flavor called `name`, as in `postgres:15`, `mariadb`, `mysql`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Flavor> {
        Flavor::ALL.into_iter().find(|flavor| flavor.to_string() == name)
    }

    /// Name of the server's program.
    fn program(self) -> &'static str {
        match self {
            Flavor::Postgres15 | Flavor::Postgres18 => "postgres",
            Flavor::MariaDb => "mariadbd",
            Flavor::MySql => "mysqld",
        }
    }

    /// The folder of its programs, seen from the root they lie in.
    fn bin_dir(self) -> &'static str {
        match self {
            Flavor::Postgres15 => "/usr/lib/postgresql/15/bin",
            Flavor::Postgres18 => "/usr/lib/postgresql/18/bin",
            Flavor::MariaDb | Flavor::MySql => "/usr/sbin",
        }
    }

    /// The system user that runs it when we are root: these servers refuse to be root.
    fn user(self) -> &'static str {
        if self.is_postgres() { "postgres" } else { "mysql" }
    }
}

impl fmt::Display for Flavor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flavor::Postgres15 => "postgres:15",
            Flavor::Postgres18 => "postgres:18",
            Flavor::MariaDb => "mariadb",
            Flavor::MySql => "mysql",
        })
    }
}

/// Where a flavor's programs lie on this machine and who runs them.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    flavor: Flavor,
    /// The root to enter first, if they do not belong to this system.
    chroot: Option<PathBuf>,
    /// User and group ids to run as; `None`: those we have.
    user: Option<(u32, u32)>,
}

/// Mounts what a server needs inside the root `$1`, the server's folder `$2` at `/srv`, then
/// becomes the server. The mounts are seen by this process alone and go with it.
const ENTER: &str = r#"
set -e
root=$1; folder=$2; user=$3; shift 3
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
mount --rbind "$folder" "$root/srv"
exec chroot --userspec="$user" --groups= "$root" "$@"
"#;

/// The server's folder as its programs in a foreign root see it.
const INSIDE: &str = "/srv";

impl Programs {
    /// Looks once; again only while they are not there, because they may be installed meanwhile.
    pub(crate) fn find(flavor: Flavor) -> Result<Programs> {
        static FOUND: [OnceLock<Programs>; 4] = [const { OnceLock::new() }; 4];
        let found = &FOUND[flavor as usize];
        if let Some(programs) = found.get() {
            return Ok(programs.clone());
        }
        let programs = Programs::look(flavor)?;
        Ok(found.get_or_init(|| programs).clone())
    }

    fn look(flavor: Flavor) -> Result<Programs> {
        let local = Path::new(flavor.bin_dir()).join(flavor.program());
        let chroot = match flavor {
            Flavor::Postgres15 | Flavor::MariaDb if !local.exists() => {
                bail!("{flavor} needs {}: {}", local.display(), package_hint(flavor));
            }
            // The machine's mysqld may be a MySQL of any age, or MariaDB under its old name.
            Flavor::MySql => Some(unstable_root(flavor)?),
            _ if local.exists() => None,
            _ => Some(unstable_root(flavor)?),
        };
        let user = if is_root() { Some(user_ids(flavor, chroot.as_deref())?) } else { None };
        Ok(Programs { flavor, chroot, user })
    }

    /// What a data folder of these programs is called: another build has its own.
    pub(crate) fn identity(&self) -> Result<String> {
        let dir = self.flavor.bin_dir().trim_start_matches('/');
        let root = self.chroot.as_deref().unwrap_or(Path::new("/"));
        let path = root.join(dir).join(self.flavor.program());
        let meta = fs::metadata(&path).with_context(|| format!("look at {}", path.display()))?;
        Ok(format!("{}-{}-{}", self.flavor, meta.mtime(), meta.len()).replace(':', ""))
    }

    /// How the server sees `path`, which lies in `folder`.
    pub(crate) fn seen(&self, folder: &Path, path: &str) -> String {
        match self.chroot {
            Some(_) => format!("{INSIDE}/{path}"),
            None => folder.join(path).display().to_string(),
        }
    }

    /// A command that runs `program` of this flavor as its user on `folder`.
    pub(crate) fn command(&self, program: &str, folder: &Path) -> Command {
        let path = Path::new(self.flavor.bin_dir()).join(program);
        let mut command = match (&self.chroot, self.user) {
            (Some(root), user) => {
                let (uid, gid) = user.unwrap_or_default();
                let mut command = Command::new("unshare");
                command.args(["--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"]);
                command.arg(root).arg(folder).arg(format!("{uid}:{gid}")).arg(path);
                command
            }
            // Not `Command::uid`: a small disk is mounted as root before this runs.
            (None, Some((uid, gid))) => {
                let mut command = Command::new("setpriv");
                command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}"));
                command.arg("--clear-groups").arg(path).current_dir("/");
                command
            }
            (None, None) => Command::new(path),
        };
        // Time zone and language of whoever runs the tests must not show in a server.
        command.env("TZ", "UTC").env("LC_ALL", "C.UTF-8");
        command
    }

    /// Gives `path` and all below it to the user that runs the server.
    pub(crate) fn hand_over(&self, path: &Path) -> Result<()> {
        let Some((uid, gid)) = self.user else { return Ok(()) };
        run(Command::new("chown").arg("-R").arg(format!("{uid}:{gid}")).arg(path))
    }
}

/// Where things are kept that are made once per machine: `$XDG_CACHE_HOME/tailwater`.
///
/// # Panics
/// When neither `XDG_CACHE_HOME` nor `HOME` is set: there is no place to keep anything then.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the cache's place is the machine's, not a setting")]
pub fn cache_dir() -> PathBuf {
    let cache = match std::env::var("XDG_CACHE_HOME") {
        Ok(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => Path::new(&std::env::var("HOME").expect("HOME is set")).join(".cache"),
    };
    cache.join("tailwater")
}

/// Whether the long tests are wanted too: `cargo xtask test --all` says so to the tests this way.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "a test binary takes no arguments of ours")]
pub fn everything() -> bool {
    std::env::var("TAILWATER_TEST_ALL").is_ok_and(|value| value == "1")
}

/// Where the Debian unstable root with MySQL and PostgreSQL 18 lies, if it has been made.
#[must_use]
pub fn sid_root() -> PathBuf {
    cache_dir().join("sid")
}

/// Runs `command` and fails with what it wrote to its standard error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}):\n{}{}",
            command.get_program().display(),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

fn package_hint(flavor: Flavor) -> &'static str {
    if flavor.is_postgres() {
        "apt-get install postgresql"
    } else {
        "apt-get install mariadb-server"
    }
}

/// The unstable root, if it holds `flavor` and we may enter it.
fn unstable_root(flavor: Flavor) -> Result<PathBuf> {
    let root = sid_root();
    let program = root.join(flavor.bin_dir().trim_start_matches('/')).join(flavor.program());
    if !program.exists() {
        bail!(
            "{flavor} needs the Debian unstable root {}, which `cargo xtask test` makes as root",
            root.display()
        );
    }
    if !is_root() {
        bail!("{flavor} lies in {}, which only root can enter", root.display());
    }
    run(Command::new("unshare").args(["--mount", "true"]))
        .with_context(|| format!("{flavor} needs a private mount namespace"))?;
    Ok(root)
}

/// User and group id for `flavor`'s server, as the system it runs in numbers them.
fn user_ids(flavor: Flavor, chroot: Option<&Path>) -> Result<(u32, u32)> {
    let passwd = chroot.unwrap_or(Path::new("/")).join("etc/passwd");
    let text = fs::read_to_string(&passwd).with_context(|| format!("read {}", passwd.display()))?;
    let ids = |name: &str| {
        text.lines().map(|line| line.split(':').collect::<Vec<_>>()).find_map(|line| {
            let [found, _, uid, gid, ..] = line.as_slice() else { return None };
            (*found == name).then_some((uid.parse().ok()?, gid.parse().ok()?))
        })
    };
    // `mysql-server-core` brings no user. Nobody owns nothing else in there, and will do.
    ids(flavor.user())
        .or_else(|| ids("nobody").filter(|_| flavor == Flavor::MySql))
        .with_context(|| format!("no user {} in {}", flavor.user(), passwd.display()))
}
