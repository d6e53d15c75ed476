//! Fetch responses: the batches leave as the slices that the log gave.

use bytes::{BufMut, BytesMut};
use kacrab_protocol::{
    ProtocolError, RawTaggedField,
    string::{write_compact_string, write_string},
    tagged::write_tagged_fields,
    uuid::write_uuid,
    version::{UnsupportedFieldVersion, UnsupportedVersion},
};

use super::{
    ApiKey,
    fetch_response::{
        EpochEndOffset, FetchResponseData, FetchableTopicResponse, LeaderIdAndEpoch, PartitionData,
        SnapshotId,
    },
    frame::Scatter,
    produce::{write_count, write_records},
};

const FLEXIBLE: i16 = 12;
const TOPIC_IDS: i16 = 13;
const NODE_ENDPOINTS: i16 = 16;
const SUPPORTED: std::ops::RangeInclusive<i16> = 4..=18;

pub(super) fn write(
    response: &FetchResponseData,
    out: &mut Scatter,
    version: i16,
) -> Result<(), ProtocolError> {
    if !SUPPORTED.contains(&version) {
        return Err(UnsupportedVersion::new(ApiKey::Fetch as i16, version).into());
    }
    let flexible = version >= FLEXIBLE;
    out.buf.put_i32(response.throttle_time_ms);
    if version >= 7 {
        out.buf.put_i16(response.error_code);
        out.buf.put_i32(response.session_id);
    } else if response.session_id != 0 {
        return Err(not_in("session_id", version));
    }
    write_count(out, response.responses.len(), flexible);
    for topic in &response.responses {
        write_topic(topic, out, version)?;
    }
    if flexible {
        let mut tags = Vec::new();
        if version >= NODE_ENDPOINTS && !response.node_endpoints.is_empty() {
            let mut endpoints = Scatter::bare();
            write_count(&mut endpoints, response.node_endpoints.len(), true);
            for endpoint in &response.node_endpoints {
                endpoint.write(&mut endpoints.buf, version)?;
            }
            tags.push(RawTaggedField { tag: 0, data: endpoints.buf.freeze() });
        }
        write_tagged_fields(&mut out.buf, &tags)?;
    }
    Ok(())
}

fn write_topic(
    topic: &FetchableTopicResponse,
    out: &mut Scatter,
    version: i16,
) -> Result<(), ProtocolError> {
    let flexible = version >= FLEXIBLE;
    if version >= TOPIC_IDS {
        write_uuid(&mut out.buf, &topic.topic_id);
    } else if flexible {
        write_compact_string(&mut out.buf, &topic.topic)?;
    } else {
        write_string(&mut out.buf, &topic.topic)?;
    }
    write_count(out, topic.partitions.len(), flexible);
    for partition in &topic.partitions {
        write_partition(partition, out, version)?;
    }
    if flexible {
        out.buf.put_u8(0);
    }
    Ok(())
}

fn write_partition(
    partition: &PartitionData,
    out: &mut Scatter,
    version: i16,
) -> Result<(), ProtocolError> {
    let flexible = version >= FLEXIBLE;
    out.buf.put_i32(partition.partition_index);
    out.buf.put_i16(partition.error_code);
    out.buf.put_i64(partition.high_watermark);
    out.buf.put_i64(partition.last_stable_offset);
    if version >= 5 {
        out.buf.put_i64(partition.log_start_offset);
    }
    // Null and empty mean the same to a reader, but some clients fall over null.
    let aborted = partition.aborted_transactions.as_deref().unwrap_or_default();
    write_count(out, aborted.len(), flexible);
    for transaction in aborted {
        transaction.write(&mut out.buf, version)?;
    }
    if version >= 11 {
        out.buf.put_i32(partition.preferred_read_replica);
    } else if partition.preferred_read_replica != -1 {
        return Err(not_in("preferred_read_replica", version));
    }
    write_records(out, partition.records.as_ref(), flexible);
    if flexible {
        write_tagged_fields(&mut out.buf, &partition_tags(partition, version)?)?;
    }
    Ok(())
}

fn partition_tags(
    partition: &PartitionData,
    version: i16,
) -> Result<Vec<RawTaggedField>, ProtocolError> {
    let mut tags = Vec::new();
    let mut push = |tag, write: &dyn Fn(&mut BytesMut) -> Result<(), ProtocolError>| {
        let mut data = BytesMut::new();
        write(&mut data)?;
        tags.push(RawTaggedField { tag, data: data.freeze() });
        Ok::<_, ProtocolError>(())
    };
    if partition.diverging_epoch != EpochEndOffset::default() {
        push(0, &|buf| partition.diverging_epoch.write(buf, version))?;
    }
    if partition.current_leader != LeaderIdAndEpoch::default() {
        push(1, &|buf| partition.current_leader.write(buf, version))?;
    }
    if partition.snapshot_id != SnapshotId::default() {
        push(2, &|buf| partition.snapshot_id.write(buf, version))?;
    }
    Ok(tags)
}

fn not_in(field: &'static str, version: i16) -> ProtocolError {
    UnsupportedFieldVersion::new(ApiKey::Fetch as i16, field, version).into()
}
