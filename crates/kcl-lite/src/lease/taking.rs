//! Takes whose answer never came, and what it takes to know that a lease is ours.
//!
//! Pure, the counterpart of [`tenure`](super::tenure) before there is one. The same two rules: a take
//! that is only recognised by its mark counts from the *oldest* that was sent at that counter, and a
//! refusal that carries our mark is our own take.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::{LeaseChange, LeaseKey, LeaseWrite, WriteOutcome};

/// The takes of one worker that were never answered.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Takes {
    /// At which counter, and when the oldest was sent.
    unanswered: BTreeMap<LeaseKey, (u64, Instant)>,
}

impl Takes {
    /// Nobody waits any more for the answer to `take`, first sent at `sent`: it may have been applied,
    /// or may be later.
    pub(crate) fn gave_up(&mut self, take: &LeaseWrite, sent: Instant) {
        if let LeaseChange::Take { counter, .. } = take.change {
            self.oldest(&take.key, counter, sent);
        }
    }

    /// `take`, first sent at `sent`, was answered: since when the lease is ours, if it is.
    ///
    /// It is ours if the take was applied now, or if the row is as an earlier attempt of it left it.
    /// Such a row may be as old as the first attempt: the others count from when it changed.
    pub(crate) fn answered(
        &mut self,
        take: &LeaseWrite,
        sent: Instant,
        outcome: &WriteOutcome,
    ) -> Option<Instant> {
        let LeaseChange::Take { counter, owner, .. } = &take.change else { return None };
        let since = match outcome {
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

    /// When the oldest take at `counter` was sent, counting one sent at `sent`.
    fn oldest(&mut self, key: &LeaseKey, counter: u64, sent: Instant) -> Instant {
        let oldest = self.unanswered.entry(key.clone()).or_insert((counter, sent));
        if oldest.0 != counter {
            *oldest = (counter, sent);
        }
        oldest.1
    }

    /// The counter and the instant of the oldest take of `key` that was never answered.
    #[cfg(test)]
    pub(super) fn unanswered(&self, key: &LeaseKey) -> Option<(u64, Instant)> {
        self.unanswered.get(key).copied()
    }
}
