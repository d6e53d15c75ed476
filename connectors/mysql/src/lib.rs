//! MySQL and MariaDB as source and target.
//!
//! The life of one change here: `source` reads events of the binlog off its own connection, decodes
//! row images straight out of the packet into capture's `Changes`; at the other end `target`
//! executes what apply planned. Both share how a server is reached (`connect`), what its tables are
//! (`catalog`, `types`), how its characters become UTF-8 (`charset`) and how rows are read by key
//! (`reader`).

mod catalog;
mod cell;
mod charset;
mod connect;
mod reader;
pub mod source;
pub mod target;
mod text;
mod types;
mod wire;

pub use reader::table_reader;
