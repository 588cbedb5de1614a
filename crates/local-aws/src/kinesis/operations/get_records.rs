//! GetRecords: the records at an iterator, and the next iterator; at the end of a closed shard, its
//! children and no iterator.

use serde::{Deserialize, Serialize};

use super::bounded;
use crate::kinesis::error::{invalid_argument, rate_exceeded, shard_not_found, stream_not_found};
use crate::kinesis::iterator::ShardIterator;
use crate::kinesis::limits::{READ_SIZE, RECORDS_PER_READ};
use crate::kinesis::log::RecordView;
use crate::kinesis::shard::ChildShardView;
use crate::kinesis::state::{Service, State};
use crate::wire::ApiError;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    shard_iterator: String,
    limit: Option<i64>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Response {
    records: Vec<RecordView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_shard_iterator: Option<String>,
    millis_behind_latest: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    child_shards: Option<Vec<ChildShardView>>,
    #[serde(skip)]
    size: usize,
}

impl Response {
    /// Returns the approximate size of the answer as text: payloads in base64, and 256 bytes per
    /// record around them.
    pub(super) fn text_size(&self) -> usize {
        1_024 + self.size / 3 * 4 + self.records.len() * 256
    }
}

pub(super) fn handle(service: &Service, request: Request) -> Result<Response, ApiError> {
    let limit = bounded("limit", request.limit, 1..=RECORDS_PER_READ, RECORDS_PER_READ)?;
    let stream = request.stream_arn.as_deref().map(|arn| service.stream_of(arn)).transpose()?;
    service.with(|state, now_ms| {
        let iterator = ShardIterator::read(&request.shard_iterator, now_ms)?;
        if stream.is_some_and(|stream| stream != iterator.stream) {
            return Err(invalid_argument("The ShardIterator is of another stream."));
        }
        read(service, state, iterator, limit, now_ms)
    })
}

fn read(
    service: &Service,
    state: &mut State,
    mut iterator: ShardIterator,
    limit: usize,
    now_ms: i64,
) -> Result<Response, ApiError> {
    let account = &service.options.account;
    let name = iterator.stream.clone();
    let stream = state.serving(&name, now_ms)?;
    // The stream was deleted and re-created under its name.
    if stream.meta.id != iterator.id {
        return Err(stream_not_found(&name, account));
    }
    let no_shard = || shard_not_found(&iterator.shard.to_string(), &name, account);
    if service.options.enforce_limits {
        let log = stream.log_mut(iterator.shard).ok_or_else(no_shard)?;
        if !log.meter.admit_read(now_ms) {
            return Err(rate_exceeded(iterator.shard, &name, account));
        }
    }
    let read = stream.read(iterator.shard, iterator.from, limit, READ_SIZE);
    let (read, (shard, _)) = read.zip(stream.shard(iterator.shard)).ok_or_else(no_shard)?;
    let batch = read.batch;
    let millis_behind_latest = batch.behind_ms(now_ms);
    let mut response = Response {
        next_shard_iterator: None,
        millis_behind_latest,
        child_shards: read.children,
        size: batch.size(),
        records: RecordView::all(batch.records, shard),
    };
    if response.child_shards.is_none() {
        iterator.from = batch.next;
        iterator.created_ms = now_ms;
        response.next_shard_iterator = Some(iterator.text());
    }
    // As in the service, a large reply is returned, and later calls are refused for it.
    if let Some(log) = stream.log_mut(iterator.shard) {
        log.meter.count_read(response.size);
    }
    Ok(response)
}
