//! SplitShard: closes one shard and opens two.

use serde::Deserialize;

use super::{Empty, refused, require_active, require_shards, shard_number};
use crate::kinesis::error::validation;
use crate::kinesis::state::Service;
use crate::kinesis::transition::Phase;
use crate::wire::ApiError;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    shard_to_split: String,
    new_starting_hash_key: String,
}

pub(super) fn handle(service: &Service, request: Request) -> Result<Empty, ApiError> {
    let name =
        service.stream_name(request.stream_name.as_deref(), request.stream_arn.as_deref())?;
    let at: u128 = request.new_starting_hash_key.parse().map_err(|_| {
        validation(
            "newStartingHashKey",
            &format!("'{}'", request.new_starting_hash_key),
            "Member must satisfy regular expression pattern: 0|([1-9]\\d{0,38})",
        )
    })?;
    service.with(|state, now_ms| {
        let shard = shard_number(&request.shard_to_split, &name, service)?;
        state.stream(&name)?;
        require_shards(service, state, 1)?;
        state.change(&name, now_ms, |meta| {
            require_active(service, meta, now_ms)?;
            meta.lineage.split(shard, at, now_ms).map_err(|why| refused(service, &name, why))?;
            meta.transition = service.transition(Phase::Updating, now_ms);
            Ok(Empty {})
        })
    })
}
