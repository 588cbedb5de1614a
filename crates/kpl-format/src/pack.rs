//! Packing: user records into one aggregate of a bounded size.
//!
//! Writes the same form as the KPL: tables of distinct keys first, then the records in their order.
//! Never decides which records belong together.

use std::collections::BTreeMap;

use bytes::Bytes;
use md5::{Digest as _, Md5};

use crate::wire::{field_len, put_head, put_number};
use crate::{CHECKSUM_BYTES, MAGIC};

/// A builder of an aggregate.
///
/// All its records are stored in one shard, that of the Kinesis record: pack only records whose hash
/// keys belong to one shard, because consumers that filter by shard drop misrouted records.
///
/// ```
/// use kpl_format::{Aggregate, Packer};
///
/// let mut packer = Packer::new(51_200);
/// assert!(packer.push("Shadowfax", None, b"one"));
/// assert!(packer.push("Bucephalus", Some(7), b"two"));
/// let aggregate = Aggregate::read(packer.finish().expect("two records"))?;
/// let keys: Vec<_> = aggregate.records().map(|record| record.partition_key.to_owned()).collect();
/// assert_eq!(keys, ["Shadowfax", "Bucephalus"]);
/// # Ok::<(), kpl_format::Corrupt>(())
/// ```
#[derive(Debug, Clone)]
pub struct Packer {
    limit: usize,
    partition_keys: Table,
    hash_keys: Table,
    records: Vec<u8>,
    len: usize,
}

impl Packer {
    /// Creates an empty aggregate of at most `limit` bytes, frame included.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            partition_keys: Table::default(),
            hash_keys: Table::default(),
            records: Vec::new(),
            len: 0,
        }
    }

    /// Adds a record; returns false without a change if the aggregate would become too large.
    #[must_use = "a record that does not fit is not in the aggregate"]
    pub fn push(
        &mut self,
        partition_key: &str,
        explicit_hash_key: Option<u128>,
        data: &[u8],
    ) -> bool {
        let hash_key = explicit_hash_key.map(|key| key.to_string());
        let hash_key = hash_key.as_deref();
        let (key_index, key_bytes) = self.partition_keys.place(partition_key);
        let hash_place = hash_key.map(|key| self.hash_keys.place(key));
        let (_, hash_bytes) = hash_place.unwrap_or_default();

        let hash_field = hash_place.map_or(0, |(index, _)| field_len(index));
        let message = field_len(key_index) + hash_field + field_len(data.len() as u64) + data.len();
        let record = field_len(message as u64) + message;
        // Nothing is added before the whole record is known to fit.
        if self.size() + key_bytes + hash_bytes + record > self.limit {
            return false;
        }
        self.partition_keys.add(partition_key, 1);
        put_head(&mut self.records, 3, message);
        put_number(&mut self.records, 1, key_index);
        if let (Some(key), Some((index, _))) = (hash_key, hash_place) {
            self.hash_keys.add(key, 2);
            put_number(&mut self.records, 2, index);
        }
        put_head(&mut self.records, 3, data.len());
        self.records.extend_from_slice(data);
        self.len += 1;
        true
    }

    /// Returns the number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether it contains no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of bytes that [`finish`](Self::finish) would return.
    #[must_use]
    pub fn size(&self) -> usize {
        let tables = self.partition_keys.wire.len() + self.hash_keys.wire.len();
        MAGIC.len() + tables + self.records.len() + CHECKSUM_BYTES
    }

    /// Returns the data of the Kinesis record; `None` if no record was added.
    #[must_use]
    pub fn finish(self) -> Option<Bytes> {
        if self.is_empty() {
            return None;
        }
        let mut data = Vec::with_capacity(self.size());
        data.extend_from_slice(&MAGIC);
        data.extend_from_slice(&self.partition_keys.wire);
        data.extend_from_slice(&self.hash_keys.wire);
        data.extend_from_slice(&self.records);
        let checksum = Md5::digest(&data[MAGIC.len()..]);
        data.extend_from_slice(&checksum);
        Some(data.into())
    }
}

/// A table of distinct texts, each identified by the index of its first occurrence.
#[derive(Debug, Clone, Default)]
struct Table {
    index: BTreeMap<String, u64>,
    wire: Vec<u8>,
}

impl Table {
    /// Returns the index of `text`, present or future, and the bytes that adding it takes.
    fn place(&self, text: &str) -> (u64, usize) {
        match self.index.get(text) {
            Some(index) => (*index, 0),
            None => (self.index.len() as u64, field_len(text.len() as u64) + text.len()),
        }
    }

    fn add(&mut self, text: &str, field: u8) {
        if self.index.contains_key(text) {
            return;
        }
        self.index.insert(text.to_owned(), self.index.len() as u64);
        put_head(&mut self.wire, field, text.len());
        self.wire.extend_from_slice(text.as_bytes());
    }
}
