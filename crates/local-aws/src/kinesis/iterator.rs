//! Starting positions, and the shard iterators that carry a reader's place.

use serde::{Deserialize, Serialize};

use crate::kinesis::error::{invalid_argument, validation};
use crate::kinesis::sequence::{Index, SequenceNumber, ShardNumber};
use crate::kinesis::stream::{Stream, StreamId, StreamName};
use crate::kinesis::token;
use crate::wire::{ApiError, Timestamp};

/// How long an iterator, or the token of a list, is valid.
pub(super) const LIFETIME_MS: i64 = 300_000;

/// How far a client's clock may be ahead when it requests records after "now".
const CLOCK_TOLERANCE_MS: i64 = 1_000;

/// A reader's place in a shard, as issued.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct ShardIterator {
    pub stream: StreamName,
    pub id: StreamId,
    pub shard: ShardNumber,
    /// The first place that has not been read.
    pub from: Index,
    pub created_ms: i64,
}

impl ShardIterator {
    pub(super) fn text(&self) -> String {
        token::seal(self)
    }

    /// # Errors
    ///
    /// `InvalidArgumentException` if the text was not issued by this service,
    /// `ExpiredIteratorException` if it was issued more than five minutes ago.
    pub(super) fn read(text: &str, now_ms: i64) -> Result<Self, ApiError> {
        let iterator: Self =
            token::open(text).ok_or_else(|| invalid_argument("Invalid ShardIterator."))?;
        if now_ms.saturating_sub(iterator.created_ms) > LIFETIME_MS {
            return Err(ApiError::new(
                "ExpiredIteratorException",
                format!(
                    "Iterator expired. The iterator was created at time {} while right now it is \
                     {now_ms} which is further in the future than the tolerated delay of \
                     {LIFETIME_MS} milliseconds.",
                    iterator.created_ms
                ),
            ));
        }
        Ok(iterator)
    }
}

/// One of the five starting positions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Start {
    TrimHorizon,
    Latest,
    At(SequenceNumber),
    After(SequenceNumber),
    AtTimestamp(i64),
}

impl Start {
    /// # Errors
    ///
    /// `ValidationException` for an unknown type, `InvalidArgumentException` if the type lacks its
    /// argument or the sequence number is malformed.
    pub(super) fn read(
        kind: &str,
        sequence: Option<&str>,
        timestamp: Option<Timestamp>,
    ) -> Result<Self, ApiError> {
        let number = || {
            let text = sequence.ok_or_else(|| {
                invalid_argument(format!("{kind} needs a starting sequence number."))
            })?;
            text.parse().map_err(|_| {
                invalid_argument(format!("StartingSequenceNumber {text} is no sequence number."))
            })
        };
        match kind {
            "TRIM_HORIZON" => Ok(Self::TrimHorizon),
            "LATEST" => Ok(Self::Latest),
            "AT_SEQUENCE_NUMBER" => number().map(Self::At),
            "AFTER_SEQUENCE_NUMBER" => number().map(Self::After),
            "AT_TIMESTAMP" => timestamp
                .map(|Timestamp(ms)| Self::AtTimestamp(ms))
                .ok_or_else(|| invalid_argument("AT_TIMESTAMP needs a timestamp.")),
            _ => Err(validation(
                "shardIteratorType",
                &format!("'{kind}'"),
                "Member must satisfy enum value set: [AFTER_SEQUENCE_NUMBER, LATEST, \
                 AT_TIMESTAMP, AT_SEQUENCE_NUMBER, TRIM_HORIZON]",
            )),
        }
    }

    /// Returns the first place in the shard for a reader that starts here.
    ///
    /// # Errors
    ///
    /// `InvalidArgumentException` if the sequence number belongs to another shard or the time is in
    /// the future.
    pub(super) fn place(
        self,
        stream: &Stream,
        number: ShardNumber,
        now_ms: i64,
    ) -> Result<Option<Index>, ApiError> {
        let Some((shard, log)) = stream.shard(number) else { return Ok(None) };
        // Only records put after this moment get this index or a later one.
        let latest = stream.meta.lineage.next_index();
        let place = match self {
            Self::TrimHorizon => shard.starting_index.next(),
            Self::Latest => latest,
            Self::At(sequence) | Self::After(sequence) => {
                let ours = sequence.shard == number
                    && sequence.shard_created_ms == shard.created_ms
                    && sequence.index < latest;
                if !ours {
                    return Err(invalid_argument(format!(
                        "StartingSequenceNumber {sequence} used on shard {number} in stream {} is \
                         invalid because it did not come from this shard.",
                        stream.meta.name
                    )));
                }
                let at = if matches!(self, Self::At(_)) {
                    sequence.index
                } else {
                    sequence.index.next()
                };
                at.max(shard.starting_index.next())
            }
            Self::AtTimestamp(ms) if ms > now_ms.saturating_add(CLOCK_TOLERANCE_MS) => {
                return Err(invalid_argument(format!(
                    "The timestampInMillis parameter cannot be greater than the \
                     currentTimestampInMillis. timestampInMillis: {ms}, \
                     currentTimestampInMillis: {now_ms}"
                )));
            }
            Self::AtTimestamp(ms) => log.first_at(ms).unwrap_or(latest),
        };
        Ok(Some(place))
    }
}
