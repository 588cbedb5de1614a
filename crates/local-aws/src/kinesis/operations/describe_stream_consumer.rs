//! DescribeStreamConsumer: one fan-out consumer; and the lookup of consumers.

use serde::Serialize;

use super::ConsumerRequest;
use crate::kinesis::consumer::{Consumer, ConsumerView};
use crate::kinesis::error::consumer_not_found;
use crate::kinesis::state::Service;
use crate::kinesis::stream::Meta;
use crate::wire::ApiError;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Response {
    consumer_description: ConsumerView,
}

pub(super) fn handle(service: &Service, request: ConsumerRequest) -> Result<Response, ApiError> {
    let (stream, name, arn) = request.name(service)?;
    service.read(&stream, |stream, now_ms| {
        let consumer = find(service, &stream.meta, &name, arn, now_ms)?;
        let mut view = consumer.view(&name, now_ms);
        view.stream_arn = Some(service.place.stream_arn(&stream.meta.name));
        Ok(Response { consumer_description: view })
    })
}

/// Returns the consumer of a name; if an ARN is given, only the one with exactly that ARN.
pub(super) fn find<'a>(
    service: &Service,
    meta: &'a Meta,
    name: &str,
    arn: Option<&str>,
    now_ms: i64,
) -> Result<&'a Consumer, ApiError> {
    meta.consumers_at(now_ms)
        .find(|(taken, consumer)| *taken == name && arn.is_none_or(|arn| arn == consumer.arn))
        .map(|(_, consumer)| consumer)
        .ok_or_else(|| consumer_not_found(arn.unwrap_or(name), &service.options.account))
}
