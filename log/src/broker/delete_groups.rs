//! DeleteGroups: groups are forgotten whole. For a pipeline's group this is `tailwater detach`.

use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::wire::delete_groups_request::DeleteGroupsRequestData;
use tailwater_kafka::wire::delete_groups_response::{
    DeletableGroupResult, DeleteGroupsResponseData,
};

use super::{Refused, code};
use crate::log::Log;

impl Log {
    pub(super) async fn delete_groups(
        &self,
        request: DeleteGroupsRequestData,
    ) -> DeleteGroupsResponseData {
        let mut results = Vec::with_capacity(request.groups_names.len());
        for group in request.groups_names {
            let outcome = match self.groups.release(group.as_str()).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(ErrorCode::GroupIdNotFound.into()),
                Err(error) => Err(Refused::from(error)),
            };
            results.push(
                DeletableGroupResult::default()
                    .with_group_id(group)
                    .with_error_code(code(&outcome)),
            );
        }
        DeleteGroupsResponseData::default().with_results(results)
    }
}
