//! InitProducerId: who a producer is, and that no older one writes any more.

use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::wire::init_producer_id_request::InitProducerIdRequestData;
use tailwater_kafka::wire::init_producer_id_response::InitProducerIdResponseData;
use tailwater_kafka::{ProducerEpoch, ProducerId};

use super::Refused;
use super::view::coordinator_refusal;
use crate::coordinator::transactional::{self, Believes, NotGiven};
use crate::coordinator::{NotChanged, TRANSACTIONS_TOPIC};
use crate::log::Log;

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
        let Some(transactional_id) = transactional_id else {
            let (id, epoch) = self.registration()?;
            let given = self.producer_ids.allocate(id, epoch, &self.link).await;
            let producer = given.map_err(coordinator_refusal)?;
            return Ok((producer, ProducerEpoch::new(0)));
        };
        let producer = ProducerId::new(request.producer_id);
        let believes = (producer != ProducerId::NONE)
            .then(|| (producer, ProducerEpoch::new(request.producer_epoch)));
        let given =
            self.give_role(&transactional_id, believes, request.transaction_timeout_ms).await;
        given.map_err(|not_given| match not_given {
            Err(refused) => refused,
            Ok(NotGiven::Fenced(_)) if version >= KNOWS_FENCED => ErrorCode::ProducerFenced.into(),
            Ok(NotGiven::Fenced(_)) => ErrorCode::InvalidProducerEpoch.into(),
            Ok(NotGiven::Not(not_changed)) => not_changed.into(),
        })
    }

    async fn give_role(
        &self,
        transactional_id: &str,
        believes: Believes,
        timeout_ms: i32,
    ) -> Result<(ProducerId, ProducerEpoch), Result<NotGiven, Refused>> {
        let store = self.coordinator_of(TRANSACTIONS_TOPIC, transactional_id).await.map_err(Err)?;
        let (id, epoch) = self.registration().map_err(Err)?;
        let allocate = async || {
            let given = self.producer_ids.allocate(id, epoch, &self.link).await;
            given.map_err(|refusal| NotChanged::Unavailable(refusal.message))
        };
        let now = self.shared.config.clock.now_ms();
        transactional::init(&store, transactional_id, believes, timeout_ms, now, allocate)
            .await
            .map_err(Ok)
    }
}
