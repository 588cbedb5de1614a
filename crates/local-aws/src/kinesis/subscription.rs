//! The active subscriptions: at most one session per consumer and shard, the newest.

use std::collections::BTreeMap;

use crate::kinesis::sequence::ShardNumber;

/// How long a subscription keeps its place against another one.
pub(super) const EXCLUSIVE_MS: i64 = 5_000;
/// The duration of a subscription; the consumer then subscribes again.
pub(super) const SESSION_MS: i64 = 300_000;

/// The owner of a subscription: the consumer's ARN and the shard.
pub(super) type Subscriber = (String, ShardNumber);

/// The identity of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SessionId(u64);

#[derive(Debug)]
struct Session {
    id: SessionId,
    started_ms: i64,
}

/// The newest session of each consumer and shard.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    newest: BTreeMap<Subscriber, Session>,
    last_id: u64,
}

impl Subscriptions {
    /// Begins a session that replaces an older one, unless that is too young.
    pub(super) fn begin(&mut self, subscriber: Subscriber, now_ms: i64) -> Option<SessionId> {
        self.newest.retain(|_, session| now_ms - session.started_ms < SESSION_MS);
        let earlier = self.newest.get(&subscriber);
        if earlier.is_some_and(|session| now_ms - session.started_ms < EXCLUSIVE_MS) {
            return None;
        }
        self.last_id += 1;
        let id = SessionId(self.last_id);
        self.newest.insert(subscriber, Session { id, started_ms: now_ms });
        Some(id)
    }

    /// Returns whether no later session has replaced this one.
    pub(super) fn is_newest(&self, subscriber: &Subscriber, id: SessionId) -> bool {
        // An absent entry means that the time of the session is over, and not that it was replaced.
        self.newest.get(subscriber).is_none_or(|session| session.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_young_session_keeps_its_place_and_an_older_one_is_replaced() {
        let mut subscriptions = Subscriptions::default();
        let subscriber = ("arn".to_owned(), ShardNumber(0));
        let first = subscriptions.begin(subscriber.clone(), 0).unwrap();
        assert_eq!(subscriptions.begin(subscriber.clone(), 4_999), None);
        assert!(subscriptions.is_newest(&subscriber, first));
        let second = subscriptions.begin(subscriber.clone(), 5_000).unwrap();
        assert!(!subscriptions.is_newest(&subscriber, first));
        assert!(subscriptions.is_newest(&subscriber, second));
    }

    #[test]
    fn finished_sessions_are_forgotten() {
        let mut subscriptions = Subscriptions::default();
        for shard in 0..100 {
            subscriptions.begin(("arn".to_owned(), ShardNumber(shard)), i64::from(shard)).unwrap();
        }
        subscriptions.begin(("arn".to_owned(), ShardNumber(0)), SESSION_MS + 1_000).unwrap();
        assert_eq!(subscriptions.newest.len(), 1);
    }
}
