//! DescribeStream: a stream with its shards, page by page.

use serde::{Deserialize, Serialize};

use super::{bounded, shard_number};
use crate::kinesis::operations::describe_stream_summary::Common;
use crate::kinesis::shard::{Shard, ShardView};
use crate::kinesis::state::Service;
use crate::kinesis::transition::Status;
use crate::wire::ApiError;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    limit: Option<i64>,
    exclusive_start_shard_id: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Response {
    stream_description: Description,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Description {
    #[serde(flatten)]
    common: Common,
    shards: Vec<ShardView>,
    has_more_shards: bool,
}

pub(super) fn handle(service: &Service, request: Request) -> Result<Response, ApiError> {
    let name =
        service.stream_name(request.stream_name.as_deref(), request.stream_arn.as_deref())?;
    let limit = bounded("limit", request.limit, 1..=10_000, 100)?;
    let after = request.exclusive_start_shard_id.as_deref();
    let after = after.map(|text| shard_number(text, &name, service)).transpose()?;
    service.read(&name, |stream, now_ms| {
        let meta = &stream.meta;
        let mut shards: Vec<_> = match after {
            // Shards are not visible before they can be used.
            _ if meta.status(now_ms) == Status::Creating => Vec::new(),
            Some(after) => page(meta.lineage.after(after), limit),
            None => page(meta.lineage.all(), limit),
        };
        let has_more_shards = shards.len() > limit;
        shards.truncate(limit);
        let common = Common::of(service, meta, now_ms);
        Ok(Response { stream_description: Description { common, shards, has_more_shards } })
    })
}

/// Takes one shard more than requested, to know whether there are more.
fn page<'a>(shards: impl Iterator<Item = &'a Shard>, limit: usize) -> Vec<ShardView> {
    shards.take(limit + 1).map(ShardView::from).collect()
}
