//! The key of a lease row, and what it says about stream and shard.
//!
//! A worker of one stream keys its leases by shard id; a worker of several puts the stream before
//! it, as the Java KCL does. Everything else in a row (parents, children) names bare shard ids, so
//! looking up a relative needs the stream of the row it stands in. Pure.

use std::fmt;
use std::sync::Arc;

pub use crate::record::LeaseKey;
use crate::record::{ShardId, Timestamp};

/// Which stream of a worker a lease belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct StreamKey(Option<Arc<str>>);

impl StreamKey {
    /// The stream of a worker that reads only one: its leases are keyed by shard id alone.
    pub const ONLY: Self = Self(None);

    /// One of several streams, by the three parts that the Java KCL calls a stream identifier:
    /// account, name, and the second of its creation.
    #[must_use]
    pub fn of_several(account: &str, name: &str, created: Timestamp) -> Self {
        let epoch = created.as_millis().div_euclid(1_000);
        Self(Some(format!("{account}:{name}:{epoch}").into()))
    }

    /// `account:stream:epoch`, or `None` for the only stream.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// Whether both are several streams' keys of one account and name, and this one is of a stream that
    /// was made earlier.
    pub(crate) fn is_former_of(&self, other: &Self) -> bool {
        let parts = self.parts().zip(other.parts());
        parts.is_some_and(|(one, other)| one.0 == other.0 && one.1 < other.1)
    }

    /// Account and name, and the second of the creation.
    fn parts(&self) -> Option<(&str, i64)> {
        let (name, epoch) = self.as_str()?.rsplit_once(':')?;
        Some((name, epoch.parse().ok()?))
    }

    /// The key of the lease of one of this stream's shards.
    #[must_use]
    pub fn lease(&self, shard: &ShardId) -> LeaseKey {
        match &self.0 {
            None => LeaseKey::from(shard.as_str()),
            Some(stream) => LeaseKey::from(format!("{stream}:{shard}")),
        }
    }
}

impl fmt::Display for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str().unwrap_or("the stream"))
    }
}

impl LeaseKey {
    /// The shard. No shard id has a colon in it.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        let text = self.as_str();
        text.rsplit_once(':').map_or(text, |(_, shard)| shard).into()
    }

    /// The stream.
    #[must_use]
    pub fn stream(&self) -> StreamKey {
        StreamKey(self.as_str().rsplit_once(':').map(|(stream, _)| stream.into()))
    }

    /// The key of another shard of the same stream.
    #[must_use]
    pub fn sibling(&self, shard: &ShardId) -> Self {
        self.stream().lease(shard)
    }
}

impl From<ShardId> for LeaseKey {
    fn from(shard: ShardId) -> Self {
        StreamKey::ONLY.lease(&shard)
    }
}

impl PartialEq<ShardId> for LeaseKey {
    fn eq(&self, shard: &ShardId) -> bool {
        self.as_str() == shard.as_str()
    }
}

impl PartialEq<LeaseKey> for ShardId {
    fn eq(&self, key: &LeaseKey) -> bool {
        key == self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_stream_and_its_shard() {
        let only = StreamKey::ONLY.lease(&"shardId-0".into());
        assert_eq!((only.as_str(), only.stream()), ("shardId-0", StreamKey::ONLY));
        let created = Timestamp::from_millis(1_700_000_000_999);
        let stream = StreamKey::of_several("123456789012", "rides", created);
        let key = stream.lease(&"shardId-0".into());
        assert_eq!(key.as_str(), "123456789012:rides:1700000000:shardId-0");
        assert_eq!((key.shard(), key.stream()), ("shardId-0".into(), stream));
        let sibling = key.sibling(&"shardId-1".into());
        assert_eq!(sibling.as_str(), "123456789012:rides:1700000000:shardId-1");
    }
}
