//! What has been acknowledged: the window between what a shard delivered and what it may store.
//!
//! Owns the low-watermark rule: a position may be stored only when it and everything delivered
//! before it is acknowledged. Tokens may be acknowledged in any order and from any task; a token
//! that is dropped means failure. Never writes a checkpoint, only names it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::budget::Permit;
use crate::mutant;
use crate::position::Position;
use crate::record::{Record, Timestamp};

/// The acknowledgement of a batch, or of one record of it.
///
/// Dropping it un-acknowledged is a negative acknowledgement: the shard starts again after the last
/// acknowledged record.
#[must_use = "dropping the token means failure"]
pub struct Ack {
    window: AckWindow,
    delivered: Delivered,
    part: usize,
    armed: bool,
}

impl Ack {
    /// Marks the records as processed. Has no effect once the shard is lost or started again.
    pub fn acknowledge(mut self) {
        self.armed = false;
        self.window.settle(self.delivered, self.part, true);
    }

    /// Whether acknowledging has no effect any more: the shard was lost, released or started again, or
    /// the attempt that the token came with has failed.
    ///
    /// Its records are then delivered again, here or by another worker. A sink that works through a
    /// queue asks this before each record, so that it does not do twice what is only queued. The answer
    /// may be out of date as soon as it is given.
    #[must_use]
    pub fn is_void(&self) -> bool {
        let mut state = self.window.lock();
        state.closed || state.entry(self.delivered).is_none()
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        if self.armed {
            self.window.settle(self.delivered, self.part, mutant::is("dropped-tokens-acknowledge"));
        }
    }
}

impl fmt::Debug for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ack")
            .field("entry", &self.delivered.entry)
            .field("part", &self.part)
            .finish()
    }
}

/// The right to take a batch's acknowledgement over; held by the batch while it is processed.
#[derive(Debug)]
pub(crate) struct Deferral {
    window: AckWindow,
    delivered: Delivered,
}

impl Deferral {
    /// One token for the whole batch.
    pub(crate) fn whole(&self) -> Ack {
        self.window.lock().defer(self.delivered, None);
        self.token(0)
    }

    /// One token per record.
    pub(crate) fn per_record(&self, records: &[Record]) -> Vec<Ack> {
        let parts = records.iter().map(Part::open).collect();
        self.window.lock().defer(self.delivered, Some(parts));
        (0..records.len()).map(|part| self.token(part)).collect()
    }

    fn token(&self, part: usize) -> Ack {
        Ack { window: self.window.clone(), delivered: self.delivered, part, armed: true }
    }
}

/// The newest record that is acknowledged together with everything before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) position: Position,
    /// When the service received it, if that is known.
    pub(crate) arrived: Option<Timestamp>,
}

/// The window of one shard task. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct AckWindow {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

/// A batch in the window: its number, which may be used again after it was withdrawn, and the
/// number of the attempt, which is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delivered {
    entry: u64,
    attempt: u64,
}

impl AckWindow {
    /// An empty window of a shard that is acknowledged up to `mark`.
    pub(crate) fn after(mark: Option<Mark>) -> Self {
        let state = State { mark, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), changed: Arc::default() }
    }

    /// Notes that `records` (never empty) are about to be delivered.
    pub(crate) fn deliver(&self, records: &[Record]) -> (Delivered, Deferral) {
        let last = records.last().expect("a batch has at least one record");
        let mut state = self.lock();
        state.attempts += 1;
        let delivered =
            Delivered { entry: state.first + state.entries.len() as u64, attempt: state.attempts };
        state.entries.push_back(Entry {
            records: records.len(),
            attempt: delivered.attempt,
            deferred: false,
            failed: None,
            parts: vec![Part::open(last)],
            memory: None,
        });
        (delivered, Deferral { window: self.clone(), delivered })
    }

    /// The batch keeps `memory` in use until it leaves the window, or the window is closed.
    pub(crate) fn hold(&self, delivered: Delivered, memory: Arc<Permit>) {
        if let Some(entry) = self.lock().entry(delivered) {
            entry.memory = Some(memory);
        }
    }

    /// The attempt succeeded: acknowledges the batch unless its acknowledgement was taken over.
    pub(crate) fn succeeded(&self, delivered: Delivered) {
        let mut state = self.lock();
        if let Some(entry) = state.entry(delivered)
            && !entry.deferred
        {
            entry.parts.iter_mut().for_each(|part| part.acknowledged = true);
        }
        state.advance();
    }

    /// The attempt failed: takes the batch, which was the last one delivered, out again. Its tokens
    /// have no effect any more.
    pub(crate) fn withdraw(&self, delivered: Delivered) {
        let mut state = self.lock();
        if state.entry(delivered).is_some() {
            state.entries.pop_back();
        }
    }

    /// How far everything is acknowledged.
    pub(crate) fn mark(&self) -> Option<Mark> {
        self.lock().mark.clone()
    }

    /// Everything up to `mark` is acknowledged, by word of the processor, before anything is
    /// delivered.
    pub(crate) fn start_after(&self, mark: Mark) {
        self.lock().mark = Some(mark);
    }

    /// How many delivered records are not yet acknowledged.
    pub(crate) fn in_flight(&self) -> usize {
        self.lock().entries.iter().map(|entry| entry.records).sum()
    }

    /// The record whose token was dropped, or the last one that the token stood for.
    pub(crate) fn failed_at(&self) -> Option<Position> {
        self.lock().entries.iter().find_map(|entry| entry.failed.clone())
    }

    /// From now on tokens have no effect, and keep no memory in use.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.entries.iter_mut().for_each(|entry| entry.memory = None);
    }

    /// Closes the window when the guard is dropped.
    pub(crate) fn close_on_drop(&self) -> impl Drop + use<> {
        CloseOnDrop(self.clone())
    }

    /// Whether tokens have no effect any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Completes when a token has been settled since the last call.
    ///
    /// # Cancel safety
    /// A change that happens while nobody waits is kept for the next call.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn settle(&self, delivered: Delivered, part: usize, acknowledged: bool) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        if let Some(entry) = state.entry(delivered)
            && let Some(part) = entry.parts.get_mut(part)
        {
            if acknowledged {
                part.acknowledged = true;
                state.advance();
            } else {
                entry.failed.get_or_insert_with(|| part.mark.position.clone());
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

struct CloseOnDrop(AckWindow);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[derive(Debug, Default)]
struct State {
    entries: VecDeque<Entry>,
    /// The number of `entries[0]`.
    first: u64,
    /// Attempts made so far.
    attempts: u64,
    mark: Option<Mark>,
    closed: bool,
}

#[derive(Debug)]
struct Entry {
    records: usize,
    attempt: u64,
    deferred: bool,
    /// A token was dropped.
    failed: Option<Position>,
    parts: Vec<Part>,
    /// What the reply takes that the records came with.
    memory: Option<Arc<Permit>>,
}

#[derive(Debug)]
struct Part {
    mark: Mark,
    acknowledged: bool,
}

impl Part {
    fn open(record: &Record) -> Self {
        let mark = Mark { position: Position::of(record), arrived: Some(record.arrived) };
        Self { mark, acknowledged: false }
    }
}

impl State {
    /// The batch, if this attempt at it is the present one.
    fn entry(&mut self, delivered: Delivered) -> Option<&mut Entry> {
        let index = usize::try_from(delivered.entry.checked_sub(self.first)?).ok()?;
        let any = mutant::is("tokens-of-earlier-attempts-count");
        self.entries.get_mut(index).filter(|entry| entry.attempt == delivered.attempt || any)
    }

    fn defer(&mut self, delivered: Delivered, parts: Option<Vec<Part>>) {
        if let Some(entry) = self.entry(delivered) {
            entry.deferred = true;
            if let Some(parts) = parts {
                entry.parts = parts;
            }
        }
    }

    /// Moves the mark over everything that is acknowledged without a hole.
    fn advance(&mut self) {
        while let Some(entry) = self.entries.front() {
            let done = entry.parts.iter().take_while(|part| part.acknowledged).count();
            let last = entry.parts.iter().rposition(|part| part.acknowledged);
            let jumps = mutant::is("mark-jumps-over-holes");
            let done = last.filter(|_| jumps).map_or(done, |last| last + 1);
            if let Some(part) = done.checked_sub(1).and_then(|last| entry.parts.get(last)) {
                self.mark = Some(part.mark.clone());
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
    use crate::record::Packing;

    fn records(numbers: std::ops::Range<u64>) -> Vec<Record> {
        numbers
            .map(|number| Record {
                sequence_number: number.to_string().parse().unwrap(),
                sub_sequence_number: 0,
                partition_key: String::new(),
                data: Bytes::new(),
                arrived: Timestamp::from_millis(1000 * i64::try_from(number).unwrap()),
                packing: Packing::Plain,
            })
            .collect()
    }

    fn mark(window: &AckWindow) -> Option<String> {
        window.mark().map(|mark| mark.position.to_string())
    }

    #[test]
    fn a_batch_that_succeeds_moves_the_mark_to_its_last_record() {
        let window = AckWindow::default();
        let (delivered, _deferral) = window.deliver(&records(1..4));
        assert_eq!(mark(&window), None);
        window.succeeded(delivered);
        assert_eq!(mark(&window).as_deref(), Some("3"));
        assert_eq!(window.mark().unwrap().arrived, Some(Timestamp::from_millis(3000)));
        assert_eq!(window.in_flight(), 0);
    }

    #[test]
    fn the_mark_stops_before_the_first_record_that_is_not_acknowledged() {
        let window = AckWindow::default();
        let (first, second) = (records(1..4), records(4..6));
        let (one, deferral) = window.deliver(&first);
        let mut acks = deferral.per_record(&first);
        window.succeeded(one);
        let (two, _deferral) = window.deliver(&second);
        window.succeeded(two);

        acks.remove(2).acknowledge();
        assert_eq!(mark(&window), None, "record 3 is done, 1 and 2 are not");
        acks.remove(0).acknowledge();
        assert_eq!(mark(&window).as_deref(), Some("1"));
        assert_eq!(window.in_flight(), 5);
        acks.remove(0).acknowledge();
        assert_eq!(mark(&window).as_deref(), Some("5"));
        assert_eq!(window.failed_at(), None);
    }

    #[test]
    fn the_mark_stops_inside_an_aggregate() {
        let window = AckWindow::default();
        let mut parts = vec![records(7..8).remove(0); 3];
        parts.iter_mut().zip(0..).for_each(|(part, index)| part.sub_sequence_number = index);
        let (delivered, deferral) = window.deliver(&parts);
        let mut acks = deferral.per_record(&parts);
        window.succeeded(delivered);
        acks.remove(0).acknowledge();
        acks.remove(0).acknowledge();
        assert_eq!(mark(&window).as_deref(), Some("7:1"));
    }

    #[test]
    fn memory_is_given_back_when_a_batch_leaves_the_window_or_the_window_is_closed() {
        let account = crate::budget::Budget::new(100).account();
        let permit = Arc::new(account.reserved(10));
        let window = AckWindow::default();
        let held = || Arc::strong_count(&permit) - 1;
        let deliver = |number| {
            let (delivered, deferral) = window.deliver(&records(number..number + 1));
            window.hold(delivered, Arc::clone(&permit));
            (delivered, deferral)
        };
        let (first, deferral) = deliver(1);
        let ack = deferral.whole();
        window.succeeded(first);
        let (second, _deferral) = deliver(2);
        window.succeeded(second);
        assert_eq!(held(), 2, "acknowledged, but not what comes before it");
        ack.acknowledge();
        assert_eq!(held(), 0);
        let (third, _deferral) = deliver(3);
        window.withdraw(third);
        assert_eq!(held(), 0);
        let (fourth, deferral) = deliver(4);
        let kept = deferral.whole();
        window.succeeded(fourth);
        window.close();
        assert_eq!(held(), 0, "whatever becomes of the token");
        drop(kept);
    }

    #[test]
    fn a_dropped_token_is_a_failure_that_names_its_record_and_moves_nothing() {
        let window = AckWindow::default();
        let records = records(1..4);
        let (delivered, deferral) = window.deliver(&records);
        let mut acks = deferral.per_record(&records);
        window.succeeded(delivered);
        drop(acks.remove(1));
        assert_eq!(window.failed_at().map(|at| at.to_string()).as_deref(), Some("2"));
        assert_eq!(mark(&window), None);
    }

    #[test]
    fn tokens_of_an_earlier_attempt_or_of_a_closed_window_do_not_count() {
        let window = AckWindow::default();
        let (failed, deferral) = window.deliver(&records(1..2));
        let (stale, dropped) = (deferral.whole(), deferral.whole());
        window.withdraw(failed);
        let (delivered, deferral) = window.deliver(&records(1..2));
        let fresh = deferral.whole();
        window.succeeded(delivered);
        stale.acknowledge();
        drop(dropped);
        assert_eq!((mark(&window), window.failed_at()), (None, None));
        window.close();
        fresh.acknowledge();
        assert_eq!(mark(&window), None);
    }
}
