//! Prefetch: reads from a reader into a small channel, and replaces a reader that hangs.
//!
//! The cursor of a new reader is derived from the last record in the channel, never stored separately.
//! Publishes the state of the reader in the shard's [`Progress`]. Never ends a shard because of an error.

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

/// The result of a read.
#[derive(Debug)]
pub(super) enum Fetched {
    /// Records, at least one.
    Records(FetchedRecords),
    /// At the tip: nothing more had arrived at this time of the service's clock.
    Tip(Timestamp),
    /// The closed shard is fully read.
    End(Vec<ChildShard>),
}

/// The records of one reply, and the memory that they hold.
#[derive(Debug)]
pub(super) struct FetchedRecords {
    pub(super) records: Vec<Record>,
    /// Their size as the service counts it.
    pub(super) bytes: u64,
    pub(super) millis_behind_latest: u64,
    pub(super) memory: Permit,
}

/// The prefetch of one shard for one pass.
pub(super) struct Fetch {
    pub(super) context: ShardTaskContext,
    pub(super) key: LeaseKey,
    pub(super) progress: Arc<Mutex<Progress>>,
    pub(super) unpacker: Unpacker,
    pub(super) memory: Arc<Account>,
    /// The cursor of the first reader.
    pub(super) start: Cursor,
    /// The position of the last record that was sent to the pass.
    pub(super) last: Option<Position>,
}

impl Fetch {
    /// Reads until it is dropped; returns the reason if it gives up.
    pub(super) async fn run(mut self, batches: mpsc::Sender<Fetched>) -> String {
        let mut hangs = 0;
        // The previous pass may have ended while its reader waited for memory.
        self.waits_for_memory(false);
        let mut reader = self.open();
        loop {
            // Before the call: the reply holds for this time at least.
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
                // An error is an answer: only readers that hang or panic are replaced.
                Some(Ok((Err(error), memory))) => {
                    hangs = 0;
                    // Before the pause after a failure, in which other shards can use the memory.
                    drop(memory);
                    self.tell(reader.as_mut());
                    self.failed(&error).await;
                    continue;
                }
                Some(Err(panic)) => format!("the reader {}", panic_message(&*panic)),
                None => format!("the reader did not reply within {READ_LIMIT:?}"),
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

    /// Runs one step of the reader; `None` if it does not reply in time. The wait for memory does not
    /// count.
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
            // During the wait more may have been written, so that the next reply can be larger.
            if reader.most_bytes() <= most {
                break memory;
            }
        };
        Some((within(clock, left, reader.next()).await?, memory))
    }

    /// Reserves memory for one reply.
    async fn set_aside(&self, bytes: u64) -> Permit {
        let mut permit = pin!(self.memory.acquire(&self.context.clock, bytes));
        // Usually granted immediately; only a real wait is published.
        if let Some(permit) = permit.as_mut().now_or_never() {
            return permit;
        }
        self.waits_for_memory(true);
        let permit = permit.await;
        self.waits_for_memory(false);
        permit
    }

    fn open(&self) -> Box<dyn ShardReader> {
        // *At* the last record, not after it, since only a part of an aggregate may have been read. The
        // records up to it are dropped.
        let cursor = self.last.as_ref().map_or_else(
            || self.start.clone(),
            |position| Cursor::At(position.sequence_number.clone()),
        );
        self.context.stream.open(&self.key.shard(), cursor)
    }

    /// Emits the notices of the reader as events.
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
                // Decided before unpacking: a reply whose records are all dropped is not an empty
                // one.
                let is_tip = is_at_tip && records.is_empty();
                let mut records = self.unpacker.unpack(records, &self.context);
                if let Some(last) = &self.last {
                    drop_done(&mut records, last);
                }
                if let Some(last) = records.last() {
                    self.last = Some(Position::of(last));
                    // Only here, since the records are now those that will be delivered.
                    let bytes = records.iter().map(Record::size).sum();
                    memory.resize(budget::cost(records.len(), bytes));
                    let fetched = FetchedRecords { records, bytes, millis_behind_latest, memory };
                    send(batches, Fetched::Records(fetched)).await;
                } else if let Some(asked) = asked.filter(|_| is_tip) {
                    // May be lost: a full channel has a newer state, and the next empty reply repeats it.
                    batches.try_send(Fetched::Tip(asked)).ok();
                }
            }
            Read::End { children } => {
                self.replied(true, None);
                // Before the send, which may wait for the processor: an end holds no records.
                drop(memory);
                send(batches, Fetched::End(children)).await;
                // Never returns: a return would mean that reading was given up.
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
        // Readers back off themselves; one that does not must not spin.
        clock::sleep(&self.context.clock, READ_FAILURE_PAUSE).await;
    }
}

/// Sends to the pass. A pass that has dropped its receiver is about to drop this future, too.
async fn send(batches: &mpsc::Sender<Fetched>, fetched: Fetched) {
    if batches.send(fetched).await.is_err() {
        future::pending::<()>().await;
    }
}
