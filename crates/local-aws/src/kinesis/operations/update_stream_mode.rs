//! UpdateStreamMode: provisioned or on demand.

use serde::{Deserialize, Serialize};

use super::{Empty, require_active};
use crate::kinesis::state::Service;
use crate::kinesis::stream::StreamMode;
use crate::kinesis::transition::Phase;
use crate::wire::ApiError;

/// The mode in the form of requests and answers.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StreamModeDetails {
    pub stream_mode: StreamMode,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    #[serde(rename = "StreamARN")]
    stream_arn: String,
    stream_mode_details: StreamModeDetails,
}

pub(super) fn handle(service: &Service, request: Request) -> Result<Empty, ApiError> {
    let name = service.stream_of(&request.stream_arn)?;
    service.change(&name, |meta, now_ms| {
        require_active(service, meta, now_ms)?;
        meta.mode = request.stream_mode_details.stream_mode;
        meta.transition = service.transition(Phase::Updating, now_ms);
        Ok(Empty {})
    })
}
