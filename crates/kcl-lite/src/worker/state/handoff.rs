//! Leases that go from one live worker to another: asking, waiting, letting go.
//!
//! The asking worker becomes the owner in the row and waits; the old one drains, stores its
//! checkpoint and hands over. Past a deadline the lease is taken: there is no state of a row in which
//! nobody may act. What was asked for is told by the rows alone, so that a worker that restarts, or
//! never heard an answer, goes on where it was.

use std::time::Duration;

use tokio::time::Instant;

use super::{Action, Sight, State, Why, scan_interval};
use crate::event::{Event, TakeReason};
use crate::lease::balance::Take;
use crate::lease::tenure::write_id;
use crate::lease::{Lease, LeaseChange, LeaseKey, LeaseWrite};
use crate::record::WorkerId;

/// How long an owner that was asked for a lease has to let go, as in the KCL; then it is taken.
pub(crate) const HANDOFF_DEADLINE: Duration = Duration::from_secs(30);
/// How soon to look again while a lease is being handed over.
pub(super) const HANDOFF_SCAN: Duration = Duration::from_millis(250);

/// A table that is read so often is small.
const SMALL: Duration = Duration::from_secs(1);
/// How many rows are looked at at once.
const LOOKS: usize = 64;

/// A request for a lease that has been answered with yes.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) since: Instant,
    /// The owner's counter at that time.
    pub(super) counter: u64,
    /// When its row was last looked at by itself.
    pub(super) looked: Instant,
}

impl State {
    /// While stopping: leases that were handed over to us are taken, and `taken` gives them back.
    pub(super) fn take_what_was_asked_for(&mut self) -> Vec<Action> {
        let handed = self.asked.keys().filter(|key| {
            self.leases.get(*key).is_some_and(|lease| {
                lease.owner.as_ref() == Some(&self.me) && lease.checkpoint_owner.is_none()
            })
        });
        let handed: Vec<_> = handed.cloned().collect();
        let takes = handed.into_iter().map(|key| Take { key, reason: TakeReason::Own });
        takes.filter_map(|take| self.begin_take(take)).collect()
    }

    pub(super) fn ask(&mut self, key: LeaseKey, counter: u64, from: WorkerId) -> Action {
        let id = write_id(&self.incarnation, counter);
        let to = self.me.clone();
        let change = LeaseChange::AskHandoff { counter, from: from.clone(), to };
        // Until the answer comes nothing else is tried with this lease.
        self.mine.insert(key.clone());
        Action::Write(LeaseWrite { key, id, change }, Why::Ask { from })
    }

    /// Shards of ours that another worker has asked for.
    pub(super) fn let_go(&self) -> Vec<Action> {
        let asked = self.mine.iter().filter(|key| {
            self.leases.get(*key).is_some_and(|lease| {
                lease.checkpoint_owner.as_ref() == Some(&self.me)
                    && lease.owner.as_ref() != Some(&self.me)
            })
        });
        asked.cloned().map(Action::Drain).collect()
    }

    /// Forgets what is no longer being handed over; looks again soon at what is.
    pub(super) fn follow_handoffs(&mut self, now: Instant) {
        let (me, leases, observations) = (&self.me, &self.leases, &self.observations);
        // What is held or being taken is not waited for any more.
        let mine = &self.mine;
        self.asked.retain(|key, asked| {
            // A scan that was under way when we asked shows the row as it was before.
            leases.get(key).is_some_and(|lease| {
                // A worker that stops does not wait for an owner that died.
                let is_dead = self.stopping
                    && observations.unchanged_for(now, lease) >= self.settings.lease_duration;
                !is_dead
                    && !mine.contains(key)
                    && (lease.owner.as_ref() == Some(me) || lease.counter <= asked.counter)
            })
        });
        // Asked for in an earlier life, or by a request whose every reply was lost.
        for lease in self.leases.values().filter(|lease| lease.owner.as_ref() == Some(me)) {
            let is_pending = lease.checkpoint_owner.as_ref().is_some_and(|owner| owner != me);
            if is_pending && !mine.contains(&lease.key) {
                let asked = Asked { since: now, counter: lease.counter, looked: now };
                self.asked.entry(lease.key.clone()).or_insert(asked);
            }
        }
        if !self.asked.is_empty() {
            self.look_again_soon(now);
        }
    }

    /// A small table is read as a whole; of a large one, which is read every few seconds, only the rows
    /// that are waited for.
    fn look_again_soon(&mut self, now: Instant) {
        let soon = now + HANDOFF_SCAN;
        if scan_interval(self.leases.len(), self.settings.lease_duration) <= SMALL {
            self.next_scan = self.next_scan.min(soon);
        } else {
            self.next_look.get_or_insert(soon);
        }
    }

    /// Looks at rows that are waited for, those that were not looked at for longest first.
    pub(super) fn look_at_handoffs(&mut self, now: Instant) -> Vec<Action> {
        if self.next_look.is_none_or(|due| now < due) {
            return Vec::new();
        }
        let (mine, writing) = (&self.mine, &self.writing);
        let waiting = self.asked.iter_mut();
        let mut waiting: Vec<_> =
            waiting.filter(|(key, _)| !mine.contains(*key) && !writing.contains(*key)).collect();
        waiting.sort_by_key(|(_, asked)| asked.looked);
        self.next_look = (!waiting.is_empty()).then_some(now + HANDOFF_SCAN);
        let looks = waiting.into_iter().take(LOOKS).map(|(key, asked)| {
            asked.looked = now;
            Action::Look(key.clone())
        });
        looks.collect()
    }

    /// One row, read by itself. A row that is being written meanwhile is told by that write's answer.
    pub(super) fn looked(
        &mut self,
        now: Instant,
        key: &LeaseKey,
        row: Option<Lease>,
    ) -> Vec<Action> {
        if row.is_none() || self.mine.contains(key) || self.writing.contains(key) {
            return Vec::new();
        }
        self.remember(now, key, row);
        self.take(now, Sight::Old)
    }

    /// Leases whose owners were asked and have not let go in time.
    pub(super) fn overdue(&self, now: Instant) -> Vec<Take> {
        let waiting = self.asked.iter().filter(|(key, asked)| {
            let pending =
                self.leases.get(*key).is_some_and(|lease| lease.checkpoint_owner.is_some());
            pending && !self.mine.contains(*key) && now >= asked.since + HANDOFF_DEADLINE
        });
        waiting.map(|(key, _)| Take { key: key.clone(), reason: TakeReason::Balance }).collect()
    }

    pub(super) fn asked_for(&mut self, now: Instant, key: LeaseKey, from: WorkerId) -> Vec<Action> {
        // A refusal that shows us as the next owner is our own request, whose reply was lost.
        let asked = self.leases.get(&key).filter(|lease| {
            lease.owner.as_ref() == Some(&self.me) && lease.checkpoint_owner.as_ref() == Some(&from)
        });
        let Some(counter) = asked.map(|lease| lease.counter) else { return Vec::new() };
        self.asked.insert(key.clone(), Asked { since: now, counter, looked: now });
        self.look_again_soon(now);
        vec![Action::Emit(Event::HandoffAsked { shard: key, from })]
    }
}

/// Whether the owner of `lease` knows what to do when it is asked: it is the one who wrote last, by the
/// counter in its mark, and left a mark of this library. Others leave an older mark where it is; and a
/// lease that was handed over to one of them (by a Java 3 leader's wish) has the old owner's.
pub(super) fn understands_handoff(lease: &Lease) -> bool {
    let mark = lease.write_id.as_ref().zip(lease.actual_owner());
    mark.is_some_and(|(id, owner)| id.is_of(owner) && id.counter() == lease.counter.checked_sub(1))
}
