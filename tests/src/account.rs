//! Comparison of the records sent with the records seen.
//!
//! A record is identified by its unicorn and its time, which a producer never uses twice. The
//! records sent are those in the stream; the records seen are those that the consumers have
//! printed. Pure.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

/// The identity of a producer's record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RecordId {
    /// `Name` in the record.
    #[serde(rename = "Name")]
    pub unicorn: String,
    /// `StatusTime` in the record; its text order is the order of time.
    pub status_time: String,
}

impl RecordId {
    /// Returns the record's id, if these bytes are a record of a producer.
    #[must_use]
    pub fn of(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.unicorn, self.status_time)
    }
}

/// The result of the comparison.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Account {
    /// Records in the stream.
    pub sent: usize,
    /// Those of them that were printed at least once.
    pub seen: usize,
    /// Records in the stream that were never printed.
    pub lost: Vec<RecordId>,
    /// Repeats: how often a record was printed beyond the number of times it is in the stream.
    pub repeats: usize,
    /// Records that were printed, but are not in the stream.
    pub unknown: Vec<RecordId>,
}

impl Account {
    /// Compares `sent` with `seen`.
    pub fn of<'a>(
        sent: impl IntoIterator<Item = &'a RecordId>,
        seen: impl IntoIterator<Item = &'a RecordId>,
    ) -> Self {
        let (sent, seen) = (counted(sent), counted(seen));
        let mut account = Self { sent: sent.values().sum(), ..Self::default() };
        for (id, times) in &sent {
            let printed = seen.get(id).copied().unwrap_or(0);
            account.seen += printed.min(*times);
            account.repeats += printed.saturating_sub(*times);
            account.lost.extend((printed..*times).map(|_| (*id).clone()));
        }
        let unknown = seen.keys().filter(|id| !sent.contains_key(*id));
        account.unknown = unknown.map(|id| (*id).clone()).collect();
        account
    }
}

fn counted<'a>(ids: impl IntoIterator<Item = &'a RecordId>) -> BTreeMap<&'a RecordId, usize> {
    let mut counts = BTreeMap::new();
    for id in ids {
        *counts.entry(id).or_default() += 1;
    }
    counts
}

/// Returns the first record that was printed after a later one of the same unicorn, if any. Repeats
/// are ignored: order is guaranteed for the first delivery.
pub fn first_disorder<'a>(seen: impl IntoIterator<Item = &'a RecordId>) -> Option<RecordId> {
    let mut newest: BTreeMap<&str, &RecordId> = BTreeMap::new();
    let mut known: BTreeMap<&RecordId, ()> = BTreeMap::new();
    for id in seen {
        if known.insert(id, ()).is_some() {
            continue;
        }
        if newest.get(id.unicorn.as_str()).is_some_and(|newest| *newest > id) {
            return Some(id.clone());
        }
        newest.insert(&id.unicorn, id);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<RecordId> {
        let id = |word: &str| RecordId {
            unicorn: word[..1].to_owned(),
            status_time: word[1..].to_owned(),
        };
        text.split_whitespace().map(id).collect()
    }

    fn account(sent: &str, seen: &str) -> (usize, usize, Vec<RecordId>, usize) {
        let account = Account::of(&ids(sent), &ids(seen));
        (account.sent, account.seen, account.lost, account.repeats)
    }

    #[test]
    fn every_record_is_seen_lost_or_seen_again() {
        assert_eq!(account("a1 a2 b1", "a1 b1 a2"), (3, 3, ids(""), 0));
        assert_eq!(account("a1 a2 b1", "a1 b1 b1 b1"), (3, 2, ids("a2"), 2));
    }

    #[test]
    fn a_record_stored_twice_is_expected_twice() {
        assert_eq!(account("a1 a1", "a1 a1"), (2, 2, ids(""), 0));
        assert_eq!(account("a1 a1", "a1"), (2, 1, ids("a1"), 0));
    }

    #[test]
    fn a_record_that_nobody_sent_is_named() {
        assert_eq!(Account::of(&ids("a1"), &ids("a1 x9")).unknown, ids("x9"));
    }

    #[test]
    fn order_is_per_unicorn_and_forgives_repeats() {
        assert_eq!(first_disorder(&ids("a1 b5 a2 b6 a1 a2 a3")), None);
        assert_eq!(first_disorder(&ids("a1 a3 b1 a2")), ids("a2").pop());
    }

    #[test]
    fn a_record_is_named_by_the_producers_json_only() {
        let id = RecordId::of(br#"{"Name":"S","StatusTime":"t","Distance":1}"#).unwrap();
        assert_eq!(id.to_string(), "S t");
        assert_eq!(RecordId::of(b"ouch"), None);
    }
}
