//! DescribeStreamSummary: a stream without its shards; and the members that both descriptions
//! share.

use serde::Serialize;

use super::StreamRequest;
use crate::kinesis::operations::update_stream_mode::StreamModeDetails;
use crate::kinesis::state::Service;
use crate::kinesis::stream::Meta;
use crate::kinesis::transition::Status;
use crate::wire::{ApiError, Timestamp};

/// The members that both descriptions of a stream share.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Common {
    stream_name: String,
    #[serde(rename = "StreamARN")]
    stream_arn: String,
    stream_status: Status,
    stream_mode_details: StreamModeDetails,
    retention_period_hours: i64,
    stream_creation_timestamp: Timestamp,
    enhanced_monitoring: [Monitoring; 1],
    encryption_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Monitoring {
    shard_level_metrics: Vec<String>,
}

impl Common {
    pub(super) fn of(service: &Service, meta: &Meta, now_ms: i64) -> Self {
        Self {
            stream_name: meta.name.to_string(),
            stream_arn: service.place.stream_arn(&meta.name),
            stream_status: meta.status(now_ms),
            stream_mode_details: StreamModeDetails { stream_mode: meta.mode },
            retention_period_hours: meta.retention_hours,
            stream_creation_timestamp: Timestamp(meta.created_ms),
            enhanced_monitoring: [Monitoring {
                shard_level_metrics: meta.shard_metrics.iter().cloned().collect(),
            }],
            encryption_type: if meta.encryption_key.is_some() { "KMS" } else { "NONE" },
            key_id: meta.encryption_key.clone(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Response {
    stream_description_summary: Summary,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Summary {
    #[serde(flatten)]
    common: Common,
    open_shard_count: usize,
    consumer_count: usize,
    #[serde(rename = "MaxRecordSizeInKiB")]
    max_record_kib: i64,
}

pub(super) fn handle(service: &Service, request: StreamRequest) -> Result<Response, ApiError> {
    let name = request.name(service)?;
    service.read(&name, |stream, now_ms| {
        let meta = &stream.meta;
        let creating = meta.status(now_ms) == Status::Creating;
        Ok(Response {
            stream_description_summary: Summary {
                common: Common::of(service, meta, now_ms),
                open_shard_count: if creating { 0 } else { meta.lineage.open().count() },
                consumer_count: meta.consumers_at(now_ms).count(),
                max_record_kib: meta.max_record_kib,
            },
        })
    })
}
