//! ListStreamConsumers: the fan-out consumers of a stream by name, page by page.

use serde::{Deserialize, Serialize};

use super::bounded;
use crate::kinesis::consumer::ConsumerView;
use crate::kinesis::error::invalid_argument;
use crate::kinesis::iterator::LIFETIME_MS;
use crate::kinesis::state::Service;
use crate::kinesis::stream::StreamName;
use crate::kinesis::token;
use crate::wire::ApiError;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    #[serde(rename = "StreamARN")]
    stream_arn: String,
    next_token: Option<String>,
    max_results: Option<i64>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Response {
    consumers: Vec<ConsumerView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

/// The place where a listing continues.
#[derive(Serialize, Deserialize)]
struct Place {
    stream: StreamName,
    after: String,
    created_ms: i64,
}

pub(super) fn handle(service: &Service, request: Request) -> Result<Response, ApiError> {
    let stream_name = service.stream_of(&request.stream_arn)?;
    let limit = bounded("maxResults", request.max_results, 1..=10_000, 100)?;
    let place = request.next_token.map(|text| {
        token::open::<Place>(&text)
            .filter(|place| place.stream == stream_name)
            .ok_or_else(|| invalid_argument("The NextToken is not valid."))
    });
    let place = place.transpose()?;
    service.read(&stream_name, |stream, now_ms| {
        if place.as_ref().is_some_and(|place| now_ms.saturating_sub(place.created_ms) > LIFETIME_MS)
        {
            return Err(ApiError::new(
                "ExpiredNextTokenException",
                format!("The NextToken was given out more than {LIFETIME_MS} milliseconds ago."),
            ));
        }
        let after = |name: &str| place.as_ref().is_none_or(|place| name > place.after.as_str());
        let all = stream.meta.consumers_at(now_ms).filter(|(name, _)| after(name));
        let mut page: Vec<_> = all.take(limit + 1).collect();
        let has_more = page.len() > limit;
        page.truncate(limit);
        let next = page.last().filter(|_| has_more).map(|(last, _)| Place {
            stream: stream_name.clone(),
            after: (*last).to_owned(),
            created_ms: now_ms,
        });
        Ok(Response {
            consumers: page.iter().map(|(name, consumer)| consumer.view(name, now_ms)).collect(),
            next_token: next.as_ref().map(token::seal),
        })
    })
}
