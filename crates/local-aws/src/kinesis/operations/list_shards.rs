//! ListShards: the shards of a stream, all or filtered, page by page.
//!
//! A page's token contains stream, filter and place, so that it needs no other parameter.

use serde::{Deserialize, Serialize};

use super::{bounded, shard_number};
use crate::kinesis::error::{invalid_argument, stream_not_active, stream_not_found, validation};
use crate::kinesis::iterator::LIFETIME_MS;
use crate::kinesis::sequence::ShardNumber;
use crate::kinesis::shard::{Shard, ShardView};
use crate::kinesis::state::Service;
use crate::kinesis::stream::{Meta, StreamId, StreamName};
use crate::kinesis::token;
use crate::wire::{ApiError, Timestamp};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Request {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    next_token: Option<String>,
    exclusive_start_shard_id: Option<String>,
    max_results: Option<i64>,
    stream_creation_timestamp: Option<Timestamp>,
    shard_filter: Option<ShardFilter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ShardFilter {
    r#type: String,
    shard_id: Option<String>,
    timestamp: Option<Timestamp>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Response {
    shards: Vec<ShardView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

/// The filter of a listing.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum Filter {
    All,
    /// Open now.
    AtLatest,
    /// Open at the oldest moment whose records are stored.
    AtTrimHorizon,
    /// Open at a moment.
    At(i64),
    /// Open at a moment or later.
    From(i64),
}

impl Filter {
    fn takes(self, shard: &Shard, horizon_ms: i64) -> bool {
        match self {
            Self::All => true,
            Self::AtLatest => shard.is_open(),
            Self::AtTrimHorizon => shard.was_open_at(horizon_ms),
            Self::At(ms) => shard.was_open_at(ms.max(horizon_ms)),
            Self::From(ms) => shard.closed.is_none_or(|closed| closed.at_ms >= ms.max(horizon_ms)),
        }
    }
}

/// The place where a listing continues.
#[derive(Serialize, Deserialize)]
struct Place {
    stream: StreamName,
    /// The stream of the first page; `None` on the first page.
    id: Option<StreamId>,
    after: Option<ShardNumber>,
    filter: Filter,
    created_ms: i64,
}

pub(super) fn handle(service: &Service, request: Request) -> Result<Response, ApiError> {
    let limit = bounded("maxResults", request.max_results, 1..=10_000, 1_000)?;
    let place = match &request.next_token {
        Some(text) => continued(service, &request, text)?,
        None => first(service, &request)?,
    };
    service.read(&place.stream, |stream, now_ms| page(service, &stream.meta, &place, limit, now_ms))
}

fn page(
    service: &Service,
    meta: &Meta,
    place: &Place,
    limit: usize,
    now_ms: i64,
) -> Result<Response, ApiError> {
    let account = &service.options.account;
    if place.id.is_some_and(|id| id != meta.id) {
        return Err(stream_not_found(&meta.name, account));
    }
    let status = meta.status(now_ms);
    if !status.serves_records() {
        return Err(stream_not_active(&meta.name, account, status.text()));
    }
    // The trim horizon of a young stream is its creation.
    let horizon_ms = meta.horizon_ms(now_ms).max(meta.created_ms);
    let after = |shard: &&Shard| place.after.is_none_or(|after| shard.number > after);
    let taken = |shard: &&Shard| place.filter.takes(shard, horizon_ms);
    let mut shards: Vec<_> =
        meta.lineage.all().filter(after).filter(taken).take(limit + 1).collect();
    let has_more = shards.len() > limit;
    shards.truncate(limit);
    let next = shards.last().filter(|_| has_more).map(|last| Place {
        stream: meta.name.clone(),
        id: Some(meta.id),
        after: Some(last.number),
        filter: place.filter,
        created_ms: now_ms,
    });
    Ok(Response {
        shards: shards.into_iter().map(ShardView::from).collect(),
        next_token: next.as_ref().map(token::seal),
    })
}

fn first(service: &Service, request: &Request) -> Result<Place, ApiError> {
    let stream =
        service.stream_name(request.stream_name.as_deref(), request.stream_arn.as_deref())?;
    let mut after = request
        .exclusive_start_shard_id
        .as_deref()
        .map(|text| shard_number(text, &stream, service))
        .transpose()?;
    let mut filter = Filter::All;
    if let Some(wanted) = &request.shard_filter {
        let time = || {
            wanted.timestamp.map(|Timestamp(ms)| ms).ok_or_else(|| {
                invalid_argument(format!("ShardFilter {} needs a Timestamp.", wanted.r#type))
            })
        };
        filter = match wanted.r#type.as_str() {
            "AFTER_SHARD_ID" => {
                let id = wanted.shard_id.as_deref().ok_or_else(|| {
                    invalid_argument("ShardFilter AFTER_SHARD_ID needs a ShardId.")
                })?;
                after = after.max(Some(shard_number(id, &stream, service)?));
                Filter::All
            }
            "AT_TRIM_HORIZON" => Filter::AtTrimHorizon,
            "FROM_TRIM_HORIZON" => Filter::All,
            "AT_LATEST" => Filter::AtLatest,
            "AT_TIMESTAMP" => Filter::At(time()?),
            "FROM_TIMESTAMP" => Filter::From(time()?),
            other => return Err(unknown_filter(other)),
        };
    }
    Ok(Place { stream, id: None, after, filter, created_ms: 0 })
}

fn unknown_filter(kind: &str) -> ApiError {
    validation(
        "shardFilter.type",
        &format!("'{kind}'"),
        "Member must satisfy enum value set: [AFTER_SHARD_ID, AT_TRIM_HORIZON, FROM_TRIM_HORIZON, \
         AT_LATEST, AT_TIMESTAMP, FROM_TIMESTAMP]",
    )
}

fn continued(service: &Service, request: &Request, text: &str) -> Result<Place, ApiError> {
    let alone = request.stream_name.is_none()
        && request.exclusive_start_shard_id.is_none()
        && request.stream_creation_timestamp.is_none()
        && request.shard_filter.is_none();
    if !alone {
        return Err(invalid_argument(
            "NextToken and StreamName, ExclusiveStartShardId, StreamCreationTimestamp or \
             ShardFilter cannot be provided together.",
        ));
    }
    let place: Place =
        token::open(text).ok_or_else(|| invalid_argument("The NextToken is not valid."))?;
    if let Some(arn) = &request.stream_arn
        && service.stream_of(arn)? != place.stream
    {
        return Err(invalid_argument("The NextToken is of another stream than the StreamARN."));
    }
    if service.clock.now_ms().saturating_sub(place.created_ms) > LIFETIME_MS {
        return Err(ApiError::new(
            "ExpiredNextTokenException",
            format!("The NextToken was given out more than {LIFETIME_MS} milliseconds ago."),
        ));
    }
    Ok(place)
}
