//! Where a shard stands: positions inside a shard, durable checkpoints, and typed read cursors.
//!
//! A checkpoint is what a lease row stores; a cursor is what a reader starts from. Keeping them
//! apart makes "start reading at `SHARD_END`" impossible to write.
//! Pure: no clock, no service.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::record::{Record, SequenceNumber, Timestamp};

/// A place in a shard: a record's sequence number and its index inside an aggregate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The sequence number of the Kinesis record.
    pub sequence_number: SequenceNumber,
    /// The index of the user record inside it; 0 for a plain record.
    pub sub_sequence_number: u64,
}

impl Position {
    /// The position of `record`.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        Self {
            sequence_number: record.sequence_number.clone(),
            sub_sequence_number: record.sub_sequence_number,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.sub_sequence_number == 0 {
            return self.sequence_number.fmt(f);
        }
        write!(f, "{}:{}", self.sequence_number, self.sub_sequence_number)
    }
}

/// What a lease row says has been processed.
///
/// The order is the Java KCL's (`ExtendedSequenceNumber`): the symbolic positions come before every
/// number, `ShardEnd` after every number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Checkpoint {
    /// Nothing yet; reading starts at the lease's anchor timestamp.
    AtTimestamp,
    /// Nothing yet; reading starts at the oldest record of the shard.
    TrimHorizon,
    /// Nothing yet; reading starts at the tip, as resolved once in the lease's anchor.
    Latest,
    /// Everything up to and including this position.
    At(Position),
    /// Everything; the shard is finished.
    ShardEnd,
}

impl Checkpoint {
    /// The word of a symbolic checkpoint, or the digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::AtTimestamp => "AT_TIMESTAMP",
            Self::TrimHorizon => "TRIM_HORIZON",
            Self::Latest => "LATEST",
            Self::At(position) => position.sequence_number.as_str(),
            Self::ShardEnd => "SHARD_END",
        }
    }

    /// The sub-sequence number that stands beside [`as_str`](Self::as_str) in a row.
    #[must_use]
    pub fn sub_sequence_number(&self) -> u64 {
        match self {
            Self::At(position) => position.sub_sequence_number,
            Self::AtTimestamp | Self::TrimHorizon | Self::Latest | Self::ShardEnd => 0,
        }
    }

    /// Reads the two attributes of a row.
    ///
    /// # Errors
    /// [`InvalidCheckpoint`] when `text` is neither a known word nor digits.
    pub fn parse(text: &str, sub_sequence_number: u64) -> Result<Self, InvalidCheckpoint> {
        Ok(match text {
            "AT_TIMESTAMP" => Self::AtTimestamp,
            "TRIM_HORIZON" => Self::TrimHorizon,
            "LATEST" => Self::Latest,
            "SHARD_END" => Self::ShardEnd,
            digits => Self::At(Position {
                sequence_number: SequenceNumber::from_str(digits)
                    .map_err(|_| InvalidCheckpoint(digits.to_owned()))?,
                sub_sequence_number,
            }),
        })
    }

    /// Whether any record, or the end of the shard, has been processed.
    #[must_use]
    pub fn has_progress(&self) -> bool {
        matches!(self, Self::At(_) | Self::ShardEnd)
    }

    /// Whether the shard is finished.
    #[must_use]
    pub fn is_shard_end(&self) -> bool {
        *self == Self::ShardEnd
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(position) => position.fmt(f),
            Self::AtTimestamp | Self::TrimHorizon | Self::Latest | Self::ShardEnd => {
                f.write_str(self.as_str())
            }
        }
    }
}

/// A checkpoint text that is neither digits nor one of the four words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidCheckpoint(pub(crate) String);

impl fmt::Display for InvalidCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not a checkpoint", self.0)
    }
}
impl std::error::Error for InvalidCheckpoint {}

/// Where a reader starts in a shard.
///
/// There is no "at the tip" here: the tip is resolved once, durably, to a [`Timestamp`], so that a
/// crash before the first checkpoint skips nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cursor {
    /// The oldest record that the service still has.
    Horizon,
    /// The first record that arrived at or after this time.
    Timestamp(Timestamp),
    /// This record and what follows it.
    At(SequenceNumber),
    /// What follows this record.
    After(SequenceNumber),
}

/// Where an application starts in a stream that it has never read.
///
/// Every time counts by the service's clock, never by this machine's. The first start decides what
/// the position means, a second or two early rather than late, and stores it in the lease rows: later
/// starts, and other workers, go on from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InitialPosition {
    /// With what arrives after the start (the KCL's default, and the workshop's).
    #[default]
    Latest,
    /// With the oldest record that the service still has.
    TrimHorizon,
    /// With the first record that arrived at or after this time.
    ///
    /// A time that is still to come is replaced by the service's present time: everything that was
    /// asked for is delivered, and before it what arrives until then. The worker reports it as
    /// [`Event::InitialPositionReplaced`](crate::Event::InitialPositionReplaced). A time that the
    /// program computes from its own clock is as wrong as that clock: use [`Ago`](Self::Ago).
    AtTimestamp(Timestamp),
    /// With what arrived within this time before the start: `Ago(Duration::from_secs(300))` is five
    /// minutes before the first start. Durations longer than the stream's retention mean its oldest
    /// record.
    Ago(Duration),
}

/// Records that aged out of the stream before they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// What was processed before.
    pub from: Checkpoint,
    /// The oldest record that is left; `None` when none is.
    pub to: Option<Position>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_order_as_in_the_java_library() {
        let at = |text: &str, sub| Checkpoint::parse(text, sub).unwrap();
        let ordered = [
            Checkpoint::AtTimestamp,
            Checkpoint::TrimHorizon,
            Checkpoint::Latest,
            at("9", 0),
            at("9", 3),
            at("10", 0),
            Checkpoint::ShardEnd,
        ];
        assert!(ordered.is_sorted());
    }

    #[test]
    fn a_checkpoint_reads_back_what_it_wrote() {
        for (text, sub) in [
            ("LATEST", 0),
            ("SHARD_END", 0),
            ("49590338271490256608559692538361571095921575989136588898", 7),
        ] {
            let checkpoint = Checkpoint::parse(text, sub).unwrap();
            assert_eq!((checkpoint.as_str(), checkpoint.sub_sequence_number()), (text, sub));
        }
        assert!(Checkpoint::parse("latest", 0).is_err());
    }
}
