//! `cargo xtask db`: a scratch server in the foreground, for trying things by hand.

use anyhow::{Result, bail};
use tailwater_scratch::{Flavor, Kafka, Server};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Starts a scratch server, prints its URL, and ends it with Ctrl-C.
    Up {
        /// postgres:15, postgres:18, mariadb, mysql or kafka.
        server: String,
    },
    /// Starts a scratch Apache Kafka: `up kafka`.
    Kafka,
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Up { server } if server == "kafka" => kafka(),
        Command::Up { server } => match Flavor::from_name(server) {
            Some(flavor) => database(flavor),
            None => {
                let known = Flavor::ALL.map(|flavor| flavor.to_string()).join(", ");
                bail!("no server is called {server}: there are {known} and kafka")
            }
        },
        Command::Kafka => kafka(),
    }
}

/// Ctrl-C ends this process, and the server ends with it: nothing to catch.
fn database(flavor: Flavor) -> Result<()> {
    let mut server = Server::start(flavor)?;
    let database = if flavor.is_postgres() { "postgres" } else { "mysql" };
    println!("{}", server.url(database));
    println!("{flavor} runs in {} until Ctrl-C", server.folder().display());
    server.wait()
}

fn kafka() -> Result<()> {
    Kafka::prepare()?;
    let mut kafka = Kafka::start()?;
    println!("{}", kafka.bootstrap());
    println!("kafka runs until Ctrl-C");
    kafka.wait()
}
