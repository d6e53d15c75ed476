//! One scratch server, from its copied data folder to its end.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::client;
use crate::disk::SmallDisk;
use crate::flavor::{Flavor, Programs};
use crate::folder::Folder;
use crate::port::free_port;
use crate::process::{self, Process};
use crate::proxy::Proxy;
use crate::wait::wait_until;
use crate::{mysql, postgres, template};

/// Recovery after a crash under load is the slowest start; a loaded machine makes it slower.
const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A database server of our own: it ends, and its folder goes, on drop or with this process.
#[derive(Debug)]
pub struct Server {
    flavor: Flavor,
    programs: Programs,
    port: u16,
    /// Also of a server that a whole program shares: see [`Server::crash`].
    process: Mutex<Option<Process>>,
    folder: Folder,
    /// The data folder's own disk, if it has one.
    disk: Option<SmallDisk>,
}

impl Server {
    /// Starts a server on loopback with everything replication needs switched on.
    ///
    /// # Errors
    /// If the flavor is not available, or the server does not come up: with the end of its log.
    pub fn start(flavor: Flavor) -> Result<Server> {
        Server::start_with(flavor, &[])
    }

    /// Starts a server with settings of its configuration file added to ours, or instead of them.
    ///
    /// To have one that flushes: `fsync = on` on PostgreSQL, `sync_binlog = 1` and
    /// `innodb_flush_log_at_trx_commit = 1` on the others.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_with(flavor: Flavor, settings: &[(&str, &str)]) -> Result<Server> {
        let server = Server::prepare(flavor, settings)
            .with_context(|| format!("prepare a scratch {flavor}"))?;
        server.launch()?;
        Ok(server)
    }

    /// Starts a server whose data lies on a disk of `bytes`, for [`Server::fill_disk`].
    ///
    /// The disk goes with the process: this server cannot start again. See
    /// [`SmallDisk::available`].
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_on_small_disk(
        flavor: Flavor,
        bytes: u64,
        settings: &[(&str, &str)],
    ) -> Result<Server> {
        let mut server = Server::prepare(flavor, settings)
            .with_context(|| format!("prepare a scratch {flavor}"))?;
        server.disk = Some(SmallDisk::new(&server.folder.path().join("data"), bytes));
        server.launch()?;
        Ok(server)
    }

    /// The server that all tests of this process share; it ends with the process.
    ///
    /// # Panics
    /// If it cannot be started: a test without its server must fail.
    pub fn shared(flavor: Flavor) -> &'static Server {
        static SHARED: [OnceLock<Server>; 4] = [const { OnceLock::new() }; 4];
        SHARED[flavor as usize]
            .get_or_init(|| Server::start(flavor).expect("the shared server starts"))
    }

    /// URL of `database` for a superuser that needs no password.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        self.url_at(self.port, database)
    }

    /// The same URL through `proxy`.
    #[must_use]
    pub fn url_through(&self, proxy: &Proxy, database: &str) -> String {
        self.url_at(proxy.port(), database)
    }

    fn url_at(&self, port: u16, database: &str) -> String {
        if self.flavor.is_postgres() {
            format!("postgres://postgres@127.0.0.1:{port}/{database}")
        } else {
            format!("mysql://root:@127.0.0.1:{port}/{database}")
        }
    }

    /// Its port on 127.0.0.1; the same after a restart.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it is.
    #[must_use]
    pub fn flavor(&self) -> Flavor {
        self.flavor
    }

    /// Makes a database with a name that no other of this process has.
    ///
    /// # Errors
    /// If the server refuses.
    pub fn create_database(&self) -> Result<String> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("shop_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.create_database_named(&name)?;
        Ok(name)
    }

    /// Makes a database called `name`, as when source and target must have the same one.
    ///
    /// # Errors
    /// If the server refuses.
    pub fn create_database_named(&self, name: &str) -> Result<()> {
        let quote = if self.flavor.is_postgres() { '"' } else { '`' };
        self.sql(self.any_database(), &format!("CREATE DATABASE {quote}{name}{quote}"))?;
        Ok(())
    }

    /// Runs statements through the database's own client, up to the first that fails.
    ///
    /// Returns the rows they give, columns separated by tabs, NULL as `NULL`, without headings.
    /// An empty `database` is the one that is always there.
    ///
    /// # Errors
    /// What the client says about the first statement that failed.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String> {
        let database = if database.is_empty() { self.any_database() } else { database };
        client::sql(self.flavor, self.port, database, sql)
    }

    /// Runs statements over a network that may fail.
    ///
    /// # Errors
    /// As [`Server::sql`], or if the network fails.
    pub fn sql_through(&self, proxy: &Proxy, database: &str, sql: &str) -> Result<String> {
        client::sql(self.flavor, proxy.port(), database, sql)
    }

    /// All rows of all tables of `database`, sorted, as the database's own client prints them.
    ///
    /// Two databases of one engine are equal exactly if their dumps are. Our own bookkeeping (a
    /// schema or database `tailwater`) is left out.
    ///
    /// # Errors
    /// If the server cannot be read.
    pub fn dump(&self, database: &str) -> Result<String> {
        client::dump(self.flavor, self.port, database)
    }

    /// Adds settings to the configuration file; they count from the next start on.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn configure(&self, settings: &[(&str, &str)]) -> Result<()> {
        if self.flavor.is_postgres() {
            postgres::add_settings(self.folder.path(), settings)
        } else {
            mysql::add_settings(self.folder.path(), settings)
        }
    }

    /// Starts it again after [`Server::stop`] or [`Server::kill`], on the same port.
    ///
    /// # Errors
    /// If it runs already or does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        if self.process().is_some() {
            bail!("{} runs already", self.flavor);
        }
        if self.disk.is_some() {
            bail!("the small disk of {} went with its process", self.flavor);
        }
        self.launch()
    }

    /// Shuts it down in order.
    ///
    /// # Errors
    /// If it does not run, or had to be killed because it did not end.
    pub fn stop(&mut self) -> Result<()> {
        // PostgreSQL: fast shutdown. It does not wait for clients to leave.
        let signal = if self.flavor.is_postgres() { "INT" } else { "TERM" };
        self.take_process()?
            .end(signal, STOP_LIMIT)
            .with_context(|| format!("stop {}", self.flavor))
    }

    /// Stops and starts it.
    ///
    /// # Errors
    /// As [`Server::stop`] and [`Server::start_again`].
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start_again()
    }

    /// Crashes it: SIGKILL, to all its processes.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.take_process()?.kill()
    }

    /// Crashes it as [`Server::kill`] does, and starts it again: also one that others use meanwhile.
    ///
    /// # Errors
    /// If it does not run, or does not come up.
    pub fn crash(&self) -> Result<()> {
        self.take_process()?.kill()?;
        self.launch()
    }

    /// Freezes it: connections stay open and nothing answers, until [`Server::resume`].
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&self) -> Result<()> {
        self.signal("STOP")
    }

    /// Ends [`Server::pause`].
    ///
    /// # Errors
    /// If it does not run.
    pub fn resume(&self) -> Result<()> {
        self.signal("CONT")
    }

    /// Leaves no space on its disk; for a server from [`Server::start_on_small_disk`].
    ///
    /// # Errors
    /// If it does not run, or has no disk of its own.
    pub fn fill_disk(&self) -> Result<()> {
        self.disk.as_ref().context("the server has no small disk")?.fill(self.id()?)
    }

    /// Ends [`Server::fill_disk`].
    ///
    /// # Errors
    /// As [`Server::fill_disk`].
    pub fn free_disk(&self) -> Result<()> {
        self.disk.as_ref().context("the server has no small disk")?.free(self.id()?)
    }

    /// Waits until it ends by itself, as in `xtask db up`.
    ///
    /// # Errors
    /// If it does not run, or when it has ended: with how, and the end of its log.
    pub fn wait(&mut self) -> Result<()> {
        let status = self.take_process()?.wait()?;
        bail!("{} ended with {status}; end of its log:\n{}", self.flavor, self.log_end());
    }

    /// Where its data, its configuration and its log lie while it lives.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = fs::read(self.folder.path().join("server.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn prepare(flavor: Flavor, settings: &[(&str, &str)]) -> Result<Server> {
        let programs = Programs::find(flavor)?;
        let end_signal = if flavor.is_postgres() { "QUIT" } else { "KILL" };
        let folder = Folder::create(&flavor.to_string().replace(':', ""), end_signal)?;
        let port = free_port();
        template::copy_to(flavor, &programs, &folder.path().join("data"))?;
        let run = folder.path().join("run");
        fs::create_dir(&run)?;
        programs.hand_over(&run)?;
        if flavor.is_postgres() {
            postgres::configure(&programs, folder.path(), port, settings)?;
        } else {
            mysql::configure(flavor, &programs, folder.path(), port, settings)?;
        }
        Ok(Server { flavor, programs, port, process: Mutex::default(), folder, disk: None })
    }

    /// Starts the process and waits until it takes connections.
    fn launch(&self) -> Result<()> {
        let folder = self.folder.path();
        let command = if self.flavor.is_postgres() {
            postgres::server(&self.programs, folder)
        } else {
            mysql::server(self.flavor, &self.programs, folder)
        };
        let command = match &self.disk {
            Some(disk) => disk.wrap(&command),
            None => command,
        };
        let data = self.programs.seen(folder, "data");
        let mut process = Process::spawn(command, &self.folder, &folder.join("server.log"))?;
        let pid = process.id();
        let up = wait_until(START_LIMIT, "a connection", || {
            if let Some(status) = process.ended()? {
                bail!("it ended with {status}");
            }
            let ready = if self.flavor.is_postgres() {
                postgres::ready(&data, pid)
            } else {
                mysql::ready(self.port)
            };
            Ok(ready.then_some(()))
        });
        *self.process() = if up.is_err() { process.forget_if_ended()? } else { Some(process) };
        up.with_context(|| format!("start {}; end of its log:\n{}", self.flavor, self.log_end()))
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().expect("nothing panics under this lock")
    }

    fn take_process(&self) -> Result<Process> {
        self.process().take().with_context(|| format!("{} does not run", self.flavor))
    }

    fn signal(&self, name: &str) -> Result<()> {
        let process = self.process();
        process.as_ref().with_context(|| format!("{} does not run", self.flavor))?.signal_all(name)
    }

    fn id(&self) -> Result<u32> {
        let process = self.process();
        Ok(process.as_ref().with_context(|| format!("{} does not run", self.flavor))?.id())
    }

    /// A database that every server of the flavor has.
    fn any_database(&self) -> &'static str {
        if self.flavor.is_postgres() { "postgres" } else { "mysql" }
    }

    fn log_end(&self) -> String {
        process::log_end(&self.log())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(process) = self.process().take() else { return };
        // Its data is thrown away: no need for an orderly end. QUIT lets PostgreSQL free its
        // shared memory.
        let _awake = process.signal_all("CONT");
        let ended = if self.flavor.is_postgres() {
            process.end("QUIT", Duration::from_secs(10))
        } else {
            process.kill()
        };
        // In a drop there is nobody to tell; the guard of the folder tries once more.
        drop(ended);
    }
}
