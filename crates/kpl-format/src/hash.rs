//! The position of a partition key in the hash-key space of a stream.

use md5::{Digest as _, Md5};

/// Returns the hash key of a partition key: its MD5 as a number, as Kinesis computes it.
///
/// ```
/// assert_eq!(kpl_format::hash_key("Shadowfax") >> 96, 0x5cf8_4da7);
/// ```
#[must_use]
pub fn hash_key(partition_key: &str) -> u128 {
    u128::from_be_bytes(Md5::digest(partition_key).into())
}
