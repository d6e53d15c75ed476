//! Cases about progress, fences, locks and transactions.

use std::time::Duration;

use tailwater_apply::TargetError;
use tailwater_change::{Commit, Disposition, Epoch, Ordinal, Place};

use super::Subject;
use super::fixture::{Fixture, initial, take_over};

pub(super) async fn progress_comes_back_as_it_was_committed(subject: &dyn Subject) {
    let mut target = subject.connector().connect().await.unwrap();
    let mut progress = take_over(target.as_mut(), "contract_progress").await;
    let initial = initial("contract_progress");
    assert_eq!(progress, tailwater_apply::Progress { fence: progress.fence, ..initial });
    for place in [
        Place::new(Epoch::new(3), Commit::lsn(0x0123_4567_89AB_CDEF), Ordinal::new(7)),
        Place::end_of(Epoch::new(u32::MAX), Commit::binlog(42, u64::MAX)),
    ] {
        progress.place = place;
        progress.next_offset = i64::MAX - 1;
        progress.cluster_id = "another cluster".into();
        progress.topic_id = "another topic".into();
        progress.state = r#"{"it's":"a \"state\" \\ größe"}"#.into();
        target.begin().await.unwrap();
        target.commit(&progress).await.unwrap();
        let read = target.progress("contract_progress").await.unwrap();
        assert_eq!(read.as_ref(), Some(&progress));
    }
    let mut later = subject.connector().connect().await.unwrap();
    let taken = later.take_over(&progress).await.unwrap();
    assert!(taken.fence > progress.fence);
    assert_eq!(taken, tailwater_apply::Progress { fence: taken.fence, ..progress });
}

pub(super) async fn who_was_superseded_is_fenced(subject: &dyn Subject) {
    let mut fixture = Fixture::new(subject, "contract_fence", &[(1, None, None, None)]).await;
    fixture.commit().await;
    let mut second = subject.connector().connect().await.unwrap();
    let taken = second.take_over(&fixture.progress).await.unwrap();

    fixture.target.begin().await.unwrap();
    fixture.applied(&fixture.step_insert(vec![fixture.insert((2, None, None, None))])).await;
    fixture.progress.next_offset += 1;
    let fenced = fixture.target.commit(&fixture.progress).await.unwrap_err();
    assert!(matches!(fenced, TargetError::Fenced { .. }), "{fenced:?}");
    assert_eq!(fenced.disposition(), Disposition::Fenced);
    fixture.assert_rows(&[(1, None, None, None)]).await;
    assert_eq!(second.progress("contract_fence").await.unwrap(), Some(taken));
}

pub(super) async fn one_session_has_the_lock(subject: &dyn Subject) {
    let mut first = subject.connector().connect().await.unwrap();
    let mut second = subject.connector().connect().await.unwrap();
    assert!(first.try_lock("contract_lock").await.unwrap());
    assert!(!second.try_lock("contract_lock").await.unwrap());
    assert!(second.try_lock("contract_lock_2").await.unwrap(), "another pipeline's lock");
    let locks = ["contract_lock", "contract_lock_2", "contract_lock_3"].map(String::from);
    assert_eq!(first.held(&locks).await.unwrap(), [true, true, false]);
    assert_eq!(first.held(&[]).await.unwrap(), [false; 0]);
    drop(first);
    // The server notices the end of a connection in its own time.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !second.try_lock("contract_lock").await.unwrap() {
        assert!(tokio::time::Instant::now() < deadline, "the lock outlives its session");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(super) async fn what_is_rolled_back_never_was(subject: &dyn Subject) {
    let row = (1, Some(1), None, None);
    let mut fixture = Fixture::new(subject, "contract_rollback", &[row]).await;
    fixture.target.rollback().await.unwrap();
    fixture.assert_rows(&[]).await;
    fixture.target.begin().await.unwrap();
    fixture.applied(&fixture.step_insert(vec![fixture.insert(row)])).await;
    // Nobody sees what is not committed, nor what is left without a commit.
    fixture.assert_rows(&[]).await;
    let mut other = subject.connector().connect().await.unwrap();
    let kept = other.progress("contract_rollback").await.unwrap();
    assert_eq!(kept.map(|progress| progress.next_offset), Some(0));
    fixture.commit().await;
    fixture.assert_rows(&[row]).await;
}

pub(super) async fn a_forgotten_pipeline_begins_anew(subject: &dyn Subject) {
    let mut target = subject.connector().connect().await.unwrap();
    let _first = take_over(target.as_mut(), "contract_forget").await;
    subject.connector().forget("contract_forget").await.unwrap();
    subject.connector().forget("contract_forget").await.unwrap();
    let _again = take_over(target.as_mut(), "contract_forget").await;
}
