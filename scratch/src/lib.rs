//! Scratch servers for tests, the demo and the bench: PostgreSQL, MySQL, MariaDB, Apache Kafka, and
//! Tailwater itself.
//!
//! [`Server::start`] copies a data folder that was initialised once per machine (`template`), takes
//! a port of its own (`port`), starts the server (`postgres`, `mysql`) below a folder that
//! vanishes with it (`folder`), and hands out URLs. [`Kafka`] does the same for a Kafka broker, and
//! a [`Proxy`] and a [`SmallDisk`] are the network that fails and the disk that is full; a [`Host`]
//! is one whose cable can be pulled, and a [`Network`] has several. A [`Cluster`] is a log of several
//! Tailwater nodes, a [`Writer`] a foreign producer that notes what was acknowledged to it.
//! [`Certificates`] are for servers that encrypt.
//!
//! Invariants: a server listens on loopback only (or where a test's own [`Host`] sees it), ends with the process that started it, even when
//! that one is killed with SIGKILL, and never touches a server or a folder that it did not make.
//!
//! What these servers are not: durable. They do not fsync, so they survive the death of their own
//! process (which tests rely on), not that of the machine.

mod certificates;
mod client;
mod cluster;
mod disk;
mod flavor;
mod folder;
mod host;
mod kafka;
mod mysql;
mod namespace;
mod network;
mod port;
mod postgres;
mod process;
mod proxy;
mod server;
mod tailwater;
mod template;
mod wait;
mod writer;

pub use certificates::Certificates;
pub use cluster::Cluster;
pub use disk::SmallDisk;
pub use flavor::{Flavor, cache_dir, everything, sid_root};
pub use host::Host;
pub use kafka::Kafka;
pub use network::Network;
pub use port::free_port;
pub use proxy::{Cut, Proxy};
pub use server::Server;
pub use tailwater::{Ran, Tailwater};
pub use wait::{now_us, wait_until};
pub use writer::{Acknowledged, Client, Writer, Writing};
