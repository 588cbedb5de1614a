//! The aggregate format of the Kinesis Producer Library (KPL): several user records in one Kinesis
//! record.
//!
//! The following is the README, included so that its example is compiled.
#![doc = include_str!("../README.md")]

mod error;
mod hash;
mod pack;
mod read;
mod wire;

pub use error::Corrupt;
pub use hash::hash_key;
pub use pack::Packer;
pub use read::{Aggregate, UserRecord};

/// The first bytes of every aggregate. No UTF-8 text begins with them.
pub const MAGIC: [u8; 4] = [0xf3, 0x89, 0x9a, 0xc2];

/// The size of the MD5 at the end of an aggregate.
const CHECKSUM_BYTES: usize = 16;

/// Returns whether `data` claims to be an aggregate; compares four bytes.
#[must_use]
pub fn is_aggregate(data: &[u8]) -> bool {
    data.starts_with(&MAGIC)
}
