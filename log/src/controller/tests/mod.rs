//! Scenarios of the controller, and random ones.

mod brokers;
mod cluster;
mod copies;
mod machine;
mod moves;
mod random;
mod replicas;
mod script;
mod topics;
