//! The whole program between real databases.

mod pairs;
mod workload;
mod world;
