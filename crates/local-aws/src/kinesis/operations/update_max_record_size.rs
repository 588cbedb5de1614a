//! UpdateMaxRecordSize: sets the largest record of a stream.

use serde::Deserialize;

use super::{Empty, bounded, require_active};
use crate::kinesis::limits::RECORD_KIB;
use crate::kinesis::state::Service;
use crate::kinesis::transition::Phase;
use crate::wire::ApiError;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    #[serde(rename = "MaxRecordSizeInKiB")]
    max_record_kib: i64,
}

pub(super) fn handle(service: &Service, request: Request) -> Result<Empty, ApiError> {
    let name =
        service.stream_name(request.stream_name.as_deref(), request.stream_arn.as_deref())?;
    let size = Some(request.max_record_kib);
    bounded("maxRecordSizeInKiB", size, RECORD_KIB, *RECORD_KIB.start())?;
    service.change(&name, |meta, now_ms| {
        require_active(service, meta, now_ms)?;
        meta.max_record_kib = request.max_record_kib;
        meta.transition = service.transition(Phase::Updating, now_ms);
        Ok(Empty {})
    })
}
