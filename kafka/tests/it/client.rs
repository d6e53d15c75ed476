//! Topics, offsets and groups.

use tailwater_kafka::{
    Client, Disposition, Error, Offset, OffsetAt, PartitionId, ProducerConfig, Transport,
    test_util::CLUSTER_ID,
};

use crate::harness::{at, over_both, quick, spec};

#[tokio::test]
async fn topics_are_created_once_found_and_deleted() {
    over_both(async |harness| {
        let client = harness.client().await;
        assert_eq!(client.cluster_id().await.unwrap(), CLUSTER_ID);
        assert_eq!(client.topic("shop").await.unwrap(), None);
        let created = client.create_topic(&spec("shop", 3)).await.unwrap();
        assert_eq!(created.partitions, 3);
        assert!(created.id.is_some());
        assert_eq!(client.create_topic(&spec("shop", 3)).await.unwrap(), created);
        let error = client.create_topic(&spec("shop", 4)).await.unwrap_err();
        assert!(matches!(error, Error::PartitionCount { wanted: 4, actual: 3, .. }), "{error}");
        client.delete_topic("shop").await.unwrap();
        client.delete_topic("shop").await.unwrap();
        assert_eq!(client.topic("shop").await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn a_refused_topic_is_for_the_operator() {
    over_both(async |harness| {
        let client = harness.client().await;
        let error = client.create_topic(&spec("none", 0)).await.unwrap_err();
        assert_eq!(error.disposition(), Disposition::Operator, "{error}");
    })
    .await;
}

#[tokio::test]
async fn offsets_are_found_by_end_and_by_time() {
    over_both(async |harness| {
        let client = harness.topic("shop", 1).await;
        let of = at("shop", 0);
        let mut producer = client.producer(ProducerConfig::default()).await.unwrap();
        let handle = producer.register(&of);
        for time in [100, 200, 300] {
            producer.append(handle, None, &[b"value"], time).unwrap();
            producer.drain().await.unwrap();
        }
        let offset =
            async |at| client.list_offsets("shop", PartitionId::new(0), at).await.unwrap().get();
        assert_eq!(offset(OffsetAt::Earliest).await, 0);
        assert_eq!(offset(OffsetAt::Latest).await, 3);
        assert_eq!(offset(OffsetAt::Timestamp(150)).await, 1);
        assert_eq!(offset(OffsetAt::Timestamp(301)).await, 3);
        harness.node.expire(&of, Offset::new(2));
        assert_eq!(offset(OffsetAt::Earliest).await, 2);
    })
    .await;
}

#[tokio::test]
async fn committed_offsets_come_back_and_the_others_are_none() {
    over_both(async |harness| {
        let client = harness.client().await;
        let offsets = [(at("shop", 0), Offset::new(7)), (at("shop.state", 1), Offset::new(9))];
        client.commit_offsets("tailwater.copy", &offsets).await.unwrap();
        let of = [at("shop.state", 1), at("shop", 1), at("shop", 0)];
        let fetched = client.fetch_offsets("tailwater.copy", &of).await.unwrap();
        assert_eq!(fetched, [Some(Offset::new(9)), None, Some(Offset::new(7))]);
        assert_eq!(client.fetch_offsets("other", &of[..1]).await.unwrap(), [None]);
    })
    .await;
}

#[tokio::test]
async fn no_broker_is_an_error_that_may_pass() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = Client::connect(quick(), Transport::tcp(vec![address])).await.unwrap_err();
    assert!(matches!(error, Error::NoBroker { .. }), "{error}");
    assert_eq!(error.disposition(), Disposition::Retry);
}
