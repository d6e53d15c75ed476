//! Which transactions a server has executed, as it prints it.
//!
//! Kept only to notice that a server lost or never had what the log holds: MySQL's intervals per
//! source (and tag), MariaDB's last number per domain.

use std::collections::BTreeMap;
use std::fmt;

use tailwater_change::Dialect;

/// A set of transactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GtidSet {
    /// `uuid` or `uuid:tag`; intervals, both ends inclusive, ascending, apart.
    Mysql(BTreeMap<String, Vec<(u64, u64)>>),
    /// Per domain the last server and number.
    Mariadb(BTreeMap<u32, (u32, u64)>),
}

impl GtidSet {
    /// Reads a set; what cannot be read is not in it.
    pub(crate) fn parse(dialect: Dialect, text: &str) -> Self {
        let mut set = match dialect {
            Dialect::Mariadb => Self::Mariadb(BTreeMap::new()),
            Dialect::Mysql | Dialect::Postgres => Self::Mysql(BTreeMap::new()),
        };
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            set.add(part);
        }
        set
    }

    /// Adds a transaction, or several of one source: `uuid:1-5:tag:7`, `0-1-42`.
    pub(crate) fn add(&mut self, text: &str) {
        match self {
            Self::Mysql(sources) => {
                let mut parts = text.split(':').map(str::trim);
                let uuid = parts.next().unwrap_or_default().to_ascii_lowercase();
                let mut source = uuid.clone();
                for part in parts {
                    match interval(part) {
                        Some(interval) => {
                            insert(sources.entry(source.clone()).or_default(), interval);
                        }
                        None => source = format!("{uuid}:{part}"),
                    }
                }
            }
            Self::Mariadb(domains) => {
                let mut numbers = text.split('-');
                let mut next = || numbers.next();
                let (Some(domain), Some(server), Some(number)) = (next(), next(), next()) else {
                    return;
                };
                let parsed = (domain.parse(), server.parse(), number.parse());
                if let (Ok(domain), Ok(server), Ok(number)) = parsed {
                    domains.insert(domain, (server, number));
                }
            }
        }
    }

    /// What of `self` is not in `other`, as text; none if nothing.
    pub(crate) fn missing_in(&self, other: &Self) -> Option<String> {
        let missing: Vec<String> = match (self, other) {
            (Self::Mysql(mine), Self::Mysql(theirs)) => mine
                .iter()
                .flat_map(|(source, intervals)| {
                    let theirs = theirs.get(source).map_or(&[][..], Vec::as_slice);
                    intervals
                        .iter()
                        .filter(move |mine| {
                            !theirs.iter().any(|it| it.0 <= mine.0 && mine.1 <= it.1)
                        })
                        .map(move |(from, to)| format!("{source}:{from}-{to}"))
                })
                .collect(),
            (Self::Mariadb(mine), Self::Mariadb(theirs)) => mine
                .iter()
                .filter(|(domain, (_, number))| {
                    theirs.get(domain).is_none_or(|(_, theirs)| theirs < number)
                })
                .map(|(domain, (server, number))| format!("{domain}-{server}-{number}"))
                .collect(),
            _ => vec![self.to_string()],
        };
        (!missing.is_empty()).then(|| missing.join(","))
    }
}

impl fmt::Display for GtidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        match self {
            Self::Mysql(sources) => {
                for (source, intervals) in sources {
                    write!(f, "{comma}{source}")?;
                    for (from, to) in intervals {
                        write!(f, ":{from}-{to}")?;
                    }
                    comma = ",";
                }
            }
            Self::Mariadb(domains) => {
                for (domain, (server, number)) in domains {
                    write!(f, "{comma}{domain}-{server}-{number}")?;
                    comma = ",";
                }
            }
        }
        Ok(())
    }
}

fn interval(text: &str) -> Option<(u64, u64)> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    Some((from.parse().ok()?, to.parse().ok()?))
}

fn insert(intervals: &mut Vec<(u64, u64)>, (mut from, mut to): (u64, u64)) {
    // Nearly always the number after the last.
    if let Some(last) = intervals.last_mut().filter(|last| last.1.checked_add(1) == Some(from)) {
        last.1 = to;
        return;
    }
    intervals.retain(|&(other_from, other_to)| {
        let apart = other_to.saturating_add(1) < from || to.saturating_add(1) < other_from;
        if !apart {
            from = from.min(other_from);
            to = to.max(other_to);
        }
        apart
    });
    let at = intervals.partition_point(|other| other.0 < from);
    intervals.insert(at, (from, to));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_grow_and_compare() {
        let mut set = GtidSet::parse(Dialect::Mysql, "AA:1-5:7,\nbb:tag:1");
        set.add("aa:6");
        set.add("aa:8");
        set.add("bb:tag:2");
        assert_eq!(set.to_string(), "aa:1-8,bb:tag:1-2");
        let other = GtidSet::parse(Dialect::Mysql, "aa:1-10");
        assert_eq!(set.missing_in(&other).as_deref(), Some("bb:tag:1-2"));
        assert_eq!(other.missing_in(&other), None);

        let mut set = GtidSet::parse(Dialect::Mariadb, "0-1-5,3-1-2");
        set.add("0-2-6");
        assert_eq!(set.to_string(), "0-2-6,3-1-2");
        let reset = GtidSet::parse(Dialect::Mariadb, "0-1-1");
        assert_eq!(set.missing_in(&reset).as_deref(), Some("0-2-6,3-1-2"));
    }
}
