//! InitProducerId: who a producer is, and that no older one writes any more.

use std::sync::Arc;

use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::wire::init_producer_id_request::InitProducerIdRequestData;
use tailwater_kafka::wire::init_producer_id_response::InitProducerIdResponseData;
use tailwater_kafka::{ProducerEpoch, ProducerId};

use super::Refused;
use crate::log::Log;
use crate::producers::{InitError, InitRequest};

/// Kafka's `transaction.max.timeout.ms`. This log has no transactions, but clients test the bound.
const MAX_TRANSACTION_TIMEOUT_MS: i32 = 15 * 60 * 1000;

/// From this version on clients know PRODUCER_FENCED.
const KNOWS_FENCED: i16 = 4;

impl Log {
    pub(super) async fn init_producer_id(
        &self,
        request: InitProducerIdRequestData,
        version: i16,
    ) -> InitProducerIdResponseData {
        match self.give_producer_id(request, version).await {
            Ok((producer, epoch)) => InitProducerIdResponseData::default()
                .with_producer_id(producer.get())
                .with_producer_epoch(epoch.get()),
            Err(refused) => InitProducerIdResponseData::default()
                .with_error_code(refused.code())
                .with_producer_id(-1)
                .with_producer_epoch(-1),
        }
    }

    async fn give_producer_id(
        &self,
        request: InitProducerIdRequestData,
        version: i16,
    ) -> Result<(ProducerId, ProducerEpoch), Refused> {
        let transactional_id = request.transactional_id.map(|id| id.as_str().to_owned());
        if transactional_id.as_deref() == Some("") {
            return Err(ErrorCode::InvalidRequest.into());
        }
        if transactional_id.is_some()
            && !(1..=MAX_TRANSACTION_TIMEOUT_MS).contains(&request.transaction_timeout_ms)
        {
            return Err(ErrorCode::InvalidTransactionTimeout.into());
        }
        let producer = ProducerId::new(request.producer_id);
        let believes = (producer != ProducerId::NONE)
            .then(|| (producer, ProducerEpoch::new(request.producer_epoch)));
        let producers = Arc::clone(&self.producers);
        self.to_its_end(async move {
            let outcome = producers.init(InitRequest { transactional_id, believes }).await;
            outcome.map_err(|error| match error {
                InitError::Fenced(_) if version >= KNOWS_FENCED => ErrorCode::ProducerFenced.into(),
                InitError::Fenced(_) => ErrorCode::InvalidProducerEpoch.into(),
                InitError::Journal(error) => {
                    tracing::warn!(error = %error.full_text(), "no producer id given");
                    // Retriable for every client, as nothing has changed.
                    ErrorCode::CoordinatorNotAvailable.into()
                }
            })
        })
        .await
    }
}
