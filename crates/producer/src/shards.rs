//! The shard map: the open shards and the hash-key range of each.
//!
//! Pure, and only a prediction: resharding invalidates it, and the service decides.

use std::collections::BTreeMap;

use kpl_format::hash_key;

/// An open shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) id: String,
    /// The lowest and the highest hash key.
    pub(crate) range: (u128, u128),
}

/// The open shards of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ShardMap {
    /// Keyed by their highest hash key.
    shards: BTreeMap<u128, Shard>,
}

impl ShardMap {
    pub(crate) fn new(shards: impl IntoIterator<Item = Shard>) -> Self {
        Self { shards: shards.into_iter().map(|shard| (shard.range.1, shard)).collect() }
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.len()
    }

    /// Returns the shard that takes records of this key, if the shards cover the key.
    pub(crate) fn of(&self, key: &str) -> Option<&Shard> {
        let hash = hash_key(key);
        let (_, shard) = self.shards.range(hash..).next()?;
        (shard.range.0 <= hash).then_some(shard)
    }

    /// Returns whether a shard of this id is open.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.shards.values().any(|shard| shard.id == id)
    }

    /// Returns whether all these keys belong to the shard with this id.
    pub(crate) fn is_home<'a>(&self, id: &str, keys: impl IntoIterator<Item = &'a str>) -> bool {
        keys.into_iter().all(|key| self.of(key).is_some_and(|shard| shard.id == id))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns this many shards of equal size, numbered from `first`.
    pub(crate) fn even(first: u128, count: u128) -> ShardMap {
        let size = u128::MAX / count;
        let end = |nth| if nth + 1 == count { u128::MAX } else { (nth + 1) * size - 1 };
        ShardMap::new((0..count).map(|nth| Shard {
            id: format!("shardId-{:012}", first + nth),
            range: (nth * size, end(nth)),
        }))
    }

    #[test]
    fn a_key_belongs_to_the_shard_of_its_md5() {
        let shards = even(0, 4);
        for (key, shard) in [("Shadowfax", 1), ("Bucephalus", 3), ("Rocinante", 3), ("Sleipnir", 2)]
        {
            assert_eq!(shards.of(key).unwrap().id, format!("shardId-{shard:012}"), "{key}");
        }
        assert!(shards.is_home("shardId-000000000003", ["Bucephalus", "Rocinante"]));
        assert!(!shards.is_home("shardId-000000000003", ["Bucephalus", "Shadowfax"]));
    }

    #[test]
    fn a_key_that_no_shard_covers_belongs_nowhere() {
        let lower = Shard { id: "lower".to_owned(), range: (0, u128::MAX / 2) };
        let shards = ShardMap::new([lower]);
        assert_eq!(shards.of("Bucephalus"), None);
        assert!(shards.of("Shadowfax").is_some());
        assert_eq!(ShardMap::default().of("Shadowfax"), None);
    }
}
