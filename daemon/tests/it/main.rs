//! The whole program between real databases.

mod kills;
mod pairs;
mod workload;
mod world;
