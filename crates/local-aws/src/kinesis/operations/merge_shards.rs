//! MergeShards: closes two adjacent shards and opens one.

use serde::Deserialize;

use super::{Empty, refused, require_active, shard_number};
use crate::kinesis::state::Service;
use crate::kinesis::transition::Phase;
use crate::wire::ApiError;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    shard_to_merge: String,
    adjacent_shard_to_merge: String,
}

pub(super) fn handle(service: &Service, request: Request) -> Result<Empty, ApiError> {
    let name =
        service.stream_name(request.stream_name.as_deref(), request.stream_arn.as_deref())?;
    service.change(&name, |meta, now_ms| {
        let first = shard_number(&request.shard_to_merge, &name, service)?;
        let second = shard_number(&request.adjacent_shard_to_merge, &name, service)?;
        require_active(service, meta, now_ms)?;
        meta.lineage.merge(first, second, now_ms).map_err(|why| refused(service, &name, why))?;
        meta.transition = service.transition(Phase::Updating, now_ms);
        Ok(Empty {})
    })
}
