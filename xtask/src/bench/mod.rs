//! `cargo xtask bench`: how fast, beside what a user would run otherwise.
//!
//! Everything is measured side by side in one run: in each round the changes are written while
//! nobody reads, then each side catches up by itself, and who goes first alternates. Rounds give a
//! median, medians give a ratio; seconds alone say more about the machine than about us.
//! `cluster` has no database: there Kafka's own client writes to three nodes of each side in turn.
//!
//! Servers flush as they would in production (`fsync = on`, `sync_binlog = 1`), our log flushes
//! before it acknowledges. Our side is a process started anew each time: its start is part of the
//! figure. Its CPU seconds and its peak memory (`VmHWM`) come from `/proc`.
//!
//! Nothing in CI depends on these figures.

mod cluster;
mod figures;
mod latency;
mod mysql;
mod ours;
mod postgres;
mod rows;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use tailwater_scratch::Flavor;

use crate::{setup, shell};
use figures::Figure;
use ours::Bench;

/// A group of figures that share their servers.
type Group = (&'static str, fn(&Bench) -> Result<Vec<Figure>>);

const GROUPS: [Group; 7] = [
    ("postgres-log", postgres::log),
    ("mysql-log", mysql::log),
    ("postgres-catch-up", postgres::catch_up),
    ("mysql-catch-up", mysql::catch_up),
    ("latency", latency::latency),
    ("cluster-copied", cluster::copied),
    ("cluster-flushed", cluster::flushed),
];

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Rows per measurement, of about 160 bytes, 100 a transaction; `cluster` writes as many records
    /// of 1 KiB.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    rows: u64,
    /// Rounds per figure; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Only these groups of figures: postgres-log, mysql-log, postgres-catch-up, mysql-catch-up,
    /// latency, cluster-copied, cluster-flushed; or all whose names begin so, as `cluster`. May be
    /// given several times.
    #[arg(long)]
    only: Vec<String>,
    /// Which server speaks MySQL's protocol: mysql or mariadb; by default mysql where it is there.
    #[arg(long)]
    mysql: Option<String>,
    /// The cargo profile to build with: `profiling` for perf.
    #[arg(long, default_value = "release")]
    profile: String,
    /// Measures this program instead of building one, and says so.
    #[arg(long, conflicts_with = "profile")]
    binary: Option<PathBuf>,
    /// Only name what is missing on this machine, install nothing.
    #[arg(long)]
    no_install: bool,
}

pub(crate) fn run(root: &Path, arguments: &Arguments) -> Result<()> {
    let groups = chosen(&arguments.only)?;
    setup::servers(!arguments.no_install)?;
    let (binary, build) = match &arguments.binary {
        Some(binary) => (binary.clone(), binary.display().to_string()),
        None => (shell::tailwater(root, &arguments.profile)?, arguments.profile.clone()),
    };
    let bench = Bench {
        binary,
        transactions: arguments.rows.div_ceil(rows::PER_TRANSACTION),
        rounds: arguments.rounds,
        mysql: mysql_flavor(arguments.mysql.as_deref())?,
    };
    let mut figures = Vec::new();
    for (name, group) in groups {
        println!("\n{name}");
        match group(&bench) {
            Ok(found) => figures.extend(found),
            // The others are still worth having; the table at the end is then not complete.
            Err(error) => {
                println!("  failed: {error:#}");
                figures.push(Figure::failed(name));
            }
        }
    }
    println!("\n{}", heading(&bench, &build));
    println!("{}", figures::table(&figures));
    if figures.iter().any(|figure| figure.values.is_none()) {
        bail!("some figures could not be measured");
    }
    Ok(())
}

fn heading(bench: &Bench, build: &str) -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!(
        "{} rows of about 160 bytes, {} a transaction, or records of 1 KiB; medians of {} alternating rounds; \
         all servers and Tailwater ({build}) on {cores} cores",
        bench.rows(),
        rows::PER_TRANSACTION,
        bench.rounds,
    )
}

fn chosen(only: &[String]) -> Result<Vec<Group>> {
    let known = GROUPS.map(|(name, _)| name);
    // `cluster` means all of `cluster-…`.
    let means = |wanted: &str, name: &str| {
        name.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    if let Some(unknown) = only.iter().find(|it| !known.iter().any(|name| means(it, name))) {
        bail!("no group of figures is called {unknown}: there are {}", known.join(", "));
    }
    let wanted = |group: &Group| only.is_empty() || only.iter().any(|it| means(it, group.0));
    Ok(GROUPS.into_iter().filter(wanted).collect())
}

fn mysql_flavor(name: Option<&str>) -> Result<Flavor> {
    match name {
        Some("mysql") => Ok(Flavor::MySql),
        Some("mariadb") => Ok(Flavor::MariaDb),
        Some(other) => bail!("--mysql {other}: there are mysql and mariadb"),
        None if Flavor::MySql.available().is_ok() => Ok(Flavor::MySql),
        None => Ok(Flavor::MariaDb),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_chosen_by_name_and_unknown_names_are_refused() {
        assert_eq!(chosen(&[]).unwrap().len(), GROUPS.len());
        let one = chosen(&["latency".to_owned()]).unwrap();
        assert_eq!(one.iter().map(|group| group.0).collect::<Vec<_>>(), ["latency"]);
        let both = chosen(&["cluster".to_owned()]).unwrap();
        assert_eq!(
            both.iter().map(|group| group.0).collect::<Vec<_>>(),
            ["cluster-copied", "cluster-flushed"]
        );
        assert!(chosen(&["clust".to_owned()]).is_err());
        let error = chosen(&["speed".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("postgres-catch-up"), "{error}");
    }
}
