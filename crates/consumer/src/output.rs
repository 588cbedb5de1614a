//! The only writer of stdout. It writes records in order, in pieces that end at a record boundary,
//! and acknowledges each record when it is flushed.
//!
//! A write blocks as long as the reader of a pipe pauses, so a dedicated thread writes: meanwhile
//! the worker keeps its leases and reacts to signals. Before each piece the thread checks whether
//! the delivery is still valid. Texts that wait when a shard is lost are not written: their records
//! are delivered again, here or to another instance. The thread ends at the first error.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::time::Duration;

use kcl_lite::Ack;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

/// The size of a piece: as many records as fit, and at least one. It bounds what is printed twice
/// when a shard is lost or the process ends while the reader is slow. A pipe accepts a write of this
/// size (`PIPE_BUF`) completely or not at all, so that no smaller record is ever cut in two.
const PIECE: usize = 4096;

/// The delay between two attempts to write to a stdout that another process has made non-blocking.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// The acknowledgement of a record that was written.
pub(crate) trait Receipt: Send + 'static {
    /// Returns whether the acknowledgement has no effect any more, because the record is delivered
    /// again.
    fn is_void(&self) -> bool;
    /// Acknowledges the record.
    fn give(self);
}

impl Receipt for Ack {
    fn is_void(&self) -> bool {
        Self::is_void(self)
    }

    fn give(self) {
        self.acknowledge();
    }
}

/// The text of a batch.
#[derive(Debug)]
pub(crate) struct Text<R = Ack> {
    bytes: Vec<u8>,
    /// The end of each record that is not written yet, and its receipt.
    records: VecDeque<(usize, R)>,
}

impl<R> Text<R> {
    /// Creates a text without records, with room for this many bytes.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), records: VecDeque::new() }
    }

    /// Adds a record, whose text `append` writes.
    pub(crate) fn push(&mut self, receipt: R, append: impl FnOnce(&mut Vec<u8>)) {
        append(&mut self.bytes);
        self.records.push_back((self.bytes.len(), receipt));
    }

    /// Returns how many records the piece that begins at `start` has, and where it ends.
    fn piece(&self, start: usize) -> (usize, usize) {
        let ends = self.records.iter().map(|(end, _)| *end);
        let fit = ends.clone().take_while(|end| end - start <= PIECE).count().max(1);
        (fit, ends.take(fit).last().unwrap_or(start))
    }
}

/// The processors' side of stdout. Cheap to clone.
#[derive(Debug)]
pub(crate) struct Output<R = Ack>(Arc<Shared<R>>);

impl<R> Clone for Output<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Ends when the [`Output`] is closed, or at the first error.
pub(crate) type Writer = JoinHandle<io::Result<()>>;

#[derive(Debug)]
struct Shared<R> {
    state: Mutex<State<R>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<R> {
    /// At most one of each shard that is not void: a shard's next batch is delivered when all records
    /// of the previous one are acknowledged.
    waiting: VecDeque<Text<R>>,
    is_writing: bool,
    is_closed: bool,
    /// Bytes that stdout has accepted.
    taken: u64,
    /// Records that were written and flushed.
    printed: u64,
}

/// The output is closed: no more records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutputClosed;

impl std::fmt::Display for OutputClosed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stdout accepts no more records")
    }
}

impl std::error::Error for OutputClosed {}

impl<R: Receipt> Output<R> {
    /// Starts the thread that writes to `out`.
    pub(crate) fn start(mut out: impl Write + Send + 'static) -> (Self, Writer) {
        let state = State {
            waiting: VecDeque::new(),
            is_writing: false,
            is_closed: false,
            taken: 0,
            printed: 0,
        };
        let output = Self(Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }));
        let writer = output.clone();
        (output, spawn_blocking(move || writer.write_all(&mut out)))
    }

    /// Queues `text` for writing; its receipts are given once it is written. Does not wait.
    ///
    /// # Errors
    ///
    /// The output is closed.
    pub(crate) fn print(&self, text: Text<R>) -> Result<(), OutputClosed> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(OutputClosed);
        }
        // Otherwise a shard that is lost and taken repeatedly would fill the memory.
        state.waiting.retain(|text| text.records.front().is_some_and(|(_, it)| !it.is_void()));
        state.waiting.push_back(text);
        drop(state);
        self.0.changed.notify_one();
        Ok(())
    }

    /// Drops the texts that wait; the writer ends after the text that it is writing.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        // Outside the lock, because dropped receipts wake their shards.
        drop(waiting);
        self.0.changed.notify_one();
    }

    /// Completes when there is something to write and stdout has accepted nothing for at least
    /// `patience`.
    pub(crate) async fn stalled(&self, patience: Duration) {
        loop {
            let before = self.taken_while_writing();
            sleep(patience).await;
            if before.is_some() && before == self.taken_while_writing() {
                return;
            }
        }
    }

    /// Returns how many records have been written and flushed.
    pub(crate) fn printed(&self) -> u64 {
        self.lock().printed
    }

    fn taken_while_writing(&self) -> Option<u64> {
        let state = self.lock();
        state.is_writing.then_some(state.taken)
    }

    fn lock(&self) -> MutexGuard<'_, State<R>> {
        // No code that holds the lock leaves the state half-changed.
        self.0.state.lock()
    }

    /// Runs the writer's thread.
    fn write_all(&self, out: &mut impl Write) -> io::Result<()> {
        while let Some(mut text) = self.next() {
            if let Err(error) = self.write(&mut text, out) {
                // Keeps its receipts until `close` drops them: a receipt dropped now would be
                // reported as a failure of the shard.
                self.lock().waiting.push_front(text);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Waits for the next text; `None` once the output is closed.
    fn next(&self) -> Option<Text<R>> {
        let mut state = self.lock();
        state.is_writing = false;
        loop {
            if state.is_closed {
                return None;
            }
            if let Some(text) = state.waiting.pop_front() {
                state.is_writing = true;
                return Some(text);
            }
            self.0.changed.wait(&mut state);
        }
    }

    /// Writes piece by piece, while the receipts are valid.
    fn write(&self, text: &mut Text<R>, out: &mut impl Write) -> io::Result<()> {
        let mut start = 0;
        while text.records.front().is_some_and(|(_, receipt)| !receipt.is_void()) {
            let (records, end) = text.piece(start);
            let mut piece = &text.bytes[start..end];
            while !piece.is_empty() {
                // A larger record is written in parts, so that `taken` grows while a slow reader
                // takes it.
                let taken = patiently(|| out.write(&piece[..piece.len().min(PIECE)]))?;
                if taken == 0 {
                    return Err(ErrorKind::WriteZero.into());
                }
                piece = &piece[taken..];
                self.lock().taken += taken as u64;
            }
            patiently(|| out.flush())?;
            self.lock().printed += records as u64;
            text.records.drain(..records).for_each(|(_, receipt)| receipt.give());
            start = end;
        }
        Ok(())
    }
}

/// Retries an operation that was interrupted, or that would block: another process that shares a
/// pipe can make it non-blocking for all.
fn patiently<T>(mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match operation() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::park_timeout(TRY_AGAIN_AFTER);
            }
            done => return done,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Poll;

    use tokio::sync::{Notify, mpsc};
    use tokio::time::advance;

    use super::*;

    /// A stdout that records its calls.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Recorder {
        calls: Arc<Mutex<Vec<String>>>,
        called: Arc<Notify>,
    }

    impl Recorder {
        pub(crate) fn calls(&self) -> Vec<String> {
            self.calls.lock().clone()
        }

        /// Returns everything that was written.
        pub(crate) fn text(&self) -> String {
            self.calls().into_iter().filter(|call| call != "flush").collect()
        }

        /// Returns once `part` has been written.
        pub(crate) async fn until_written(&self, part: &str) {
            while !self.text().contains(part) {
                self.called.notified().await;
            }
        }

        fn note(&self, call: String) {
            self.calls.lock().push(call);
            self.called.notify_one();
        }
    }

    impl Write for Recorder {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.note(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            self.note("flush".into());
            Ok(())
        }
    }

    /// A pipe whose reader is gone.
    #[derive(Debug)]
    pub(crate) struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A pipe whose reader accepts a write when it is allowed to, and records it then.
    #[derive(Debug, Clone)]
    pub(crate) struct Paused {
        recorder: Recorder,
        gate: Arc<(Mutex<Gate>, Condvar)>,
        reached: Arc<Notify>,
    }

    #[derive(Debug, Default)]
    struct Gate {
        allowed: u64,
        asked: u64,
    }

    impl Paused {
        pub(crate) fn new(recorder: Recorder) -> Self {
            Self { recorder, gate: Arc::default(), reached: Arc::default() }
        }

        /// Allows this many more writes.
        pub(crate) fn take(&self, writes: u64) {
            let mut gate = self.gate.0.lock();
            gate.allowed = gate.allowed.saturating_add(writes);
            self.gate.1.notify_all();
        }

        /// Returns once a write waits that has not been allowed.
        pub(crate) async fn until_blocked(&self) {
            loop {
                let reached = self.reached.notified();
                {
                    let gate = self.gate.0.lock();
                    if gate.asked > gate.allowed {
                        return;
                    }
                }
                reached.await;
            }
        }
    }

    impl Write for Paused {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut gate = self.gate.0.lock();
            gate.asked += 1;
            self.reached.notify_one();
            while gate.asked > gate.allowed {
                self.gate.1.wait(&mut gate);
            }
            drop(gate);
            self.recorder.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A receipt that sends its number when it is given.
    #[derive(Debug, Clone)]
    struct Slip {
        number: u32,
        is_void: Arc<AtomicBool>,
        given: mpsc::UnboundedSender<u32>,
    }

    impl Receipt for Slip {
        fn is_void(&self) -> bool {
            self.is_void.load(Ordering::SeqCst)
        }

        fn give(self) {
            self.given.send(self.number).ok();
        }
    }

    /// One shard: its texts, and the receipts that were given.
    struct Shard {
        is_void: Arc<AtomicBool>,
        given: mpsc::UnboundedSender<u32>,
        receipts: mpsc::UnboundedReceiver<u32>,
    }

    impl Shard {
        #[expect(clippy::disallowed_methods, reason = "a test makes a handful of receipts")]
        fn new() -> Self {
            let (given, receipts) = mpsc::unbounded_channel();
            Self { is_void: Arc::default(), given, receipts }
        }

        fn text(&self, records: &[&str]) -> Text<Slip> {
            let mut text = Text::with_capacity(0);
            for (number, record) in (0..).zip(records) {
                let (is_void, given) = (Arc::clone(&self.is_void), self.given.clone());
                let slip = Slip { number, is_void, given };
                text.push(slip, |out| out.extend_from_slice(record.as_bytes()));
            }
            text
        }

        async fn receipt(&mut self) -> Option<u32> {
            self.receipts.recv().await
        }
    }

    #[tokio::test]
    async fn small_records_share_a_write_and_each_is_confirmed_after_the_flush() {
        let recorder = Recorder::default();
        let (output, writer) = Output::start(recorder.clone());
        let mut shard = Shard::new();
        output.print(shard.text(&["a\n", "b\n"])).unwrap();
        assert_eq!((shard.receipt().await, shard.receipt().await), (Some(0), Some(1)));
        assert_eq!(
            (output.printed(), recorder.calls()),
            (2, vec!["a\nb\n".into(), "flush".into()])
        );
        output.close();
        writer.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_large_batch_is_confirmed_piece_by_piece_and_no_piece_cuts_a_record() {
        let recorder = Recorder::default();
        let paused = Paused::new(recorder.clone());
        let (output, _writer) = Output::start(paused.clone());
        let mut shard = Shard::new();
        let (small, large) = ("x".repeat(1500) + "\n", "y".repeat(PIECE + 5) + "\n");
        output.print(shard.text(&[&small, &small, &small, &large, &small])).unwrap();
        paused.take(1);
        assert_eq!((shard.receipt().await, shard.receipt().await), (Some(0), Some(1)));
        paused.until_blocked().await;
        assert_eq!(output.printed(), 2);
        paused.take(3);
        assert_eq!((shard.receipt().await, shard.receipt().await), (Some(2), Some(3)));
        paused.until_blocked().await;
        let lengths: Vec<_> = recorder.calls().iter().map(String::len).collect();
        assert_eq!(lengths, [3002, 1501, PIECE, 6]);
        paused.take(1);
        assert_eq!(shard.receipt().await, Some(4));
        output.close();
    }

    #[tokio::test]
    async fn what_is_delivered_again_is_written_once_however_many_copies_wait() {
        let recorder = Recorder::default();
        let paused = Paused::new(recorder.clone());
        let (output, _writer) = Output::start(paused.clone());
        let (mut first, mut other) = (Shard::new(), Shard::new());
        let long = "x".repeat(PIECE) + "\n";
        output.print(first.text(&[&long, "2\n", "3\n"])).unwrap();
        paused.until_blocked().await;
        output.print(other.text(&["other\n"])).unwrap();
        // The shard is lost twice while its first record is being written.
        first.is_void.store(true, Ordering::SeqCst);
        let second = Shard::new();
        output.print(second.text(&["2\n", "3\n"])).unwrap();
        second.is_void.store(true, Ordering::SeqCst);
        let mut third = Shard::new();
        output.print(third.text(&["2\n", "3\n"])).unwrap();
        assert_eq!(output.lock().waiting.len(), 2, "a copy that is void does not stay");
        paused.take(u64::MAX);
        assert_eq!((third.receipt().await, third.receipt().await), (Some(0), Some(1)));
        assert_eq!((other.receipt().await, first.receipt().await), (Some(0), Some(0)));
        assert_eq!(recorder.text(), long + "other\n2\n3\n");
        output.close();
    }

    #[tokio::test]
    async fn batches_of_many_shards_keep_their_order_and_never_mix_within_a_record() {
        let recorder = Recorder::default();
        let (output, _writer) = Output::start(recorder.clone());
        let mut shards = tokio::task::JoinSet::new();
        for shard in 0..8 {
            let output = output.clone();
            shards.spawn(async move {
                let mut receipts = Shard::new();
                for batch in 0..50 {
                    let record = format!("{shard}{}\n", "-".repeat(batch));
                    output.print(receipts.text(&[record.as_str(); 100])).unwrap();
                    for number in 0..100 {
                        assert_eq!(receipts.receipt().await, Some(number));
                    }
                }
            });
        }
        shards.join_all().await;
        let text = recorder.text();
        for shard in 0..8 {
            let records = text.lines().filter(|line| line.starts_with(&shard.to_string()));
            let lengths: Vec<_> = records.map(str::len).collect();
            assert_eq!(lengths.len(), 50 * 100);
            assert!(lengths.is_sorted());
        }
        output.close();
    }

    #[tokio::test]
    async fn a_failed_write_ends_the_writer_and_confirms_nothing() {
        let (output, writer) = Output::start(Broken);
        let mut shard = Shard::new();
        output.print(shard.text(&["a\n"])).unwrap();
        assert_eq!(writer.await.unwrap().unwrap_err().kind(), ErrorKind::BrokenPipe);
        output.close();
        assert_eq!(output.print(shard.text(&["b\n"])), Err(OutputClosed));
        assert_eq!(output.printed(), 0);
        assert!(shard.receipts.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_pipe_that_somebody_made_non_blocking_is_waited_for() {
        struct Busy(Recorder, u32);
        impl Write for Busy {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 += 1;
                if !self.1.is_multiple_of(3) {
                    return Err(ErrorKind::WouldBlock.into());
                }
                self.0.write(&bytes[..1])
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let recorder = Recorder::default();
        let (output, _writer) = Output::start(Busy(recorder.clone(), 0));
        let mut shard = Shard::new();
        output.print(shard.text(&["abc\n"])).unwrap();
        assert_eq!(shard.receipt().await, Some(0));
        assert_eq!(recorder.text(), "abc\n");
        output.close();
    }

    async fn is_pending(mut future: std::pin::Pin<&mut impl Future>) -> bool {
        std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending()))
            .await
    }

    /// The writer's thread keeps paused time from advancing, so the test advances it.
    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_is_noticed_and_one_that_is_slow_is_not() {
        let paused = Paused::new(Recorder::default());
        let (output, _writer) = Output::start(paused.clone());
        let mut shard = Shard::new();
        let mut stalled = std::pin::pin!(output.stalled(Duration::from_secs(30)));
        let seconds = Duration::from_secs;
        for _ in 0..3 {
            assert!(is_pending(stalled.as_mut()).await, "there is nothing to write");
            advance(seconds(31)).await;
        }
        let record = "x".repeat(PIECE - 1) + "\n";
        output.print(shard.text(&[record.as_str(); 20])).unwrap();
        for number in 0..5 {
            paused.until_blocked().await;
            assert!(is_pending(stalled.as_mut()).await, "bytes flow");
            paused.take(1);
            assert_eq!(shard.receipt().await, Some(number));
            advance(seconds(20)).await;
        }
        paused.until_blocked().await;
        assert!(is_pending(stalled.as_mut()).await);
        advance(seconds(31)).await;
        assert!(is_pending(stalled.as_mut()).await, "something was taken since the last look");
        advance(seconds(31)).await;
        stalled.await;
        paused.take(u64::MAX);
        output.close();
    }
}
