//! ListStreams: stream names in order, page by page.

use serde::{Deserialize, Serialize};

use super::bounded;
use crate::kinesis::operations::update_stream_mode::StreamModeDetails;
use crate::kinesis::state::Service;
use crate::kinesis::stream::{Meta, StreamName};
use crate::kinesis::transition::Status;
use crate::kinesis::{error, token};
use crate::wire::{ApiError, Timestamp};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    limit: Option<i64>,
    exclusive_start_stream_name: Option<String>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Response {
    stream_names: Vec<String>,
    has_more_streams: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
    stream_summaries: Vec<Summary>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Summary {
    stream_name: String,
    #[serde(rename = "StreamARN")]
    stream_arn: String,
    stream_status: Status,
    stream_mode_details: StreamModeDetails,
    stream_creation_timestamp: Timestamp,
}

pub(super) fn handle(service: &Service, request: Request) -> Result<Response, ApiError> {
    let limit = bounded("limit", request.limit, 1..=10_000, 100)?;
    let after = match (request.next_token, request.exclusive_start_stream_name) {
        (Some(text), _) => Some(
            token::open::<StreamName>(&text)
                .ok_or_else(|| error::invalid_argument("The NextToken was not given out here."))?,
        ),
        (None, Some(name)) => Some(StreamName::new(&name)?),
        (None, None) => None,
    };
    service.with(|state, now_ms| {
        let mut page: Vec<&Meta> = match &after {
            Some(after) => state.streams_after(after).take(limit + 1).map(|s| &s.meta).collect(),
            None => state.streams().take(limit + 1).map(|s| &s.meta).collect(),
        };
        let has_more_streams = page.len() > limit;
        page.truncate(limit);
        let last = page.last().filter(|_| has_more_streams);
        Ok(Response {
            stream_names: page.iter().map(|meta| meta.name.to_string()).collect(),
            has_more_streams,
            next_token: last.map(|meta| token::seal(&meta.name)),
            stream_summaries: page.iter().map(|meta| summary(service, meta, now_ms)).collect(),
        })
    })
}

fn summary(service: &Service, meta: &Meta, now_ms: i64) -> Summary {
    Summary {
        stream_name: meta.name.to_string(),
        stream_arn: service.place.stream_arn(&meta.name),
        stream_status: meta.status(now_ms),
        stream_mode_details: StreamModeDetails { stream_mode: meta.mode },
        stream_creation_timestamp: Timestamp(meta.created_ms),
    }
}
