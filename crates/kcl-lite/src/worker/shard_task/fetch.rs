//! Reading ahead: from a reader into a small channel, with a new reader in the place of one that hangs.
//!
//! Where a new reader starts is derived from what was handed over, never remembered beside it. Tells
//! what the reader does in the shard's [`Progress`]. Never ends a shard because of an error.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, future};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::callback::panic_message;
use super::context::ShardTaskContext;
use super::done::drop_done;
use super::unpack::Unpacker;
use crate::budget::{self, Account, Permit};
use crate::clock::{self, within};
use crate::error::{ServiceError, ServiceErrorKind};
use crate::event::Event;
use crate::position::{Cursor, Position};
use crate::record::{LeaseKey, Record, Timestamp};
use crate::shard::ChildShard;
use crate::stream::{Read, ShardReader};
use crate::worker::liveness::{Progress, READ_LIMIT, READER_RESTARTS};

/// The least time between two failed reads.
const READ_FAILURE_PAUSE: Duration = Duration::from_millis(200);

/// What a reader found.
#[derive(Debug)]
pub(super) enum Fetched {
    /// Records, never none.
    Records(FetchedRecords),
    /// Nothing more had arrived at this time of the service.
    Tip(Timestamp),
    /// Everything was read.
    End(Vec<ChildShard>),
}

/// The records of one reply, and the memory that they take.
#[derive(Debug)]
pub(super) struct FetchedRecords {
    pub(super) records: Vec<Record>,
    /// What the service counts of them.
    pub(super) bytes: u64,
    pub(super) millis_behind_latest: u64,
    pub(super) memory: Permit,
}

/// Reads one shard for one pass.
pub(super) struct Fetch {
    pub(super) context: ShardTaskContext,
    pub(super) key: LeaseKey,
    pub(super) progress: Arc<Mutex<Progress>>,
    pub(super) unpacker: Unpacker,
    pub(super) memory: Arc<Account>,
    /// Where the first reader starts.
    pub(super) start: Cursor,
    /// The last record that was handed over.
    pub(super) last: Option<Position>,
}

impl Fetch {
    /// Reads until it is dropped; returns only to give up, with the reason.
    pub(super) async fn run(mut self, batches: mpsc::Sender<Fetched>) -> String {
        let mut hangs = 0;
        // The pass before may have ended while its reader waited.
        self.waits_for_memory(false);
        let mut reader = self.open();
        loop {
            // Before the call: what the service says then holds at this time at least.
            let asked = self.context.service_clock.now();
            let step = AssertUnwindSafe(self.step(reader.as_mut())).catch_unwind();
            let cause = match step.await.transpose() {
                Some(Ok((Ok(read), memory))) => {
                    hangs = 0;
                    let of_old = reader.asked().map(|at| self.context.service_clock.at(at));
                    let asked = of_old.unwrap_or(asked);
                    self.tell(reader.as_mut());
                    self.hand_over(read, memory, asked, &batches).await;
                    continue;
                }
                Some(Ok((Err(error), memory))) => {
                    hangs = 0;
                    drop(memory);
                    self.tell(reader.as_mut());
                    self.failed(&error).await;
                    continue;
                }
                Some(Err(panic)) => format!("the reader {}", panic_message(&*panic)),
                None => format!("the reader did not answer in {READ_LIMIT:?}"),
            };
            hangs += 1;
            if hangs == READER_RESTARTS {
                return format!("{cause}, {hangs} times in a row");
            }
            self.context.events.emit(&Event::ReaderRestarted { shard: self.key.clone(), cause });
            clock::sleep(&self.context.clock, READ_FAILURE_PAUSE).await;
            reader = self.open();
        }
    }

    /// One step of the reader; `None` if it does not answer in time. How long it waits for memory
    /// counts for nothing.
    async fn step(
        &self,
        reader: &mut dyn ShardReader,
    ) -> Option<(Result<Read, ServiceError>, Permit)> {
        let clock = &self.context.clock;
        let begun = clock.now();
        within(clock, READ_LIMIT, reader.ready()).await?;
        let left = READ_LIMIT.saturating_sub(clock.now().duration_since(begun));
        let memory = loop {
            let most = reader.most_bytes();
            let memory = self.set_aside(most).await;
            // While it was waited for, more may have been written.
            if reader.most_bytes() <= most {
                break memory;
            }
        };
        Some((within(clock, left, reader.next()).await?, memory))
    }

    /// Memory for one reply.
    async fn set_aside(&self, bytes: u64) -> Permit {
        let mut permit = pin!(self.memory.acquire(&self.context.clock, bytes));
        if let Some(permit) = permit.as_mut().now_or_never() {
            return permit;
        }
        self.waits_for_memory(true);
        let permit = permit.await;
        self.waits_for_memory(false);
        permit
    }

    fn open(&self) -> Box<dyn ShardReader> {
        // *At* the last record, which is dropped: only a part of an aggregate may have been read.
        let cursor = self.last.as_ref().map_or_else(
            || self.start.clone(),
            |position| Cursor::At(position.sequence_number.clone()),
        );
        self.context.stream.open(&self.key.shard(), cursor)
    }

    /// Makes events of what the reader has to tell.
    fn tell(&self, reader: &mut dyn ShardReader) {
        while let Some(notice) = reader.notice() {
            self.context.events.emit(&notice.event(&self.key));
        }
    }

    async fn hand_over(
        &mut self,
        read: Read,
        mut memory: Permit,
        asked: Option<Timestamp>,
        batches: &mpsc::Sender<Fetched>,
    ) {
        match read {
            Read::Records { records, millis_behind_latest } => {
                let is_at_tip = millis_behind_latest == 0;
                self.replied(is_at_tip, Some(millis_behind_latest));
                let is_tip = is_at_tip && records.is_empty();
                let mut records = self.unpacker.unpack(records, &self.context);
                if let Some(last) = &self.last {
                    drop_done(&mut records, last);
                }
                if let Some(last) = records.last() {
                    self.last = Some(Position::of(last));
                    // Here, when the records are those that will be delivered.
                    let bytes = records.iter().map(Record::size).sum();
                    memory.resize(budget::cost(records.len(), bytes));
                    let fetched = FetchedRecords { records, bytes, millis_behind_latest, memory };
                    send(batches, Fetched::Records(fetched)).await;
                } else if let Some(asked) = asked.filter(|_| is_tip) {
                    // A full channel has news of its own; the next empty reply tells again.
                    batches.try_send(Fetched::Tip(asked)).ok();
                }
            }
            Read::End { children } => {
                self.replied(true, None);
                drop(memory);
                send(batches, Fetched::End(children)).await;
                // The channel stays open: its end would mean that reading was given up.
                future::pending::<()>().await;
            }
        }
    }

    fn waits_for_memory(&self, waits: bool) {
        let now = self.context.clock.now();
        let mut progress = self.progress.lock();
        progress.waits_for_memory(now, waits);
    }

    fn replied(&self, is_at_tip: bool, behind: Option<u64>) {
        let now = self.context.clock.now();
        let mut progress = self.progress.lock();
        progress.replied(now, is_at_tip, behind);
    }

    async fn failed(&self, error: &ServiceError) {
        let now = self.context.clock.now();
        {
            use ServiceErrorKind::{Invalid, Missing};
            let is_missing = matches!(error.kind, Missing | Invalid);
            let mut progress = self.progress.lock();
            progress.read_failed(now, error.to_string(), is_missing);
        }
        self.context.events.emit(&Event::ReadFailed {
            shard: self.key.clone(),
            error: error.to_string(),
            transient: error.is_transient(),
            call: error.call.clone(),
        });
        // Readers wait longer and longer by themselves; one that does not must not spin.
        clock::sleep(&self.context.clock, READ_FAILURE_PAUSE).await;
    }
}

/// A receiver that is gone has dropped this future too.
async fn send(batches: &mpsc::Sender<Fetched>, fetched: Fetched) {
    if batches.send(fetched).await.is_err() {
        future::pending::<()>().await;
    }
}
