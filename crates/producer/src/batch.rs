//! Selects the records of the next request, and returns refused records to the queue.
//!
//! Pure. PutRecords may refuse some records of a request and store others, and guarantees no order,
//! so that two records of one key in one request could change places. Therefore a batch contains at
//! most one record per key, and a refused record returns to its old place: no record is ever
//! overtaken by a later one of its key. Exactly one batch is in flight at a time.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

/// The largest number of records in a PutRecords request.
pub(crate) const MAX_RECORDS: usize = 500;

/// The former limit of a PutRecords request, data and keys together. Today's is higher, but records
/// of 200 bytes come near neither, and emulators keep the old one.
pub(crate) const MAX_BYTES: usize = 5 * 1024 * 1024;

/// A record that is not stored yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) data: Vec<u8>,
}

/// A Kinesis record to be sent: a single record, or several in an aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parcel {
    /// Never empty; one entry if the parcel is not packed.
    pub(crate) entries: Vec<Entry>,
    pub(crate) packed: Option<Packed>,
}

/// The additional fields of an aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packed {
    /// The shard that all its records belong to, according to the last listing.
    pub(crate) shard: String,
    pub(crate) data: Bytes,
}

impl From<Entry> for Parcel {
    fn from(entry: Entry) -> Self {
        Self { entries: vec![entry], packed: None }
    }
}

impl Parcel {
    /// Returns the partition key: that of the first record, whose hash key routes the others to its
    /// shard too.
    pub(crate) fn key(&self) -> &str {
        &self.entries[0].key
    }

    pub(crate) fn data(&self) -> &[u8] {
        self.packed.as_ref().map_or(&self.entries[0].data, |packed| &packed.data)
    }
}

impl Entry {
    pub(crate) fn size_bytes(&self) -> usize {
        self.key.len() + self.data.len()
    }
}

/// The records that are not stored yet, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) waiting: VecDeque<Entry>,
}

impl Queue {
    /// Adds a record at the end.
    pub(crate) fn push(&mut self, entry: Entry) {
        self.waiting.push_back(entry);
    }

    /// Returns whether no record waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns the size of the waiting records.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(Entry::size_bytes).sum()
    }

    /// Takes the records of the next request; empty if nothing waits.
    ///
    /// A single record larger than the limit is sent alone: the service's refusal states the
    /// reason.
    pub(crate) fn next_batch(&mut self) -> Vec<Entry> {
        let mut batch: Vec<Entry> = Vec::new();
        let mut keys = BTreeSet::new();
        let mut bytes = 0;
        let mut left = Vec::new();
        while let Some(entry) = self.waiting.pop_front() {
            let full = batch.len() == MAX_RECORDS
                || (!batch.is_empty() && bytes + entry.size_bytes() > MAX_BYTES);
            if full {
                left.push(entry);
                break;
            }
            // The key is also marked when the record has to wait, which changes nothing: it was
            // marked before.
            if keys.insert(entry.key.clone()) {
                bytes += entry.size_bytes();
                batch.push(entry);
            } else {
                left.push(entry);
            }
        }
        self.give_back(left);
        batch
    }

    /// Returns records that were taken to the front of the queue, in the given order.
    pub(crate) fn give_back(&mut self, entries: Vec<Entry>) {
        for entry in entries.into_iter().rev() {
            self.waiting.push_front(entry);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    pub(crate) fn entry(key: &str, number: usize) -> Entry {
        Entry { key: key.into(), data: number.to_string().into_bytes() }
    }

    pub(crate) fn queue(entries: impl IntoIterator<Item = Entry>) -> Queue {
        let mut queue = Queue::default();
        entries.into_iter().for_each(|entry| queue.push(entry));
        queue
    }

    /// Returns the data of each key, in order.
    pub(crate) fn by_key(entries: &[Entry]) -> BTreeMap<String, Vec<Vec<u8>>> {
        let mut map: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        for entry in entries {
            map.entry(entry.key.clone()).or_default().push(entry.data.clone());
        }
        map
    }

    fn shown(batch: &[Entry]) -> String {
        let one = |entry: &Entry| format!("{}{}", entry.key, String::from_utf8_lossy(&entry.data));
        batch.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_batch_holds_at_most_one_record_per_key() {
        let mut queue = queue([entry("a", 1), entry("a", 2), entry("b", 1), entry("a", 3)]);
        assert_eq!(shown(&queue.next_batch()), "a1 b1");
        assert_eq!(shown(&queue.next_batch()), "a2");
        assert_eq!(shown(&queue.next_batch()), "a3");
        assert!(queue.next_batch().is_empty());
    }

    #[test]
    fn a_refused_record_goes_before_later_ones_of_its_key() {
        let mut queue = queue([entry("a", 1), entry("b", 1), entry("a", 2), entry("b", 2)]);
        let both = queue.next_batch();
        queue.give_back(both);
        let mut batch = queue.next_batch();
        assert_eq!(shown(&batch), "a1 b1");
        queue.give_back(vec![batch.remove(0)]);
        assert_eq!(shown(&queue.next_batch()), "a1 b2");
        assert_eq!(shown(&queue.next_batch()), "a2");
    }

    #[test]
    fn a_batch_stops_at_500_records() {
        let mut queue = queue((0..501).map(|number| entry(&format!("key-{number}"), number)));
        assert_eq!(queue.next_batch().len(), 500);
        assert_eq!(queue.next_batch().len(), 1);
    }

    #[test]
    fn a_batch_stops_at_5_mib_but_never_at_nothing() {
        let large = |key: &str, bytes| Entry { key: key.into(), data: vec![0; bytes] };
        let mut queue =
            queue([large("a", MAX_BYTES - 2), large("b", 0), large("c", 0), large("d", MAX_BYTES)]);
        let batches = std::iter::from_fn(|| Some(queue.next_batch()).filter(|b| !b.is_empty()));
        let keys = batches
            .map(|batch| batch.into_iter().map(|entry| entry.key).collect::<String>())
            .collect::<Vec<_>>();
        assert_eq!(keys, ["ab", "c", "d"]);
    }

    proptest! {
        /// Whatever the service refuses, all records of each key are stored in the order in which
        /// they were created. Within a request the service may store in any order (reversed here).
        #[test]
        fn order_is_kept_per_key_under_any_refusals(
            keys in prop::collection::vec(0_u8..6, 1..200),
            refusals in prop::collection::vec(any::<bool>(), 0..400),
        ) {
            let made = keys.iter().zip(0..).map(|(key, number)| entry(&format!("k{key}"), number));
            let made = made.collect::<Vec<_>>();
            let mut queue = queue(made.clone());
            let mut refusals = refusals.into_iter();
            let mut stored = Vec::new();
            loop {
                let batch = queue.next_batch();
                if batch.is_empty() {
                    break;
                }
                prop_assert!(batch.len() <= MAX_RECORDS);
                let (refused, accepted): (Vec<_>, Vec<_>) =
                    batch.into_iter().partition(|_| refusals.next().unwrap_or(false));
                stored.extend(accepted.into_iter().rev());
                queue.give_back(refused);
            }
            prop_assert_eq!(by_key(&stored), by_key(&made));
        }
    }
}
