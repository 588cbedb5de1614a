//! TagResource, UntagResource and ListTagsForResource: tags of a stream or a consumer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Empty;
use crate::kinesis::arn::Resource;
use crate::kinesis::operations::describe_stream_consumer::find;
use crate::kinesis::operations::stream_tags::{Tag, check_tags};
use crate::kinesis::state::Service;
use crate::wire::ApiError;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct TagRequest {
    #[serde(rename = "ResourceARN")]
    resource_arn: String,
    tags: BTreeMap<String, String>,
}

pub(super) fn tag(service: &Service, request: TagRequest) -> Result<Empty, ApiError> {
    let more = request.tags;
    change(service, &request.resource_arn, |tags| {
        check_tags(tags, &more)?;
        tags.extend(more);
        Ok(())
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct UntagRequest {
    #[serde(rename = "ResourceARN")]
    resource_arn: String,
    tag_keys: Vec<String>,
}

pub(super) fn untag(service: &Service, request: UntagRequest) -> Result<Empty, ApiError> {
    change(service, &request.resource_arn, |tags| {
        tags.retain(|key, _| !request.tag_keys.contains(key));
        Ok(())
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListRequest {
    #[serde(rename = "ResourceARN")]
    resource_arn: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListResponse {
    tags: Vec<Tag>,
}

pub(super) fn list(service: &Service, request: ListRequest) -> Result<ListResponse, ApiError> {
    let arn = &request.resource_arn;
    let show = |tags: &BTreeMap<String, String>| ListResponse {
        tags: tags.iter().map(|(k, v)| Tag { key: k.clone(), value: v.clone() }).collect(),
    };
    match service.place.read(arn)? {
        Resource::Stream(name) => service.read(&name, |stream, _| Ok(show(&stream.meta.tags))),
        Resource::Consumer { stream, name } => service.read(&stream, |stream, now_ms| {
            Ok(show(&find(service, &stream.meta, &name, Some(arn), now_ms)?.tags))
        }),
    }
}

fn change(
    service: &Service,
    arn: &str,
    work: impl FnOnce(&mut BTreeMap<String, String>) -> Result<(), ApiError>,
) -> Result<Empty, ApiError> {
    match service.place.read(arn)? {
        Resource::Stream(name) => service.change(&name, |meta, _| work(&mut meta.tags))?,
        Resource::Consumer { stream, name } => service.change(&stream, |meta, now_ms| {
            find(service, meta, &name, Some(arn), now_ms)?;
            meta.consumers.get_mut(&name).map_or(Ok(()), |consumer| work(&mut consumer.tags))
        })?,
    }
    Ok(Empty {})
}
