//! Names of binlog files: a base and a running number.

use std::fmt;

/// `binlog.000042`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BinlogName {
    base: String,
    number: u64,
}

impl BinlogName {
    /// The file of this number.
    pub(crate) fn new(base: &str, number: u64) -> Self {
        Self { base: base.to_owned(), number }
    }

    /// Reads a name; any folder in front of it is the server's own business.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let name = name.rsplit(['/', '\\']).next()?;
        let (base, number) = name.rsplit_once('.')?;
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Some(Self { base: base.to_owned(), number: number.parse().ok()? })
    }

    /// What stands in front of the number.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// The number.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl fmt::Display for BinlogName {
    /// As the server makes it: at least six digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.base, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for name in ["binlog.000042", "db-1.bin.1234567"] {
            assert_eq!(BinlogName::parse(name).unwrap().to_string(), name);
        }
        assert_eq!(BinlogName::parse("./binlog.000001").unwrap().base(), "binlog");
        assert!(BinlogName::parse("binlog").is_none() && BinlogName::parse("binlog.x").is_none());
    }
}
