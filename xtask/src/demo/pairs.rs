//! The servers of the demo, what stands on them, and the configuration that joins them.

use std::fmt::Write as _;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use tailwater_scratch::{Flavor, Server};

use super::shop;

/// A database on one of the servers.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) server: Arc<Server>,
    pub(crate) database: &'static str,
}

/// A source database, its target, and the pipeline between them.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    /// The pipeline's name, and the source's and target's.
    pub(crate) name: &'static str,
    pub(crate) from: End,
    pub(crate) to: End,
}

/// Starts the servers and loads the sources: four servers carry the three pairs, because the
/// cross pair is a second database on a source and a target of the others.
pub(crate) fn start() -> Result<Vec<Pair>> {
    let flavors = [Flavor::Postgres15, Flavor::Postgres15, Flavor::MariaDb, Flavor::MariaDb];
    let started: Vec<Result<Server>> = thread::scope(|scope| {
        let starting = flavors.map(|flavor| scope.spawn(move || Server::start(flavor)));
        starting.into_iter().map(|one| one.join().unwrap_or_else(|_| panicked())).collect()
    });
    let mut servers = started.into_iter();
    let mut next = || servers.next().unwrap_or_else(panicked).map(Arc::new);
    let (postgres, postgres_copy, maria, maria_copy) = (next()?, next()?, next()?, next()?);
    let pairs = vec![
        pair("pg_to_pg", (&postgres, "shop"), (&postgres_copy, "shop")),
        pair("maria_to_maria", (&maria, "shop"), (&maria_copy, "shop")),
        pair("maria_to_pg", (&maria, "outlet"), (&postgres_copy, "outlet")),
    ];
    let loaded: Vec<Result<()>> = thread::scope(|scope| {
        let loading: Vec<_> = pairs.iter().map(|pair| scope.spawn(|| load(pair))).collect();
        loading.into_iter().map(|one| one.join().unwrap_or_else(|_| panicked())).collect()
    });
    loaded.into_iter().collect::<Result<()>>()?;
    Ok(pairs)
}

fn panicked<T>() -> Result<T> {
    Err(anyhow!("a thread that starts a server panicked"))
}

fn pair(
    name: &'static str,
    (from, from_database): (&Arc<Server>, &'static str),
    (to, to_database): (&Arc<Server>, &'static str),
) -> Pair {
    let end = |server: &Arc<Server>, database| End { server: Arc::clone(server), database };
    Pair { name, from: end(from, from_database), to: end(to, to_database) }
}

fn load(pair: &Pair) -> Result<()> {
    let (from, to) = (&pair.from, &pair.to);
    from.server.create_database_named(from.database)?;
    to.server.create_database_named(to.database)?;
    from.server
        .sql(from.database, &shop::load(from.server.flavor()))
        .with_context(|| format!("load the sample for {}", pair.name))?;
    Ok(())
}

/// The sections of `tailwater.toml` for all pairs.
pub(crate) fn configuration(pairs: &[Pair]) -> String {
    let mut text = String::new();
    for Pair { name, from, to } in pairs {
        let (from_schema, to_schema) = (from.schema(), to.schema());
        write!(
            text,
            "\n[sources.{name}]\nconnector = \"{}\"\nurl = \"{}\"\ntables = [\"{from_schema}.*\"]\n\
             \n[targets.{name}]\nconnector = \"{}\"\nurl = \"{}\"\n\
             \n[pipelines.{name}]\nsource = \"{name}\"\ntarget = \"{name}\"\n\
             route = {{ \"{from_schema}.*\" = \"{to_schema}.*\" }}\n",
            from.connector(),
            from.url(),
            to.connector(),
            to.url(),
        )
        .expect("a string takes every text");
    }
    text
}

impl End {
    /// Where it is, with its user.
    pub(crate) fn url(&self) -> String {
        self.server.url(self.database)
    }

    fn connector(&self) -> &'static str {
        if self.server.flavor().is_postgres() { "postgres" } else { "mysql" }
    }

    /// PostgreSQL's tables lie in `public`, MariaDB's in their database.
    fn schema(&self) -> &'static str {
        if self.server.flavor().is_postgres() { "public" } else { self.database }
    }
}
