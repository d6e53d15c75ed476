//! The source against real servers: what a table's rows look like, what a stream says, in order.

mod faults;
mod support;
mod transactions;
mod types;
