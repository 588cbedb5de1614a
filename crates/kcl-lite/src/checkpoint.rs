//! The acknowledgement window: the records of a shard that are in flight, and its watermark.
//!
//! Owns the watermark rule: a position may be stored only when it and everything delivered before it is
//! acknowledged. Tokens may be acknowledged or rejected in any order and from any task; a dropped token
//! is a failure. Computes the checkpoint but never writes it, and queues rejected records but never
//! stores them.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::budget::Permit;
use crate::error::{BoxError, Failure};
use crate::position::Position;
use crate::record::{Record, Timestamp};

/// The token with which a processor acknowledges a batch, or one record of it.
///
/// Dropping it without acknowledging is a negative acknowledgement: the worker creates a new processor,
/// which gets the records that are not acknowledged. A token has no effect once its record is delivered
/// again, for instance after `process` has returned an error; see
/// [`RecordProcessor::process`](crate::RecordProcessor::process).
#[must_use = "dropping the token means failure"]
pub struct Ack {
    window: AckWindow,
    delivered: Delivered,
    /// The delivered records of the batch.
    records: Arc<Vec<Record>>,
    /// The records of the token. The start is also the index of its part.
    range: Range<usize>,
    /// Whether dropping the token is a failure.
    armed: bool,
}

impl Ack {
    /// Acknowledges the records. Has no effect after the lease is lost, after a new processor was created,
    /// or after the records were delivered again.
    pub fn acknowledge(mut self) {
        self.armed = false;
        self.window.settle(self.delivered, self.range.start, true);
    }

    /// Rejects the records as poison records, for which a retry is useless. The worker stores them, with
    /// `error`, in the sink of [`WorkerBuilder::dead_letter`](crate::WorkerBuilder::dead_letter), and then
    /// counts them as acknowledged; see [`FailurePolicy`](crate::FailurePolicy). Reject a record only if
    /// the record is the cause (it cannot be parsed, it violates a rule). If something else is the cause
    /// (a database does not answer), return an error.
    ///
    /// If the worker has no sink for dead letters, rejecting is a failure like dropping the token. Has no
    /// effect when [`acknowledge`](Self::acknowledge) would have none.
    pub fn reject(mut self, error: impl Into<BoxError>) {
        self.armed = false;
        let (records, failure) = (&self.records[self.range.clone()], Failure::from(error.into()));
        self.window.reject(self.delivered, self.range.start, records, failure);
    }

    /// Returns whether acknowledging no longer has any effect: the shard was lost, released or restarted,
    /// or the delivery that the token belongs to has failed.
    ///
    /// The records are then delivered again, by this or another worker. A sink with a queue should check
    /// this before each record, so that it does not process queued records twice. The result can be
    /// outdated as soon as it is returned.
    #[must_use]
    pub fn is_void(&self) -> bool {
        let mut state = self.window.lock();
        state.closed || state.entry(self.delivered).is_none()
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        if self.armed {
            self.window.settle(self.delivered, self.range.start, false);
        }
    }
}

impl fmt::Debug for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ack")
            .field("entry", &self.delivered.entry)
            .field("records", &self.range)
            .finish()
    }
}

/// The right to defer the acknowledgement of a batch; held by the batch while it is processed.
#[derive(Debug)]
pub(crate) struct Deferral {
    window: AckWindow,
    delivered: Delivered,
    /// All records of the entry in the window.
    all: Arc<Vec<Record>>,
    /// Those that are not acknowledged yet, which the processor gets.
    open: Arc<Vec<Record>>,
}

impl Deferral {
    /// Returns the records to process, at least one.
    pub(crate) fn records(&self) -> &Arc<Vec<Record>> {
        &self.open
    }

    /// Returns one token for the whole batch.
    pub(crate) fn whole(&self) -> Ack {
        self.window.lock().defer(self.delivered, None);
        self.token(0..self.open.len())
    }

    /// Returns one token per record. The token also covers the records after it that are acknowledged
    /// already, so that acknowledging it moves the watermark past them.
    pub(crate) fn per_record(&self) -> Vec<Ack> {
        let mut parts: Vec<Part> = Vec::with_capacity(self.open.len());
        for record in self.all.iter() {
            let next = self.open.get(parts.len());
            let is_next = next.is_some_and(|next| Position::of(next) == Position::of(record));
            match parts.last_mut() {
                // The first record of a batch is always open, so there is a part to extend.
                Some(part) if !is_next => part.mark = Mark::of(record),
                Some(_) | None => parts.push(Part::open(record, record)),
            }
        }
        self.window.lock().defer(self.delivered, Some(parts));
        (0..self.open.len()).map(|index| self.token(index..index + 1)).collect()
    }

    fn token(&self, range: Range<usize>) -> Ack {
        let (window, records) = (self.window.clone(), Arc::clone(&self.open));
        Ack { window, delivered: self.delivered, records, range, armed: true }
    }
}

/// Rejected records that wait to be stored as dead letters.
#[derive(Debug, Clone)]
pub(crate) struct Rejected {
    pub(crate) records: Vec<Record>,
    pub(crate) failure: Failure,
    /// The delivery and the part of the token that rejected them; `None` after an error of `process`.
    token: Option<(Delivered, usize)>,
}

/// A watermark: the newest position before which nothing is in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) position: Position,
    /// The arrival time, if known.
    pub(crate) arrived: Option<Timestamp>,
}

impl Mark {
    fn of(record: &Record) -> Self {
        Self { position: Position::of(record), arrived: Some(record.arrived) }
    }
}

/// The acknowledgement window of one shard task. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct AckWindow {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

/// One delivery of a batch: its index in the window, which can be reused after it was withdrawn, and the
/// number of the attempt, which is unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delivered {
    entry: u64,
    attempt: u64,
}

impl AckWindow {
    /// Closes this window and returns that of the next processor of the shard. Acknowledged records stay
    /// acknowledged; tokens of the closed window no longer have any effect.
    pub(crate) fn successor(&self) -> Self {
        self.close();
        let mut state = self.lock();
        let entries = std::mem::take(&mut state.entries);
        entries.iter().for_each(|entry| state.keep(&entry.parts));
        let next = State {
            // Continued: rejected records keep the number of their delivery, which must not match a
            // delivery of the new window.
            attempts: state.attempts,
            mark: state.mark.clone(),
            done: std::mem::take(&mut state.done),
            rejected: std::mem::take(&mut state.rejected),
            progressed: state.progressed,
            ..State::default()
        };
        Self { state: Arc::new(Mutex::new(next)), changed: Arc::default() }
    }

    /// Adds a batch to the window for delivery. The processor gets the records that are not acknowledged
    /// yet; the first one never is.
    pub(crate) fn deliver(&self, records: &Arc<Vec<Record>>) -> (Delivered, Deferral) {
        let mut state = self.lock();
        let open: Vec<_> = state.open(records).collect();
        let open = match open.len() == records.len() {
            // The usual case, in which no record is copied.
            true => Arc::clone(records),
            false => Arc::new(open.into_iter().cloned().collect()),
        };
        let delivered = state.push(records, false);
        drop(state);
        (delivered, Deferral { window: self.clone(), delivered, all: Arc::clone(records), open })
    }

    /// Moves acknowledged records from the front of `records`, which follow the window, into the window.
    pub(crate) fn pass_over(&self, records: &mut Vec<Record>) {
        let mut state = self.lock();
        let passed = records.iter().take_while(|record| state.is_done(record)).count();
        if passed > 0 {
            // As an entry, because records before them may still be in flight.
            state.push(&records[..passed], true);
            state.advance();
            records.drain(..passed);
        }
    }

    /// Returns the records that are not acknowledged yet.
    pub(crate) fn open(&self, records: &[Record]) -> Vec<Record> {
        self.lock().open(records).cloned().collect()
    }

    /// Marks a record as acknowledged because it is stored as a dead letter.
    pub(crate) fn settled(&self, record: &Record) {
        let part = Part { acknowledged: true, ..Part::open(record, record) };
        self.lock().keep(&[part]);
    }

    /// Acknowledges the part of the token whose rejected records are all settled.
    pub(crate) fn all_settled(&self, rejected: &Rejected) {
        let mut state = self.lock();
        // If the delivery was withdrawn since, `settled` has remembered its records.
        if let Some((delivered, part)) = rejected.token
            && let Some(part) = state.entry(delivered).and_then(|it| it.parts.get_mut(part))
        {
            part.acknowledged = true;
            state.advance();
        }
    }

    /// Queues a record that the error of a processor rejects.
    pub(crate) fn rejected(&self, record: Record, failure: Failure) {
        let rejected = Rejected { records: vec![record], failure, token: None };
        self.lock().rejected.push_back(rejected);
    }

    /// Removes the oldest rejected records from the queue.
    pub(crate) fn next_rejected(&self) -> Option<Rejected> {
        self.lock().rejected.pop_front()
    }

    /// Returns rejected records to the front of the queue because they could not be stored.
    pub(crate) fn still_rejected(&self, rejected: Rejected) {
        self.lock().rejected.push_front(rejected);
    }

    /// Returns whether the processor has acknowledged anything since the last call.
    pub(crate) fn take_progress(&self) -> bool {
        std::mem::take(&mut self.lock().progressed)
    }

    /// Attaches `memory` to the batch, until the batch leaves the window or the window is closed.
    pub(crate) fn hold(&self, delivered: Delivered, memory: Arc<Permit>) {
        if let Some(entry) = self.lock().entry(delivered) {
            entry.memory = Some(memory);
        }
    }

    /// Acknowledges the batch of a successful attempt, unless its acknowledgement was deferred.
    pub(crate) fn succeeded(&self, delivered: Delivered) {
        let mut state = self.lock();
        if let Some(entry) = state.entry(delivered)
            && !entry.deferred
        {
            entry.parts.iter_mut().for_each(|part| part.acknowledged = true);
            state.progressed = true;
        }
        state.advance();
    }

    /// Removes the batch of a failed attempt, which is the last one delivered. Records that its tokens have
    /// acknowledged stay acknowledged; from now on the tokens have no effect.
    pub(crate) fn withdraw(&self, delivered: Delivered) {
        let mut state = self.lock();
        // The batch has left the window if its tokens have acknowledged all of it.
        if state.entry(delivered).is_some()
            && let Some(entry) = state.entries.pop_back()
        {
            state.keep(&entry.parts);
        }
    }

    /// Returns the watermark.
    pub(crate) fn mark(&self) -> Option<Mark> {
        self.lock().mark.clone()
    }

    /// Sets the watermark before the first delivery, when the processor commits a prepared checkpoint.
    pub(crate) fn start_after(&self, mark: Mark) {
        self.lock().mark = Some(mark);
    }

    /// Returns the number of records in flight. A batch counts as a whole until all of it is acknowledged.
    pub(crate) fn in_flight(&self) -> usize {
        self.lock().entries.iter().map(|entry| entry.records).sum()
    }

    /// Returns the record whose token was dropped, or the last one that the token covers.
    pub(crate) fn failed_at(&self) -> Option<Position> {
        self.lock().entries.iter().find_map(|entry| entry.failed.clone())
    }

    /// Closes the window: tokens no longer have any effect, and memory is freed.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        // The entries stay: `successor` and `in_flight` read them after the window is closed.
        state.entries.iter_mut().for_each(|entry| entry.memory = None);
    }

    /// Returns a guard that closes the window when it is dropped.
    pub(crate) fn close_on_drop(&self) -> impl Drop + use<> {
        CloseOnDrop(self.clone())
    }

    /// Returns whether the window is closed, so that tokens no longer have any effect.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Completes when a token has been acknowledged, rejected or dropped since the last call.
    ///
    /// # Cancel safety
    /// A change while no call waits is kept for the next call.
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
                state.progressed = true;
                state.advance();
            } else {
                entry.failed.get_or_insert_with(|| part.mark.position.clone());
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    fn reject(&self, delivered: Delivered, part: usize, records: &[Record], failure: Failure) {
        let mut state = self.lock();
        if state.closed || state.entry(delivered).is_none() {
            return;
        }
        // The part stays unacknowledged until its records are stored as dead letters.
        let (records, token) = (records.to_vec(), Some((delivered, part)));
        state.rejected.push_back(Rejected { records, failure, token });
        drop(state);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No user code runs while the lock is held, so a panicking processor leaves the state consistent.
        self.state.lock()
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
    /// The index of `entries[0]`.
    first: u64,
    /// The number of attempts so far.
    attempts: u64,
    mark: Option<Mark>,
    /// The acknowledged records of failed deliveries after the watermark, sorted and without overlaps.
    /// Bounded by the size of a window.
    done: Vec<Span>,
    /// The rejected records that are not stored yet, at most one element per token.
    rejected: VecDeque<Rejected>,
    /// Whether the processor has acknowledged anything since `take_progress`.
    progressed: bool,
    closed: bool,
}

/// Consecutive acknowledged records of a shard, from the first to the last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    first: Position,
    last: Position,
}

#[derive(Debug)]
struct Entry {
    records: usize,
    attempt: u64,
    deferred: bool,
    /// The position of the first token that was dropped.
    failed: Option<Position>,
    parts: Vec<Part>,
    /// The memory of the reply that contained the records.
    memory: Option<Arc<Permit>>,
}

#[derive(Debug)]
struct Part {
    first: Position,
    mark: Mark,
    acknowledged: bool,
}

impl Part {
    fn open(first: &Record, last: &Record) -> Self {
        Self { first: Position::of(first), mark: Mark::of(last), acknowledged: false }
    }
}

impl State {
    /// Returns the batch, unless it has left the window or was delivered again since.
    fn entry(&mut self, delivered: Delivered) -> Option<&mut Entry> {
        let index = usize::try_from(delivered.entry.checked_sub(self.first)?).ok()?;
        self.entries.get_mut(index).filter(|entry| entry.attempt == delivered.attempt)
    }

    /// Adds a batch, which is never empty.
    fn push(&mut self, records: &[Record], acknowledged: bool) -> Delivered {
        let (first, last) =
            records.first().zip(records.last()).expect("a batch has at least one record");
        self.attempts += 1;
        let entry = self.first + self.entries.len() as u64;
        self.entries.push_back(Entry {
            records: records.len(),
            attempt: self.attempts,
            deferred: false,
            failed: None,
            parts: vec![Part { acknowledged, ..Part::open(first, last) }],
            memory: None,
        });
        Delivered { entry, attempt: self.attempts }
    }

    fn open<'a>(&self, records: &'a [Record]) -> impl Iterator<Item = &'a Record> {
        records.iter().filter(|record| !self.is_done(record))
    }

    fn is_done(&self, record: &Record) -> bool {
        let position = Position::of(record);
        let index = self.done.partition_point(|span| span.last < position);
        self.done.get(index).is_some_and(|span| span.first <= position)
    }

    /// Remembers the acknowledged ones of parts that leave the window.
    fn keep(&mut self, parts: &[Part]) {
        let done = parts.iter().filter(|part| part.acknowledged);
        self.done.extend(
            done.map(|part| Span { first: part.first.clone(), last: part.mark.position.clone() }),
        );
        self.done.sort();
        self.done.dedup_by(|next, kept| {
            let overlaps = next.first <= kept.last;
            if overlaps && next.last > kept.last {
                kept.last = next.last.clone();
            }
            overlaps
        });
        self.forget_the_past();
    }

    /// Drops the spans that the watermark covers.
    fn forget_the_past(&mut self) {
        if let Some(mark) = &self.mark {
            let past = self.done.partition_point(|span| span.last <= mark.position);
            self.done.drain(..past);
        }
    }

    fn defer(&mut self, delivered: Delivered, parts: Option<Vec<Part>>) {
        if let Some(entry) = self.entry(delivered) {
            entry.deferred = true;
            if let Some(parts) = parts {
                entry.parts = parts;
            }
        }
    }

    /// Moves the watermark to the last record before the first one that is not acknowledged.
    fn advance(&mut self) {
        while let Some(entry) = self.entries.front() {
            let done = entry.parts.iter().take_while(|part| part.acknowledged).count();
            if let Some(part) = done.checked_sub(1).and_then(|last| entry.parts.get(last)) {
                self.mark = Some(part.mark.clone());
            }
            if done < entry.parts.len() {
                break;
            }
            self.entries.pop_front();
            self.first += 1;
        }
        self.forget_the_past();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::record::Packing;

    fn records(numbers: Range<u64>) -> Arc<Vec<Record>> {
        let records = numbers
            .map(|number| Record {
                sequence_number: number.to_string().parse().unwrap(),
                sub_sequence_number: 0,
                partition_key: String::new(),
                data: Bytes::new(),
                arrived: Timestamp::from_millis(1000 * i64::try_from(number).unwrap()),
                packing: Packing::Plain,
            })
            .collect();
        Arc::new(records)
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
        let mut acks = deferral.per_record();
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
        let mut parts = vec![records(7..8)[0].clone(); 3];
        parts.iter_mut().zip(0..).for_each(|(part, index)| part.sub_sequence_number = index);
        let (delivered, deferral) = window.deliver(&Arc::new(parts));
        let mut acks = deferral.per_record();
        window.succeeded(delivered);
        acks.remove(0).acknowledge();
        acks.remove(0).acknowledge();
        assert_eq!(mark(&window).as_deref(), Some("7:1"));
    }

    #[test]
    fn memory_is_returned_when_a_batch_leaves_the_window_or_the_window_is_closed() {
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
        assert_eq!(held(), 0, "even while a token is kept");
        drop(kept);
    }

    #[test]
    fn a_dropped_token_is_a_failure_that_names_its_record_and_moves_nothing() {
        let window = AckWindow::default();
        let records = records(1..4);
        let (delivered, deferral) = window.deliver(&records);
        let mut acks = deferral.per_record();
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

    fn numbers(records: &[Record]) -> Vec<u64> {
        records.iter().map(|it| it.sequence_number.as_str().parse().unwrap()).collect()
    }

    #[test]
    fn a_failed_attempt_leaves_open_only_what_no_token_has_acknowledged() {
        let window = AckWindow::default();
        let batch = records(0..8);
        let (delivered, deferral) = window.deliver(&batch);
        let mut late = None;
        for (number, ack) in deferral.per_record().into_iter().enumerate() {
            match number {
                3 | 5 => drop(ack),
                6 => late = Some(ack),
                _ => ack.acknowledge(),
            }
        }
        assert_eq!(mark(&window).as_deref(), Some("2"));
        late.unwrap().acknowledge();
        window.withdraw(delivered);
        assert_eq!(window.failed_at(), None);
        let batch = records(3..8);
        assert_eq!(numbers(&window.open(&batch)), [3, 5]);
        let (delivered, deferral) = window.deliver(&batch);
        assert_eq!(numbers(deferral.records()), [3, 5]);
        let mut acks = deferral.per_record();
        acks.remove(1).acknowledge();
        window.withdraw(delivered);
        assert_eq!(numbers(&window.open(&batch)), [3]);
        assert_eq!(mark(&window).as_deref(), Some("2"), "3 is open");

        let (delivered, deferral) = window.deliver(&batch);
        let token = deferral.whole();
        window.succeeded(delivered);
        token.acknowledge();
        assert_eq!(mark(&window).as_deref(), Some("7"));
        assert_eq!((window.in_flight(), window.lock().done.len()), (0, 0));
        drop(acks);
        assert_eq!(window.failed_at(), None, "a token of an earlier attempt");
    }

    #[test]
    fn a_new_processor_is_not_given_what_is_acknowledged_behind_a_hole() {
        let window = AckWindow::default();
        let (first, deferral) = window.deliver(&records(1..4));
        let token = deferral.whole();
        window.succeeded(first);
        let (second, _deferral) = window.deliver(&records(4..7));
        window.succeeded(second);
        let window = window.successor();
        token.acknowledge();
        assert_eq!(numbers(&window.open(&records(1..8))), [1, 2, 3, 7]);
        // The same records, read again in different batches.
        let (delivered, deferral) = window.deliver(&records(1..5));
        assert_eq!(numbers(deferral.records()), [1, 2, 3]);
        let mut rest = records(5..8).to_vec();
        window.pass_over(&mut rest);
        assert_eq!((numbers(&rest), mark(&window)), (vec![7], None));
        window.succeeded(delivered);
        assert_eq!(mark(&window).as_deref(), Some("6"));
    }

    /// What the processor does with a token.
    #[derive(Debug, Clone, Copy)]
    enum Fate {
        Acknowledged,
        Dropped,
        /// Acknowledged after a later batch, if it still has an effect.
        Kept,
    }

    /// What a processor does with a batch.
    #[derive(Debug, Clone)]
    struct Turn {
        /// The number of records in the batch.
        len: u64,
        /// What happens to the tokens, if the acknowledgement is deferred.
        tokens: Option<Vec<Fate>>,
        /// Whether `process` returns `Ok`.
        succeeds: bool,
        /// Whether a new processor replaces this one afterwards.
        restarts: bool,
    }

    fn turns() -> impl Strategy<Value = Vec<Turn>> {
        let fate = prop_oneof![
            4 => Just(Fate::Acknowledged),
            1 => Just(Fate::Dropped),
            2 => Just(Fate::Kept)
        ];
        let tokens = proptest::option::of(proptest::collection::vec(fate, 7));
        let turn = (1_u64..7, tokens, any::<bool>(), proptest::bool::weighted(0.2));
        let turn = turn.prop_map(|(len, tokens, succeeds, restarts)| Turn {
            len,
            tokens,
            succeeds,
            restarts,
        });
        proptest::collection::vec(turn, 1..30)
    }

    proptest! {
        /// Compares the window with a set of acknowledged numbers: none of them is delivered again, and the
        /// watermark is the end of the contiguous numbers from the start.
        #[test]
        fn what_is_acknowledged_never_comes_again_and_the_mark_never_jumps(turns in turns()) {
            let mut window = AckWindow::default();
            let mut done = std::collections::BTreeSet::new();
            let mut kept: Vec<(u64, Ack)> = Vec::new();
            let mut next = 1;
            for turn in turns {
                let end = next + turn.len;
                let mut batch = records(next..end).to_vec();
                window.pass_over(&mut batch);
                next = end - batch.len() as u64;
                let mut dropped = false;
                let mut fails = false;
                if !batch.is_empty() {
                    let (delivered, deferral) = window.deliver(&Arc::new(batch));
                    let given = numbers(deferral.records());
                    prop_assert!(given.iter().all(|it| !done.contains(it)), "{given:?}");
                    let before = kept.len();
                    for ((number, ack), fate) in turn
                        .tokens
                        .iter()
                        .flat_map(|fates| given.iter().zip(deferral.per_record()).zip(fates))
                    {
                        match fate {
                            Fate::Acknowledged => {
                                done.insert(*number);
                                ack.acknowledge();
                            }
                            Fate::Dropped => dropped = true,
                            Fate::Kept => kept.push((*number, ack)),
                        }
                    }
                    if turn.succeeds {
                        window.succeeded(delivered);
                        if turn.tokens.is_none() {
                            done.extend(&given);
                        }
                    } else {
                        fails = true;
                        window.withdraw(delivered);
                        // Tokens of a failed attempt have no effect.
                        kept.drain(before..).for_each(|(_, ack)| ack.acknowledge());
                        dropped = false;
                    }
                }
                if let Some((number, ack)) = kept.pop() {
                    done.insert(number);
                    ack.acknowledge();
                }
                prop_assert_eq!(window.failed_at().is_some(), dropped);
                let covered = (1..end).take_while(|it| done.contains(it)).last().unwrap_or(0);
                let mark = mark(&window).map_or(0, |it| it.parse().unwrap());
                prop_assert!(mark <= covered, "{mark} of {covered}");
                // Acknowledged records of a failed batch move the watermark only at the next delivery.
                let known = if fails { covered.min(next - 1) } else { covered };
                prop_assert!(mark >= known, "{mark} of {covered}");
                next = if fails { next.max(mark + 1) } else { end };
                if dropped || turn.restarts {
                    window = window.successor();
                    kept.clear();
                    next = mark + 1;
                }
            }
        }
    }
}
