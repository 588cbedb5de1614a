//! Why an aggregate cannot be unpacked.

use std::fmt;

/// Why data that claim to be an aggregate cannot be unpacked.
///
/// An aggregate is unpacked completely or not at all: after an error in one place others may be
/// wrong too, and a reader that took the rest would lose records silently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Corrupt {
    /// Shorter than the prefix and the checksum.
    Short,
    /// Longer than 4 GiB.
    Long,
    /// The MD5 at the end does not match the message.
    Checksum,
    /// The message is not a protobuf message of an aggregate.
    Malformed {
        /// The approximate offset of the error from the first byte of the data.
        at: usize,
    },
    /// A record without a partition key or without data (data may be empty, but not absent).
    Incomplete {
        /// The record's index in the aggregate, from 0.
        record: usize,
    },
    /// A record refers to a key that the aggregate does not contain.
    NoSuchKey {
        /// The record's index in the aggregate, from 0.
        record: usize,
    },
    /// A partition key is not UTF-8, or an explicit hash key is not a number below 2^128.
    InvalidKey {
        /// The offset of the key from the first byte of the data.
        at: usize,
    },
    /// The aggregate contains no record. No producer writes that.
    Empty,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("too short for an aggregate"),
            Self::Long => f.write_str("too long for an aggregate"),
            Self::Checksum => f.write_str("the checksum of the aggregate is wrong"),
            Self::Malformed { at } => write!(f, "the aggregate is malformed at byte {at}"),
            Self::Incomplete { record } => {
                write!(f, "record {record} of the aggregate lacks its partition key or its data")
            }
            Self::NoSuchKey { record } => {
                write!(f, "record {record} of the aggregate names a key that is not there")
            }
            Self::InvalidKey { at } => write!(f, "the aggregate has an invalid key at byte {at}"),
            Self::Empty => f.write_str("the aggregate holds no record"),
        }
    }
}
impl std::error::Error for Corrupt {}
