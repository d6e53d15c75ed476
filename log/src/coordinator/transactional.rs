//! Who has which transactional id: on `__transaction_state`.
//!
//! A transactional id names a role that only one process may have, such as capturing a source. Each
//! InitProducerId on it gives the same producer id with the next epoch. A partition refuses an older
//! epoch from the first batch of the newer one on; who takes over a role therefore writes to every
//! partition before it reads what is there.
//!
//! The records are Kafka's, numbers big-endian:
//!
//! | | version | fields |
//! |---|---|---|
//! | key | i16 = 0 | transactional id string |
//! | value | i16 = 0 | producer id i64, epoch i16, time-out i32 ms, status i8 (0: no transaction), partitions (none: i32 = -1), last update i64 ms, begin i64 ms |

use bytes::{Buf, BufMut, Bytes};
use tailwater_kafka::{ProducerEpoch, ProducerId};

use super::codec::put_string;
use super::store::{NotChanged, Store};

/// The last epoch that is given: the next one would not leave room for a fence.
const LAST_EPOCH: i16 = i16::MAX - 1;

const KEY_VERSION: i16 = 0;
const VALUE_VERSION: i16 = 0;
const NO_TRANSACTION: i8 = 0;

/// What a producer says that it is (KIP-360).
pub(crate) type Believes = Option<(ProducerId, ProducerEpoch)>;

/// Why there is no producer id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotGiven {
    /// Another one has taken over the role.
    #[error("another producer has taken over transactional id {0:?}")]
    Fenced(String),
    /// Not here, not yet, or not now.
    #[error(transparent)]
    Not(#[from] NotChanged),
}

/// The producer that has `transactional_id`.
pub(crate) fn current(
    store: &Store,
    transactional_id: &str,
) -> Option<(ProducerId, ProducerEpoch)> {
    store.read(|entries| entries.get(&key(transactional_id)).and_then(|value| decode(value)))
}

/// Gives out the next epoch of a role: the producer id it has, or what `allocate` gives where it has
/// none, or has used up the epochs of the one it has.
///
/// # Errors
/// If the producer is not what it `believes` to be, or nothing could be noted.
pub(crate) async fn init(
    store: &Store,
    transactional_id: &str,
    believes: Believes,
    timeout_ms: i32,
    now_ms: i64,
    allocate: impl AsyncFnOnce() -> Result<ProducerId, NotChanged>,
) -> Result<(ProducerId, ProducerEpoch), NotGiven> {
    let _turn = store.turn.lock().await;
    let current = current(store, transactional_id);
    if believes.is_some() && believes != current {
        return Err(NotGiven::Fenced(transactional_id.to_owned()));
    }
    let given = match current {
        Some((producer, epoch)) if epoch.get() < LAST_EPOCH => {
            (producer, ProducerEpoch::new(epoch.get() + 1))
        }
        _ => (allocate().await?, ProducerEpoch::new(0)),
    };
    let value = encode(given, timeout_ms, now_ms);
    store.change(vec![(key(transactional_id), Some(value))]).await?;
    Ok(given)
}

fn key(transactional_id: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(4 + transactional_id.len());
    key.put_i16(KEY_VERSION);
    put_string(&mut key, transactional_id);
    key
}

fn encode((producer, epoch): (ProducerId, ProducerEpoch), timeout_ms: i32, now_ms: i64) -> Bytes {
    let mut value = Vec::with_capacity(40);
    value.put_i16(VALUE_VERSION);
    value.put_i64(producer.get());
    value.put_i16(epoch.get());
    value.put_i32(timeout_ms);
    value.put_i8(NO_TRANSACTION);
    value.put_i32(-1);
    value.put_i64(now_ms);
    value.put_i64(-1);
    value.into()
}

fn decode(mut value: &[u8]) -> Option<(ProducerId, ProducerEpoch)> {
    if value.try_get_i16().ok()? != VALUE_VERSION {
        return None;
    }
    let producer = ProducerId::new(value.try_get_i64().ok()?);
    Some((producer, ProducerEpoch::new(value.try_get_i16().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_kafkas() {
        assert_eq!(key("tailwater.shop"), b"\x00\x00\x00\x0etailwater.shop");
        let given = (ProducerId::new(2000), ProducerEpoch::new(3));
        let value = encode(given, 60_000, 9);
        let expected = b"\x00\x00\x00\x00\x00\x00\x00\x00\x07\xd0\x00\x03\x00\x00\xea\x60\x00\
            \xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x09\xff\xff\xff\xff\xff\xff\xff\xff";
        assert_eq!(&value[..], &expected[..]);
        assert_eq!(decode(&value), Some(given));
        for length in 0..12 {
            assert_eq!(decode(&value[..length]), None);
        }
    }
}
