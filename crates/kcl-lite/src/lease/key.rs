//! The key of a lease row, which contains the shard and, with several streams, the stream.
//!
//! A worker of one stream keys its leases by shard ID; a worker of several streams prefixes the stream, as
//! the Java KCL does. The parents and children in a row are plain shard IDs, so their keys are derived from
//! the key of that row. Pure.

use std::fmt;
use std::sync::Arc;

pub use crate::record::LeaseKey;
use crate::record::{ShardId, Timestamp};

/// The stream part of a lease key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct StreamKey(Option<Arc<str>>);

impl StreamKey {
    /// The only stream of a worker, whose leases are keyed by the shard ID alone.
    pub const ONLY: Self = Self(None);

    /// Creates the key of one of several streams from the three parts of the Java KCL's stream identifier:
    /// account, name, and the second of its creation.
    #[must_use]
    pub fn of_several(account: &str, name: &str, created: Timestamp) -> Self {
        let epoch = created.as_millis().div_euclid(1_000);
        Self(Some(format!("{account}:{name}:{epoch}").into()))
    }

    /// Returns `account:stream:epoch`, or `None` for the only stream.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// Returns whether this is the key of a stream that was deleted and re-created as `other`: account and
    /// name are equal, and this one was created earlier.
    pub(crate) fn is_former_of(&self, other: &Self) -> bool {
        let parts = self.parts().zip(other.parts());
        parts.is_some_and(|(one, other)| one.0 == other.0 && one.1 < other.1)
    }

    /// Returns account and name, and the second of the creation.
    fn parts(&self) -> Option<(&str, i64)> {
        let (name, epoch) = self.as_str()?.rsplit_once(':')?;
        Some((name, epoch.parse().ok()?))
    }

    /// Returns the lease key of a shard of this stream.
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
    /// Returns the shard ID, which never contains a colon.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        let text = self.as_str();
        text.rsplit_once(':').map_or(text, |(_, shard)| shard).into()
    }

    /// Returns the stream part.
    #[must_use]
    pub fn stream(&self) -> StreamKey {
        StreamKey(self.as_str().rsplit_once(':').map(|(stream, _)| stream.into()))
    }

    /// Returns the key of another shard of the same stream.
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
