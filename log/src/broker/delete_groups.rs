//! DeleteGroups: groups are forgotten whole. For a pipeline's group this is `tailwater detach`.

use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::wire::delete_groups_request::DeleteGroupsRequestData;
use tailwater_kafka::wire::delete_groups_response::{
    DeletableGroupResult, DeleteGroupsResponseData,
};

use super::{Refused, code};
use crate::Error;
use crate::coordinator::{OFFSETS_TOPIC, offsets};
use crate::log::Log;
use crate::node::peer;

/// The version in which brokers ask each other.
const DELETE_GROUPS_VERSION: i16 = 2;

impl Log {
    pub(super) async fn delete_groups(
        &self,
        request: DeleteGroupsRequestData,
    ) -> DeleteGroupsResponseData {
        let mut results = Vec::with_capacity(request.groups_names.len());
        for group in request.groups_names {
            let outcome = self.delete_group(group.as_str()).await;
            results.push(
                DeletableGroupResult::default()
                    .with_group_id(group)
                    .with_error_code(code(&outcome)),
            );
        }
        DeleteGroupsResponseData::default().with_results(results)
    }

    /// Lets go of everything that the group `group` holds back from retention, and forgets where
    /// it is, wherever its coordinator is: what `tailwater detach` does. Returns whether there was
    /// such a group.
    ///
    /// # Errors
    /// If the coordinator did not take it; then nothing has changed.
    pub async fn release_group(&self, group: &str) -> Result<bool, Error> {
        let outcome = match self.delete_group(group).await {
            Err(refused) if refused.code == ErrorCode::NotCoordinator => {
                self.delete_group_elsewhere(group).await
            }
            outcome => outcome,
        };
        match outcome {
            Ok(()) => Ok(true),
            Err(refused) if refused.code == ErrorCode::GroupIdNotFound => Ok(false),
            Err(refused) => {
                Err(Error::Unavailable { operation: "release the group", reason: refused.reason() })
            }
        }
    }

    async fn delete_group_elsewhere(&self, group: &str) -> Result<(), Refused> {
        let (broker, _) = self.coordinator_address(OFFSETS_TOPIC, group)?;
        let unavailable = |reason| Refused::new(ErrorCode::CoordinatorNotAvailable, reason);
        let image = self.image.subscribe();
        let connection = peer::connect(&self.shared.config, &image, broker).await;
        let connection = connection.map_err(unavailable)?;
        let request =
            DeleteGroupsRequestData::default().with_groups_names(vec![group.to_owned().into()]);
        let deleted: DeleteGroupsResponseData = connection
            .call_at(DELETE_GROUPS_VERSION, request)
            .await
            .map_err(|error: tailwater_kafka::Error| unavailable(error.to_string()))?;
        match deleted.results.first().map(|result| ErrorCode::from(result.error_code)) {
            Some(ErrorCode::None) => Ok(()),
            Some(code) => Err(code.into()),
            None => Err(ErrorCode::UnknownServerError.into()),
        }
    }

    async fn delete_group(&self, group: &str) -> Result<(), Refused> {
        let store = self.coordinator_of(OFFSETS_TOPIC, group).await?;
        match offsets::release(&store, group).await? {
            true => Ok(()),
            false => Err(ErrorCode::GroupIdNotFound.into()),
        }
    }
}
