//! Conversion between a row of the lease table and a [`Lease`].
//!
//! Owns the attribute names and types, which are the Java KCL's. Reads what any version of the KCL
//! writes; writes what all versions can read. Never calls the service.

use std::collections::{BTreeSet, HashMap};
use std::str::FromStr;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;

use crate::lease::{Lease, PendingCheckpoint, StreamIdentity, WriteId};
use crate::position::Checkpoint;
use crate::record::{ShardId, Timestamp};
use crate::shard::HashRange;

// The attributes, spelled as in the Java KCL.
pub(super) const LEASE_KEY: &str = "leaseKey";
pub(super) const LEASE_OWNER: &str = "leaseOwner";
pub(super) const LEASE_COUNTER: &str = "leaseCounter";
pub(super) const OWNER_SWITCHES: &str = "ownerSwitchesSinceCheckpoint";
pub(super) const CHECKPOINT: &str = "checkpoint";
pub(super) const CHECKPOINT_SUB: &str = "checkpointSubSequenceNumber";
pub(super) const PENDING: &str = "pendingCheckpoint";
pub(super) const PENDING_SUB: &str = "pendingCheckpointSubSequenceNumber";
pub(super) const PENDING_STATE: &str = "pendingCheckpointState";
/// A string set, despite its name.
const PARENTS: &str = "parentShardId";
pub(super) const CHILDREN: &str = "childShardIds";
const HASH_START: &str = "startingHashKey";
const HASH_END: &str = "endingHashKey";
pub(super) const CHECKPOINT_OWNER: &str = "checkpointOwner";
/// The kind of an item, since KCL 3.5; a lease if absent.
const ENTITY_TYPE: &str = "entityType";
// The attributes of this library.
pub(super) const WRITE_ID: &str = "klWriteId";
/// In milliseconds since the epoch, like all times in a row.
pub(super) const ANCHOR: &str = "klAnchor";
pub(super) const READ_UNTIL: &str = "klReadUntil";
/// In KiB per second, with a fraction, as the Java library writes it.
pub(super) const THROUGHPUT: &str = "throughputKBps";
/// The maximum throughput in bytes per second, a thousand times what a shard can carry: loads are
/// summed.
const MOST_THROUGHPUT: u64 = 1 << 32;
const STREAM_ARN: &str = "klStreamArn";
const STREAM_CREATED: &str = "klStreamCreated";
// Only in rows of a worker with several streams.
/// Contains `account:stream:epoch`, despite its name.
const STREAM_NAME: &str = "streamName";
const SHARD_ID: &str = "shardId";

pub(super) type Item = HashMap<String, AttributeValue>;

/// A row of the table that is to be parsed. Faults are texts that name the attribute.
#[derive(Clone, Copy)]
pub(super) struct Row<'a>(pub(super) &'a Item);

impl<'a> Row<'a> {
    /// Returns the key for messages, or `?` if it cannot be read.
    pub(super) fn key(self) -> &'a str {
        self.text(LEASE_KEY).ok().flatten().unwrap_or("?")
    }

    /// Parses the lease, or returns `None` if the item is something else. A missing attribute is
    /// absent; one of the wrong type is a fault, so that an owner is never overlooked.
    pub(super) fn lease(self) -> Result<Option<Lease>, String> {
        if self.text(ENTITY_TYPE)?.is_some_and(|entity| entity != "LEASE") {
            return Ok(None);
        }
        let missing = |attribute: &str| format!("it has no `{attribute}`");
        Ok(Some(Lease {
            key: self.text(LEASE_KEY)?.ok_or_else(|| missing(LEASE_KEY))?.into(),
            owner: self.text(LEASE_OWNER)?.map(Into::into),
            counter: self.counter()?.ok_or_else(|| missing(LEASE_COUNTER))?,
            owner_switches: self
                .saturated(OWNER_SWITCHES)?
                .map_or(0, |it| u64::try_from(it).unwrap_or(0)),
            checkpoint: self
                .checkpoint(CHECKPOINT, CHECKPOINT_SUB)?
                .ok_or_else(|| missing(CHECKPOINT))?,
            pending: self.pending()?,
            parents: self.shards(PARENTS)?,
            children: self.shards(CHILDREN)?,
            hash_range: self.hash_range()?,
            checkpoint_owner: self.text(CHECKPOINT_OWNER)?.map(Into::into),
            write_id: self.text(WRITE_ID)?.map(WriteId::new),
            anchor: self.time(ANCHOR)?,
            read_until: self.time(READ_UNTIL)?,
            throughput: self.throughput(),
            stream: self.stream()?,
        }))
    }

    fn text(self, attribute: &str) -> Result<Option<&'a str>, String> {
        let Some(value) = self.0.get(attribute) else { return Ok(None) };
        let text = value.as_s().map_err(|_| format!("`{attribute}` is not a string"))?;
        Ok(Some(text.as_str()).filter(|text| !text.is_empty()))
    }

    fn number<T: FromStr>(self, attribute: &str) -> Result<Option<T>, String> {
        let Some(value) = self.0.get(attribute) else { return Ok(None) };
        let number = value.as_n().ok().and_then(|digits| digits.parse().ok());
        number.map(Some).ok_or_else(|| format!("`{attribute}` is not a whole number in range"))
    }

    /// Parses the lease counter. DynamoDB stores numbers of 38 digits, but a lease increments its
    /// counter with every write, so there must be room for all writes to come, and other libraries
    /// must be able to read it.
    fn counter(self) -> Result<Option<u64>, String> {
        let Some(value) = self.0.get(LEASE_COUNTER) else { return Ok(None) };
        let number = value.as_n().map_err(|_| format!("`{LEASE_COUNTER}` is not a number"))?;
        let counter = number.parse().ok().filter(|counter| *counter <= Lease::MOST_COUNTER);
        counter.map(Some).ok_or_else(|| {
            format!(
                "`{LEASE_COUNTER}` is {number}, which is out of range: it must be a whole number \
                 from 0 to {}",
                Lease::MOST_COUNTER
            )
        })
    }

    /// Parses a number of which only the order matters, saturating at the limits of `i64`.
    #[expect(clippy::cast_possible_truncation, reason = "what is out of range is cut to it")]
    fn saturated(self, attribute: &str) -> Result<Option<i64>, String> {
        // DynamoDB also stores fractions and numbers beyond `i64`, which `f64` can parse.
        match self.number(attribute) {
            Err(_) => Ok(self.number(attribute)?.map(|number: f64| number as i64)),
            number => number,
        }
    }

    fn time(self, attribute: &str) -> Result<Option<Timestamp>, String> {
        Ok(self.saturated(attribute)?.map(Timestamp::from_millis))
    }

    /// Parses the throughput. It is only a weight: an invalid value is ignored instead of stopping
    /// the shard.
    #[expect(clippy::cast_possible_truncation, reason = "what is out of range is cut to it")]
    fn throughput(self) -> Option<u64> {
        let rate: Option<f64> = self.number(THROUGHPUT).ok().flatten();
        rate.map(|rate| ((rate * 1024.0) as u64).min(MOST_THROUGHPUT))
    }

    fn stream(self) -> Result<Option<StreamIdentity>, String> {
        // Only both identify a stream: a re-created stream has the same ARN.
        let (Some(arn), Some(created)) = (self.text(STREAM_ARN)?, self.time(STREAM_CREATED)?)
        else {
            return Ok(None);
        };
        Ok(Some(StreamIdentity { arn: arn.to_owned(), created }))
    }

    fn shards(self, attribute: &str) -> Result<BTreeSet<ShardId>, String> {
        let Some(value) = self.0.get(attribute) else { return Ok(BTreeSet::new()) };
        let shards = value.as_ss().map_err(|_| format!("`{attribute}` is not a string set"))?;
        Ok(shards.iter().map(|shard| shard.as_str().into()).collect())
    }

    fn checkpoint(self, attribute: &str, sub: &str) -> Result<Option<Checkpoint>, String> {
        let Some(checkpoint) = self.text(attribute)? else { return Ok(None) };
        let sub = self.number(sub)?.unwrap_or(0);
        let parsed = Checkpoint::parse(checkpoint, sub);
        parsed.map(Some).map_err(|error| format!("`{attribute}`: {error}"))
    }

    /// Parses the prepared checkpoint. A bug of the Java library can leave a number as the state,
    /// which is ignored.
    fn pending(self) -> Result<Option<PendingCheckpoint>, String> {
        let state = self.0.get(PENDING_STATE).and_then(|state| state.as_b().ok());
        let state = state.map(|state| state.as_ref().to_vec());
        let checkpoint = self.checkpoint(PENDING, PENDING_SUB)?;
        Ok(checkpoint.map(|checkpoint| PendingCheckpoint { checkpoint, state }))
    }

    fn hash_range(self) -> Result<Option<HashRange>, String> {
        let (Some(start), Some(end)) = (self.text(HASH_START)?, self.text(HASH_END)?) else {
            return Ok(None);
        };
        let range = HashRange::parse(start, end);
        range.map(Some).ok_or_else(|| format!("`{HASH_START}` and `{HASH_END}` are not a range"))
    }
}

/// Returns the whole row of a new lease. The Java library requires the first five attributes in every
/// row and fails on empty strings and sets.
pub(super) fn item_of(lease: &Lease) -> Item {
    let pending = lease.pending.as_ref();
    let pending_sub = pending.map(|pending| number(pending.checkpoint.sub_sequence_number()));
    let state = pending.and_then(|pending| pending.state.clone());
    let several = lease.key.stream();
    let several = several.as_str();
    let stream = lease.stream.as_ref();
    // The Java library throws on a range of a single key, even when it scans the table.
    let range = lease.hash_range.filter(|range| range.start < range.end);
    [
        (LEASE_KEY, Some(text(lease.key.as_str()))),
        (LEASE_COUNTER, Some(number(lease.counter))),
        (OWNER_SWITCHES, Some(number(lease.owner_switches))),
        (CHECKPOINT, Some(text(lease.checkpoint.as_str()))),
        (CHECKPOINT_SUB, Some(number(lease.checkpoint.sub_sequence_number()))),
        (LEASE_OWNER, lease.owner.as_ref().map(|owner| text(owner.as_str()))),
        (PENDING, pending.map(|pending| text(pending.checkpoint.as_str()))),
        (PENDING_SUB, pending_sub),
        (PENDING_STATE, state.map(bytes)),
        (PARENTS, shard_set(&lease.parents)),
        (CHILDREN, shard_set(&lease.children)),
        (HASH_START, range.map(|range| text(range.start.to_string()))),
        (HASH_END, range.map(|range| text(range.end.to_string()))),
        (CHECKPOINT_OWNER, lease.checkpoint_owner.as_ref().map(|owner| text(owner.as_str()))),
        (WRITE_ID, lease.write_id.as_ref().map(|id| text(id.as_str()))),
        (ANCHOR, lease.anchor.map(|anchor| number(anchor.as_millis()))),
        (READ_UNTIL, lease.read_until.map(|time| number(time.as_millis()))),
        (THROUGHPUT, lease.throughput.map(rate)),
        (STREAM_ARN, stream.map(|stream| text(stream.arn.as_str()))),
        (STREAM_CREATED, stream.map(|stream| number(stream.created.as_millis()))),
        (STREAM_NAME, several.map(text)),
        (SHARD_ID, several.map(|_| text(lease.shard().as_str()))),
    ]
    .into_iter()
    .filter_map(|(attribute, value)| Some((attribute.to_owned(), value?)))
    .collect()
}

pub(super) fn text(text: impl Into<String>) -> AttributeValue {
    AttributeValue::S(text.into())
}

pub(super) fn number(number: impl Into<i128>) -> AttributeValue {
    AttributeValue::N(number.into().to_string())
}

/// Formats bytes per second as KiB per second.
pub(super) fn rate(bytes: u64) -> AttributeValue {
    AttributeValue::N(format!("{}.{:03}", bytes / 1024, bytes % 1024 * 1000 / 1024))
}

pub(super) fn bytes(bytes: Vec<u8>) -> AttributeValue {
    AttributeValue::B(Blob::new(bytes))
}

pub(super) fn shard_set(shards: &BTreeSet<ShardId>) -> Option<AttributeValue> {
    let shards: Vec<_> = shards.iter().map(ToString::to_string).collect();
    // DynamoDB has no empty sets, so the attribute is absent.
    (!shards.is_empty()).then_some(AttributeValue::Ss(shards))
}
