//! DeleteTopics.

use std::sync::Arc;

use tailwater_kafka::wire::KafkaUuid;
use tailwater_kafka::wire::delete_topics_request::{DeleteTopicState, DeleteTopicsRequestData};
use tailwater_kafka::wire::delete_topics_response::{
    DeletableTopicResult, DeleteTopicsResponseData,
};

use super::{Refused, code, find_topic};
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
        let (topics, groups) = (Arc::clone(&self.topics), Arc::clone(&self.groups));
        let workers = self.shared.config.workers.clone();
        let (name, id) = (asked.name.clone().unwrap_or_default(), asked.topic_id);
        self.to_its_end(async move {
            let _changing = topics.changing.lock().await;
            let topic = find_topic(&topics, &name, id)?;
            let (list, gone) = (Arc::clone(&topics), Arc::clone(&topic));
            workers.run(move || list.delete(&gone)).await??;
            groups.forget_topic(topic.id).await?;
            tracing::info!(topic = %topic.name, "deleted a topic");
            Ok((topic.name.clone(), KafkaUuid::from_uuid(topic.id.get())))
        })
        .await
    }
}
