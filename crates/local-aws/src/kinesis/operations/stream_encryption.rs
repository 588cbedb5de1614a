//! StartStreamEncryption and StopStreamEncryption. Records are marked, not encrypted.

use serde::Deserialize;

use super::{Empty, require_active};
use crate::kinesis::error::validation;
use crate::kinesis::state::Service;
use crate::kinesis::transition::Phase;
use crate::wire::ApiError;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    encryption_type: String,
    key_id: String,
}

pub(super) fn start(service: &Service, request: Request) -> Result<Empty, ApiError> {
    let key = Some(request.key_id.clone());
    set(service, &request, key)
}

pub(super) fn stop(service: &Service, request: Request) -> Result<Empty, ApiError> {
    set(service, &request, None)
}

fn set(service: &Service, request: &Request, key: Option<String>) -> Result<Empty, ApiError> {
    let name =
        service.stream_name(request.stream_name.as_deref(), request.stream_arn.as_deref())?;
    if request.encryption_type != "KMS" || request.key_id.is_empty() {
        return Err(validation(
            "encryptionType",
            &format!("'{}'", request.encryption_type),
            "Member must be KMS, with the id of a key",
        ));
    }
    service.change(&name, |meta, now_ms| {
        require_active(service, meta, now_ms)?;
        meta.encryption_key = key;
        meta.transition = service.transition(Phase::Updating, now_ms);
        Ok(Empty {})
    })
}
