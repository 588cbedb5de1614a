//! The operations of the API, one file each (mirror images share one), and the table of them.
//!
//! An operation is a request, an answer and a `handle` function. It checks the request, makes one
//! read or one change of the state, and never stores anything itself.

#![expect(clippy::needless_pass_by_value, reason = "every operation owns its request alike")]

mod account;
mod create_stream;
mod delete_stream;
mod deregister_stream_consumer;
mod describe_stream;
mod describe_stream_consumer;
mod describe_stream_summary;
mod enhanced_monitoring;
mod get_records;
mod get_shard_iterator;
mod list_shards;
mod list_stream_consumers;
mod list_streams;
mod merge_shards;
mod put_record;
mod put_records;
mod register_stream_consumer;
mod resource_tags;
mod split_shard;
mod stream_encryption;
mod stream_retention;
mod stream_tags;
mod subscribe_to_shard;
mod update_max_record_size;
mod update_shard_count;
mod update_stream_mode;

use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::kinesis::arn::Resource;
use crate::kinesis::error::{
    invalid_argument, limit_exceeded, shard_not_found, stream_not_active, unknown_operation,
    validation,
};
use crate::kinesis::limits::SHARDS_PER_ACCOUNT;
use crate::kinesis::lineage::Refused;
use crate::kinesis::sequence::ShardNumber;
use crate::kinesis::state::{Service, State};
use crate::kinesis::stream::{Meta, StreamName};
use crate::kinesis::transition::Status;
use crate::wire::{ApiError, Format, Reply};

/// Executes one operation.
pub(super) fn call(
    service: &Arc<Service>,
    operation: &str,
    format: Format,
    body: &[u8],
) -> Result<Reply, ApiError> {
    let call = Call { service, format, body };
    match operation {
        "AddTagsToStream" => call.answer(stream_tags::add),
        "CreateStream" => call.answer(create_stream::handle),
        "DecreaseStreamRetentionPeriod" => call.answer(stream_retention::decrease),
        "DeleteStream" => call.answer(delete_stream::handle),
        "DeregisterStreamConsumer" => call.answer(deregister_stream_consumer::handle),
        "DescribeAccountSettings" => call.answer(account::describe_settings),
        "DescribeLimits" => call.answer(account::describe_limits),
        "DescribeStream" => call.answer(describe_stream::handle),
        "DescribeStreamConsumer" => call.answer(describe_stream_consumer::handle),
        "DescribeStreamSummary" => call.answer(describe_stream_summary::handle),
        "DisableEnhancedMonitoring" => call.answer(enhanced_monitoring::disable),
        "EnableEnhancedMonitoring" => call.answer(enhanced_monitoring::enable),
        "GetRecords" => call.answer_sized(get_records::handle, get_records::Response::text_size),
        "GetShardIterator" => call.answer(get_shard_iterator::handle),
        "IncreaseStreamRetentionPeriod" => call.answer(stream_retention::increase),
        "ListShards" => call.answer(list_shards::handle),
        "ListStreamConsumers" => call.answer(list_stream_consumers::handle),
        "ListStreams" => call.answer(list_streams::handle),
        "ListTagsForResource" => call.answer(resource_tags::list),
        "ListTagsForStream" => call.answer(stream_tags::list),
        "MergeShards" => call.answer(merge_shards::handle),
        "PutRecord" => call.answer(put_record::handle),
        "PutRecords" => call.answer(put_records::handle),
        "RegisterStreamConsumer" => call.answer(register_stream_consumer::handle),
        "RemoveTagsFromStream" => call.answer(stream_tags::remove),
        "SplitShard" => call.answer(split_shard::handle),
        "StartStreamEncryption" => call.answer(stream_encryption::start),
        "StopStreamEncryption" => call.answer(stream_encryption::stop),
        "SubscribeToShard" => subscribe_to_shard::handle(service, format, format.decode(body)?),
        "TagResource" => call.answer(resource_tags::tag),
        "UntagResource" => call.answer(resource_tags::untag),
        "UpdateMaxRecordSize" => call.answer(update_max_record_size::handle),
        "UpdateShardCount" => call.answer(update_shard_count::handle),
        "UpdateStreamMode" => call.answer(update_stream_mode::handle),
        _ => Err(unknown_operation(operation)),
    }
}

struct Call<'a> {
    service: &'a Service,
    format: Format,
    body: &'a [u8],
}

impl Call<'_> {
    fn answer<Q: DeserializeOwned, A: Serialize>(
        &self,
        handle: fn(&Service, Q) -> Result<A, ApiError>,
    ) -> Result<Reply, ApiError> {
        self.answer_sized(handle, |_| 256)
    }

    /// Encodes answers that are large enough to compute their size beforehand.
    fn answer_sized<Q: DeserializeOwned, A: Serialize>(
        &self,
        handle: fn(&Service, Q) -> Result<A, ApiError>,
        size: fn(&A) -> usize,
    ) -> Result<Reply, ApiError> {
        let answer = handle(self.service, self.format.decode(self.body)?)?;
        Ok(Reply::Body(self.format.encode(&answer, size(&answer))))
    }
}

/// A request that only names a stream.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StreamRequest {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
}

impl StreamRequest {
    fn name(&self, service: &Service) -> Result<StreamName, ApiError> {
        service.stream_name(self.stream_name.as_deref(), self.stream_arn.as_deref())
    }
}

/// A request that only names a consumer: by its ARN, or by its stream's ARN and its name.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ConsumerRequest {
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    consumer_name: Option<String>,
    #[serde(rename = "ConsumerARN")]
    consumer_arn: Option<String>,
}

impl ConsumerRequest {
    /// Returns the stream, the consumer's name, and the consumer's ARN if that was given.
    fn name(&self, service: &Service) -> Result<(StreamName, String, Option<&str>), ApiError> {
        match (&self.consumer_arn, &self.stream_arn, &self.consumer_name) {
            (Some(arn), _, _) => match service.place.read(arn)? {
                Resource::Consumer { stream, name } => Ok((stream, name, Some(arn))),
                Resource::Stream(_) => {
                    Err(invalid_argument(format!("ConsumerARN {arn} names a stream.")))
                }
            },
            (None, Some(stream), Some(name)) => {
                Ok((service.stream_of(stream)?, name.clone(), None))
            }
            (None, None, _) | (None, _, None) => Err(invalid_argument(
                "Either ConsumerARN, or StreamARN and ConsumerName, must be given.",
            )),
        }
    }
}

/// The empty answer of operations without a result.
#[derive(Serialize)]
struct Empty {}

/// Returns a number within the bounds of the API, or the default.
fn bounded(
    member: &str,
    value: Option<i64>,
    bounds: RangeInclusive<i64>,
    default: i64,
) -> Result<usize, ApiError> {
    let value = value.unwrap_or(default);
    let constraint = if value < *bounds.start() {
        format!("Member must have value greater than or equal to {}", bounds.start())
    } else {
        format!("Member must have value less than or equal to {}", bounds.end())
    };
    bounds
        .contains(&value)
        .then(|| usize::try_from(value).ok())
        .flatten()
        .ok_or_else(|| validation(member, &format!("'{value}'"), &constraint))
}

/// Returns the shard that a text names in a stream.
fn shard_number(
    text: &str,
    stream: &StreamName,
    service: &Service,
) -> Result<ShardNumber, ApiError> {
    text.parse().map_err(|()| shard_not_found(text, stream, &service.options.account))
}

/// Fails unless the stream is ACTIVE, which resharding requires.
fn require_active(service: &Service, meta: &Meta, now_ms: i64) -> Result<(), ApiError> {
    let status = meta.status(now_ms);
    if status == Status::Active {
        return Ok(());
    }
    Err(stream_not_active(&meta.name, &service.options.account, status.text()))
}

/// Fails if `more` shards would exceed the account's limit.
fn require_shards(service: &Service, state: &State, more: i64) -> Result<(), ApiError> {
    let open = i64::try_from(state.open_shards()).unwrap_or(i64::MAX);
    if open.saturating_add(more) <= i64::from(SHARDS_PER_ACCOUNT) {
        return Ok(());
    }
    Err(limit_exceeded(format!(
        "This request would exceed the shard limit for the account {} in {}. Current shard count \
         for the account: {open}. Limit: {SHARDS_PER_ACCOUNT}. Number of additional shards that \
         would have resulted from this request: {more}.",
        service.options.account, service.options.region
    )))
}

/// Returns the service's error for an impossible split or merge.
fn refused(service: &Service, stream: &StreamName, why: Refused) -> ApiError {
    let account = &service.options.account;
    match why {
        Refused::NoSuchShard(shard) => shard_not_found(&shard.to_string(), stream, account),
        Refused::Closed(shard) => invalid_argument(format!(
            "Shard {shard} in stream {stream} under account {account} is already closed."
        )),
        Refused::OutsideRange(range) => invalid_argument(format!(
            "NewStartingHashKey used in SplitShard on stream {stream} under account {account} is \
             not both greater than one plus the shard's StartingHashKey {} and less than the \
             shard's EndingHashKey {}.",
            range.start, range.end
        )),
        Refused::NotAdjacent => invalid_argument(format!(
            "Shards to merge in stream {stream} under account {account} are not an adjacent pair."
        )),
    }
}
