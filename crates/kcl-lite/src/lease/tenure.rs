//! The tenure of one worker on one lease: how long it may rely on it, and what a reply of the table
//! means.
//!
//! Pure: the lease keeper makes the calls. It owns two rules. Validity counts from when a write was
//! *sent*. A write whose reply was lost, and which is recognised later by its mark on the row,
//! extends validity only from the *oldest* unanswered write at that counter, because the counter may
//! have changed then and other workers count from that change.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::{
    Lease, LeaseChange, LeaseUpdate, LeaseWrite, PendingChange, WriteId, WriteOutcome,
    counter_after,
};
use crate::record::{ShardId, WorkerId};

/// Returns the mark of this worker's write at `counter`.
///
/// All attempts at one counter share it: whichever was applied, the row then carries the mark.
pub(crate) fn write_id(incarnation: &str, counter: u64) -> WriteId {
    WriteId::new(format!("{incarnation}:{counter}"))
}

/// Returns the mark of this worker's take at `counter`. It differs from that of other writes, so that
/// a late renewal or release of an earlier tenure is not mistaken for a take.
pub(crate) fn take_id(incarnation: &str, counter: u64) -> WriteId {
    WriteId::new(format!("{incarnation}:take:{counter}"))
}

/// Returns the write that creates a row.
pub(crate) fn create_write(lease: Lease, incarnation: &str) -> LeaseWrite {
    LeaseWrite {
        key: lease.key.clone(),
        id: write_id(incarnation, lease.counter),
        change: LeaseChange::Create(Box::new(lease)),
    }
}

/// Returns the write that removes a row of a stream that no longer exists.
pub(crate) fn discard_write(row: &Lease, incarnation: &str) -> LeaseWrite {
    LeaseWrite {
        key: row.key.clone(),
        id: write_id(incarnation, row.counter),
        change: LeaseChange::Discard { counter: row.counter },
    }
}

/// Returns whether another incarnation of the worker `me` left `mark`.
pub(crate) fn is_by_other_life(mark: &WriteId, me: &WorkerId, incarnation: &str) -> bool {
    // With the sign that follows, because one worker ID can be the beginning of another.
    let starts = |with: &str, sign| {
        mark.as_str().strip_prefix(with).is_some_and(|rest| rest.starts_with(sign))
    };
    starts(me.as_str(), '#') && !starts(incarnation, ':')
}

/// The tenure of a lease that this worker has taken.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Tenure {
    lease: Lease,
    me: WorkerId,
    incarnation: String,
    lease_duration: Duration,
    margin: Duration,
    /// When the last confirmed write was sent.
    valid_from: Instant,
    /// When the oldest unanswered write at the current counter was sent.
    unanswered_since: Option<Instant>,
}

/// What the owner wants to achieve with its next write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Keep the lease.
    Keep,
    /// Release the lease, or hand it over if a handoff is requested.
    Release,
    /// Finish the shard, whose children these are.
    Finish(BTreeSet<ShardId>),
}

/// What a reply means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The row is ours and was written; `reached` tells whether the write reached its goal.
    Held { reached: bool },
    /// Another worker has requested a handoff since, or has withdrawn its request; nothing was
    /// written.
    OtherSuccessor,
    /// The row does not exist. No worker took it, so the owner re-creates it.
    Vanished,
    /// Another worker owns the lease, or it was released without this worker.
    Lost { to: Option<WorkerId> },
}

impl Tenure {
    /// Starts a tenure with the row that a take, sent at `sent`, has written.
    pub(crate) fn new(
        lease: Lease,
        sent: Instant,
        me: WorkerId,
        incarnation: String,
        lease_duration: Duration,
        margin: Duration,
    ) -> Self {
        debug_assert!(lease.owner.as_ref() == Some(&me), "a tenure starts with our own row");
        Self {
            lease,
            me,
            incarnation,
            lease_duration,
            margin,
            valid_from: sent,
            unanswered_since: None,
        }
    }

    /// Returns the row as last known.
    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Returns when the last confirmed write was sent.
    pub(crate) fn valid_from(&self) -> Instant {
        self.valid_from
    }

    /// Returns when the oldest unanswered write at the current counter was sent.
    #[cfg(test)]
    pub(super) fn unanswered_since(&self) -> Option<Instant> {
        self.unanswered_since
    }

    /// Returns the fence: when this worker must have stopped unless a write is confirmed before. It
    /// is a margin earlier than the time at which any other worker may take the lease.
    pub(crate) fn fenced_at(&self) -> Instant {
        self.valid_from + self.lease_duration - self.margin
    }

    /// Returns the next write towards `goal`, with the fields of `wanted` that are newer than the
    /// row.
    pub(crate) fn write(&self, goal: &Goal, wanted: &LeaseUpdate) -> LeaseWrite {
        let counter = self.lease.counter;
        let update = self.update(wanted);
        let change = match goal {
            Goal::Keep => LeaseChange::Renew { counter, owner: self.me.clone(), update },
            Goal::Release => match self.asked_by() {
                Some(to) => LeaseChange::HandOver { counter, update, to: to.clone() },
                None => LeaseChange::Release { counter, update },
            },
            // Without `update`: the shard end covers every position and every prepared checkpoint.
            Goal::Finish(children) => LeaseChange::Finish { counter, children: children.clone() },
        };
        LeaseWrite { key: self.lease.key.clone(), id: write_id(&self.incarnation, counter), change }
    }

    /// Nothing stored moves back, and a prepared checkpoint stays until the checkpoint has reached
    /// it.
    fn update(&self, wanted: &LeaseUpdate) -> LeaseUpdate {
        let checkpoint = wanted.checkpoint.clone().filter(|update| *update > self.lease.checkpoint);
        let newest = checkpoint.as_ref().unwrap_or(&self.lease.checkpoint);
        let reached = self.lease.pending.as_ref().is_some_and(|it| it.checkpoint <= *newest);
        let pending = match &wanted.pending {
            PendingChange::Keep if reached => PendingChange::Clear,
            PendingChange::Keep => PendingChange::Keep,
            PendingChange::Prepare(pending) => PendingChange::Prepare(pending.clone()),
            PendingChange::Clear => PendingChange::Clear,
        };
        let read_until = wanted.read_until.filter(|update| Some(*update) > self.lease.read_until);
        LeaseUpdate { checkpoint, pending, read_until, throughput: wanted.throughput }
    }

    /// Returns the worker that has requested a handoff of this lease, according to the row.
    pub(crate) fn asked_by(&self) -> Option<&WorkerId> {
        self.lease.owner.as_ref().filter(|_| self.lease.checkpoint_owner.as_ref() == Some(&self.me))
    }

    /// Returns the write that re-creates a vanished row with its newest position.
    pub(crate) fn write_again(&self, wanted: &LeaseUpdate) -> LeaseWrite {
        let mut lease = self.lease.clone();
        // Counter and mark are those of a renewal, so that `is_ours` recognizes the row after a
        // lost reply.
        lease.counter = counter_after(lease.counter, 1);
        if let Some(update) = self.update(wanted).checkpoint {
            lease.checkpoint = update;
        }
        LeaseWrite {
            key: lease.key.clone(),
            id: write_id(&self.incarnation, self.lease.counter),
            change: LeaseChange::Create(Box::new(lease)),
        }
    }

    /// Records that a write is sent at `now`.
    pub(crate) fn sent(&mut self, now: Instant) {
        // Keeps the oldest: all attempts at one counter carry the same mark, so a row does not show
        // which of them was applied.
        self.unanswered_since.get_or_insert(now);
    }

    /// Processes the reply to the write that was sent at `sent`.
    pub(crate) fn answered(
        &mut self,
        sent: Instant,
        outcome: WriteOutcome,
        goal: &Goal,
    ) -> Verdict {
        match outcome {
            WriteOutcome::Done(Some(row)) => self.hold(row, sent, goal),
            WriteOutcome::Refused(Some(row)) if self.is_ours(&row) => {
                let since = self.unanswered_since.unwrap_or(self.valid_from);
                self.hold(row, since, goal)
            }
            // Nothing was written: the validity does not change, and the oldest unanswered write
            // may still be applied.
            WriteOutcome::Refused(Some(row)) if self.has_other_successor(&row) => {
                self.lease = row;
                Verdict::OtherSuccessor
            }
            WriteOutcome::Refused(Some(row)) => Verdict::Lost { to: row.owner },
            WriteOutcome::Refused(None) => Verdict::Vanished,
            WriteOutcome::Done(None) => Verdict::Lost { to: None },
        }
    }

    fn hold(&mut self, row: Lease, valid_from: Instant, goal: &Goal) -> Verdict {
        self.valid_from = valid_from;
        // The counter has moved on, so earlier attempts can no longer be applied.
        self.unanswered_since = None;
        // The row decides: a write that is recognized by its mark may be an earlier renewal, which
        // released nothing.
        let reached = match goal {
            Goal::Keep => true,
            Goal::Release => row.actual_owner() != Some(&self.me),
            Goal::Finish(_) => row.checkpoint.is_shard_end(),
        };
        debug_assert!(reached || row.actual_owner() == Some(&self.me), "a held row is ours");
        self.lease = row;
        Verdict::Held { reached }
    }

    /// A request and its withdrawal do not change the counter, so a row at our counter of which we
    /// are the actual owner is still ours.
    fn has_other_successor(&self, row: &Lease) -> bool {
        row.counter == self.lease.counter && row.actual_owner() == Some(&self.me)
    }

    fn is_ours(&self, row: &Lease) -> bool {
        row.counter == counter_after(self.lease.counter, 1)
            && row.write_id.as_ref() == Some(&write_id(&self.incarnation, self.lease.counter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Checkpoint;

    const SECOND: Duration = Duration::from_secs(1);

    fn tenure(start: Instant) -> Tenure {
        let lease = Lease {
            owner: Some("me".into()),
            counter: 7,
            ..Lease::new("shardId-0", Checkpoint::TrimHorizon)
        };
        Tenure::new(lease, start, "me".into(), "me#1".into(), 10 * SECOND, SECOND)
    }

    fn applied(tenure: &Tenure, write: &LeaseWrite) -> Lease {
        write.apply(Some(tenure.lease())).unwrap().unwrap()
    }

    #[test]
    fn validity_counts_from_the_sending_of_the_confirmed_write() {
        let start = Instant::now();
        let mut tenure = tenure(start);
        assert_eq!(tenure.fenced_at(), start + 9 * SECOND);
        let row = applied(&tenure, &tenure.write(&Goal::Keep, &LeaseUpdate::default()));
        tenure.sent(start + 3 * SECOND);
        let verdict =
            tenure.answered(start + 3 * SECOND, WriteOutcome::Done(Some(row)), &Goal::Keep);
        assert_eq!(verdict, Verdict::Held { reached: true });
        assert_eq!(tenure.fenced_at(), start + 12 * SECOND);
    }

    #[test]
    fn a_write_recognised_later_extends_validity_only_from_the_oldest_unanswered_one() {
        let start = Instant::now();
        let mut tenure = tenure(start);
        let row = applied(&tenure, &tenure.write(&Goal::Keep, &LeaseUpdate::default()));
        tenure.sent(start + 3 * SECOND); // applied, reply lost
        tenure.sent(start + 6 * SECOND);
        let verdict =
            tenure.answered(start + 6 * SECOND, WriteOutcome::Refused(Some(row)), &Goal::Keep);
        assert_eq!(verdict, Verdict::Held { reached: true });
        assert_eq!(tenure.fenced_at(), start + 12 * SECOND, "not 15: others saw the counter at 3");
    }

    #[test]
    fn a_row_with_another_mark_is_lost_even_with_the_expected_counter() {
        let start = Instant::now();
        let mut tenure = tenure(start);
        let mut row = applied(&tenure, &tenure.write(&Goal::Keep, &LeaseUpdate::default()));
        row.write_id = Some(WriteId::new("other#1:7"));
        row.owner = Some("other".into());
        tenure.sent(start);
        let verdict = tenure.answered(start, WriteOutcome::Refused(Some(row)), &Goal::Keep);
        assert_eq!(verdict, Verdict::Lost { to: Some("other".into()) });
    }

    #[test]
    fn a_release_that_finds_its_own_lost_renewal_has_not_released_yet() {
        let start = Instant::now();
        let mut tenure = tenure(start);
        let renewed = applied(&tenure, &tenure.write(&Goal::Keep, &LeaseUpdate::default()));
        tenure.sent(start);
        tenure.sent(start + SECOND);
        let outcome = WriteOutcome::Refused(Some(renewed));
        let verdict = tenure.answered(start + SECOND, outcome, &Goal::Release);
        assert_eq!(verdict, Verdict::Held { reached: false });
        assert_eq!(tenure.lease().counter, 8);
    }

    #[test]
    fn a_row_that_vanished_is_written_again_with_its_newest_position() {
        let start = Instant::now();
        let mut tenure = tenure(start);
        tenure.sent(start);
        assert_eq!(
            tenure.answered(start, WriteOutcome::Refused(None), &Goal::Keep),
            Verdict::Vanished
        );
        let update = Checkpoint::parse("55", 0).unwrap();
        let row = tenure
            .write_again(&LeaseUpdate::of(Some(update.clone())))
            .apply(None)
            .unwrap()
            .unwrap();
        assert_eq!((row.counter, &row.checkpoint, row.owner.is_some()), (8, &update, true));
        let verdict = tenure.answered(start, WriteOutcome::Done(Some(row)), &Goal::Keep);
        assert_eq!(verdict, Verdict::Held { reached: true });
    }

    #[test]
    fn a_lease_that_was_asked_for_is_handed_to_the_one_who_asked() {
        let start = Instant::now();
        let mut tenure = tenure(start);
        let ask = LeaseWrite {
            key: tenure.lease().key.clone(),
            id: WriteId::new("next#1:7"),
            change: LeaseChange::RequestHandoff {
                counter: 7,
                from: "me".into(),
                to: "next".into(),
            },
        };
        let asked = applied(&tenure, &ask);
        let renewed = tenure
            .write(&Goal::Keep, &LeaseUpdate::default())
            .apply(Some(&asked))
            .unwrap()
            .unwrap();
        tenure.sent(start);
        tenure.answered(start, WriteOutcome::Done(Some(renewed)), &Goal::Keep);
        assert_eq!(tenure.asked_by(), Some(&"next".into()));

        let row = applied(&tenure, &tenure.write(&Goal::Release, &LeaseUpdate::default()));
        assert_eq!((row.actual_owner(), row.counter), (Some(&"next".into()), 9));
        tenure.sent(start);
        let verdict = tenure.answered(start, WriteOutcome::Done(Some(row)), &Goal::Release);
        assert_eq!(verdict, Verdict::Held { reached: true });
    }

    #[test]
    fn a_release_that_did_not_know_of_a_request_becomes_a_handover() {
        let start = Instant::now();
        let mut tenure = tenure(start);
        let ask = LeaseChange::RequestHandoff { counter: 7, from: "me".into(), to: "next".into() };
        let ask = LeaseWrite { key: "shardId-0".into(), id: WriteId::new("next#1:7"), change: ask };
        let asked = applied(&tenure, &ask);
        let refused =
            tenure.write(&Goal::Release, &LeaseUpdate::default()).apply(Some(&asked)).unwrap_err();
        tenure.sent(start + SECOND);
        let outcome = WriteOutcome::Refused(refused.current.map(|row| *row));
        assert_eq!(
            tenure.answered(start + SECOND, outcome, &Goal::Release),
            Verdict::OtherSuccessor
        );
        assert_eq!(tenure.fenced_at(), start + 9 * SECOND, "nothing was written");
        let change = tenure.write(&Goal::Release, &LeaseUpdate::default()).change;
        assert!(matches!(change, LeaseChange::HandOver { counter: 7, .. }), "{change:?}");
    }

    #[test]
    fn a_handover_that_did_not_know_of_a_withdrawal_becomes_a_release() {
        let start = Instant::now();
        let mut tenure = tenure(start);
        tenure.lease.checkpoint_owner = tenure.lease.owner.replace("next".into());
        let hand_over = tenure.write(&Goal::Release, &LeaseUpdate::default());
        assert!(matches!(hand_over.change, LeaseChange::HandOver { .. }), "{hand_over:?}");
        let change = LeaseChange::WithdrawHandoff { from: "me".into(), to: "next".into() };
        let withdrawal =
            LeaseWrite { key: "shardId-0".into(), id: WriteId::new("next#1:7"), change };
        let withdrawn = applied(&tenure, &withdrawal);
        assert_eq!((withdrawn.counter, withdrawn.owner.clone()), (7, Some("me".into())));

        let refused = hand_over.apply(Some(&withdrawn)).unwrap_err();
        tenure.sent(start + SECOND);
        let outcome = WriteOutcome::Refused(refused.current.map(|row| *row));
        let verdict = tenure.answered(start + SECOND, outcome, &Goal::Release);
        assert_eq!(verdict, Verdict::OtherSuccessor);
        let change = tenure.write(&Goal::Release, &LeaseUpdate::default()).change;
        assert!(matches!(change, LeaseChange::Release { counter: 7, .. }), "{change:?}");
        assert!(withdrawal.apply(Some(&withdrawn)).is_err(), "there is nothing left to withdraw");
    }

    #[test]
    fn a_renewal_that_was_lost_is_recognised_although_another_worker_has_asked_since() {
        let start = Instant::now();
        let mut tenure = tenure(start);
        let renewed = applied(&tenure, &tenure.write(&Goal::Keep, &LeaseUpdate::default()));
        let ask = LeaseChange::RequestHandoff { counter: 8, from: "me".into(), to: "next".into() };
        let ask =
            LeaseWrite { key: renewed.key.clone(), id: WriteId::new("next#1:8"), change: ask };
        let asked = ask.apply(Some(&renewed)).unwrap();
        tenure.sent(start);
        tenure.sent(start + SECOND);
        let outcome = WriteOutcome::Refused(asked);
        let verdict = tenure.answered(start + SECOND, outcome, &Goal::Keep);
        assert_eq!(verdict, Verdict::Held { reached: true });
    }

    #[test]
    fn an_acknowledgement_that_is_no_news_is_not_written() {
        let tenure = tenure(Instant::now());
        let write = tenure.write(&Goal::Keep, &LeaseUpdate::of(Some(Checkpoint::TrimHorizon)));
        assert_eq!(
            write.change,
            LeaseChange::Renew { counter: 7, owner: "me".into(), update: LeaseUpdate::default() }
        );
    }
}
