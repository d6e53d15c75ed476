//! PostgreSQL as source and target.
//!
//! The life of one change here: `source` reads it out of the server's logical replication stream,
//! byte by byte as `pgoutput` sends it, into row messages; `target` writes such rows into another
//! database. Both share how a server is reached (`connect`, `tls`), what its types and tables are
//! (`types`, `catalog`), and how rows are read back for comparison (`reader`).

mod catalog;
mod connect;
mod gathering;
mod reader;
pub mod source;
pub mod target;
mod tls;
mod types;

pub use reader::table_reader;
