//! DescribeLimits and DescribeAccountSettings: the limits of the account.

use serde::{Deserialize, Serialize};

use crate::kinesis::limits::{ON_DEMAND_STREAMS_PER_ACCOUNT, SHARDS_PER_ACCOUNT};
use crate::kinesis::state::Service;
use crate::kinesis::stream::StreamMode;
use crate::wire::ApiError;

#[derive(Deserialize)]
pub(super) struct Request {}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Limits {
    shard_limit: u32,
    open_shard_count: usize,
    on_demand_stream_count: usize,
    on_demand_stream_count_limit: u32,
}

pub(super) fn describe_limits(service: &Service, _: Request) -> Result<Limits, ApiError> {
    service.with(|state, _| {
        let on_demand = state.streams().filter(|s| s.meta.mode == StreamMode::OnDemand).count();
        Ok(Limits {
            shard_limit: SHARDS_PER_ACCOUNT,
            open_shard_count: state.open_shards(),
            on_demand_stream_count: on_demand,
            on_demand_stream_count_limit: ON_DEMAND_STREAMS_PER_ACCOUNT,
        })
    })
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Settings {
    minimum_throughput_billing_commitment: Commitment,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Commitment {
    status: &'static str,
}

pub(super) fn describe_settings(_: &Service, _: Request) -> Result<Settings, ApiError> {
    Ok(Settings { minimum_throughput_billing_commitment: Commitment { status: "DISABLED" } })
}
