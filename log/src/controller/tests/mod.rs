//! Scenarios of the controller, and random ones.

mod brokers;
mod cluster;
mod machine;
mod moves;
mod random;
mod replicas;
mod script;
mod topics;
