//! AddTagsToStream, RemoveTagsFromStream and ListTagsForStream; and the rules for tags.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Empty, bounded};
use crate::kinesis::error::{invalid_argument, validation};
use crate::kinesis::limits::TAGS_PER_RESOURCE;
use crate::kinesis::state::Service;
use crate::wire::ApiError;

/// A tag in the form of listings.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Tag {
    pub key: String,
    pub value: String,
}

/// Fails if tags are invalid or `more` of them would be too many.
pub(super) fn check_tags(
    tags: &BTreeMap<String, String>,
    more: &BTreeMap<String, String>,
) -> Result<(), ApiError> {
    for (key, value) in more {
        if !(1..=128).contains(&key.chars().count()) || value.chars().count() > 256 {
            return Err(validation(
                "tags",
                &format!("'{key}'"),
                "Map keys must have length between 1 and 128, and values up to 256",
            ));
        }
    }
    let new = more.keys().filter(|key| !tags.contains_key(*key)).count();
    if tags.len() + new > TAGS_PER_RESOURCE {
        return Err(invalid_argument(format!(
            "Failed to add tags: a resource has at most {TAGS_PER_RESOURCE}."
        )));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct AddRequest {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    tags: BTreeMap<String, String>,
}

pub(super) fn add(service: &Service, request: AddRequest) -> Result<Empty, ApiError> {
    let name =
        service.stream_name(request.stream_name.as_deref(), request.stream_arn.as_deref())?;
    service.change(&name, |meta, _| {
        check_tags(&meta.tags, &request.tags)?;
        meta.tags.extend(request.tags);
        Ok(Empty {})
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RemoveRequest {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    tag_keys: Vec<String>,
}

pub(super) fn remove(service: &Service, request: RemoveRequest) -> Result<Empty, ApiError> {
    let name =
        service.stream_name(request.stream_name.as_deref(), request.stream_arn.as_deref())?;
    service.change(&name, |meta, _| {
        meta.tags.retain(|key, _| !request.tag_keys.contains(key));
        Ok(Empty {})
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListRequest {
    stream_name: Option<String>,
    #[serde(rename = "StreamARN")]
    stream_arn: Option<String>,
    exclusive_start_tag_key: Option<String>,
    limit: Option<i64>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListResponse {
    tags: Vec<Tag>,
    has_more_tags: bool,
}

pub(super) fn list(service: &Service, request: ListRequest) -> Result<ListResponse, ApiError> {
    let name =
        service.stream_name(request.stream_name.as_deref(), request.stream_arn.as_deref())?;
    let limit = bounded("limit", request.limit, 1..=50, 50)?;
    service.read(&name, |stream, _| {
        let after = request.exclusive_start_tag_key.as_ref();
        let rest = stream.meta.tags.iter().filter(|(key, _)| after.is_none_or(|a| *key > a));
        let mut tags: Vec<_> = rest
            .take(limit + 1)
            .map(|(key, value)| Tag { key: key.clone(), value: value.clone() })
            .collect();
        let has_more_tags = tags.len() > limit;
        tags.truncate(limit);
        Ok(ListResponse { tags, has_more_tags })
    })
}
