//! Handoffs between two live workers: request, wait, drain.
//!
//! The requesting worker becomes the owner in the row and waits; the old one drains, stores its
//! checkpoint and hands off. Past a deadline the requester takes the lease over: in every state of a row
//! some worker may act. Requests are stored in the rows alone, so a worker that restarts, or whose reply
//! was lost, continues where it was. A stopping worker withdraws its requests.

use std::time::Duration;

use tokio::time::Instant;

use super::data::{Action, Freshness, HandoffRequest, State, Why};
use crate::event::{Event, TakeReason};
use crate::lease::balance::Take;
use crate::lease::tenure::write_id;
use crate::lease::timing::{HANDOFF_DEADLINE, HANDOFF_SCAN, scan_interval};
use crate::lease::{Lease, LeaseChange, LeaseKey, LeaseWrite};
use crate::record::WorkerId;

/// A table whose scan interval is at most this is small.
const SMALL: Duration = Duration::from_secs(1);
/// How many rows are read individually at the same time; the others follow at the next look.
const LOOKS: usize = 64;
/// How many takes of one overdue lease follow each other without a pause, each by the row in the refusal
/// of the previous one. An owner that wins all these races loses one soon after the next look.
const TAKES_IN_A_ROW: u32 = 8;

impl State {
    /// Withdraws the handoff requests while stopping or draining, without waiting for the owners. A lease
    /// that has been handed over by now is taken, and [`State::taken`] releases it.
    pub(super) fn abandon_requests(&mut self) -> Vec<Action> {
        // A request that is being written is withdrawn when its reply arrives.
        let open = self.asked.iter().filter(|(key, _)| !self.is_being_written(key));
        let open: Vec<_> = open.map(|(key, asked)| (key.clone(), asked.from.clone())).collect();
        open.into_iter().filter_map(|(key, from)| self.abandon_request(key, from)).collect()
    }

    fn abandon_request(&mut self, key: LeaseKey, from: WorkerId) -> Option<Action> {
        if self.is_handed_over(&key) {
            return self.begin_take(Take { key, reason: TakeReason::Own });
        }
        if self.leases.get(&key).is_some_and(|lease| !understands_handoff(lease)) {
            // Requested by a leader of another library, whose workers do not know withdrawals.
            if self.stopping {
                self.asked.remove(&key);
            }
            return None;
        }
        let id = write_id(&self.incarnation, self.asked.get(&key)?.counter);
        // Not conditional on the counter, because the owner continues to write.
        let change = LeaseChange::WithdrawHandoff { from, to: self.me.clone() };
        self.writing.insert(key.clone());
        Some(Action::Write(LeaseWrite { key, id, change }, Why::Withdraw))
    }

    /// Handles the reply to a withdrawal, which contains the current row.
    pub(super) fn withdrawn(&mut self, key: &LeaseKey) -> Vec<Action> {
        if self.is_handed_over(key) {
            return self.abandon_requests();
        }
        self.asked.remove(key);
        Vec::new()
    }

    fn is_handed_over(&self, key: &LeaseKey) -> bool {
        self.leases.get(key).is_some_and(|lease| {
            lease.owner.as_ref() == Some(&self.me) && lease.checkpoint_owner.is_none()
        })
    }

    /// Returns whether a write to the row is in progress. Only one is allowed at a time: two replies could
    /// arrive in the wrong order, and the older row would win.
    pub(super) fn is_being_written(&self, key: &LeaseKey) -> bool {
        self.mine.contains(key) || self.writing.contains(key)
    }

    pub(super) fn ask(&mut self, key: LeaseKey, counter: u64, from: WorkerId) -> Action {
        let id = write_id(&self.incarnation, counter);
        let to = self.me.clone();
        let change = LeaseChange::RequestHandoff { counter, from: from.clone(), to };
        // Until the reply arrives, nothing else is done with this lease.
        self.mine.insert(key.clone());
        Action::Write(LeaseWrite { key, id, change }, Why::Ask { from })
    }

    /// Drains the held shards whose handoff another worker has requested.
    pub(super) fn release(&self) -> Vec<Action> {
        let asked = self.mine.iter().filter(|key| {
            self.leases.get(*key).is_some_and(|lease| {
                lease.checkpoint_owner.as_ref() == Some(&self.me)
                    && lease.owner.as_ref() != Some(&self.me)
            })
        });
        asked.cloned().map(Action::Drain).collect()
    }

    /// Forgets requests that are settled; reads the rows of the pending ones again soon.
    pub(super) fn follow_handoffs(&mut self, now: Instant) {
        let (me, leases) = (&self.me, &self.leases);
        // A held lease is no longer waited for; one that is being taken may still be refused.
        let (mine, taking) = (&self.mine, &self.taking);
        self.asked.retain(|key, asked| {
            // A scan that started before the request shows the row from before it.
            leases.get(key).is_some_and(|lease| {
                (!mine.contains(key) || taking.contains(key))
                    && (lease.owner.as_ref() == Some(me) || lease.counter <= asked.counter)
            })
        });
        // Requested by an earlier incarnation, or by a request whose every reply was lost.
        for lease in self.leases.values().filter(|lease| lease.owner.as_ref() == Some(me)) {
            let from = lease.checkpoint_owner.as_ref().filter(|owner| *owner != me);
            if let Some(from) = from.filter(|_| !mine.contains(&lease.key)) {
                let asked = || HandoffRequest::new(now, from.clone(), lease.counter);
                self.asked.entry(lease.key.clone()).or_insert_with(asked);
            }
        }
        self.asked.values_mut().for_each(|asked| asked.refused = 0);
        if !self.asked.is_empty() {
            self.look_again_soon(now);
        }
    }

    /// Schedules the next look at pending rows: a small table is scanned; of a large one, whose scans are
    /// seconds apart, only the pending rows are read.
    fn look_again_soon(&mut self, now: Instant) {
        let soon = now + HANDOFF_SCAN;
        if scan_interval(self.leases.len(), self.settings.lease_duration) <= SMALL {
            self.next_scan = self.next_scan.min(soon);
        } else {
            self.next_look.get_or_insert(soon);
        }
    }

    /// Reads pending rows individually, the least recently read first.
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
            asked.refused = 0;
            Action::Look(key.clone())
        });
        looks.collect()
    }

    /// Handles the individual read of a row. If the row is being written, the reply to that write is newer.
    pub(super) fn looked(
        &mut self,
        now: Instant,
        key: &LeaseKey,
        row: Option<Lease>,
    ) -> Vec<Action> {
        // Whether a row is absent or its read has failed is left to the next scan.
        if row.is_none() || self.is_being_written(key) {
            return Vec::new();
        }
        self.remember(now, key, row);
        self.take(now, Freshness::Stale)
    }

    /// Returns the takeovers of leases that were not handed off before the deadline.
    pub(super) fn overdue(&self, now: Instant) -> Vec<Take> {
        let waiting = self.asked.iter().filter(|(key, asked)| {
            // Without an old owner in the row it has been handed over, and is taken as this
            // worker's own.
            let pending =
                self.leases.get(*key).is_some_and(|lease| lease.checkpoint_owner.is_some());
            pending && !self.is_being_written(key) && now >= asked.since + HANDOFF_DEADLINE
        });
        waiting.map(|(key, _)| Take { key: key.clone(), reason: TakeReason::Balance }).collect()
    }

    /// Retries a refused takeover at once, by the row in the refusal: an owner that writes often would
    /// refuse every take that is based on an older row.
    pub(super) fn take_overdue_again(&mut self, now: Instant, key: &LeaseKey) -> Vec<Action> {
        if self.stopping || self.draining {
            return self.abandon_requests();
        }
        let Some(asked) = self.asked.get_mut(key) else { return Vec::new() };
        asked.refused += 1;
        if asked.refused >= TAKES_IN_A_ROW {
            return Vec::new();
        }
        let overdue = self.overdue(now).into_iter().find(|take| take.key == *key);
        overdue.and_then(|take| self.begin_take(take)).into_iter().collect()
    }

    pub(super) fn asked_for(&mut self, now: Instant, key: LeaseKey, from: WorkerId) -> Vec<Action> {
        // A refusal that shows this worker as the next owner is its own request, whose reply was lost.
        let asked = self.leases.get(&key).filter(|lease| {
            lease.owner.as_ref() == Some(&self.me) && lease.checkpoint_owner.as_ref() == Some(&from)
        });
        let Some(counter) = asked.map(|lease| lease.counter) else { return Vec::new() };
        self.asked.insert(key.clone(), HandoffRequest::new(now, from.clone(), counter));
        self.look_again_soon(now);
        let mut actions = vec![Action::Emit(Event::HandoffRequested { shard: key, from })];
        if self.stopping || self.draining {
            actions.extend(self.abandon_requests());
        }
        actions
    }
}

/// Returns whether the owner of `lease` understands handoff requests: the counter in the mark shows that
/// it wrote last, with a mark of this library. Other libraries leave an older mark in place; and a lease
/// that a Java 3 leader had handed off to one of their workers carries the old owner's mark.
pub(super) fn understands_handoff(lease: &Lease) -> bool {
    let mark = lease.write_id.as_ref().zip(lease.actual_owner());
    mark.is_some_and(|(id, owner)| id.is_of(owner) && id.counter() == lease.counter.checked_sub(1))
}
