//! DeleteStream: the stream is DELETING for a moment, then gone.

use serde::Deserialize;

use super::Empty;
use crate::kinesis::error::{resource_in_use, stream_not_active};
use crate::kinesis::state::Service;
use crate::kinesis::transition::{Phase, Status};
use crate::wire::ApiError;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    enforce_consumer_deletion: Option<bool>,
}

pub(super) fn handle(service: &Service, request: Request) -> Result<Empty, ApiError> {
    let name =
        service.stream_name(request.stream_name.as_deref(), request.stream_arn.as_deref())?;
    let account = &service.options.account;
    service.change(&name, |meta, now_ms| {
        if meta.status(now_ms) == Status::Deleting {
            return Err(stream_not_active(&name, account, Status::Deleting.text()));
        }
        let has_consumers = meta.consumers_at(now_ms).next().is_some();
        if has_consumers && request.enforce_consumer_deletion != Some(true) {
            return Err(resource_in_use(format!(
                "Stream {name} under account {account} has consumers; deregister them or set \
                 EnforceConsumerDeletion."
            )));
        }
        meta.consumers.clear();
        meta.transition = service.transition(Phase::Deleting, now_ms);
        Ok(Empty {})
    })
}
