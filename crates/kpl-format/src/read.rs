//! Unpacking: the input is checked once, then records are returned as slices of it.
//!
//! Memory besides the input is at most eight times its size: 16 bytes for a table entry of two.
//! Never copies record data, never unpacks recursively.

use std::ops::Range;

use bytes::Bytes;
use md5::{Digest as _, Md5};

use crate::error::Corrupt;
use crate::hash::hash_key;
use crate::wire::{Fields, Value};
use crate::{CHECKSUM_BYTES, MAGIC, is_aggregate};

/// A checked aggregate with at least one record.
#[derive(Debug, Clone)]
pub struct Aggregate {
    data: Bytes,
    partition_keys: Vec<Span>,
    hash_keys: Vec<u128>,
    records: Vec<Part>,
    unpacked_bytes: u64,
}

/// One record of an aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRecord<'a> {
    /// The partition key that its producer set.
    pub partition_key: &'a str,
    /// The index of the key among [`Aggregate::partition_keys`].
    pub key_index: usize,
    /// The explicit hash key that its producer set, which overrides that of the partition key.
    pub explicit_hash_key: Option<u128>,
    /// The payload: a slice of the aggregate, whose memory is kept as long as the slice.
    ///
    /// It is never unpacked again, even if it is an aggregate itself.
    pub data: Bytes,
}

/// A range of the input in half the size of a `Range<usize>`.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    key: u32,
    /// `u32::MAX` if absent: input that is large enough for this many entries is refused.
    hash_key: u32,
    data: Span,
}

const NONE: u32 = u32::MAX;

impl Aggregate {
    /// Checks and unpacks data for which [`is_aggregate`] returned true.
    ///
    /// The time is linear in the size of `data`; memory is bounded as described for this crate,
    /// whatever lengths `data` claim.
    ///
    /// # Errors
    /// [`Corrupt`] states what is wrong with `data`; then no record is unpacked.
    pub fn read(data: Bytes) -> Result<Self, Corrupt> {
        if data.len() < MAGIC.len() + CHECKSUM_BYTES || !is_aggregate(&data) {
            return Err(Corrupt::Short);
        }
        // The tables store ranges as pairs of `u32`.
        if u32::try_from(data.len()).is_err() {
            return Err(Corrupt::Long);
        }
        let message = MAGIC.len()..data.len() - CHECKSUM_BYTES;
        if Md5::digest(&data[message.clone()])[..] != data[message.end..] {
            return Err(Corrupt::Checksum);
        }
        let mut aggregate = Self::with_room(&data, message.clone())?;
        let mut fields = Fields::new(&data, message);
        while let Some((field, value)) = fields.next()? {
            match (field, value) {
                (1, Value::Bytes(key)) => aggregate.partition_keys.push(utf8(&data, key)?),
                (2, Value::Bytes(key)) => aggregate.hash_keys.push(number(&data, key)?),
                (3, Value::Bytes(record)) => {
                    let part = part(&data, record, aggregate.records.len())?;
                    aggregate.records.push(part);
                }
                (1..=3, _) => return Err(Corrupt::Malformed { at: fields.at() }),
                _ => {}
            }
        }
        aggregate.data = data;
        aggregate.checked()
    }

    /// Creates tables with exactly the capacity needed: growing them would take twice as much.
    fn with_room(data: &[u8], message: Range<usize>) -> Result<Self, Corrupt> {
        let mut count = [0_usize; 4];
        let mut fields = Fields::new(data, message);
        while let Some((field, _)) = fields.next()? {
            if let Some(count) = usize::try_from(field).ok().and_then(|it| count.get_mut(it)) {
                *count += 1;
            }
        }
        let [_, partition_keys, hash_keys, records] = count;
        Ok(Self {
            data: Bytes::new(),
            partition_keys: Vec::with_capacity(partition_keys),
            hash_keys: Vec::with_capacity(hash_keys),
            records: Vec::with_capacity(records),
            unpacked_bytes: 0,
        })
    }

    /// Checks the indexes, after the whole message is read because the tables may follow the
    /// records.
    fn checked(mut self) -> Result<Self, Corrupt> {
        if self.records.is_empty() {
            return Err(Corrupt::Empty);
        }
        for (record, part) in self.records.iter().enumerate() {
            let key = self.partition_keys.get(part.key as usize);
            let has_hash_key =
                part.hash_key == NONE || (part.hash_key as usize) < self.hash_keys.len();
            let Some(key) = key.filter(|_| has_hash_key) else {
                return Err(Corrupt::NoSuchKey { record });
            };
            self.unpacked_bytes += u64::from(key.len()) + u64::from(part.data.len());
        }
        Ok(self)
    }

    /// Returns the number of records; never 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an aggregate is never empty")]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns the size of all records, data and partition keys, if each had its own copy of its
    /// key.
    ///
    /// Many records may refer to one long key, so this can be much more than the size of the
    /// aggregate: check it before copying keys.
    #[must_use]
    pub fn unpacked_bytes(&self) -> u64 {
        self.unpacked_bytes
    }

    /// Returns the table of partition keys; it may contain keys that no record refers to, and
    /// duplicates.
    pub fn partition_keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.partition_keys.iter().map(|key| self.text(*key))
    }

    /// Returns the records, in the order in which they were packed.
    pub fn records(&self) -> impl ExactSizeIterator<Item = UserRecord<'_>> {
        self.records.iter().map(|part| {
            let key_index = part.key as usize;
            UserRecord {
                partition_key: self.text(self.partition_keys[key_index]),
                key_index,
                explicit_hash_key: self.hash_keys.get(part.hash_key as usize).copied(),
                data: self.data.slice(part.data.range()),
            }
        })
    }

    fn text(&self, span: Span) -> &str {
        std::str::from_utf8(&self.data[span.range()]).expect("keys were checked when read")
    }
}

impl UserRecord<'_> {
    /// Returns its place in the hash-key space: the explicit hash key, otherwise that of its
    /// partition key.
    #[must_use]
    pub fn hash_key(&self) -> u128 {
        self.explicit_hash_key.unwrap_or_else(|| hash_key(self.partition_key))
    }
}

impl Span {
    /// Expects `range` to lie within an input of less than 4 GiB.
    fn new(range: &Range<usize>) -> Self {
        let short = |at| u32::try_from(at).expect("the input is shorter than 4 GiB");
        Self { start: short(range.start), end: short(range.end) }
    }

    fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    fn len(self) -> u32 {
        self.end - self.start
    }
}

fn utf8(data: &[u8], key: Range<usize>) -> Result<Span, Corrupt> {
    let span = Span::new(&key);
    let at = key.start;
    std::str::from_utf8(&data[key]).map(|_| span).map_err(|_| Corrupt::InvalidKey { at })
}

/// Parses a decimal number of digits only: `parse` would accept a sign too.
fn number(data: &[u8], key: Range<usize>) -> Result<u128, Corrupt> {
    let at = key.start;
    let text = std::str::from_utf8(&data[key]).ok();
    let digits = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).ok_or(Corrupt::InvalidKey { at })
}

fn part(data: &[u8], message: Range<usize>, record: usize) -> Result<Part, Corrupt> {
    // No table of such data has enough entries for an index above 2^32 - 2.
    let index = |value| u32::try_from(value).ok().filter(|index| *index != NONE);
    let (mut key, mut hash_key, mut payload) = (None, NONE, None);
    let mut fields = Fields::new(data, message);
    while let Some((field, value)) = fields.next()? {
        match (field, value) {
            (1, Value::Number(value)) => {
                key = Some(index(value).ok_or(Corrupt::NoSuchKey { record })?);
            }
            (2, Value::Number(value)) => {
                hash_key = index(value).ok_or(Corrupt::NoSuchKey { record })?;
            }
            (3, Value::Bytes(value)) => payload = Some(Span::new(&value)),
            (1..=3, _) => return Err(Corrupt::Malformed { at: fields.at() }),
            // Tags, which no reader returns, and fields of later versions.
            _ => {}
        }
    }
    let (Some(key), Some(data)) = (key, payload) else {
        return Err(Corrupt::Incomplete { record });
    };
    Ok(Part { key, hash_key, data })
}
