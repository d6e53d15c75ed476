//! The contract of targets as a suite: what every connector's `Target` has to do, tried through
//! the trait and looked at from outside.
//!
//! A connector's tests implement [`Subject`] for a fresh database and call [`target`]. Each case
//! uses tables and a pipeline of its own and panics where the contract is broken, naming itself.

#![expect(clippy::unwrap_used, reason = "a suite that cannot go on fails where it stands")]

mod fixture;
mod sessions;
mod statements;
mod tables;

use async_trait::async_trait;
use tailwater_apply::TargetConnector;
use tailwater_change::TableId;

/// A database that a connector reaches, and a way around the connector.
#[async_trait]
pub trait Subject: Send + Sync {
    /// The connector under test.
    fn connector(&self) -> &dyn TargetConnector;

    /// The schema (PostgreSQL) or database (MySQL) in which the cases make their tables.
    fn namespace(&self) -> String;

    /// The committed rows of a table as another client reads them, NULL being `None`, in any
    /// order, columns in the table's order.
    async fn rows(&self, table: &TableId) -> Vec<Vec<Option<String>>>;
}

/// Every case, one after the other.
///
/// # Panics
/// Where the contract is broken.
pub async fn target(subject: &dyn Subject) {
    tables::a_missing_table_is_described_as_none(subject).await;
    tables::a_made_table_is_there_empty_and_finished_twice(subject).await;
    tables::a_cleared_table_is_empty(subject).await;
    statements::steps_do_what_they_say(subject).await;
    statements::unsent_columns_keep_their_values(subject).await;
    statements::a_row_takes_another_identity(subject).await;
    statements::values_arrive_as_they_are(subject).await;
    statements::many_rows_go_in_one_step(subject).await;
    statements::a_table_without_a_key_loses_one_of_equal_rows(subject).await;
    statements::what_is_not_as_expected_is_refused_and_undone(subject).await;
    statements::replay_keeps_the_order_of_the_source(subject).await;
    statements::replay_repairs_or_stops(subject).await;
    statements::a_partial_row_that_is_missing_is_a_conflict(subject).await;
    sessions::progress_comes_back_as_it_was_committed(subject).await;
    sessions::who_was_superseded_is_fenced(subject).await;
    sessions::one_session_has_the_lock(subject).await;
    sessions::what_is_rolled_back_never_was(subject).await;
    sessions::a_forgotten_pipeline_begins_anew(subject).await;
}
