//! Why an aggregate cannot be unpacked.

use std::fmt;

/// What is wrong with data that claim to be an aggregate.
///
/// An aggregate is unpacked whole or not at all: what is wrong in one place may be wrong in others,
/// and a reader that took the rest would lose records without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Corrupt {
    /// Shorter than what every aggregate begins and ends with.
    Short,
    /// Longer than 4 GiB.
    Long,
    /// The MD5 at the end is not that of what stands before it.
    Checksum,
    /// Not the protobuf message of an aggregate, from about this byte on.
    Malformed {
        /// Counted from the first byte of the data.
        at: usize,
    },
    /// A record without a partition key or without data (data may be empty, but not absent).
    Incomplete {
        /// The record's place in the aggregate, from 0.
        record: usize,
    },
    /// A record names a key that the aggregate does not have.
    NoSuchKey {
        /// The record's place in the aggregate, from 0.
        record: usize,
    },
    /// A partition key is not UTF-8, or an explicit hash key no number below 2^128.
    InvalidKey {
        /// Where the key stands, counted from the first byte of the data.
        at: usize,
    },
    /// No record in it. No producer writes that.
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
