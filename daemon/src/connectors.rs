//! Which connector a section means: the one place that knows all of them.

use std::sync::Arc;

use tailwater_apply::TargetConnector;
use tailwater_capture::{SourceConnector, SourceError, TableReader};
use tailwater_change::Problem;

use crate::config::{ConnectorKind, SourceSection, TargetSection};

/// The connector of `[sources.name]`.
///
/// # Errors
/// The url or a pattern does not parse.
pub(crate) fn source(
    name: &str,
    section: &SourceSection,
) -> Result<Arc<dyn SourceConnector>, Problem> {
    let (url, tables, exclude) =
        (section.url.clone(), section.tables.clone(), section.exclude.clone());
    Ok(match section.connector {
        ConnectorKind::Postgres => {
            let name = name.to_owned();
            Arc::new(tailwater_postgres::source::connector(
                tailwater_postgres::source::SourceConfig { name, url, tables, exclude },
            )?)
        }
        ConnectorKind::Mysql => {
            let name = name.to_owned();
            Arc::new(tailwater_mysql::source::connector(tailwater_mysql::source::SourceConfig {
                name,
                url,
                tables,
                exclude,
            })?)
        }
    })
}

/// The connector of `[targets.name]`.
///
/// # Errors
/// The url does not parse.
pub(crate) fn target(
    name: &str,
    section: &TargetSection,
) -> Result<Arc<dyn TargetConnector>, Problem> {
    let (name, url) = (name.to_owned(), section.url.clone());
    Ok(match section.connector {
        ConnectorKind::Postgres => Arc::new(tailwater_postgres::target::connector(
            tailwater_postgres::target::TargetConfig { name, url },
        )?),
        ConnectorKind::Mysql => {
            Arc::new(tailwater_mysql::target::connector(tailwater_mysql::target::TargetConfig {
                name,
                url,
            })?)
        }
    })
}

/// Reads tables of the database at `url`.
///
/// # Errors
/// Cannot connect.
pub(crate) async fn reader(
    kind: ConnectorKind,
    url: &str,
) -> Result<Box<dyn TableReader>, SourceError> {
    match kind {
        ConnectorKind::Postgres => tailwater_postgres::table_reader(url).await,
        ConnectorKind::Mysql => tailwater_mysql::table_reader(url).await,
    }
}
