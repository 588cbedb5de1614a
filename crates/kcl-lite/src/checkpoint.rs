//! What has been acknowledged: the window between what a shard delivered and what it may store.
//!
//! Owns the low-watermark rule: a position may be stored only when it and everything delivered
//! before it is acknowledged. Tokens may be acknowledged in any order and from any task; a token
//! that is dropped means failure. Never writes a checkpoint, only names it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::position::Position;
use crate::record::Record;

/// The acknowledgement of a batch, or of one record of it.
///
/// Dropping it un-acknowledged is a negative acknowledgement: the shard starts again after the last
/// acknowledged record.
#[must_use = "dropping the token means failure"]
pub struct Ack {
    window: AckWindow,
    entry: u64,
    generation: u32,
    part: usize,
    armed: bool,
}

impl Ack {
    /// Marks the records as processed. Has no effect once the shard is lost or started again.
    pub fn acknowledge(mut self) {
        self.armed = false;
        self.window.settle(self.entry, self.generation, self.part, true);
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        if self.armed {
            self.window.settle(self.entry, self.generation, self.part, false);
        }
    }
}

impl fmt::Debug for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ack").field("entry", &self.entry).field("part", &self.part).finish()
    }
}

/// The right to take a batch's acknowledgement over; held by the batch while it is processed.
#[derive(Debug)]
pub(crate) struct Deferral {
    window: AckWindow,
    entry: u64,
    generation: u32,
}

impl Deferral {
    /// One token for the whole batch.
    pub(crate) fn whole(&self) -> Ack {
        self.window.lock().split(self.entry, self.generation, None);
        self.token(0)
    }

    /// One token per record.
    pub(crate) fn per_record(&self, records: &[Record]) -> Vec<Ack> {
        let parts = records.iter().map(|record| Part::open(Position::of(record))).collect();
        self.window.lock().split(self.entry, self.generation, Some(parts));
        (0..records.len()).map(|part| self.token(part)).collect()
    }

    fn token(&self, part: usize) -> Ack {
        Ack {
            window: self.window.clone(),
            entry: self.entry,
            generation: self.generation,
            part,
            armed: true,
        }
    }
}

/// The window of one shard task. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct AckWindow {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

/// A batch that has been put into the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delivered(u64);

impl AckWindow {
    /// Notes that `records` (never empty) are about to be delivered.
    pub(crate) fn deliver(&self, records: &[Record]) -> Delivered {
        let last = records.last().expect("a batch has at least one record");
        let mut state = self.lock();
        state.entries.push_back(Entry {
            records: records.len(),
            generation: 0,
            deferred: false,
            failed: false,
            parts: vec![Part::open(Position::of(last))],
        });
        Delivered(state.first + state.entries.len() as u64 - 1)
    }

    /// The deferral to hand out with one attempt at the batch. Tokens of earlier attempts no longer count.
    pub(crate) fn attempt(&self, delivered: Delivered) -> Deferral {
        let mut state = self.lock();
        let entry = state.entry(delivered.0).expect("an attempt is made at an open batch");
        entry.generation += 1;
        entry.deferred = false;
        entry.failed = false;
        if let Some(last) = entry.parts.pop() {
            entry.parts = vec![Part::open(last.position)];
        }
        let generation = entry.generation;
        Deferral { window: self.clone(), entry: delivered.0, generation }
    }

    /// The attempt succeeded: acknowledges the batch unless its acknowledgement was taken over.
    pub(crate) fn succeeded(&self, delivered: Delivered) {
        let mut state = self.lock();
        if let Some(entry) = state.entry(delivered.0)
            && !entry.deferred
        {
            entry.parts.iter_mut().for_each(|part| part.acknowledged = true);
        }
        state.advance();
    }

    /// The newest position that may be stored.
    pub(crate) fn watermark(&self) -> Option<Position> {
        self.lock().watermark.clone()
    }

    /// How many delivered records are not yet acknowledged.
    pub(crate) fn in_flight(&self) -> usize {
        self.lock().entries.iter().map(|entry| entry.records).sum()
    }

    /// Whether a token was dropped.
    pub(crate) fn has_failed(&self) -> bool {
        let state = self.lock();
        state.failed || state.entries.iter().any(|entry| entry.failed)
    }

    /// What is not acknowledged now never will be.
    pub(crate) fn fail(&self) {
        self.lock().failed = true;
    }

    /// From now on tokens have no effect.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
    }

    /// Completes when a token has been settled since the last call.
    ///
    /// # Cancel safety
    /// A change that happens while nobody waits is kept for the next call.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn settle(&self, entry: u64, generation: u32, part: usize, acknowledged: bool) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        if let Some(entry) = state.entry(entry)
            && entry.generation == generation
        {
            if !acknowledged {
                entry.failed = true;
            } else if let Some(part) = entry.parts.get_mut(part) {
                part.acknowledged = true;
                state.advance();
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of a processor never happens while the lock is held, so the state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct State {
    entries: VecDeque<Entry>,
    /// The number of `entries[0]`.
    first: u64,
    watermark: Option<Position>,
    failed: bool,
    closed: bool,
}

#[derive(Debug)]
struct Entry {
    records: usize,
    generation: u32,
    deferred: bool,
    /// A token of the present attempt was dropped.
    failed: bool,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    position: Position,
    acknowledged: bool,
}

impl Part {
    fn open(position: Position) -> Self {
        Self { position, acknowledged: false }
    }
}

impl State {
    fn entry(&mut self, number: u64) -> Option<&mut Entry> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.entries.get_mut(index)
    }

    fn split(&mut self, number: u64, generation: u32, parts: Option<Vec<Part>>) {
        if let Some(entry) = self.entry(number)
            && entry.generation == generation
        {
            entry.deferred = true;
            if let Some(parts) = parts {
                entry.parts = parts;
            }
        }
    }

    /// Moves the watermark over everything that is acknowledged without a hole.
    fn advance(&mut self) {
        while let Some(entry) = self.entries.front() {
            let done = entry.parts.iter().take_while(|part| part.acknowledged).count();
            if let Some(part) = done.checked_sub(1).and_then(|last| entry.parts.get(last)) {
                self.watermark = Some(part.position.clone());
            }
            if done < entry.parts.len() {
                return;
            }
            self.entries.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::record::Timestamp;

    fn records(numbers: std::ops::Range<u64>) -> Vec<Record> {
        numbers
            .map(|number| Record {
                sequence_number: number.to_string().parse().unwrap(),
                sub_sequence_number: 0,
                partition_key: String::new(),
                data: Bytes::new(),
                arrived: Timestamp::from_millis(0),
            })
            .collect()
    }

    fn watermark(window: &AckWindow) -> Option<String> {
        window.watermark().map(|position| position.to_string())
    }

    #[test]
    fn a_batch_that_succeeds_moves_the_watermark_to_its_last_record() {
        let window = AckWindow::default();
        let delivered = window.deliver(&records(1..4));
        let _deferral = window.attempt(delivered);
        assert_eq!(watermark(&window), None);
        window.succeeded(delivered);
        assert_eq!(watermark(&window).as_deref(), Some("3"));
        assert_eq!(window.in_flight(), 0);
    }

    #[test]
    fn the_watermark_stops_before_the_first_record_that_is_not_acknowledged() {
        let window = AckWindow::default();
        let (first, second) = (records(1..4), records(4..6));
        let one = window.deliver(&first);
        let mut acks = window.attempt(one).per_record(&first);
        window.succeeded(one);
        let two = window.deliver(&second);
        let _deferral = window.attempt(two);
        window.succeeded(two);

        acks.remove(2).acknowledge();
        assert_eq!(watermark(&window), None, "record 3 is done, 1 and 2 are not");
        acks.remove(0).acknowledge();
        assert_eq!(watermark(&window).as_deref(), Some("1"));
        assert_eq!(window.in_flight(), 5);
        acks.remove(0).acknowledge();
        assert_eq!(watermark(&window).as_deref(), Some("5"));
        assert!(!window.has_failed());
    }

    #[test]
    fn a_dropped_token_is_a_failure_and_moves_nothing() {
        let window = AckWindow::default();
        let delivered = window.deliver(&records(1..2));
        let ack = window.attempt(delivered).whole();
        window.succeeded(delivered);
        drop(ack);
        assert!(window.has_failed());
        assert_eq!(watermark(&window), None);
    }

    #[test]
    fn a_token_dropped_by_a_failed_attempt_does_not_fail_the_next_one() {
        let window = AckWindow::default();
        let delivered = window.deliver(&records(1..2));
        drop(window.attempt(delivered).whole());
        assert!(window.has_failed());
        let second = window.attempt(delivered).whole();
        assert!(!window.has_failed());
        window.succeeded(delivered);
        second.acknowledge();
        assert_eq!(watermark(&window).as_deref(), Some("1"));
    }

    #[test]
    fn tokens_of_an_earlier_attempt_or_of_a_closed_window_do_not_count() {
        let window = AckWindow::default();
        let delivered = window.deliver(&records(1..2));
        let stale = window.attempt(delivered).whole();
        let fresh = window.attempt(delivered).whole();
        stale.acknowledge();
        assert_eq!(watermark(&window), None);
        window.close();
        fresh.acknowledge();
        assert_eq!(watermark(&window), None);
    }
}
