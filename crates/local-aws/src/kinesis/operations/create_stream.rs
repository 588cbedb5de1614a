//! CreateStream: creates a stream of even shards, which is CREATING for a moment.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{Empty, bounded, require_shards};
use crate::kinesis::error::{resource_in_use, validation};
use crate::kinesis::limits::{MIN_RETENTION_HOURS, RECORD_KIB};
use crate::kinesis::lineage::Lineage;
use crate::kinesis::operations::stream_tags::check_tags;
use crate::kinesis::operations::update_stream_mode::StreamModeDetails;
use crate::kinesis::state::Service;
use crate::kinesis::stream::{Meta, StreamMode, StreamName};
use crate::kinesis::transition::Phase;
use crate::wire::ApiError;

/// The initial number of shards of an on-demand stream.
const ON_DEMAND_SHARDS: i64 = 4;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    stream_name: String,
    shard_count: Option<i64>,
    stream_mode_details: Option<StreamModeDetails>,
    #[serde(default)]
    tags: Option<BTreeMap<String, String>>,
    #[serde(rename = "MaxRecordSizeInKiB")]
    max_record_kib: Option<i64>,
}

pub(super) fn handle(service: &Service, request: Request) -> Result<Empty, ApiError> {
    let name = StreamName::new(&request.stream_name)?;
    let mode = request.stream_mode_details.map_or(StreamMode::Provisioned, |d| d.stream_mode);
    let shards = match mode {
        StreamMode::OnDemand => ON_DEMAND_SHARDS,
        StreamMode::Provisioned => request
            .shard_count
            .ok_or_else(|| validation("shardCount", "null", "Member must not be null"))?,
    };
    bounded("shardCount", Some(shards), 1..=i64::MAX, 1)?;
    bounded("maxRecordSizeInKiB", request.max_record_kib, RECORD_KIB, *RECORD_KIB.start())?;
    let tags = request.tags.unwrap_or_default();
    check_tags(&BTreeMap::new(), &tags)?;
    service.with(|state, now_ms| {
        if state.stream(&name).is_ok() {
            let account = &service.options.account;
            return Err(resource_in_use(format!(
                "Stream {name} under account {account} already exists."
            )));
        }
        require_shards(service, state, shards)?;
        // At most the account's limit, so the conversion cannot fail.
        let shards = u32::try_from(shards).unwrap_or(u32::MAX);
        let make = |id| Meta {
            id,
            name: name.clone(),
            created_ms: now_ms,
            stored_ms: now_ms,
            mode,
            transition: service.transition(Phase::Creating, now_ms),
            retention_hours: MIN_RETENTION_HOURS,
            max_record_kib: request.max_record_kib.unwrap_or(*RECORD_KIB.start()),
            encryption_key: None,
            tags,
            shard_metrics: BTreeSet::new(),
            consumers: BTreeMap::new(),
            lineage: Lineage::uniform(shards, now_ms),
        };
        state.create(make, now_ms)?;
        Ok(Empty {})
    })
}
