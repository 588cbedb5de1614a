//! RegisterStreamConsumer: registers a fan-out consumer, which is CREATING for a moment.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::kinesis::consumer::{Consumer, ConsumerView};
use crate::kinesis::error::{limit_exceeded, resource_in_use, stream_not_active, validation};
use crate::kinesis::limits::CONSUMERS_PER_STREAM;
use crate::kinesis::operations::stream_tags::check_tags;
use crate::kinesis::state::Service;
use crate::kinesis::stream::{Meta, is_name};
use crate::kinesis::transition::{Phase, Status};
use crate::wire::ApiError;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    #[serde(rename = "StreamARN")]
    stream_arn: String,
    consumer_name: String,
    tags: Option<BTreeMap<String, String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Response {
    consumer: ConsumerView,
}

pub(super) fn handle(service: &Service, request: Request) -> Result<Response, ApiError> {
    let stream = service.stream_of(&request.stream_arn)?;
    let name = request.consumer_name;
    if !is_name(&name) {
        return Err(validation(
            "consumerName",
            &format!("'{name}'"),
            "Member must satisfy regular expression pattern: [a-zA-Z0-9_.-]+ and have length less \
             than or equal to 128",
        ));
    }
    let tags = request.tags.unwrap_or_default();
    check_tags(&BTreeMap::new(), &tags)?;
    service.change(&stream, |meta, now_ms| {
        check_room(service, meta, &name, now_ms)?;
        let consumer = Consumer {
            arn: service.place.consumer_arn(&stream, &name, now_ms),
            created_ms: now_ms,
            transition: service.transition(Phase::Creating, now_ms),
            tags,
        };
        let view = consumer.view(&name, now_ms);
        meta.consumers.retain(|_, consumer| consumer.status(now_ms) != Status::Gone);
        meta.consumers.insert(name, consumer);
        Ok(Response { consumer: view })
    })
}

fn check_room(service: &Service, meta: &Meta, name: &str, now_ms: i64) -> Result<(), ApiError> {
    let (stream, account) = (&meta.name, &service.options.account);
    let status = meta.status(now_ms);
    if !status.serves_records() {
        return Err(stream_not_active(stream, account, status.text()));
    }
    if meta.consumers_at(now_ms).any(|(taken, _)| taken == name) {
        return Err(resource_in_use(format!(
            "Consumer {name} under stream {stream} already exists for account {account}."
        )));
    }
    if meta.consumers_at(now_ms).count() >= CONSUMERS_PER_STREAM {
        return Err(limit_exceeded(format!(
            "Stream {stream} under account {account} has its {CONSUMERS_PER_STREAM} consumers."
        )));
    }
    Ok(())
}
