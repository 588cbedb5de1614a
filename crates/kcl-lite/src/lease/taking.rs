//! Takes whose reply was lost, and how a worker finds out that a lease is its own.
//!
//! Pure, the counterpart of [`tenure`](super::tenure) before a tenure starts. The same two rules
//! apply: a take that is only recognised by its mark counts from the *oldest* take that was sent at
//! that counter, and a refusal that carries our mark is our own take.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::{LeaseChange, LeaseKey, LeaseWrite, WriteOutcome};

/// The unanswered takes of one worker.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Takes {
    /// For each lease, the counter of the take and when the oldest one at that counter was sent.
    unanswered: BTreeMap<LeaseKey, (u64, Instant)>,
}

impl Takes {
    /// Records that the worker no longer waits for the reply to `take`, first sent at `sent`: the
    /// table may have applied it, or may still apply it later.
    pub(crate) fn gave_up(&mut self, take: &LeaseWrite, sent: Instant) {
        if let LeaseChange::Take { counter, .. } = take.change {
            self.oldest(&take.key, counter, sent);
        }
    }

    /// Processes the reply to `take`, first sent at `sent`, and returns since when the lease is ours,
    /// if it is.
    ///
    /// It is ours if the take was applied now, or if the row is as an earlier attempt of the take
    /// left it. Such a row may be as old as the first attempt, because other workers count from when
    /// it changed.
    pub(crate) fn answered(
        &mut self,
        take: &LeaseWrite,
        sent: Instant,
        outcome: &WriteOutcome,
    ) -> Option<Instant> {
        let LeaseChange::Take { counter, owner, .. } = &take.change else { return None };
        let since = match outcome {
            // The counter was unchanged, so no earlier take at it was applied.
            WriteOutcome::Done(Some(_)) => sent,
            WriteOutcome::Refused(Some(row))
                if row.owner.as_ref() == Some(owner)
                    && row.checkpoint_owner.is_none()
                    && row.write_id.as_ref() == Some(&take.id) =>
            {
                self.oldest(&take.key, *counter, sent)
            }
            WriteOutcome::Done(None) | WriteOutcome::Refused(_) => return None,
        };
        self.unanswered.remove(&take.key);
        Some(since)
    }

    /// Returns when the oldest take at `counter` was sent, including the one sent at `sent`.
    fn oldest(&mut self, key: &LeaseKey, counter: u64, sent: Instant) -> Instant {
        let oldest = self.unanswered.entry(key.clone()).or_insert((counter, sent));
        // A take at an earlier counter can no longer be applied.
        if oldest.0 != counter {
            *oldest = (counter, sent);
        }
        oldest.1
    }

    /// Returns the counter and the instant of the oldest unanswered take of `key`.
    #[cfg(test)]
    pub(super) fn unanswered(&self, key: &LeaseKey) -> Option<(u64, Instant)> {
        self.unanswered.get(key).copied()
    }
}
