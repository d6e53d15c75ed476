//! Cases about whole tables.

use std::sync::Arc;

use tailwater_apply::Step;
use tailwater_change::TableId;

use super::Subject;
use super::fixture::{Fixture, schema};

pub(super) async fn a_missing_table_is_described_as_none(subject: &dyn Subject) {
    let schema = schema(subject, "contract_missing", false);
    let mut target = subject.connector().connect().await.unwrap();
    assert_eq!(target.describe(&schema, &schema.table).await.unwrap(), None);
    assert!(subject.connector().check_table(&schema, &schema.table).await.is_empty());
}

pub(super) async fn a_made_table_is_there_empty_and_finished_twice(subject: &dyn Subject) {
    let schema = schema(subject, "contract_made", true);
    let to = schema.table.clone();
    let mut target = subject.connector().connect().await.unwrap();
    for _ in 0..2 {
        target.create_table(&schema, &to).await.unwrap();
    }
    let described = target.describe(&schema, &to).await.unwrap().unwrap();
    assert_eq!(described.name, to);
    assert!(described.identity_is_bytes, "an integer is its bytes");
    assert!(!described.fires);
    assert!(target.is_empty(&to).await.unwrap());
    for _ in 0..2 {
        let route = |table: &TableId| Some(table.clone());
        target.finish_table(&schema, &to, &route).await.unwrap();
    }
    let described = target.describe(&schema, &to).await.unwrap().unwrap();
    assert_eq!(described.unique_keys, [vec![1]]);
}

pub(super) async fn a_cleared_table_is_empty(subject: &dyn Subject) {
    let row = (1, Some(1), Some("b"), None);
    let mut fixture = Fixture::new(subject, "contract_cleared", &[row]).await;
    fixture.commit().await;
    assert!(!fixture.target.is_empty(&fixture.table.target.name).await.unwrap());

    let tables = [Arc::clone(&fixture.table)];
    fixture.target.begin().await.unwrap();
    fixture.target.clear(&tables).await.unwrap();
    fixture.target.rollback().await.unwrap();
    fixture.assert_rows(&[row]).await;

    fixture.target.begin().await.unwrap();
    fixture.target.clear(&tables).await.unwrap();
    fixture.applied(&fixture.step_insert(vec![fixture.insert((2, None, None, None))])).await;
    fixture.commit().await;
    fixture.assert_rows(&[(2, None, None, None)]).await;

    // Among other changes, truncating belongs to the transaction like everything else.
    fixture.target.begin().await.unwrap();
    fixture.applied(&fixture.step_insert(vec![fixture.insert((3, None, None, None))])).await;
    fixture.applied(&Step::Truncate(tables.to_vec())).await;
    fixture.applied(&fixture.step_insert(vec![fixture.insert(row)])).await;
    fixture.commit().await;
    fixture.assert_rows(&[row]).await;
}
