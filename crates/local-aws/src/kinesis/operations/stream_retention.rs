//! IncreaseStreamRetentionPeriod and DecreaseStreamRetentionPeriod: 24 hours to a year.

use serde::Deserialize;

use super::{Empty, require_active};
use crate::kinesis::error::invalid_argument;
use crate::kinesis::limits::{MAX_RETENTION_HOURS, MIN_RETENTION_HOURS};
use crate::kinesis::state::Service;
use crate::wire::ApiError;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    retention_period_hours: i64,
}

pub(super) fn increase(service: &Service, request: Request) -> Result<Empty, ApiError> {
    set(service, &request, |hours, current| hours >= current, "less than the current")
}

pub(super) fn decrease(service: &Service, request: Request) -> Result<Empty, ApiError> {
    set(service, &request, |hours, current| hours <= current, "greater than the current")
}

fn set(
    service: &Service,
    request: &Request,
    allowed: fn(i64, i64) -> bool,
    otherwise: &str,
) -> Result<Empty, ApiError> {
    let name =
        service.stream_name(request.stream_name.as_deref(), request.stream_arn.as_deref())?;
    let hours = request.retention_period_hours;
    if !(MIN_RETENTION_HOURS..=MAX_RETENTION_HOURS).contains(&hours) {
        return Err(invalid_argument(format!(
            "Requested retention period ({hours} hours) must be between {MIN_RETENTION_HOURS} and \
             {MAX_RETENTION_HOURS} hours."
        )));
    }
    service.with(|state, now_ms| {
        state.change(&name, now_ms, |meta| {
            require_active(service, meta, now_ms)?;
            let current = meta.retention_hours;
            if !allowed(hours, current) {
                return Err(invalid_argument(format!(
                    "Requested retention period ({hours} hours) for stream {name} can not be \
                     {otherwise} retention period ({current} hours)."
                )));
            }
            meta.retention_hours = hours;
            Ok(())
        })?;
        state.trim_soon();
        Ok(Empty {})
    })
}
