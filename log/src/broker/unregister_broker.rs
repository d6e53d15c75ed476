//! UnregisterBroker: a node that is gone will not come back.

use tailwater_kafka::BrokerId;
use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::wire::unregister_broker_request::UnregisterBrokerRequestData;
use tailwater_kafka::wire::unregister_broker_response::UnregisterBrokerResponseData;

use super::{Refused, code};
use crate::controller::{ControllerAnswer, ControllerRequest};
use crate::log::Log;

impl Log {
    pub(super) async fn unregister_broker(
        &self,
        request: UnregisterBrokerRequestData,
    ) -> UnregisterBrokerResponseData {
        let outcome = self.unregister(BrokerId::new(request.broker_id)).await;
        UnregisterBrokerResponseData::default()
            .with_error_code(code(&outcome))
            .with_error_message(outcome.err().and_then(|refused| refused.text()))
    }

    async fn unregister(&self, id: BrokerId) -> Result<(), Refused> {
        match self.link.ask(ControllerRequest::UnregisterBroker { id }).await? {
            ControllerAnswer::Unregistered => {
                self.wait_until_known(|image| image.broker(id).is_none()).await;
                Ok(())
            }
            _ => Err(ErrorCode::UnknownServerError.into()),
        }
    }
}
