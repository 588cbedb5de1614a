//! The request log: which client called what, and with which outcome.
//!
//! Owns counts per client, service, operation and outcome, so that a test can check which
//! operations a program uses, or wait until a call has been answered. Bounded: beyond [`MOST_ROWS`]
//! distinct rows every new combination is counted under the client `others`. Never stores a request
//! or a reply.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;

use crate::faults::Service;

/// A hundred clients with a hundred operations each; more come only from a program that invents
/// names.
const MOST_ROWS: usize = 10_000;

/// The client of everything beyond [`MOST_ROWS`].
const OTHERS: &str = "others";

/// A row of the log: the caller, the operation, the outcome, and the number of requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RequestCount {
    /// The name given to [`http_client`](crate::LocalAws::http_client), or the access key id.
    pub client: String,
    /// The service called.
    pub service: Service,
    /// The operation, such as `PutRecord`.
    pub operation: String,
    /// `ok`, the error code of the reply, or `no reply`.
    pub outcome: String,
    /// The number of requests with this outcome.
    pub count: u64,
}

type Row = (String, Service, String, String);

/// Counts of all requests since the start; cheap to clone, clones share the counts.
#[derive(Clone, Debug)]
pub struct RequestLog {
    rows: Arc<Mutex<BTreeMap<Row, u64>>>,
    changed: watch::Sender<()>,
}

impl RequestLog {
    pub(crate) fn new() -> Self {
        Self { rows: Arc::default(), changed: watch::Sender::new(()) }
    }

    pub(crate) fn add(&self, client: &str, service: Service, operation: &str, outcome: &str) {
        self.with_rows(|rows| {
            let mut row = (client.to_owned(), service, operation.to_owned(), outcome.to_owned());
            if rows.len() >= MOST_ROWS && !rows.contains_key(&row) {
                row = (OTHERS.to_owned(), service, OTHERS.to_owned(), OTHERS.to_owned());
            }
            *rows.entry(row).or_default() += 1;
        });
        self.changed.send_replace(());
    }

    /// Returns all counts, ordered by client, service and operation.
    #[must_use]
    pub fn counts(&self) -> Vec<RequestCount> {
        self.with_rows(|rows| {
            rows.iter()
                .map(|((client, service, operation, outcome), count)| RequestCount {
                    client: client.clone(),
                    service: *service,
                    operation: operation.clone(),
                    outcome: outcome.clone(),
                    count: *count,
                })
                .collect()
        })
    }

    /// Returns the operations that `client` has called, as `kinesis:PutRecord` or
    /// `dynamodb:UpdateItem`, which is the form of actions in policies.
    #[must_use]
    pub fn operations(&self, client: &str) -> BTreeSet<String> {
        self.with_rows(|rows| {
            rows.keys()
                .filter(|(caller, ..)| caller == client)
                .map(|(_, service, operation, _)| format!("{service}:{operation}"))
                .collect()
        })
    }

    /// Returns how many requests of `client` for `operation` (such as `PutRecord`) have completed.
    #[must_use]
    pub fn count(&self, client: &str, operation: &str) -> u64 {
        self.with_rows(|rows| {
            rows.iter()
                .filter(|((caller, _, called, _), _)| caller == client && called == operation)
                .map(|(_, count)| count)
                .sum()
        })
    }

    /// Waits until at least `count` requests of `client` for `operation` have completed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn wait_for(&self, client: &str, operation: &str, count: u64) {
        // Before the first count, so that a request in between is not missed.
        let mut changed = self.changed.subscribe();
        while self.count(client, operation) < count {
            if changed.changed().await.is_err() {
                // Unreachable, because `self` owns the sender; but the loop must not spin.
                return;
            }
        }
    }

    /// Resets all counts.
    pub fn clear(&self) {
        self.with_rows(BTreeMap::clear);
    }

    fn with_rows<T>(&self, f: impl FnOnce(&mut BTreeMap<Row, u64>) -> T) -> T {
        f(&mut self.rows.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_named_as_policies_name_actions() {
        let log = RequestLog::new();
        log.add("a", Service::Kinesis, "PutRecord", "ok");
        log.add("a", Service::DynamoDb, "UpdateItem", "ok");
        log.add("b", Service::Kinesis, "GetRecords", "ok");
        let operations: Vec<_> = log.operations("a").into_iter().collect();
        assert_eq!(operations, ["dynamodb:UpdateItem", "kinesis:PutRecord"]);
    }

    #[test]
    fn made_up_names_do_not_grow_the_log_without_bound() {
        let log = RequestLog::new();
        for i in 0..MOST_ROWS + 500 {
            log.add(&format!("client-{i}"), Service::Kinesis, "PutRecord", "ok");
        }
        let counts = log.counts();
        assert!(counts.len() <= MOST_ROWS + 2, "{}", counts.len());
        assert_eq!(log.count(OTHERS, OTHERS), 500);
    }
}
