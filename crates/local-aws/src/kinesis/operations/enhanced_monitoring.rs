//! EnableEnhancedMonitoring and DisableEnhancedMonitoring: stored and reported, without an effect.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::kinesis::error::validation;
use crate::kinesis::state::Service;
use crate::wire::ApiError;

const METRICS: [&str; 7] = [
    "IncomingBytes",
    "IncomingRecords",
    "IteratorAgeMilliseconds",
    "OutgoingBytes",
    "OutgoingRecords",
    "ReadProvisionedThroughputExceeded",
    "WriteProvisionedThroughputExceeded",
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    shard_level_metrics: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Response {
    stream_name: String,
    #[serde(rename = "StreamARN")]
    stream_arn: String,
    current_shard_level_metrics: BTreeSet<String>,
    desired_shard_level_metrics: BTreeSet<String>,
}

pub(super) fn enable(service: &Service, request: Request) -> Result<Response, ApiError> {
    set(service, &request, |current, named| current.union(named).cloned().collect())
}

pub(super) fn disable(service: &Service, request: Request) -> Result<Response, ApiError> {
    set(service, &request, |current, named| current.difference(named).cloned().collect())
}

fn set(
    service: &Service,
    request: &Request,
    combine: fn(&BTreeSet<String>, &BTreeSet<String>) -> BTreeSet<String>,
) -> Result<Response, ApiError> {
    let name =
        service.stream_name(request.stream_name.as_deref(), request.stream_arn.as_deref())?;
    let mut named = BTreeSet::new();
    for metric in &request.shard_level_metrics {
        match metric.as_str() {
            "ALL" => named.extend(METRICS.map(str::to_owned)),
            known if METRICS.contains(&known) => {
                named.insert(known.to_owned());
            }
            other => {
                let constraint = format!("Member must be ALL or one of {METRICS:?}");
                return Err(validation("shardLevelMetrics", &format!("'{other}'"), &constraint));
            }
        }
    }
    service.change(&name, |meta, _| {
        let current = meta.shard_metrics.clone();
        meta.shard_metrics = combine(&current, &named);
        Ok(Response {
            stream_name: name.to_string(),
            stream_arn: service.place.stream_arn(&name),
            current_shard_level_metrics: current,
            desired_shard_level_metrics: meta.shard_metrics.clone(),
        })
    })
}
