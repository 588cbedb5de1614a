//! The part that both ways of reading have in common: one shard of a stream.
//!
//! Converts the service's records and children to this library's types, and looks in listings for the
//! end of the shard. Never takes an error for an end: a shard is open unless it is listed as closed,
//! or missing from a complete listing.

use aws_sdk_kinesis::types;

use super::client::{KinesisClient, hash_range};
use super::date::timestamp;
use crate::error::{ServiceError, ServiceErrorKind};
use crate::record::{Packing, Record, SequenceNumber, ShardId, Timestamp};
use crate::shard::{ChildShard, ListFrom};

/// A shard and its stream.
#[derive(Debug, Clone)]
pub(super) struct ShardClient {
    pub(super) stream: KinesisClient,
    pub(super) id: ShardId,
}

impl ShardClient {
    /// Makes a complete listing and returns the children if the shard is closed; an empty list if the
    /// listing is stale and shows only some of them.
    pub(super) async fn look_up_end(&self) -> Result<Option<Vec<ChildShard>>, ServiceError> {
        let shards = self.stream.list(ListFrom::All).await?.shards;
        let closed = shards.iter().find(|shard| shard.id == self.id && !shard.is_open);
        let Some(whole) = closed.map(|shard| shard.hash_range) else { return Ok(None) };
        let children = ChildShard::of(&self.id, shards);
        Ok(Some(if ChildShard::cover(&children, whole) { children } else { Vec::new() }))
    }

    /// Returns the children of this shard if a complete listing shows the stream but not this shard
    /// any more.
    ///
    /// Only if a listed shard names it as a parent, or if all listed shards are younger: a stale
    /// listing may lack a shard that has just been created.
    pub(super) async fn look_up_forgotten(&self) -> Option<Vec<ChildShard>> {
        // A listing that fails proves nothing; the caller returns the error that it already has.
        let shards = self.stream.list(ListFrom::All).await.ok()?.shards;
        // A listed shard may still have records, whatever the failed call says.
        if shards.iter().any(|shard| shard.id == self.id) {
            return None;
        }
        let is_older = shards.iter().all(|shard| shard.id > self.id);
        let children = ChildShard::of(&self.id, shards);
        (is_older || !children.is_empty()).then_some(children)
    }

    /// Converts the records of a reply.
    pub(super) fn records(&self, records: Vec<types::Record>) -> Result<Vec<Record>, ServiceError> {
        records.into_iter().map(|record| self.record(record)).collect()
    }

    fn record(&self, record: types::Record) -> Result<Record, ServiceError> {
        let arrived = record.approximate_arrival_timestamp;
        Ok(Record {
            sequence_number: self.number(record.sequence_number)?,
            sub_sequence_number: 0,
            partition_key: record.partition_key.unwrap_or_default(),
            data: record.data.into_bytes(),
            arrived: arrived.as_ref().map_or(Timestamp::from_millis(0), timestamp),
            packing: Packing::Plain,
        })
    }

    /// Parses a sequence number of a reply.
    pub(super) fn number(&self, digits: String) -> Result<SequenceNumber, ServiceError> {
        SequenceNumber::from_string(digits)
            .map_err(|error| self.malformed(ServiceErrorKind::Invalid, &error.to_string()))
    }

    /// Converts the children of a reply. Returns none if one of them does not name this shard as its
    /// parent, because then the other parent may be missing too, and a listing has to tell.
    pub(super) fn children(&self, children: &[types::ChildShard]) -> Vec<ChildShard> {
        let children = children.iter().map(|child| ChildShard {
            id: ShardId::from(child.shard_id.as_str()),
            parents: child.parent_shards.iter().map(|id| ShardId::from(id.as_str())).collect(),
            hash_range: child.hash_key_range.as_ref().and_then(hash_range),
        });
        let children: Vec<_> = children.collect();
        if children.iter().all(|child| child.parents.contains(&self.id)) {
            children
        } else {
            Vec::new()
        }
    }

    /// Returns the shard, as messages of [`KinesisClient::failure`] name it.
    pub(super) fn object(&self) -> String {
        format!(", shard `{}`", self.id)
    }

    pub(super) fn malformed(&self, kind: ServiceErrorKind, what: &str) -> ServiceError {
        ServiceError::new(kind, format!("shard `{}`: {what}", self.id))
    }
}
