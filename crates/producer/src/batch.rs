//! Which records go into the next request, and where refused ones go.
//!
//! Pure. PutRecords may refuse some records of a request and store others, and promises nothing
//! about their order, so two records of one key in one request could change places. A batch
//! therefore holds at most one record per key, and a refused record returns to its old place: no
//! record is ever overtaken by a later one of its key. Exactly one batch is out at a time.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

/// PutRecords takes at most 500 records.
pub(crate) const MAX_RECORDS: usize = 500;

/// PutRecords took at most 5 MiB, data and keys together, for most of its life. The limit is higher
/// today, but our records of 200 bytes never come near either, and emulators keep the old one.
pub(crate) const MAX_BYTES: usize = 5 * 1024 * 1024;

/// One record on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) data: Vec<u8>,
}

/// One Kinesis record on its way: a record as it is, or several in an aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parcel {
    /// Never none; one if not packed.
    pub(crate) entries: Vec<Entry>,
    pub(crate) packed: Option<Packed>,
}

/// An aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packed {
    /// The shard that all its records belong to, as far as is known.
    pub(crate) shard: String,
    pub(crate) data: Bytes,
}

impl From<Entry> for Parcel {
    fn from(entry: Entry) -> Self {
        Self { entries: vec![entry], packed: None }
    }
}

impl Parcel {
    /// The partition key: that of the first record, which brings the others to its shard.
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

/// Records not yet stored, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) waiting: VecDeque<Entry>,
}

impl Queue {
    /// Adds a record behind all others.
    pub(crate) fn push(&mut self, entry: Entry) {
        self.waiting.push_back(entry);
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The size of what waits.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(Entry::size_bytes).sum()
    }

    /// Takes the records of the next request; empty when nothing waits.
    ///
    /// A single record larger than the limit is handed out alone: the service gives the reason.
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
            // Also marks the key when the record must wait, which changes nothing: it is there.
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

    /// Puts records that were taken out back to the front, in the order given.
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

    /// The data of each key, in order.
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
        /// Whatever the service refuses, each key's records are stored in the order they were
        /// made, and all of them. Within a request the service may store in any order (reversed
        /// here).
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
