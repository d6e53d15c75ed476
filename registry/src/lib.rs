//! Schemas: ids and versions, kept in a topic of whatever Kafka we use.
//!
//! The topic is Confluent's `_schemas`, record for record (JSON keys and values), so that its tools
//! and ours read the same. A schema on its way: capture calls [`Registry::register`] when it meets
//! a table version; the record goes to the topic; apply sees the id in a row's frame and asks
//! [`Registry::schema`], which reads the topic up to its end before it says that an id is unknown.
//!
//! **One writer at a time.** Ids must never be given twice, also with several capture hosts on one
//! cluster. A writer takes the producer of one well-known transactional id, which fences every
//! other, puts a record of its own into the topic so that the partition knows the new epoch, and
//! only then reads the end and chooses the next id. Who was fenced in between begins again.

mod error;
mod record;
mod registry;
mod state;

pub use error::Error;
pub use registry::{Config, Registry};
