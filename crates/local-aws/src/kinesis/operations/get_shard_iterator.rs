//! GetShardIterator: an iterator for a starting position in a shard.

use serde::{Deserialize, Serialize};

use super::shard_number;
use crate::kinesis::error::shard_not_found;
use crate::kinesis::iterator::{ShardIterator, Start};
use crate::kinesis::state::Service;
use crate::wire::{ApiError, Timestamp};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    shard_id: String,
    shard_iterator_type: String,
    starting_sequence_number: Option<String>,
    timestamp: Option<Timestamp>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Response {
    shard_iterator: String,
}

pub(super) fn handle(service: &Service, request: Request) -> Result<Response, ApiError> {
    let name =
        service.stream_name(request.stream_name.as_deref(), request.stream_arn.as_deref())?;
    let start = Start::read(
        &request.shard_iterator_type,
        request.starting_sequence_number.as_deref(),
        request.timestamp,
    )?;
    service.with(|state, now_ms| {
        let stream = state.serving(&name, now_ms)?;
        let shard = shard_number(&request.shard_id, &name, service)?;
        let from = start
            .place(stream, shard, now_ms)?
            .ok_or_else(|| shard_not_found(&request.shard_id, &name, &service.options.account))?;
        let id = stream.meta.id;
        let iterator = ShardIterator { stream: name.clone(), id, shard, from, created_ms: now_ms };
        Ok(Response { shard_iterator: iterator.text() })
    })
}
