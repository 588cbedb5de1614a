//! PutRecord: one record; and the checks that it shares with PutRecords.

use serde::{Deserialize, Serialize};

use crate::kinesis::error::{invalid_argument, rate_exceeded, validation};
use crate::kinesis::sequence::SequenceNumber;
use crate::kinesis::shard::hash_key;
use crate::kinesis::state::{Entry, Placed, Service};
use crate::kinesis::stream::Meta;
use crate::wire::{ApiError, Blob};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    data: Blob,
    partition_key: String,
    explicit_hash_key: Option<String>,
    sequence_number_for_ordering: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Response {
    shard_id: String,
    sequence_number: SequenceNumber,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption_type: Option<&'static str>,
}

pub(super) fn handle(service: &Service, request: Request) -> Result<Response, ApiError> {
    let name =
        service.stream_name(request.stream_name.as_deref(), request.stream_arn.as_deref())?;
    // The numbers of this service always increase, whether or not a client requests it.
    if let Some(text) = &request.sequence_number_for_ordering
        && text.parse::<SequenceNumber>().is_err()
    {
        return Err(invalid_argument(format!(
            "ExclusiveMinimumSequenceNumber {text} used in PutRecord on stream {name} is invalid."
        )));
    }
    let entry = entry(request.partition_key, request.data, request.explicit_hash_key.as_deref())?;
    service.with(|state, now_ms| {
        let meta = &state.stream(&name)?.meta;
        check_size(meta, &entry, "data")?;
        let encryption_type = encryption_type(meta);
        let placed = state.append(&name, vec![entry], service.options.enforce_limits, now_ms)?;
        match placed.first() {
            Some(Placed::Stored(sequence)) => Ok(Response {
                shard_id: sequence.shard.to_string(),
                sequence_number: *sequence,
                encryption_type,
            }),
            Some(Placed::Throttled(shard)) => {
                Err(rate_exceeded(*shard, &name, &service.options.account))
            }
            None => Err(ApiError::internal("a record was neither stored nor refused")),
        }
    })
}

/// Returns a record in the form in which it is stored.
pub(super) fn entry(
    partition_key: String,
    data: Blob,
    explicit_hash_key: Option<&str>,
) -> Result<Entry, ApiError> {
    if !(1..=256).contains(&partition_key.chars().count()) {
        return Err(validation(
            "partitionKey",
            &format!("'{partition_key}'"),
            "Member must have length between 1 and 256",
        ));
    }
    let hash_key = match explicit_hash_key {
        None => hash_key(&partition_key),
        Some(text) => text.parse().map_err(|_| {
            invalid_argument(format!(
                "Invalid ExplicitHashKey. ExplicitHashKey must be in the range: [0, 2^128-1]. \
                 Specified value was {text}"
            ))
        })?,
    };
    Ok(Entry { hash_key, partition_key, data: data.0 })
}

/// Fails if payload and partition key together exceed the stream's largest record.
pub(super) fn check_size(meta: &Meta, entry: &Entry, member: &str) -> Result<(), ApiError> {
    let limit = meta.max_record_size();
    if entry.data.len() + entry.partition_key.len() <= limit {
        return Ok(());
    }
    let constraint = format!(
        "Member must have length less than or equal to {limit}, its partition key included"
    );
    Err(validation(member, &format!("of {} bytes", entry.data.len()), &constraint))
}

/// Returns the encryption type in the answer of a put: none for an unencrypted stream.
pub(super) fn encryption_type(meta: &Meta) -> Option<&'static str> {
    meta.encryption_key.as_ref().map(|_| "KMS")
}
