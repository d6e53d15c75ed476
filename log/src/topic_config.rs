//! The settings of a topic: Kafka's names, checked, with the node's defaults behind them.
//!
//! One table ([`SETTINGS`]) says for each its name, its type and what it is if nobody says, and
//! CreateTopics, DescribeConfigs and the requests that change settings work from it. A value that
//! this log cannot honour is refused, never ignored.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Config;
use crate::metadata::{Image, MIN_ISR_CONFIG};

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
    /// Compaction begins when this part of a partition is new.
    pub(crate) min_cleanable_ratio: f64,
}

/// What becomes of old records.
pub(crate) const CLEANUP_POLICY: &str = "cleanup.policy";

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

/// What a setting is where the topic does not say.
enum Fallback {
    Fixed(&'static str),
    /// As the node was configured.
    Node(fn(&Config) -> String),
    /// As the cluster has agreed.
    MinIsr,
}

/// What settings that a topic does not have go by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults<'a> {
    config: &'a Config,
    /// The cluster's.
    min_insync_replicas: u32,
}

impl<'a> Defaults<'a> {
    /// Those of a node with this configuration in a cluster with this metadata.
    pub(crate) fn new(config: &'a Config, image: &Image) -> Self {
        let of_cluster = image.cluster().map(|cluster| cluster.min_insync_replicas);
        let min_insync_replicas = of_cluster.unwrap_or(config.min_insync_replicas);
        Self { config, min_insync_replicas }
    }
}

/// A setting that a topic may have.
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    pub(crate) kind: SettingType,
    default: Fallback,
    apply: fn(&mut TopicConfig, &str) -> Result<(), String>,
}

impl Setting {
    /// The value of this setting where the topic does not say.
    pub(crate) fn default_of(&self, defaults: Defaults<'_>) -> String {
        match self.default {
            Fallback::Fixed(value) => value.to_owned(),
            Fallback::Node(value) => value(defaults.config),
            Fallback::MinIsr => defaults.min_insync_replicas.to_string(),
        }
    }
}

/// Every setting there is, by name.
pub(crate) const SETTINGS: &[Setting] = &[
    Setting {
        name: CLEANUP_POLICY,
        kind: SettingType::List,
        default: Fallback::Fixed("delete"),
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
        default: Fallback::Fixed("producer"),
        apply: |_, value| only(value, "producer", "batches are kept as they were sent"),
    },
    Setting {
        name: "delete.retention.ms",
        kind: SettingType::Long,
        default: Fallback::Fixed("86400000"),
        // A lower bound: compaction keeps tombstones for good.
        apply: |_, value| number::<i64>(value, 0, i64::MAX).map(drop),
    },
    Setting {
        name: "max.message.bytes",
        kind: SettingType::Int,
        default: Fallback::Node(|config| config.max_message_bytes.to_string()),
        apply: |topic, value| {
            topic.max_message_bytes = number(value, 0, i64::from(i32::MAX))?;
            Ok(())
        },
    },
    Setting {
        name: "message.timestamp.type",
        kind: SettingType::String,
        default: Fallback::Fixed("CreateTime"),
        apply: |_, value| only(value, "CreateTime", "timestamps are kept as they were sent"),
    },
    Setting {
        name: "min.cleanable.dirty.ratio",
        kind: SettingType::Double,
        default: Fallback::Fixed("0.5"),
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
        name: MIN_ISR_CONFIG,
        kind: SettingType::Int,
        default: Fallback::MinIsr,
        // Leaders and controller take it from the metadata: they must agree on it.
        apply: |_, value| number::<i32>(value, 1, i64::from(i32::MAX)).map(drop),
    },
    Setting {
        name: "retention.bytes",
        kind: SettingType::Long,
        default: Fallback::Fixed("-1"),
        apply: |topic, value| {
            topic.retention_bytes = limit(value)?;
            Ok(())
        },
    },
    Setting {
        name: "retention.ms",
        kind: SettingType::Long,
        default: Fallback::Node(|config| {
            config.retention.map_or_else(|| "-1".to_owned(), |kept| kept.as_millis().to_string())
        }),
        apply: |topic, value| {
            topic.retention = limit(value)?.map(Duration::from_millis);
            Ok(())
        },
    },
    Setting {
        name: "segment.bytes",
        kind: SettingType::Int,
        default: Fallback::Node(|config| config.segment_bytes.to_string()),
        apply: |topic, value| {
            topic.segment_bytes = number(value, 1 << 10, 1 << 30)?;
            Ok(())
        },
    },
    Setting {
        name: "segment.ms",
        kind: SettingType::Long,
        default: Fallback::Fixed("604800000"),
        apply: |topic, value| {
            topic.segment_age = Duration::from_millis(number(value, 1, i64::MAX)?);
            Ok(())
        },
    },
    Setting {
        name: "unclean.leader.election.enable",
        kind: SettingType::Boolean,
        default: Fallback::Fixed("false"),
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
        let defaults = Defaults { config, min_insync_replicas: config.min_insync_replicas };
        for setting in SETTINGS {
            let default = || setting.default_of(defaults);
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
    overrides.keys().try_for_each(|name| check_name(name))
}

/// Whether there is a setting of that name.
///
/// # Errors
/// If not: which ones there are, in words.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    if SETTINGS.iter().any(|setting| setting.name == name) {
        return Ok(());
    }
    let known: Vec<&str> = SETTINGS.iter().map(|setting| setting.name).collect();
    Err(format!("topic setting {name:?} is unknown here; known are {}", known.join(", ")))
}

/// Whether a topic with these overrides keeps the last record of each key.
pub(crate) fn is_compacted(overrides: &Overrides) -> bool {
    has_policy(overrides, "compact")
}

/// Whether a topic with these overrides lets go of old segments.
pub(crate) fn is_deleted_from(overrides: &Overrides) -> bool {
    !overrides.contains_key(CLEANUP_POLICY) || has_policy(overrides, "delete")
}

fn has_policy(overrides: &Overrides, policy: &str) -> bool {
    let policies = overrides.get(CLEANUP_POLICY).map_or("", String::as_str);
    policies.split(',').any(|one| one.trim() == policy)
}

/// Adds to a list setting, or takes away from it, as Kafka's incremental changes do.
///
/// # Errors
/// The setting is no list, in words.
pub(crate) fn change_list(
    overrides: &mut Overrides,
    name: &str,
    value: &str,
    adds: bool,
) -> Result<(), String> {
    let setting = SETTINGS.iter().find(|setting| setting.name == name);
    let Some(Setting { kind: SettingType::List, default: Fallback::Fixed(default), .. }) = setting
    else {
        return Err(format!("{name}: only a list can be added to or taken from"));
    };
    let words = |text: &str| -> Vec<String> {
        text.split(',').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
    };
    let mut list = words(overrides.get(name).map_or(default, String::as_str));
    let named = words(value);
    list.retain(|word| adds || !named.contains(word));
    if adds {
        list.extend(named.into_iter().filter(|word| !list.contains(word)).collect::<Vec<_>>());
    }
    overrides.insert(name.to_owned(), list.join(","));
    Ok(())
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
    fn lists_are_added_to_and_taken_from() {
        let mut overrides = Overrides::new();
        let policy = |overrides: &Overrides| overrides[CLEANUP_POLICY].clone();
        change_list(&mut overrides, CLEANUP_POLICY, "compact,delete", true).unwrap();
        assert_eq!(policy(&overrides), "delete,compact");
        assert!(is_compacted(&overrides) && is_deleted_from(&overrides));
        change_list(&mut overrides, CLEANUP_POLICY, "delete", false).unwrap();
        assert_eq!(policy(&overrides), "compact");
        assert!(is_compacted(&overrides) && !is_deleted_from(&overrides));
        change_list(&mut overrides, CLEANUP_POLICY, "compact", false).unwrap();
        assert!(check(&overrides).is_err(), "nothing is left");
        let problem = change_list(&mut overrides, "segment.bytes", "1", true).unwrap_err();
        assert!(problem.contains("segment.bytes"), "{problem}");
    }

    #[test]
    fn the_default_of_min_insync_replicas_is_the_clusters() {
        let config = Config { min_insync_replicas: 2, ..Config::new("/tmp/x") };
        let setting = SETTINGS.iter().find(|setting| setting.name == MIN_ISR_CONFIG).unwrap();
        let nobody = Defaults::new(&config, &Image::default());
        assert_eq!(setting.default_of(nobody), "2");
    }

    #[test]
    fn an_unknown_setting_is_refused_with_those_that_are_known() {
        let problem = resolve(&[("retention.hours", "1")]).unwrap_err();
        assert!(
            problem.contains("retention.hours") && problem.contains("retention.ms"),
            "{problem}"
        );
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
