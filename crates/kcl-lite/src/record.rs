//! Records as a processor receives them, and the identifiers around them.
//!
//! Owns the newtypes for shards, workers and sequence numbers, and their order.
//! Never reads a clock and never calls a service.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use bytes::Bytes;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Returns the name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl<T: Into<Arc<str>>> From<T> for $name {
            fn from(text: T) -> Self {
                Self(text.into())
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// The ID of a shard, such as `shardId-000000000000`. Cheap to clone.
    ShardId
}
name! {
    /// The key of a lease row: the shard ID, or `account:stream:epoch:shardId` when a worker reads
    /// several streams, as in the Java KCL. Cheap to clone.
    LeaseKey
}
name! {
    /// The worker ID: the name under which one running instance of an application owns leases. Cheap to
    /// clone.
    WorkerId
}

/// The sequence number of a record: a decimal number of up to 129 digits.
///
/// Kinesis sequence numbers have 56 digits today, which fits no machine integer, so the digits are
/// stored as text and compared as a number.
///
/// # Example: numbers, not text
/// ```
/// use kcl_lite::SequenceNumber;
/// let nine: SequenceNumber = "9".parse()?;
/// let ten: SequenceNumber = "10".parse()?;
/// assert!(nine < ten);
/// # Ok::<(), kcl_lite::InvalidSequenceNumber>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SequenceNumber(String);

/// The error for text that is not a sequence number: empty, too long, or not only digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidSequenceNumber(String);

/// The longest sequence number that the Kinesis API allows.
const MAX_DIGITS: usize = 129;

impl SequenceNumber {
    /// Returns the decimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Creates a sequence number from the digits of a service reply without copying them.
    ///
    /// # Errors
    /// [`InvalidSequenceNumber`] when `digits` is not a decimal number of 1 to 129 digits.
    pub fn from_string(mut digits: String) -> Result<Self, InvalidSequenceNumber> {
        // No early exit, so that the compiler can vectorize the check. This is on the path of every record.
        let are_digits = digits.bytes().fold(true, |are, byte| are & byte.is_ascii_digit());
        if !(are_digits && (1..=MAX_DIGITS).contains(&digits.len())) {
            return Err(InvalidSequenceNumber(digits));
        }
        // Without leading zeros, equal numbers are equal texts and `cmp` may compare lengths first.
        if digits.starts_with('0') {
            let zeros = digits.len() - digits.trim_start_matches('0').len();
            digits.drain(..zeros.min(digits.len() - 1));
        }
        Ok(Self(digits))
    }
}

impl FromStr for SequenceNumber {
    type Err = InvalidSequenceNumber;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_string(text.to_owned())
    }
}
impl Ord for SequenceNumber {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.cmp(&other.0))
    }
}
impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Display for InvalidSequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not a sequence number: expected 1 to {MAX_DIGITS} digits", self.0)
    }
}
impl std::error::Error for InvalidSequenceNumber {}

/// A point in time of the service's clock, in milliseconds since 1970-01-01 UTC.
///
/// Used for positions and lag only; it never decides the ownership of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Creates a timestamp from milliseconds since the epoch.
    #[must_use]
    pub const fn from_millis(epoch_ms: i64) -> Self {
        Self(epoch_ms)
    }

    /// Returns the milliseconds since the epoch.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Converts to the standard library's type; times before 1970 become 1970.
    #[must_use]
    pub fn to_system_time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(self.0).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    /// Formats the time in UTC, in the format of RFC 3339.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::from_millis(self.0).fmt(Format::DateTime) {
            Ok(text) => f.write_str(&text),
            // The year is out of the formatter's range.
            Err(_) => write!(f, "{} ms", self.0),
        }
    }
}

/// One user record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The sequence number, which orders the records of a shard.
    pub sequence_number: SequenceNumber,
    /// The index inside a KPL aggregate; 0 for a plain record.
    pub sub_sequence_number: u64,
    /// The key that selects the shard. Records with the same key are delivered in order.
    pub partition_key: String,
    /// The payload. Cheap to clone.
    pub data: Bytes,
    /// The arrival time in milliseconds, by the service's clock.
    pub arrived: Timestamp,
    /// Whether the record comes from an aggregate.
    pub packing: Packing,
}

/// How a user record was packed into its Kinesis record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packing {
    /// The record is a Kinesis record of its own.
    #[default]
    Plain,
    /// The record is part of an aggregate, written by the KPL or a library that uses its format.
    Part {
        /// The hash key that the producer set in place of the MD5 of the partition key.
        explicit_hash_key: Option<HashKey>,
        /// Whether the record is misrouted: its hash key belongs to another shard, because the producer
        /// did not know of a resharding yet or does not group records by shard. The KPL sends such a
        /// record again.
        misrouted: bool,
    },
    /// The Kinesis record is marked as an aggregate but cannot be unpacked. Its data are unchanged.
    Corrupt,
}

/// A hash key: the place of a record in the hash-key space, of which each shard serves a range.
///
/// Stored as bytes rather than as `u128`, whose alignment would enlarge every [`Record`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashKey([u8; 16]);

impl HashKey {
    /// Returns the key as a number, as in a [`HashRange`](crate::HashRange).
    #[must_use]
    pub const fn get(self) -> u128 {
        u128::from_be_bytes(self.0)
    }
}

impl From<u128> for HashKey {
    fn from(number: u128) -> Self {
        Self(number.to_be_bytes())
    }
}
impl fmt::Display for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}
impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl Record {
    /// Returns the size as the service counts it: data and partition key, in bytes.
    pub(crate) fn size(&self) -> u64 {
        (self.data.len() + self.partition_key.len()) as u64
    }
}

#[cfg(test)]
impl Record {
    /// Returns a plain record without data, for tests of what is decided by positions.
    pub(crate) fn numbered(number: u64, sub_sequence_number: u64) -> Self {
        Self {
            sequence_number: number.to_string().parse().expect("digits"),
            sub_sequence_number,
            partition_key: String::new(),
            data: Bytes::new(),
            arrived: Timestamp::from_millis(0),
            packing: Packing::Plain,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_order_as_numbers_and_ignore_leading_zeros() {
        let number = |text: &str| text.parse::<SequenceNumber>().unwrap();
        assert!(number("99") < number("100"));
        assert_eq!(number("007"), number("7"));
        assert_eq!(number("000").as_str(), "0");
    }

    #[test]
    fn hash_keys_order_as_numbers_and_a_plain_record_pays_24_bytes() {
        assert!(HashKey::from(255) < HashKey::from(256));
        assert_eq!(HashKey::from(u128::MAX).to_string(), u128::MAX.to_string());
        assert!(size_of::<Packing>() <= 24);
    }

    #[test]
    fn a_sentinel_is_not_a_sequence_number() {
        for text in ["", "TRIM_HORIZON", "-1", "1 ", &"9".repeat(130)] {
            assert!(text.parse::<SequenceNumber>().is_err(), "{text}");
        }
    }
}
