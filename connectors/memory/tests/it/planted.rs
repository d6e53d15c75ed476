//! The contract suite can fail: every planted bug of a target breaks it.

use tailwater_memory::contract::target;
use tailwater_memory::{MemoryDatabase, Planted};

use crate::contract::Memory;

/// Where the suite broke; nothing where it did not.
async fn broken(bug: Option<Planted>) -> Option<String> {
    let database = MemoryDatabase::new();
    if let Some(bug) = bug {
        database.plant(bug);
    }
    let suite =
        async { tokio::task::spawn_local(async move { target(&Memory(database)).await }).await };
    let panic = tokio::task::LocalSet::new().run_until(suite).await.err()?.into_panic();
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.into())).unwrap())
}

#[tokio::test]
async fn the_contract_sees_every_planted_bug() {
    assert_eq!(broken(None).await, None);
    for bug in [
        Planted::ForgetsFence,
        Planted::SavesProgressAside,
        Planted::CommitsEachStep,
        Planted::SkipsDuplicates,
        Planted::TrimsText,
        Planted::RepairsUnasked,
    ] {
        let found = broken(Some(bug)).await;
        assert!(found.is_some(), "the contract holds with {bug:?}");
    }
}
