//! Positions inside a shard, stored checkpoints, and read cursors.
//!
//! A lease row stores a checkpoint; a reader starts from a cursor. They are separate types, so that
//! "start reading at `SHARD_END`" cannot be written.
//! Pure: no clock, no service.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::record::{Record, SequenceNumber, Timestamp};

/// The position of a record in its shard: a sequence number and the index inside an aggregate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The sequence number of the Kinesis record.
    pub sequence_number: SequenceNumber,
    /// The index of the user record inside the aggregate; 0 for a plain record.
    pub sub_sequence_number: u64,
}

impl Position {
    /// Returns the position of `record`.
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

/// The stored position up to which a shard has been processed.
///
/// The order is that of the Java KCL (`ExtendedSequenceNumber`): the symbolic positions sort before
/// every number, `ShardEnd` after every number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Checkpoint {
    /// Nothing is processed; reading starts at the anchor timestamp of the lease.
    AtTimestamp,
    /// Nothing is processed; reading starts at the oldest record of the shard.
    TrimHorizon,
    /// Nothing is processed; reading starts at the tip, resolved once and stored as the lease's anchor.
    Latest,
    /// Everything up to and including this position is processed.
    At(Position),
    /// Everything is processed; the shard is finished.
    ShardEnd,
}

impl Checkpoint {
    /// Returns the name of a symbolic checkpoint, or the digits of the sequence number.
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

    /// Returns the sub-sequence number that a row stores beside [`as_str`](Self::as_str).
    #[must_use]
    pub fn sub_sequence_number(&self) -> u64 {
        match self {
            Self::At(position) => position.sub_sequence_number,
            Self::AtTimestamp | Self::TrimHorizon | Self::Latest | Self::ShardEnd => 0,
        }
    }

    /// Parses the two attributes of a row.
    ///
    /// # Errors
    /// [`InvalidCheckpoint`] when `text` is neither a symbolic checkpoint nor digits.
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

    /// Returns whether any record, or the end of the shard, has been processed.
    #[must_use]
    pub fn has_progress(&self) -> bool {
        matches!(self, Self::At(_) | Self::ShardEnd)
    }

    /// Returns whether the shard is finished.
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

/// The error for checkpoint text that is neither digits nor one of the four symbolic checkpoints.
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
/// There is no "at the tip": the tip is resolved once to a [`Timestamp`] and stored, so that a crash
/// before the first checkpoint skips nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cursor {
    /// The oldest record that the service still has.
    Horizon,
    /// The first record that arrived at or after this time.
    Timestamp(Timestamp),
    /// This record, inclusive.
    At(SequenceNumber),
    /// The record after this one.
    After(SequenceNumber),
}

/// Where an application starts in a stream that it has never read.
///
/// Times are those of the service's clock, never of this machine's. The first start resolves the
/// position, a second or two early rather than late, and stores it in the lease rows; later starts and
/// other workers continue from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InitialPosition {
    /// The records that arrive after the start (the KCL's default, and the workshop's).
    #[default]
    Latest,
    /// The oldest record that the service still has.
    TrimHorizon,
    /// The first record that arrived at or after this time.
    ///
    /// A time in the future is replaced by the service's present time, so records that arrive before the
    /// requested time are delivered too. The worker reports this as
    /// [`Event::InitialPositionReplaced`](crate::Event::InitialPositionReplaced). A time computed from
    /// the program's own clock has the error of that clock: use [`Ago`](Self::Ago) instead.
    AtTimestamp(Timestamp),
    /// The first record that arrived within this duration before the first start:
    /// `Ago(Duration::from_secs(300))` is five minutes before it. A duration longer than the stream's
    /// retention means the oldest record.
    Ago(Duration),
}

/// Records that aged out of the stream before they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The checkpoint before the gap.
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
