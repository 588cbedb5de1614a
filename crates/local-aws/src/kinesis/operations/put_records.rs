//! PutRecords: up to 500 records, each stored or refused individually.

use serde::{Deserialize, Serialize};

use super::put_record::{check_size, encryption_type, entry};
use crate::kinesis::error::{invalid_argument, rate_exceeded, validation};
use crate::kinesis::limits::{PUT_SIZE, RECORDS_PER_PUT};
use crate::kinesis::sequence::SequenceNumber;
use crate::kinesis::state::{Entry, Placed, Service};
use crate::wire::{ApiError, Blob};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    records: Vec<RequestEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RequestEntry {
    data: Blob,
    partition_key: String,
    explicit_hash_key: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Response {
    failed_record_count: usize,
    records: Vec<ResultEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption_type: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ResultEntry {
    #[serde(rename_all = "PascalCase")]
    Stored { sequence_number: SequenceNumber, shard_id: String },
    #[serde(rename_all = "PascalCase")]
    Refused { error_code: &'static str, error_message: String },
}

pub(super) fn handle(service: &Service, request: Request) -> Result<Response, ApiError> {
    let name =
        service.stream_name(request.stream_name.as_deref(), request.stream_arn.as_deref())?;
    let entries = entries(request.records)?;
    let account = &service.options.account;
    service.with(|state, now_ms| {
        let meta = &state.stream(&name)?.meta;
        // All sizes before anything is stored, because one invalid record refuses the whole
        // request.
        for (entry, number) in entries.iter().zip(1..) {
            check_size(meta, entry, &format!("records.{number}.member.data"))?;
        }
        let encryption_type = encryption_type(meta);
        let placed = state.append(&name, entries, service.options.enforce_limits, now_ms)?;
        let records: Vec<_> = placed
            .into_iter()
            .map(|placed| match placed {
                Placed::Stored(sequence) => ResultEntry::Stored {
                    sequence_number: sequence,
                    shard_id: sequence.shard.to_string(),
                },
                Placed::Throttled(shard) => {
                    let error = rate_exceeded(shard, &name, account);
                    ResultEntry::Refused { error_code: error.code, error_message: error.message }
                }
            })
            .collect();
        let refused = |entry: &&ResultEntry| matches!(entry, ResultEntry::Refused { .. });
        let failed_record_count = records.iter().filter(refused).count();
        Ok(Response { failed_record_count, records, encryption_type })
    })
}

fn entries(records: Vec<RequestEntry>) -> Result<Vec<Entry>, ApiError> {
    if !(1..=RECORDS_PER_PUT).contains(&records.len()) {
        return Err(validation(
            "records",
            &format!("of {} entries", records.len()),
            &format!("Member must have length between 1 and {RECORDS_PER_PUT}"),
        ));
    }
    let entries: Vec<_> = records
        .into_iter()
        .map(|record| entry(record.partition_key, record.data, record.explicit_hash_key.as_deref()))
        .collect::<Result<_, _>>()?;
    let size: usize = entries.iter().map(|e| e.data.len() + e.partition_key.len()).sum();
    if size > PUT_SIZE {
        return Err(invalid_argument(format!(
            "Records size exceeds {} MB limit",
            PUT_SIZE / (1024 * 1024)
        )));
    }
    Ok(entries)
}
