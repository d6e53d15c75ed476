//! What the log says of a source that another process captures.

use serde::Deserialize;
use tailwater_change::Epoch;
use tailwater_kafka::{Client, OffsetAt};

use crate::config::state_topic;
use crate::error::Error;
use crate::state::STATE_KEY;
use crate::take_over::{offset, read_range};

/// Of the [`State`](crate::state::State), what whoever only looks needs: whatever version wrote it.
#[derive(Deserialize)]
struct Written {
    epoch: Epoch,
}

/// The epoch that the log says is being written of `source`; `None`: nothing is yet. A writer that
/// was superseded cannot append any more, so the last word counts.
///
/// # Errors
/// The log cannot be read.
pub async fn written_epoch(client: &Client, source: &str) -> Result<Option<Epoch>, Error> {
    let topic = state_topic(source);
    let start = offset(client, &topic, OffsetAt::Earliest).await?;
    let end = offset(client, &topic, OffsetAt::Latest).await?;
    let mut epoch = None;
    read_range(client, &topic, start, end, |_batch, offset, key, value| {
        if key == Some(STATE_KEY) {
            let written: Written = serde_json::from_slice(value)
                .map_err(|source| Error::State { topic: format!("{topic}@{offset}"), source })?;
            epoch = Some(written.epoch);
        }
        Ok(())
    })
    .await?;
    Ok(epoch)
}
