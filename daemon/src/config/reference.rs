//! docs/configuration.md: every key, its default and its unit, from the code that reads them.

use super::{AdminSection, Config, LogSection, PipelineSection, SourceSection, TargetSection};

/// One key: its name, its type or values, its default, what it does.
type Key = (&'static str, &'static str, String, &'static str);

/// The page.
pub(crate) fn reference() -> String {
    let config = Config::default();
    let log = LogSection::default();
    let admin = AdminSection::default();
    let quoted = |value: &dyn std::fmt::Display| format!("`\"{value}\"`");
    let mut page = String::from(HEAD);
    section(
        &mut page,
        "top level",
        "",
        &[(
            "memory_limit",
            "size",
            quoted(&config.memory_limit),
            "What all roles of the process hold of rows in flight, together; three times the largest \
         single row may come on top.",
        )],
    );
    section(
        &mut page,
        "[log]",
        "The log this process carries (`data_dir`) or uses (`brokers`).",
        &log_keys(&log, &quoted),
    );
    section(
        &mut page,
        "[schema_registry]",
        "",
        &[
            ("listen", "address", none(), "Serves Confluent's schema registry API (reading)."),
            ("insecure", "boolean", "`false`".into(), "Allows a listener that is not loopback."),
        ],
    );
    section(
        &mut page,
        "[admin]",
        "Dashboard, `/metrics`, `/healthz`, `/readyz`, `/api/v1`.",
        &[
            ("listen", "address", quoted(&admin.listen), "Where."),
            ("insecure", "boolean", "`false`".into(), "Allows a listener that is not loopback."),
        ],
    );
    section(
        &mut page,
        "[sources.NAME]",
        "A source database. NAME is its topic's name.",
        &source_keys(),
    );
    section(
        &mut page,
        "[targets.NAME]",
        "A target database.",
        &[
            ("connector", "`postgres`, `mysql`", required(), "What it is; `mysql` is MariaDB too."),
            ("url", "url", required(), "How to reach it."),
        ],
    );
    section(&mut page, "[pipelines.NAME]", "A source applied to a target.", &pipeline_keys());
    page
}

fn log_keys(log: &LogSection, quoted: &dyn Fn(&dyn std::fmt::Display) -> String) -> Vec<Key> {
    vec![
        ("data_dir", "path", none(), "Where this node keeps its log."),
        (
            "listen",
            "address",
            none(),
            "Where this node speaks the Kafka protocol; without it only this process uses its log.",
        ),
        ("advertise", "`host:port`", "`listen`".into(), "The address that clients are told."),
        ("node_id", "number", format!("`{}`", log.node_id), "This node's id."),
        (
            "controllers",
            "list of `id@host:port`",
            "`[]`".into(),
            "The nodes that decide for the cluster, three or five of them, and where their \
             `controller_listen` is reached; the same list on every node. Without it this node is \
             alone.",
        ),
        (
            "controller_listen",
            "address",
            none(),
            "Where this node listens to the other nodes, if `controllers` names it.",
        ),
        (
            "broker",
            "boolean",
            format!("`{}`", log.broker),
            "Whether this node has copies of partitions and serves clients. `false` makes it a controller \
             and nothing else: it needs `data_dir`, `controllers` that names it, and \
             `controller_listen`.",
        ),
        (
            "rack",
            "text",
            none(),
            "Where this process stands, such as an availability zone. The replicas of a partition are spread \
             over the racks of the nodes; capture and apply read from a replica in sync of their own \
             rack, if there is one.",
        ),
        (
            "replication_factor",
            "number",
            format!("`{}`", log.replication_factor),
            "Of the topics that are created.",
        ),
        (
            "min_insync_replicas",
            "number",
            format!("`{}`", log.min_insync_replicas),
            "Of the topics that are created.",
        ),
        (
            "replication_throttle",
            "size",
            none(),
            "How much a second this node may copy for its replicas that are not in sync: those that are \
             being added, or that begin with an empty disk. Must be more than is written to them, or \
             they never get there. Without it, as fast as it goes.",
        ),
        (
            "flush",
            "`always`, `never`, duration",
            "`\"always\"`".into(),
            "When records are flushed to disk: before they are acknowledged, never, or this often.",
        ),
        (
            "retention",
            "duration",
            quoted(&log.retention),
            "How long records are kept that every attached pipeline has applied.",
        ),
        (
            "retention_limit",
            "size",
            quoted(&log.retention_limit),
            "Above this size, all topics together, records past `retention` go even if a pipeline \
             still needs them; that pipeline then stops.",
        ),
        (
            "brokers",
            "list of `host:port`",
            "`[]`".into(),
            "An existing Kafka-protocol cluster instead of `data_dir`.",
        ),
        ("insecure", "boolean", "`false`".into(), "Allows a listener that is not loopback."),
    ]
}

fn source_keys() -> Vec<Key> {
    // Names the section's type so that a new key is looked for here.
    let _keys = std::any::type_name::<SourceSection>();
    vec![
        ("connector", "`postgres`, `mysql`", required(), "What it is; `mysql` is MariaDB too."),
        ("url", "url", required(), "How to reach it."),
        ("tables", "list of patterns", required(), "What to capture: `schema.table`, `*` matches."),
        ("exclude", "list of patterns", "`[]`".into(), "What of it not to capture."),
        (
            "snapshot",
            "`initial`, `never`, `only`",
            "`\"initial\"`".into(),
            "Copies the tables before the first stream; never; or copies and stops.",
        ),
        (
            "partitions",
            "number",
            "`1`".into(),
            "Partitions of the topic, fixed as long as it is there. One keeps the source's order for \
             every reader; several are merged again by a pipeline.",
        ),
        (
            "partition_by",
            "`key`, `table`",
            "`\"key\"`".into(),
            "What decides about the partition of a row: its table and key, or its table. Another \
             choice takes effect with a `resync`.",
        ),
        (
            "max_slot_lag",
            "size",
            none(),
            "PostgreSQL: the metric `tailwater_capture_lag_bytes` above this is worth an alarm; \
             `status` says so.",
        ),
    ]
}

fn pipeline_keys() -> Vec<Key> {
    let _keys = std::any::type_name::<(PipelineSection, TargetSection)>();
    vec![
        ("source", "name", required(), "A source, of this process or of another on the same log."),
        ("target", "name", required(), "A target of this file."),
        (
            "route",
            "table of patterns",
            "same names".into(),
            "Source tables to target tables: `\"public.*\" = \"copy.*\"`.",
        ),
        (
            "consistency",
            "`transaction`, `key`",
            "`\"transaction\"`".into(),
            "What a reader may see: whole transactions in the source's order, or of each key the \
             source's order. With `key` any number of processes apply the partitions of the source \
             at once.",
        ),
        ("schema_changes", "`stop`", "`\"stop\"`".into(), "What DDL on a captured table does."),
        (
            "on_conflict",
            "`repair`, `stop`",
            "`\"repair\"`".into(),
            "When a row on the target is not what the source changed: make it so, or stop.",
        ),
        (
            "on_existing",
            "`stop`, `merge`, `replace`",
            "`\"stop\"`".into(),
            "When a target table has rows at the first start.",
        ),
    ]
}

fn none() -> String {
    "none".into()
}

fn required() -> String {
    "required".into()
}

fn section(page: &mut String, title: &str, about: &str, keys: &[Key]) {
    page.push_str(&format!("\n## {title}\n\n"));
    if !about.is_empty() {
        page.push_str(&format!("{about}\n\n"));
    }
    page.push_str("| key | type | default | |\n|---|---|---|---|\n");
    for (name, kind, default, about) in keys {
        page.push_str(&format!("| `{name}` | {kind} | {default} | {about} |\n"));
    }
}

const HEAD: &str = "# Configuration

Generated from the code; `TAILWATER_UPDATE=1 cargo test -p tailwater configuration` renews it.

`tailwater.toml` is TOML. `${env:NAME}` and `${file:PATH}` in any string stand for secrets. Unknown
keys are errors. Sizes are written `256MiB`, `100GiB`; durations `500ms`, `10s`, `7d`. A process runs
the roles its file names: sources without pipelines is a capture host, pipelines with `[log] brokers`
an apply host.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_configuration_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        #[expect(clippy::disallowed_methods, reason = "a test's own switch")]
        if std::env::var("TAILWATER_UPDATE").is_ok() {
            std::fs::write(path, reference()).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(page == reference(), "docs/configuration.md is not what the code says");
    }
}
