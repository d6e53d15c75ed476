//! A database client that stays open: many small statements without a process for each.
//!
//! Statements go to the database's own client (`psql`, `mariadb`) as text, followed by one that
//! prints a mark; what comes back before the mark is the answer. So neither the demo nor the bench
//! judges our drivers by our drivers.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use tailwater_scratch::Server;

/// An open client; it ends on drop.
#[derive(Debug)]
pub(crate) struct Session {
    client: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    errors: ChildStderr,
    /// Counts the marks, so that an answer is never taken for another's.
    count: u64,
}

impl Session {
    /// Opens a client on `database` of `server`.
    pub(crate) fn open(server: &Server, database: &str) -> Result<Session> {
        let mut command = if server.flavor().is_postgres() {
            psql(server.port())
        } else {
            mariadb(server.port())
        };
        let mut client = command
            .arg(database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for us: we end the client when its last statement is through.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        let input = client.stdin.take().context("the client's input")?;
        let output = client.stdout.take().context("the client's output")?;
        let errors = client.stderr.take().context("the client's errors")?;
        Ok(Session { client, input, output: BufReader::new(output), errors, count: 0 })
    }

    /// Runs statements, each ended by a semicolon, and returns the lines they print.
    ///
    /// # Errors
    /// What the client says about the first statement that failed; the session is then over.
    pub(crate) fn run(&mut self, statements: &str) -> Result<Vec<String>> {
        self.count += 1;
        let mark = format!("tailwater-mark-{}", self.count);
        let sent = write!(self.input, "{statements}\nSELECT '{mark}';\n")
            .and_then(|()| self.input.flush());
        if sent.is_err() {
            return self.failed();
        }
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).context("read a client's answer")? == 0 {
                return self.failed();
            }
            let line = line.trim_end_matches('\n');
            if line == mark {
                return Ok(lines);
            }
            lines.push(line.to_owned());
        }
    }

    /// Runs one query for its first value.
    ///
    /// # Errors
    /// As [`Session::run`], or if there is none.
    pub(crate) fn value(&mut self, query: &str) -> Result<String> {
        let lines = self.run(query)?;
        lines.into_iter().next().with_context(|| format!("no answer to {query}"))
    }

    fn failed<T>(&mut self) -> Result<T> {
        let mut text = String::new();
        self.errors.read_to_string(&mut text).context("read a client's errors")?;
        bail!("{}", text.trim());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A client that is still at work would otherwise be waited for; gone already is fine.
        let _killed = self.client.kill();
        let _status = self.client.wait();
    }
}

fn psql(port: u16) -> Command {
    let mut command = Command::new("psql");
    command.args(["-X", "-q", "-A", "-t", "-F", "\t", "-P", "null=NULL", "-v", "ON_ERROR_STOP=1"]);
    command.args(["-h", "127.0.0.1", "-U", "postgres", "-f", "-", "-p", &port.to_string()]);
    command.env("PGCLIENTENCODING", "UTF8").env("PGTZ", "UTC").env_remove("PGOPTIONS");
    command
}

fn mariadb(port: u16) -> Command {
    let mut command = Command::new("mariadb");
    command.args(["--no-defaults", "--batch", "--skip-column-names", "--unbuffered"]);
    command.args(["--default-character-set=utf8mb4", "--skip-reconnect", "--skip-ssl"]);
    command.args(["-h", "127.0.0.1", "-u", "root", "-P", &port.to_string()]);
    command
}
