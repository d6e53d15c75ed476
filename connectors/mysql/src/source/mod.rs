//! MySQL and MariaDB as a source: check, exact snapshot, binlog stream.
