//! UpdateShardCount: reshards to another number of even shards by splits and merges.

use serde::{Deserialize, Serialize};

use super::{bounded, refused, require_active, require_shards};
use crate::kinesis::error::{invalid_argument, validation};
use crate::kinesis::state::Service;
use crate::kinesis::transition::Phase;
use crate::wire::ApiError;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    target_shard_count: i64,
    scaling_type: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Response {
    stream_name: String,
    #[serde(rename = "StreamARN")]
    stream_arn: String,
    current_shard_count: i64,
    target_shard_count: i64,
}

pub(super) fn handle(service: &Service, request: Request) -> Result<Response, ApiError> {
    let name =
        service.stream_name(request.stream_name.as_deref(), request.stream_arn.as_deref())?;
    if request.scaling_type != "UNIFORM_SCALING" {
        return Err(validation(
            "scalingType",
            &format!("'{}'", request.scaling_type),
            "Member must satisfy enum value set: [UNIFORM_SCALING]",
        ));
    }
    let target = request.target_shard_count;
    bounded("targetShardCount", Some(target), 1..=10_000, 1)?;
    service.with(|state, now_ms| {
        let current = state.stream(&name)?.meta.lineage.open().count();
        let current = i64::try_from(current).unwrap_or(i64::MAX);
        check_step(current, target)?;
        require_shards(service, state, target - current)?;
        state.change(&name, now_ms, |meta| {
            require_active(service, meta, now_ms)?;
            let count = u32::try_from(target).unwrap_or(u32::MAX);
            meta.lineage.resize(count, now_ms).map_err(|why| refused(service, &name, why))?;
            meta.transition = service.transition(Phase::Updating, now_ms);
            Ok(())
        })?;
        Ok(Response {
            stream_name: name.to_string(),
            stream_arn: service.place.stream_arn(&name),
            current_shard_count: current,
            target_shard_count: target,
        })
    })
}

/// Fails if one call more than doubles or more than halves a stream.
fn check_step(current: i64, target: i64) -> Result<(), ApiError> {
    if target > current.saturating_mul(2) {
        return Err(invalid_argument(format!(
            "UpdateShardCount cannot scale up over double your current open shard count. Current \
             open shard count: {current} Target shard count: {target}"
        )));
    }
    if target.saturating_mul(2) < current {
        return Err(invalid_argument(format!(
            "UpdateShardCount cannot scale down below half your current open shard count. Current \
             open shard count: {current} Target shard count: {target}"
        )));
    }
    Ok(())
}
