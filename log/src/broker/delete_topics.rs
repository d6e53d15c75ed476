//! DeleteTopics.

use tailwater_kafka::TopicId;
use tailwater_kafka::wire::delete_topics_request::{DeleteTopicState, DeleteTopicsRequestData};
use tailwater_kafka::wire::delete_topics_response::{
    DeletableTopicResult, DeleteTopicsResponseData,
};
use tailwater_kafka::wire::{ErrorCode, KafkaUuid};

use super::{Refused, code};
use crate::controller::{ControllerAnswer, ControllerRequest, TopicRef};
use crate::log::Log;

impl Log {
    pub(super) async fn delete_topics(
        &self,
        request: DeleteTopicsRequestData,
        version: i16,
    ) -> DeleteTopicsResponseData {
        // Names stood in a list of their own before version 6.
        let mut asked = request.topics;
        asked.extend(
            request
                .topic_names
                .into_iter()
                .map(|name| DeleteTopicState::default().with_name(Some(name))),
        );
        let mut results = Vec::with_capacity(asked.len());
        for asked in asked {
            let outcome = self.delete_topic(&asked).await;
            let message = outcome.as_ref().err().and_then(Refused::text);
            let mut result = DeletableTopicResult::default()
                .with_error_code(code(&outcome))
                .with_error_message(if version >= 5 { message } else { None })
                .with_topic_id(asked.topic_id)
                .with_name(asked.name);
            if let Ok((name, id)) = outcome {
                result = result.with_name(Some(name.into())).with_topic_id(id);
            }
            results.push(result);
        }
        DeleteTopicsResponseData::default().with_responses(results)
    }

    async fn delete_topic(&self, asked: &DeleteTopicState) -> Result<(String, KafkaUuid), Refused> {
        let topic = match &asked.name {
            _ if !asked.topic_id.is_nil() => TopicRef::Id(TopicId::new(*asked.topic_id.inner())),
            Some(name) => TopicRef::Name(name.as_str().to_owned()),
            None => return Err(ErrorCode::InvalidRequest.into()),
        };
        let request = ControllerRequest::DeleteTopics { topics: vec![topic] };
        let answer = self.link.ask(request).await?;
        let ControllerAnswer::Deleted(mut deleted) = answer else {
            return Err(ErrorCode::UnknownServerError.into());
        };
        let deleted = deleted.pop().ok_or_else(|| Refused::from(ErrorCode::UnknownServerError))?;
        let (id, name) = deleted?;
        self.wait_for_topic(id, false).await;
        Ok((name, KafkaUuid::from_uuid(id.get())))
    }
}
