//! ListGroups: the groups whose coordinator this node is.

use tailwater_kafka::wire::list_groups_request::ListGroupsRequestData;
use tailwater_kafka::wire::list_groups_response::{ListGroupsResponseData, ListedGroup};
use tailwater_kafka::wire::{ErrorCode, KafkaString};

use crate::coordinator::{OFFSETS_TOPIC, offsets};
use crate::log::Log;

/// Groups have no members here.
const EMPTY: &str = "Empty";

/// The type of all groups before KIP-848.
const CLASSIC: &str = "classic";

impl Log {
    pub(super) fn list_groups(&self, request: &ListGroupsRequestData) -> ListGroupsResponseData {
        let wanted = |filter: &[KafkaString], value: &str| {
            filter.is_empty() || filter.iter().any(|one| one.as_str().eq_ignore_ascii_case(value))
        };
        if !wanted(&request.states_filter, EMPTY) || !wanted(&request.types_filter, CLASSIC) {
            return ListGroupsResponseData::default();
        }
        let Ok(stores) = self.coordinators.all(OFFSETS_TOPIC) else {
            return ListGroupsResponseData::default()
                .with_error_code(ErrorCode::CoordinatorLoadInProgress.into());
        };
        let groups = stores.iter().flat_map(|store| offsets::groups(store)).map(|group| {
            ListedGroup::default()
                .with_group_id(group.into())
                .with_group_state(KafkaString::from_static(EMPTY))
                .with_group_type(KafkaString::from_static(CLASSIC))
        });
        ListGroupsResponseData::default().with_groups(groups.collect())
    }
}
