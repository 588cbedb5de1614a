//! DeregisterStreamConsumer: the consumer is DELETING for a moment, then gone, with its
//! subscriptions.

use super::{ConsumerRequest, Empty};
use crate::kinesis::operations::describe_stream_consumer::find;
use crate::kinesis::state::Service;
use crate::kinesis::transition::Phase;
use crate::wire::ApiError;

pub(super) fn handle(service: &Service, request: ConsumerRequest) -> Result<Empty, ApiError> {
    let (stream, name, arn) = request.name(service)?;
    service.change(&stream, |meta, now_ms| {
        find(service, meta, &name, arn, now_ms)?;
        if let Some(consumer) = meta.consumers.get_mut(&name) {
            consumer.transition = service.transition(Phase::Deleting, now_ms);
        }
        Ok(Empty {})
    })
}
