//! What a user sees of the data: one record of a stream, and the names around it.
//!
//! Owns the newtypes for shards, workers and sequence numbers, and their order.
//! Never reads a clock and never talks to a service.

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
            /// The name as text.
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
    /// The id of a shard, such as `shardId-000000000000`. Cheap to clone.
    ShardId
}
name! {
    /// The key of a lease row: the shard's id, or `account:stream:epoch:shardId` when a worker reads
    /// several streams, as in the Java KCL. Cheap to clone.
    LeaseKey
}
name! {
    /// The id of a worker: one running instance of an application. Cheap to clone.
    WorkerId
}

/// The sequence number of a record: a decimal number of up to 129 digits.
///
/// Kinesis numbers have 56 digits today, more than any machine integer holds, so the digits are
/// kept and compared as a number.
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

/// A text that is not a sequence number: empty, too long, or with something else than digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidSequenceNumber(String);

/// The longest sequence number that the Kinesis API allows.
const MAX_DIGITS: usize = 129;

impl SequenceNumber {
    /// The decimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Takes the digits of a service reply without copying them.
    ///
    /// # Errors
    /// [`InvalidSequenceNumber`] when `digits` is not a decimal number.
    pub fn from_string(mut digits: String) -> Result<Self, InvalidSequenceNumber> {
        // All digits are looked at, whatever the first are: so it is done many at a time.
        let are_digits = digits.bytes().fold(true, |are, byte| are & byte.is_ascii_digit());
        if !(are_digits && (1..=MAX_DIGITS).contains(&digits.len())) {
            return Err(InvalidSequenceNumber(digits));
        }
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
/// Only positions and lag are expressed with it; it never decides who owns a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// A timestamp from milliseconds since the epoch.
    #[must_use]
    pub const fn from_millis(epoch_ms: i64) -> Self {
        Self(epoch_ms)
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// This timestamp as the standard library's type; times before 1970 become 1970.
    #[must_use]
    pub fn to_system_time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(self.0).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    /// Formats the time in UTC, as RFC 3339 says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::from_millis(self.0).fmt(Format::DateTime) {
            Ok(text) => f.write_str(&text),
            // No calendar has such a year.
            Err(_) => write!(f, "{} ms", self.0),
        }
    }
}

/// One user record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place in the shard.
    pub sequence_number: SequenceNumber,
    /// Its index inside a KPL aggregate; 0 for a plain record.
    pub sub_sequence_number: u64,
    /// The key that chose the shard. Records of one key are delivered in order.
    pub partition_key: String,
    /// The payload. Cheap to clone.
    pub data: Bytes,
    /// When the service received it, to the millisecond, by the service's clock.
    pub arrived: Timestamp,
    /// Whether it shared a Kinesis record with others.
    pub packing: Packing,
}

/// How a record lay in its Kinesis record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packing {
    /// It is the Kinesis record.
    #[default]
    Plain,
    /// One of the records that the KPL, or a library that writes its format, packed into one.
    Part {
        /// The hash key that its producer gave it in place of the MD5 of its partition key.
        explicit_hash_key: Option<HashKey>,
        /// Whether its hash key belongs to another shard: its producer did not yet know of a
        /// reshard, or does not group records by shard. The KPL sends such a record again.
        misrouted: bool,
    },
    /// The Kinesis record says that it is packed, and cannot be unpacked: its data are as they were
    /// read.
    Corrupt,
}

/// The place of a record in the hash-key space, which is what a shard serves a range of.
///
/// Kept as bytes, so that a [`Record`] needs no more room for it than they take.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashKey([u8; 16]);

impl HashKey {
    /// The key as a number, as in a [`HashRange`](crate::HashRange).
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
    /// What the service counts: data and partition key, in bytes.
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
