//! What the file says that cannot be: every problem at once, each with its remedy.

use std::net::SocketAddr;

use tailwater_change::Problem;

use super::{Config, LogSection, SchemaChanges, SourceSection};

/// Names become topics, slots, publications and locks: what all of them allow.
const NAME_LENGTH: usize = 40;

/// Every transaction is told to every partition, and who merges them looks at each for each row.
const MOST_PARTITIONS: usize = 128;

impl Config {
    /// Everything that is wrong with it, without asking any server.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        self.log_problems(&mut found);
        for (name, source) in &self.sources {
            check_name(&mut found, "sources", name);
            source_problems(&mut found, name, source);
        }
        for name in self.targets.keys() {
            check_name(&mut found, "targets", name);
        }
        self.pipeline_problems(&mut found);
        check_listener(&mut found, "admin", Some(self.admin.listen), self.admin.insecure);
        check_listener(
            &mut found,
            "schema_registry",
            self.schema_registry.listen,
            self.schema_registry.insecure,
        );
        if self.schema_registry.url.is_some() {
            found.push(not_yet(
                "schema_registry.url",
                "leave it out: schemas are kept in the topic _schemas of the log",
            ));
        }
        if self.sources.is_empty() && self.pipelines.is_empty() && self.log.is_none() {
            found.push(Problem::new(
                "the configuration names nothing to run",
                "add a [log], [sources.NAME] or [pipelines.NAME] section",
            ));
        }
        found
    }

    fn log_problems(&self, found: &mut Vec<Problem>) {
        let Some(log) = &self.log else {
            if !self.sources.is_empty() || !self.pipelines.is_empty() {
                found.push(Problem::new(
                    "there is no [log] section",
                    "set data_dir in [log] to carry the log in this process, or brokers to use a cluster",
                ));
            }
            return;
        };
        match (&log.data_dir, log.brokers.is_empty()) {
            (None, true) => found.push(Problem::new(
                "[log] has neither data_dir nor brokers",
                "set data_dir to carry the log in this process, or brokers to use a cluster",
            )),
            (Some(_), false) => found.push(Problem::new(
                "[log] has both data_dir and brokers",
                "keep the one that is meant: a log in this process, or a cluster elsewhere",
            )),
            _ => {}
        }
        check_listener(found, "log", log.listen, log.insecure);
        check_listener(found, "log", log.controller_listen, log.insecure);
        check_controllers(found, log);
        if !log.broker {
            self.controller_problems(found, log);
        }
        if log.replication_throttle.is_some_and(|rate| rate.bytes() == 0) {
            found.push(Problem::new(
                "log.replication_throttle is 0",
                "leave it out for no limit, or set it to more than is written each second",
            ));
        }
        if log.replication_factor < 1 || log.min_insync_replicas < 1 {
            found.push(Problem::new(
                "log.replication_factor or log.min_insync_replicas is below 1",
                "set them to 1 or more",
            ));
        }
    }

    /// Of a process that is a controller and nothing else.
    fn controller_problems(&self, found: &mut Vec<Problem>, log: &LogSection) {
        if !log.controllers.iter().any(|controller| controller.id == log.node_id) {
            found.push(Problem::new(
                format!(
                    "log.broker = false, and log.controllers does not name node {}",
                    log.node_id
                ),
                "name this node in log.controllers, or leave broker out",
            ));
        }
        if log.data_dir.is_none() {
            found.push(Problem::new(
                "log.broker = false without log.data_dir",
                "set data_dir: the controller keeps the cluster's metadata there",
            ));
        }
        let carries_more = !self.sources.is_empty()
            || !self.pipelines.is_empty()
            || self.schema_registry.listen.is_some()
            || log.listen.is_some();
        if carries_more {
            found.push(Problem::new(
                "log.broker = false beside log.listen, sources, pipelines or a schema registry",
                "leave those out: a controller apart carries nothing else; run them in other processes",
            ));
        }
    }

    fn pipeline_problems(&self, found: &mut Vec<Problem>) {
        for (name, pipeline) in &self.pipelines {
            check_name(found, "pipelines", name);
            if !self.targets.contains_key(&pipeline.target) {
                found.push(Problem::new(
                    format!("pipelines.{name}.target: there is no target {:?}", pipeline.target),
                    format!("add [targets.{}] or correct the name", pipeline.target),
                ));
            }
            if pipeline.schema_changes != SchemaChanges::Stop {
                found.push(not_yet(
                    &format!("pipelines.{name}.schema_changes other than \"stop\""),
                    "set it to \"stop\" or leave it out",
                ));
            }
            for problem in pipeline.routes().validate() {
                found.push(Problem::new(
                    format!("pipelines.{name}.route: {}", problem.what),
                    problem.remedy,
                ));
            }
        }
    }
}

fn source_problems(found: &mut Vec<Problem>, name: &str, source: &SourceSection) {
    if source.tables.is_empty() {
        found.push(Problem::new(
            format!("sources.{name}.tables is empty"),
            "name the tables to capture, as [\"public.*\"]",
        ));
    }
    if !(1..=MOST_PARTITIONS).contains(&source.partitions) {
        found.push(Problem::new(
            format!("sources.{name}.partitions = {} cannot be", source.partitions),
            format!("set it to 1 or more, at most {MOST_PARTITIONS}; most sources need 1"),
        ));
    }
    if source.on_max_slot_lag.as_deref().is_some_and(|action| action != "alarm") {
        found.push(not_yet(
            &format!("sources.{name}.on_max_slot_lag"),
            "leave it out: max_slot_lag raises an alarm",
        ));
    }
}

fn check_name(found: &mut Vec<Problem>, section: &str, name: &str) {
    let legal = !name.is_empty()
        && name.len() <= NAME_LENGTH
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !legal {
        found.push(Problem::new(
            format!("{section}.{name}: the name cannot be used"),
            format!(
                "use lower-case letters, digits and underscores, beginning with a letter, at most \
                 {NAME_LENGTH}"
            ),
        ));
    }
}

fn check_controllers(found: &mut Vec<Problem>, log: &LogSection) {
    if log.controllers.is_empty() {
        if log.controller_listen.is_some() {
            found.push(Problem::new(
                "log.controller_listen is set, but log.controllers names nobody who could call",
                "name all controllers in log.controllers, or leave controller_listen out",
            ));
        }
        return;
    }
    let mut ids: Vec<i32> = log.controllers.iter().map(|controller| controller.id).collect();
    ids.sort_unstable();
    if ids.windows(2).any(|pair| pair[0] == pair[1]) {
        found.push(Problem::new(
            "log.controllers names a node twice",
            "give each controller an id of its own",
        ));
    }
    if ids.contains(&log.node_id) && log.controller_listen.is_none() {
        found.push(Problem::new(
            format!("log.controllers names node {}, which listens to no other", log.node_id),
            "set log.controller_listen to the address that log.controllers gives",
        ));
    }
    if log.broker && log.data_dir.is_some() && log.listen.is_none() {
        found.push(Problem::new(
            "a node of a cluster has no log.listen: the other nodes cannot copy from it",
            "set log.listen, and log.advertise if others reach it at another address",
        ));
    }
}

fn check_listener(found: &mut Vec<Problem>, section: &str, at: Option<SocketAddr>, insecure: bool) {
    let Some(at) = at else { return };
    if !at.ip().is_loopback() && !insecure {
        found.push(Problem::new(
            format!("{section}.listen = \"{at}\" is not a loopback address and has no credential"),
            format!("listen on 127.0.0.1, or set insecure = true in [{section}]"),
        ));
    }
}

fn not_yet(what: &str, remedy: &str) -> Problem {
    Problem::new(format!("{what} is not supported in this version"), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        Config::parse(text).unwrap().problems().iter().map(ToString::to_string).collect()
    }

    const GOOD: &str = r#"
        [log]
        data_dir = "/tmp/x"
        [sources.shop]
        connector = "postgres"
        url = "postgres://a@127.0.0.1/shop"
        tables = ["public.*"]
        [targets.copy]
        connector = "postgres"
        url = "postgres://a@127.0.0.1/copy"
        [pipelines.shop_to_copy]
        source = "shop"
        target = "copy"
    "#;

    #[test]
    fn a_plain_configuration_has_no_problem() {
        assert_eq!(problems(GOOD), Vec::<String>::new());
    }

    #[test]
    fn a_source_may_have_several_partitions() {
        let key = GOOD.replacen("tables =", "partitions = 3\ntables =", 1);
        let table = key.replacen("tables =", "partition_by = \"table\"\ntables =", 1);
        assert_eq!(problems(&key), Vec::<String>::new());
        assert_eq!(problems(&table), Vec::<String>::new());
        assert!(Config::parse(&table.replace("\"table\"", "\"row\"")).is_err());
    }

    #[test]
    fn a_pipeline_may_apply_its_partitions_each_on_its_own() {
        let good =
            GOOD.replacen("source = \"shop\"", "source = \"shop\"\nconsistency = \"key\"", 1);
        assert_ne!(good, GOOD);
        assert_eq!(problems(&good), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_supported_yet_is_refused_by_name() {
        for (from, to, word) in [
            ("tables =", "partitions = 0\ntables =", "partitions"),
            ("tables =", "partitions = 1000\ntables =", "partitions"),
            (
                "source = \"shop\"",
                "source = \"shop\"\nschema_changes = \"apply\"",
                "schema_changes",
            ),
            ("data_dir =", "controllers = [\"1@a:1\", \"2@b:1\"]\ndata_dir =", "controller_listen"),
            (
                "data_dir =",
                "controllers = [\"2@a:1\", \"2@b:1\"]\nlisten = \"127.0.0.1:1\"\ndata_dir =",
                "twice",
            ),
            ("data_dir =", "listen = \"0.0.0.0:9092\"\ndata_dir =", "insecure = true"),
            ("target = \"copy\"", "target = \"nowhere\"", "nowhere"),
            ("[sources.shop]", "[sources.Shop]", "lower-case"),
        ] {
            let found = problems(&GOOD.replacen(from, to, 1));
            assert!(found.iter().any(|problem| problem.contains(word)), "{word}: {found:?}");
        }
    }

    #[test]
    fn a_controller_apart_carries_nothing_else() {
        let apart = r#"
            [log]
            data_dir = "d"
            node_id = 1
            broker = false
            controller_listen = "127.0.0.1:1"
            controllers = ["1@127.0.0.1:1", "2@b:1"]
        "#;
        assert_eq!(problems(apart), Vec::<String>::new());
        for (from, to, word) in [
            ("node_id = 1", "node_id = 3", "does not name node 3"),
            ("node_id = 1", "node_id = 1\nlisten = \"127.0.0.1:2\"", "beside log.listen"),
            ("data_dir = \"d\"", "", "without log.data_dir"),
            ("broker = false", "replication_throttle = \"0B\"", "replication_throttle"),
        ] {
            let found = problems(&apart.replacen(from, to, 1));
            assert!(found.iter().any(|problem| problem.contains(word)), "{word}: {found:?}");
        }
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let error = Config::parse(&GOOD.replace("tables =", "tabels = []\ntables =")).unwrap_err();
        assert!(format!("{error:#}").contains("tabels"), "{error:#}");
    }
}
