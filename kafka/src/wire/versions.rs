//! Which versions of which APIs a broker answers, and how it says so.

use super::{
    ApiKey, ErrorCode,
    api_versions_response::{ApiVersion, ApiVersionsResponseData},
};

/// The versions of one API that a broker answers, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiRange {
    /// The API.
    pub api: ApiKey,
    /// The oldest version.
    pub min: i16,
    /// The newest version.
    pub max: i16,
}

impl ApiRange {
    /// Versions `min` through `max` of `api`.
    #[must_use]
    pub const fn new(api: ApiKey, min: i16, max: i16) -> Self {
        Self { api, min, max }
    }
}

/// Whether `ranges` hold `version` of `api`.
#[must_use]
pub fn supports(ranges: &[ApiRange], api: ApiKey, version: i16) -> bool {
    ranges.iter().any(|range| range.api == api && (range.min..=range.max).contains(&version))
}

/// The ApiVersions response that advertises `ranges`, without features.
///
/// Produce is advertised from version 0 whatever its range says: librdkafka before 2.6 otherwise
/// takes the broker for one without compression and silently sends gzip, snappy and lz4
/// uncompressed (KAFKA-18659). The features epoch is there and not negative, and no tagged field
/// holds its default: the same client cannot read the response otherwise.
#[must_use]
pub fn advertised(ranges: &[ApiRange]) -> ApiVersionsResponseData {
    let api_keys = ranges
        .iter()
        .map(|range| {
            let min = if range.api == ApiKey::Produce { 0 } else { range.min };
            ApiVersion::default()
                .with_api_key(range.api as i16)
                .with_min_version(min)
                .with_max_version(range.max)
        })
        .collect();
    ApiVersionsResponseData::default().with_api_keys(api_keys).with_finalized_features_epoch(0)
}

/// The answer to an ApiVersions request of a version nobody knows: always of version 0, so that
/// any client can read it and ask again (KIP-511).
#[must_use]
pub fn unsupported_api_versions(ranges: &[ApiRange]) -> ApiVersionsResponseData {
    advertised(ranges).with_error_code(ErrorCode::UnsupportedVersion.into())
}
