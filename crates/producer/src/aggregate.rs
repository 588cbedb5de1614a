//! Packs records of one shard into one Kinesis record, in the format of the Kinesis Producer
//! Library.
//!
//! Pure. A request contains at most one aggregate per shard, and records leave the queue in the
//! order in which they were added. Therefore a record is never overtaken by a later record of its
//! key, neither when the service refuses a part of a request nor when it stores that part in
//! another order.

use std::collections::BTreeMap;
use std::time::Duration;

use kpl_format::Packer;
use tokio::time::Instant;

use crate::batch::{Entry, MAX_BYTES, Packed, Parcel, Queue};
use crate::shards::ShardMap;

/// The KPL's default. The service bills in steps of 25 KiB, so that larger aggregates save nothing.
/// The size bounds what is sent again after a lost reply and what a consumer must hold, and with
/// any key it is far below the service's 1 MiB.
pub(crate) const MOST_BYTES: usize = 50 * 1024;

/// The largest number of aggregates, keys included, that fits into a request.
const MOST_PARCELS: usize = MAX_BYTES / (MOST_BYTES + 1024);

/// How long a record may wait for others; the KPL's default.
pub(crate) const MOST_WAIT: Duration = Duration::from_millis(100);

/// Returns whether the waiting records have to be sent now: they fill an aggregate, or the oldest
/// would wait too long if it waited for the next tick.
pub(crate) fn is_due(waiting_bytes: usize, oldest: Instant, next_tick: Instant) -> bool {
    waiting_bytes >= MOST_BYTES || next_tick.saturating_duration_since(oldest) > MOST_WAIT
}

impl Queue {
    /// Takes the records of the next request, packed; empty if nothing waits.
    ///
    /// A record that is the only one of its shard, or whose shard is unknown, is not packed.
    pub(crate) fn next_packed(&mut self, shards: &ShardMap) -> Vec<Parcel> {
        let mut open: BTreeMap<&str, Building> = BTreeMap::new();
        let (mut left, mut full) = (Vec::new(), 0);
        // At least one, because without listed shards all records form one group.
        while full < shards.len().clamp(1, MOST_PARCELS)
            && let Some(entry) = self.waiting.pop_front()
        {
            // Keys without a known shard form one group, because their order must be kept too.
            let home = shards.of(&entry.key).map_or("", |shard| &shard.id);
            // Groups are only added, so that later records of this shard are left too, in their
            // order.
            if open.len() == MOST_PARCELS && !open.contains_key(home) {
                left.push(entry);
                continue;
            }
            let building = open.entry(home).or_default();
            let was_full = building.is_full;
            left.extend(building.take(entry, home.is_empty()));
            full += usize::from(building.is_full && !was_full);
        }
        self.give_back(left);
        open.into_iter().map(|(shard, building)| building.finish(shard)).collect()
    }
}

/// The records of one shard in the request that is being built.
struct Building {
    packer: Packer,
    entries: Vec<Entry>,
    is_full: bool,
}

impl Default for Building {
    fn default() -> Self {
        Self { packer: Packer::new(MOST_BYTES), entries: Vec::new(), is_full: false }
    }
}

impl Building {
    /// Adds the entry, or returns it if there is no room; from then on every later entry is
    /// returned too.
    fn take(&mut self, entry: Entry, alone: bool) -> Option<Entry> {
        if self.is_full {
            return Some(entry);
        }
        let fits = self.packer.push(&entry.key, None, &entry.data);
        self.is_full = alone || !fits;
        // A record larger than an aggregate is sent alone and not packed.
        if !fits && !self.entries.is_empty() {
            return Some(entry);
        }
        self.entries.push(entry);
        None
    }

    fn finish(self, shard: &str) -> Parcel {
        let data = self.packer.finish().filter(|_| self.entries.len() > 1);
        let packed = data.map(|data| Packed { shard: shard.to_owned(), data });
        Parcel { entries: self.entries, packed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::tests::{by_key, entry, queue};
    use crate::shards::tests::even;
    use kpl_format::Aggregate;
    use proptest::prelude::*;

    /// Returns the records that a consumer of this parcel reads.
    fn unpacked(parcel: &Parcel) -> Vec<Entry> {
        let Some(packed) = &parcel.packed else { return parcel.entries.clone() };
        let aggregate = Aggregate::read(packed.data.clone()).unwrap();
        let entry = |record: kpl_format::UserRecord<'_>| Entry {
            key: record.partition_key.to_owned(),
            data: record.data.to_vec(),
        };
        aggregate.records().map(entry).collect()
    }

    #[test]
    fn a_shard_gets_one_aggregate_with_its_keys_in_order() {
        let names = ["Shadowfax", "Bucephalus", "Rocinante", "Shadowfax", "Sleipnir"];
        let mut queue = queue(names.iter().zip(0..).map(|(name, number)| entry(name, number)));
        let shards = even(0, 4);
        let parcels = queue.next_packed(&shards);
        assert_eq!(queue.next_packed(&shards), []);
        let shown = |parcel: &Parcel| {
            let all = unpacked(parcel).into_iter();
            all.map(|it| format!("{}{}", it.key, String::from_utf8(it.data).unwrap())).collect()
        };
        let shown: Vec<Vec<String>> = parcels.iter().map(shown).collect();
        assert_eq!(
            shown,
            [
                vec!["Shadowfax0".to_owned(), "Shadowfax3".to_owned()],
                vec!["Sleipnir4".to_owned()],
                vec!["Bucephalus1".to_owned(), "Rocinante2".to_owned()],
            ]
        );
        assert_eq!(parcels[1].packed, None, "alone, as it is");
        let packed = parcels[2].packed.as_ref().unwrap();
        assert_eq!(packed.shard, "shardId-000000000003");
        assert_eq!(shards.of(parcels[2].key()).unwrap().id, packed.shard, "there it is sent");
    }

    #[test]
    fn an_aggregate_is_bounded_and_the_rest_of_its_shard_waits() {
        let records = (0..1000).map(|number| Entry { data: vec![0; 200], ..entry("a", number) });
        let mut queue = queue(records);
        let shards = even(0, 2);
        let mut sizes = Vec::new();
        loop {
            let parcels = queue.next_packed(&shards);
            let Some(parcel) = parcels.first() else { break };
            assert_eq!(parcels.len(), 1, "one of a shard in a request");
            assert!(parcel.packed.as_ref().unwrap().data.len() <= MOST_BYTES);
            sizes.push(parcel.entries.len());
        }
        assert!(sizes.len() == 5 && sizes[0] > 240, "{sizes:?}");
    }

    #[test]
    fn a_small_record_does_not_overtake_a_large_one_that_had_no_room() {
        let sizes = [40_000, 20_000, 1_000];
        let record = |(number, size)| Entry { data: vec![0; size], ..entry("a", number) };
        let mut queue = queue(sizes.into_iter().enumerate().map(record));
        assert_eq!(queue.next_packed(&even(0, 2))[0].entries.len(), 1);
        assert_eq!(queue.next_packed(&even(0, 2))[0].entries.len(), 2);
    }

    #[test]
    fn what_is_larger_than_an_aggregate_or_of_no_shard_goes_as_it_is_and_alone() {
        let large = |number| Entry { data: vec![0; MOST_BYTES], ..entry("a", number) };
        let mut large_ones = queue([large(0), large(1), entry("a", 2)]);
        let mut homeless = queue([entry("a", 0), entry("b", 1), entry("c", 2)]);
        for _ in 0..3 {
            for parcels in
                [large_ones.next_packed(&even(0, 1)), homeless.next_packed(&ShardMap::default())]
            {
                assert_eq!((parcels.len(), parcels[0].entries.len()), (1, 1));
                assert_eq!(parcels[0].packed, None);
            }
        }
        assert!(large_ones.next_packed(&even(0, 1)).is_empty());
    }

    #[test]
    fn a_record_waits_for_others_but_not_for_long() {
        let now = Instant::now();
        let next_tick = |millis| now + Duration::from_millis(millis);
        assert!(is_due(0, now, next_tick(1000)), "a unicorn's one record a second");
        assert!(!is_due(MOST_BYTES - 1, now, next_tick(100)));
        assert!(is_due(MOST_BYTES, now, next_tick(1)));
        assert!(is_due(0, now, next_tick(101)));
    }

    proptest! {
        /// Whatever is refused, and although the stream is resharded meanwhile: all records are
        /// stored, those of a key in order, and no request contains two parcels of a shard.
        #[test]
        fn order_is_kept_per_key_under_any_refusals_and_reshards(
            keys in prop::collection::vec(0_u8..40, 1..300),
            refusals in prop::collection::vec(any::<bool>(), 0..100),
            shards in prop::collection::vec(1_u128..7, 1..6),
            size in 1_usize..4000,
        ) {
            let made = keys.iter().zip(0..).map(|(key, number)| {
                let mut entry = entry(&format!("k{key}"), number);
                entry.data.resize(size * (1 + number % 5), b' ');
                entry
            });
            let made: Vec<_> = made.collect();
            let mut queue = queue(made.clone());
            let (mut refusals, mut shards) = (refusals.into_iter(), shards.into_iter().cycle());
            let mut stored = Vec::new();
            loop {
                let parcels = queue.next_packed(&even(0, shards.next().unwrap()));
                if parcels.is_empty() {
                    break;
                }
                let mut refused = Vec::new();
                for parcel in parcels.into_iter().rev() {
                    prop_assert_eq!(&unpacked(&parcel), &parcel.entries);
                    if refusals.next().unwrap_or(false) {
                        refused.splice(0..0, parcel.entries);
                    } else {
                        stored.extend(parcel.entries);
                    }
                }
                queue.give_back(refused);
            }
            prop_assert_eq!(by_key(&stored), by_key(&made));
        }
    }
}
