//! Cases about steps and replay.

use tailwater_apply::{ConflictPolicy, TargetError};
use tailwater_change::{Disposition, Identity};

use super::Subject;
use super::fixture::{Fixture, Row, schema};

const B: u32 = 3;
const C: u32 = 4;

pub(super) async fn steps_do_what_they_say(subject: &dyn Subject) {
    let rows: [Row<'_>; 3] =
        [(1, Some(1), Some("b"), None), (2, None, None, Some("c")), (3, Some(3), None, None)];
    let mut fixture = Fixture::new(subject, "contract_steps", &rows).await;
    fixture.commit().await;
    fixture.assert_rows(&rows).await;

    fixture.target.begin().await.unwrap();
    fixture.target.savepoint().await.unwrap();
    fixture.applied(&fixture.step_delete(vec![fixture.delete(1)])).await;
    let updates = vec![
        fixture.update((2, Some(1), Some("new"), None), &[]),
        fixture.update((3, None, None, None), &[]),
    ];
    fixture.applied(&fixture.step_update(updates)).await;
    fixture.applied(&fixture.step_insert(vec![fixture.insert((4, Some(3), None, None))])).await;
    fixture.commit().await;
    let after = [(2, Some(1), Some("new"), None), (3, None, None, None), (4, Some(3), None, None)];
    fixture.assert_rows(&after).await;
}

pub(super) async fn unsent_columns_keep_their_values(subject: &dyn Subject) {
    let rows = [(1, Some(1), Some("b1"), Some("c1")), (2, Some(2), Some("b2"), Some("c2"))];
    let mut fixture = Fixture::new(subject, "contract_unsent", &rows).await;
    // Different columns are missing in rows of one step.
    let updates = vec![
        fixture.update((1, None, None, None), &[B]),
        fixture.update((2, Some(7), None, Some("new")), &[B, 2]),
    ];
    fixture.applied(&fixture.step_update(updates)).await;
    let policy = ConflictPolicy::Stop;
    let replayed = [fixture.update((1, Some(5), None, None), &[B, C])];
    assert_eq!(fixture.target.replay(&replayed, policy).await.unwrap(), 0);
    fixture.commit().await;
    let after = [(1, Some(5), Some("b1"), None), (2, Some(2), Some("b2"), Some("new"))];
    fixture.assert_rows(&after).await;
}

pub(super) async fn a_row_takes_another_identity(subject: &dyn Subject) {
    let rows = [(1, Some(1), Some("b1"), Some("c1")), (2, Some(2), Some("b2"), Some("c2"))];
    let mut fixture = Fixture::new(subject, "contract_moved", &rows).await;
    let step = fixture.step_update(vec![fixture.moved(1, (10, Some(9), None, Some("n")), &[B])]);
    fixture.applied(&step).await;
    let replayed = [fixture.moved(2, (1, Some(1), None, None), &[C])];
    assert_eq!(fixture.target.replay(&replayed, ConflictPolicy::Stop).await.unwrap(), 0);
    fixture.commit().await;
    fixture
        .assert_rows(&[(10, Some(9), Some("b1"), Some("n")), (1, Some(1), None, Some("c2"))])
        .await;
}

pub(super) async fn values_arrive_as_they_are(subject: &dyn Subject) {
    let rows: [Row<'_>; 6] = [
        (i64::MIN, Some(i64::MAX), Some(""), Some(" ")),
        (-1, Some(0), Some("NULL"), Some("\\N")),
        (0, Some(-1), Some("it's \"quoted\", \\ and `ticked`"), Some("%_;--#/* */")),
        (1, None, Some("tab\tline\nreturn\r end"), Some("trailing  ")),
        (2, None, Some("größe 漢字 😀"), Some("\u{feff}\u{200b}e\u{301}")),
        (i64::MAX, None, None, None),
    ];
    let mut fixture = Fixture::new(subject, "contract_values", &rows).await;
    fixture.commit().await;
    fixture.assert_rows(&rows).await;
    // The same through updates and through replay.
    fixture.target.begin().await.unwrap();
    let erased: Vec<_> = rows.iter().map(|row| (row.0, None, None, None)).collect();
    let erase = erased.iter().map(|row| fixture.update(*row, &[])).collect();
    fixture.applied(&fixture.step_update(erase)).await;
    let again = rows.iter().map(|row| fixture.update(*row, &[])).collect();
    fixture.applied(&fixture.step_update(again)).await;
    fixture.commit().await;
    fixture.assert_rows(&rows).await;
    fixture.target.begin().await.unwrap();
    let mut changes: Vec<_> = rows.iter().map(|row| fixture.delete(row.0)).collect();
    changes.extend(rows.iter().map(|row| fixture.insert(*row)));
    assert_eq!(fixture.target.replay(&changes, ConflictPolicy::Stop).await.unwrap(), 0);
    fixture.commit().await;
    fixture.assert_rows(&rows).await;
}

pub(super) async fn many_rows_go_in_one_step(subject: &dyn Subject) {
    let rows: Vec<Row<'_>> =
        (0..3000).map(|id| (id, Some(id + 1), Some("some text of a row"), None)).collect();
    let mut fixture = Fixture::new(subject, "contract_many", &rows).await;
    let half = rows.iter().filter(|row| row.0 % 2 == 0);
    let deletes = half.map(|row| fixture.delete(row.0)).collect();
    fixture.applied(&fixture.step_delete(deletes)).await;
    let rest: Vec<Row<'_>> = rows
        .iter()
        .filter(|row| row.0 % 2 == 1)
        .map(|row| (row.0, row.1.map(|a| a + 10_000), row.2, Some("new")))
        .collect();
    let updates = rest.iter().map(|row| fixture.update(*row, &[])).collect();
    fixture.applied(&fixture.step_update(updates)).await;
    fixture.commit().await;
    fixture.assert_rows(&rest).await;
}

pub(super) async fn a_table_without_a_key_loses_one_of_equal_rows(subject: &dyn Subject) {
    let mut schema = schema(subject, "contract_bag", false);
    schema.identity = Identity::Full;
    let (equal, other) = ((1, None, Some("b"), None), (1, Some(1), None, None));
    let mut fixture = Fixture::of(subject, schema, &[equal, equal, equal, other]).await;
    let changes = [fixture.delete_whole(equal), fixture.insert(other)];
    assert_eq!(fixture.target.replay(&changes, ConflictPolicy::Stop).await.unwrap(), 0);
    fixture.commit().await;
    fixture.assert_rows(&[equal, equal, other, other]).await;
}

pub(super) async fn what_is_not_as_expected_is_refused_and_undone(subject: &dyn Subject) {
    let rows = [(1, Some(1), None, None), (2, Some(2), None, None)];
    let mut fixture = Fixture::new(subject, "contract_refused", &rows).await;
    let new = (3, Some(3), None, None);
    for step in [
        // A row is there; a unique value is there.
        fixture.step_insert(vec![fixture.insert(new), fixture.insert((1, None, None, None))]),
        fixture.step_insert(vec![fixture.insert(new), fixture.insert((4, Some(2), None, None))]),
        // A row is missing.
        fixture.step_update(vec![
            fixture.update((1, Some(8), None, None), &[]),
            fixture.update((9, None, None, None), &[]),
        ]),
        fixture.step_delete(vec![fixture.delete(1), fixture.delete(9)]),
        // A unique value is there.
        fixture.step_update(vec![fixture.update((1, Some(2), None, None), &[])]),
    ] {
        fixture.refused(&step).await;
    }
    // The transaction goes on.
    fixture.applied(&fixture.step_insert(vec![fixture.insert(new)])).await;
    fixture.commit().await;
    fixture.assert_rows(&[rows[0], rows[1], new]).await;
}

pub(super) async fn replay_keeps_the_order_of_the_source(subject: &dyn Subject) {
    let rows = [(1, Some(1), Some("one"), None), (2, Some(2), Some("two"), None)];
    let mut fixture = Fixture::new(subject, "contract_order", &rows).await;
    // Unique values trade places through NULL, and a row comes back.
    let changes = [
        fixture.update((1, None, None, None), &[B]),
        fixture.update((2, Some(1), None, None), &[B]),
        fixture.update((1, Some(2), None, None), &[B]),
        fixture.insert((3, Some(3), None, None)),
        fixture.delete(3),
        fixture.insert((3, Some(4), Some("again"), None)),
        fixture.moved(3, (5, Some(3), None, None), &[B]),
    ];
    assert_eq!(fixture.target.replay(&changes, ConflictPolicy::Stop).await.unwrap(), 0);
    fixture.commit().await;
    let after = [
        (1, Some(2), Some("one"), None),
        (2, Some(1), Some("two"), None),
        (5, Some(3), Some("again"), None),
    ];
    fixture.assert_rows(&after).await;
}

pub(super) async fn replay_repairs_or_stops(subject: &dyn Subject) {
    let rows = [(1, Some(1), Some("theirs"), None)];
    let mut fixture = Fixture::new(subject, "contract_repair", &rows).await;
    fixture.commit().await;
    for change in [
        fixture.insert((1, None, Some("ours"), None)),
        fixture.update((2, Some(2), None, None), &[]),
        fixture.delete(9),
    ] {
        fixture.target.begin().await.unwrap();
        let stopped = fixture.target.replay(&[change], ConflictPolicy::Stop).await.unwrap_err();
        assert!(matches!(stopped, TargetError::Conflict { .. }), "{stopped:?}");
        assert_eq!(stopped.disposition(), Disposition::Operator);
        fixture.target.rollback().await.unwrap();
    }
    fixture.assert_rows(&rows).await;
    fixture.target.begin().await.unwrap();
    let changes = [
        fixture.insert((1, None, Some("ours"), None)),
        fixture.update((2, Some(2), None, None), &[]),
        fixture.delete(9),
        fixture.insert((4, Some(4), None, None)),
    ];
    assert_eq!(fixture.target.replay(&changes, ConflictPolicy::Repair).await.unwrap(), 3);
    fixture.commit().await;
    let after = [(1, None, Some("ours"), None), (2, Some(2), None, None), (4, Some(4), None, None)];
    fixture.assert_rows(&after).await;
}

pub(super) async fn a_partial_row_that_is_missing_is_a_conflict(subject: &dyn Subject) {
    let mut fixture = Fixture::new(subject, "contract_partial", &[]).await;
    let change = fixture.update((1, None, None, None), &[C]);
    let stopped = fixture.target.replay(&[change], ConflictPolicy::Repair).await.unwrap_err();
    assert!(matches!(stopped, TargetError::Conflict { .. }), "{stopped:?}");
    fixture.target.rollback().await.unwrap();
    fixture.assert_rows(&[]).await;
}
