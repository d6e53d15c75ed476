//! Any bytes are a message or an error, and our own writers agree with the generated ones.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use tailwater_kafka::wire::{
    ApiKey, Decoded, KafkaString, KafkaUuid, Request, RequestHeader, Response, decode_request,
    decode_response, encode_request, encode_response,
    fetch_response::{
        AbortedTransaction, EpochEndOffset, FetchResponseData, FetchableTopicResponse,
        LeaderIdAndEpoch, NodeEndpoint, PartitionData,
    },
    produce_request::{PartitionProduceData, ProduceRequestData, TopicProduceData},
};

fn header(api: ApiKey, version: i16) -> RequestHeader {
    let client_id = Some(KafkaString::from_static("test"));
    RequestHeader { api, version, correlation_id: 42, client_id }
}

/// Without the length.
fn joined(parts: &[Bytes]) -> Bytes {
    let whole: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
    let length = u32::from_be_bytes([whole[0], whole[1], whole[2], whole[3]]);
    assert_eq!(usize::try_from(length).unwrap(), whole.len() - 4);
    Bytes::from(whole).slice(4..)
}

fn records() -> impl Strategy<Value = Option<Bytes>> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..3000);
    proptest::option::of(bytes.prop_map(Bytes::from))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_request_frame_is_a_request_or_an_error(
        api in 0_i16..93,
        version in -1_i16..20,
        body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut frame = BytesMut::new();
        frame.put_i16(api);
        frame.put_i16(version);
        frame.put_slice(&body);
        drop(decode_request(frame.freeze()));
    }

    #[test]
    fn small_numbers_reach_deeper_and_panic_neither(
        api in 0_i16..45,
        version in 0_i16..14,
        body in proptest::collection::vec(prop_oneof![0_u8..6, any::<u8>()], 0..200),
    ) {
        let mut frame = BytesMut::new();
        frame.put_i16(api);
        frame.put_i16(version);
        frame.put_i32(1);
        frame.put_i16(-1);
        frame.put_slice(&body);
        drop(decode_request(frame.freeze()));
        if let Some(api) = ApiKey::from_i16(api) {
            let mut frame = BytesMut::new();
            frame.put_i32(42);
            frame.put_slice(&body);
            drop(decode_response(&header(api, version), frame.freeze()));
        }
    }

    #[test]
    fn a_produce_request_comes_back(
        version in 3_i16..=13,
        acks in -1_i16..=1,
        partitions in proptest::collection::vec((any::<i32>(), records()), 0..5),
        transactional in any::<bool>(),
    ) {
        let partitions = partitions.into_iter().map(|(index, records)| {
            PartitionProduceData::default().with_index(index).with_records(records)
        });
        let topic = TopicProduceData::default().with_partition_data(partitions.collect());
        let topic = if version >= 13 {
            topic.with_topic_id(KafkaUuid::from_parts(1, 2))
        } else {
            topic.with_name(KafkaString::from_static("shop"))
        };
        let request = ProduceRequestData::default()
            .with_acks(acks)
            .with_timeout_ms(7)
            .with_transactional_id(transactional.then(|| KafkaString::from_static("id")))
            .with_topic_data(vec![topic]);
        let header = header(ApiKey::Produce, version);
        let frame = joined(&encode_request(&header, &Request::Produce(request.clone())).unwrap());

        // The generated writer writes the same.
        let mut generated = BytesMut::new();
        request.write(&mut generated, version).unwrap();
        prop_assert_eq!(&frame[frame.len() - generated.len()..], &generated[..]);
        prop_assert_eq!(
            decode_request(frame).unwrap(),
            Decoded::Request(header, Request::Produce(request))
        );
    }

    #[test]
    fn a_fetch_response_comes_back(
        version in 4_i16..=18,
        partitions in proptest::collection::vec((any::<i32>(), records(), any::<bool>()), 0..5),
    ) {
        let partitions = partitions.into_iter().map(|(index, records, more)| {
            let partition = PartitionData::default()
                .with_partition_index(index)
                .with_high_watermark(9)
                .with_aborted_transactions(Some(vec![]))
                .with_records(records);
            if !more {
                return partition;
            }
            let aborted = AbortedTransaction::default().with_producer_id(3).with_first_offset(4);
            let partition = partition.with_aborted_transactions(Some(vec![aborted]));
            if version < 12 {
                return partition;
            }
            partition
                .with_diverging_epoch(EpochEndOffset::default().with_epoch(5))
                .with_current_leader(LeaderIdAndEpoch::default().with_leader_id(6))
        });
        let topic = FetchableTopicResponse::default().with_partitions(partitions.collect());
        let topic = if version >= 13 {
            topic.with_topic_id(KafkaUuid::from_parts(1, 2))
        } else {
            topic.with_topic(KafkaString::from_static("shop"))
        };
        let mut response = FetchResponseData::default().with_responses(vec![topic]);
        if version >= 16 {
            response.node_endpoints = vec![NodeEndpoint::default().with_node_id(8)];
        }
        let header = header(ApiKey::Fetch, version);
        let frame = joined(&encode_response(&header, &Response::Fetch(response.clone())).unwrap());

        let mut generated = BytesMut::new();
        response.write(&mut generated, version).unwrap();
        prop_assert_eq!(&frame[frame.len() - generated.len()..], &generated[..]);
        prop_assert_eq!(decode_response(&header, frame).unwrap(), Response::Fetch(response));
    }
}

#[test]
fn batches_are_slices_of_the_frame_and_leave_uncopied() {
    let batch = Bytes::from(vec![7; 100_000]);
    let partition = PartitionProduceData::default().with_records(Some(batch.clone()));
    let topic = TopicProduceData::default().with_partition_data(vec![partition]);
    let request = Request::Produce(ProduceRequestData::default().with_topic_data(vec![topic]));
    let parts = encode_request(&header(ApiKey::Produce, 9), &request).unwrap();
    assert!(parts.iter().any(|part| part.as_ptr() == batch.as_ptr()));

    let frame = joined(&parts);
    let inside = frame.as_ptr_range();
    let Decoded::Request(_, Request::Produce(decoded)) = decode_request(frame).unwrap() else {
        panic!("another request")
    };
    let records = decoded.topic_data[0].partition_data[0].records.as_ref().unwrap();
    assert!(inside.contains(&records.as_ptr()));
}
