//! The settings of a topic: Kafka's names, checked, with the node's defaults behind them.
//!
//! One table ([`SETTINGS`]) says for each its name, its type and what it is if nobody says, and
//! both CreateTopics and DescribeConfigs work from it. A value that this log cannot honour is
//! refused, never ignored.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Config;

/// The settings that a topic was given; all others have the node's defaults.
pub(crate) type Overrides = BTreeMap<String, String>;

/// What a topic does with old records, and what it takes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TopicConfig {
    /// Whether old segments go.
    pub(crate) delete: bool,
    /// Whether only the last record of each key is kept.
    pub(crate) compact: bool,
    /// How long records are kept; `None` for ever.
    pub(crate) retention: Option<Duration>,
    /// How many bytes of a partition are kept; `None` for all.
    pub(crate) retention_bytes: Option<u64>,
    /// Size in bytes at which a segment is closed.
    pub(crate) segment_bytes: u64,
    /// A segment is closed when its first record was appended so long ago, also if not full.
    pub(crate) segment_age: Duration,
    /// The largest batch in bytes.
    pub(crate) max_message_bytes: usize,
    /// Replicas that must have a record before it is acknowledged.
    pub(crate) min_insync_replicas: i32,
    /// Compaction begins when this part of a partition is new.
    pub(crate) min_cleanable_ratio: f64,
}

/// The type of a setting, as DescribeConfigs numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SettingType {
    Boolean = 1,
    String = 2,
    Int = 3,
    Long = 5,
    Double = 6,
    List = 7,
}

/// A setting that a topic may have.
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    pub(crate) kind: SettingType,
    default: fn(&Config) -> String,
    apply: fn(&mut TopicConfig, &str) -> Result<(), String>,
}

impl Setting {
    /// The value of this setting where the topic does not say.
    pub(crate) fn default_of(&self, config: &Config) -> String {
        (self.default)(config)
    }
}

/// Every setting there is, by name.
pub(crate) const SETTINGS: &[Setting] = &[
    Setting {
        name: "cleanup.policy",
        kind: SettingType::List,
        default: |_| "delete".to_owned(),
        apply: |topic, value| {
            let policies: Vec<&str> = value.split(',').map(str::trim).collect();
            if let Some(other) = policies.iter().find(|name| !["delete", "compact"].contains(name))
            {
                return Err(format!("{other:?} is neither delete nor compact"));
            }
            topic.delete = policies.contains(&"delete");
            topic.compact = policies.contains(&"compact");
            Ok(())
        },
    },
    Setting {
        name: "compression.type",
        kind: SettingType::String,
        default: |_| "producer".to_owned(),
        apply: |_, value| only(value, "producer", "batches are kept as they were sent"),
    },
    Setting {
        name: "delete.retention.ms",
        kind: SettingType::Long,
        default: |_| "86400000".to_owned(),
        // A lower bound: compaction keeps tombstones for good.
        apply: |_, value| number::<i64>(value, 0, i64::MAX).map(drop),
    },
    Setting {
        name: "max.message.bytes",
        kind: SettingType::Int,
        default: |config| config.max_message_bytes.to_string(),
        apply: |topic, value| {
            topic.max_message_bytes = number(value, 0, i64::from(i32::MAX))?;
            Ok(())
        },
    },
    Setting {
        name: "message.timestamp.type",
        kind: SettingType::String,
        default: |_| "CreateTime".to_owned(),
        apply: |_, value| only(value, "CreateTime", "timestamps are kept as they were sent"),
    },
    Setting {
        name: "min.cleanable.dirty.ratio",
        kind: SettingType::Double,
        default: |_| "0.5".to_owned(),
        apply: |topic, value| {
            topic.min_cleanable_ratio = value
                .parse()
                .ok()
                .filter(|ratio| (0.0..=1.0).contains(ratio))
                .ok_or_else(|| format!("{value:?} is not a number from 0 to 1"))?;
            Ok(())
        },
    },
    Setting {
        name: "min.insync.replicas",
        kind: SettingType::Int,
        default: |_| "1".to_owned(),
        apply: |topic, value| {
            topic.min_insync_replicas = number(value, 1, i64::from(i32::MAX))?;
            Ok(())
        },
    },
    Setting {
        name: "retention.bytes",
        kind: SettingType::Long,
        default: |_| "-1".to_owned(),
        apply: |topic, value| {
            topic.retention_bytes = limit(value)?;
            Ok(())
        },
    },
    Setting {
        name: "retention.ms",
        kind: SettingType::Long,
        default: |config| {
            config.retention.map_or_else(|| "-1".to_owned(), |kept| kept.as_millis().to_string())
        },
        apply: |topic, value| {
            topic.retention = limit(value)?.map(Duration::from_millis);
            Ok(())
        },
    },
    Setting {
        name: "segment.bytes",
        kind: SettingType::Int,
        default: |config| config.segment_bytes.to_string(),
        apply: |topic, value| {
            topic.segment_bytes = number(value, 1 << 10, 1 << 30)?;
            Ok(())
        },
    },
    Setting {
        name: "segment.ms",
        kind: SettingType::Long,
        default: |_| "604800000".to_owned(),
        apply: |topic, value| {
            topic.segment_age = Duration::from_millis(number(value, 1, i64::MAX)?);
            Ok(())
        },
    },
    Setting {
        name: "unclean.leader.election.enable",
        kind: SettingType::Boolean,
        default: |_| "false".to_owned(),
        apply: |_, value| only(value, "false", "only a replica that has everything may lead"),
    },
];

impl TopicConfig {
    /// The settings of a topic with these overrides.
    ///
    /// # Errors
    /// The first override that is unknown or out of bounds, in words.
    pub(crate) fn resolve(config: &Config, overrides: &Overrides) -> Result<Self, String> {
        check_names(overrides)?;
        let mut topic = Self::unset(config.segment_bytes);
        for setting in SETTINGS {
            let default = || setting.default_of(config);
            let value = overrides.get(setting.name).cloned().unwrap_or_else(default);
            (setting.apply)(&mut topic, &value)
                .map_err(|problem| format!("{}: {problem}", setting.name))?;
        }
        Ok(topic)
    }

    /// What [`TopicConfig::resolve`] fills in.
    fn unset(segment_bytes: u64) -> Self {
        Self {
            delete: true,
            compact: false,
            retention: None,
            retention_bytes: None,
            segment_bytes,
            segment_age: Duration::MAX,
            max_message_bytes: 0,
            min_insync_replicas: 1,
            min_cleanable_ratio: 0.5,
        }
    }
}

/// Whether a topic may have these overrides, whatever the defaults are.
///
/// # Errors
/// The first override that is unknown or out of bounds, in words.
pub(crate) fn check(overrides: &Overrides) -> Result<(), String> {
    check_names(overrides)?;
    let mut topic = TopicConfig::unset(0);
    for setting in SETTINGS {
        if let Some(value) = overrides.get(setting.name) {
            (setting.apply)(&mut topic, value)
                .map_err(|problem| format!("{}: {problem}", setting.name))?;
        }
    }
    Ok(())
}

fn check_names(overrides: &Overrides) -> Result<(), String> {
    match overrides.keys().find(|name| !SETTINGS.iter().any(|setting| setting.name == *name)) {
        Some(unknown) => Err(format!("topic setting {unknown:?} is unknown here")),
        None => Ok(()),
    }
}

fn only(value: &str, supported: &str, because: &str) -> Result<(), String> {
    if value == supported {
        Ok(())
    } else {
        Err(format!("only {supported:?} is supported: {because}"))
    }
}

fn number<T: TryFrom<i64>>(value: &str, least: i64, most: i64) -> Result<T, String> {
    value
        .trim()
        .parse()
        .ok()
        .filter(|number| (least..=most).contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("{value:?} is not a whole number from {least} to {most}"))
}

/// A bound, with -1 for none.
fn limit(value: &str) -> Result<Option<u64>, String> {
    let number: i64 = number(value, -1, i64::MAX)?;
    Ok(u64::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(overrides: &[(&str, &str)]) -> Result<TopicConfig, String> {
        let overrides = overrides
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        TopicConfig::resolve(&Config::new("/tmp/x"), &overrides)
    }

    #[test]
    fn defaults_are_the_nodes() {
        let topic = resolve(&[]).unwrap();
        assert_eq!(topic.retention, Some(Duration::from_hours(7 * 24)));
        assert!(topic.delete && !topic.compact);
        assert_eq!(topic.max_message_bytes, 1_048_588);
    }

    #[test]
    fn overrides_are_honoured() {
        let topic = resolve(&[
            ("cleanup.policy", "compact"),
            ("retention.ms", "-1"),
            ("segment.bytes", "1048576"),
        ])
        .unwrap();
        assert!(topic.compact && !topic.delete);
        assert_eq!((topic.retention, topic.segment_bytes), (None, 1 << 20));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        for (name, value) in [
            ("no.such.setting", "1"),
            ("cleanup.policy", "shrink"),
            ("message.timestamp.type", "LogAppendTime"),
            ("compression.type", "zstd"),
            ("segment.bytes", "1"),
            ("retention.ms", "-2"),
            ("retention.ms", "soon"),
            ("min.cleanable.dirty.ratio", "NaN"),
        ] {
            let problem = resolve(&[(name, value)]).unwrap_err();
            assert!(problem.contains(name), "{problem}");
        }
    }
}
