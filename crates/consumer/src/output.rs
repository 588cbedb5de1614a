//! The one writer of stdout: whole batches, each with one write and one flush.
//!
//! Writing blocks while the reader of a pipe is slow, so it happens on a thread of its own: the
//! worker keeps its leases and signals are heard meanwhile. The thread ends at the first error, and
//! with it every wait for a write.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};

/// Batches that wait for the writer. Each shard waits for its own, so a few are enough to keep the
/// writer busy, and more would only hold memory.
const WAITING_BATCHES: usize = 4;

/// The processors' side of stdout. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    batches: mpsc::Sender<Text>,
    printed: Arc<AtomicU64>,
}

/// Ends when all [`Output`]s are gone, or at the first error.
pub(crate) type Writer = JoinHandle<io::Result<()>>;

/// The text of one batch.
#[derive(Debug)]
struct Text {
    bytes: Vec<u8>,
    records: u64,
    flushed: oneshot::Sender<()>,
}

/// Nothing can be written any more; the [`Writer`] says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutputEnded;

impl std::fmt::Display for OutputEnded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stdout takes no more records")
    }
}

impl std::error::Error for OutputEnded {}

impl Output {
    /// Starts the thread that writes to `out`.
    pub(crate) fn start(out: impl Write + Send + 'static) -> (Self, Writer) {
        let (batches, waiting) = mpsc::channel(WAITING_BATCHES);
        let printed = Arc::new(AtomicU64::new(0));
        let writer = spawn_blocking({
            let printed = printed.clone();
            move || write_all(waiting, out, &printed)
        });
        (Self { batches, printed }, writer)
    }

    /// Writes `bytes`, the text of so many `records`, and returns once they are flushed.
    ///
    /// # Cancel safety
    ///
    /// The text may be written all the same when the future is dropped.
    ///
    /// # Errors
    ///
    /// An earlier write failed, or this one.
    pub(crate) async fn write(&self, bytes: Vec<u8>, records: u64) -> Result<(), OutputEnded> {
        let (flushed, done) = oneshot::channel();
        let text = Text { bytes, records, flushed };
        self.batches.send(text).await.map_err(|_| OutputEnded)?;
        done.await.map_err(|_| OutputEnded)
    }

    /// Records written and flushed so far.
    pub(crate) fn printed(&self) -> u64 {
        self.printed.load(Ordering::Relaxed)
    }
}

fn write_all(
    mut waiting: mpsc::Receiver<Text>,
    mut out: impl Write,
    printed: &AtomicU64,
) -> io::Result<()> {
    while let Some(text) = waiting.blocking_recv() {
        out.write_all(&text.bytes)?;
        out.flush()?;
        printed.fetch_add(text.records, Ordering::Relaxed);
        // The shard was lost while its batch was being written: nobody waits any more.
        text.flushed.send(()).ok();
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use tokio::sync::Notify;

    use super::*;

    /// What was asked of stdout, call by call.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Recorder {
        calls: Arc<Mutex<Vec<String>>>,
        called: Arc<Notify>,
    }

    impl Recorder {
        pub(crate) fn calls(&self) -> Vec<String> {
            self.calls.lock().unwrap().clone()
        }

        /// All that was written.
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
            self.calls.lock().unwrap().push(call);
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

    /// A pipe whose reader has gone.
    #[derive(Debug)]
    pub(crate) struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_batch_is_one_write_and_one_flush_before_it_counts() {
        let recorder = Recorder::default();
        let (output, writer) = Output::start(recorder.clone());
        output.write(b"a\nb\n".to_vec(), 2).await.unwrap();
        assert_eq!((output.printed(), recorder.calls().len()), (2, 2));
        output.write(b"c\n".to_vec(), 1).await.unwrap();
        assert_eq!(recorder.calls(), ["a\nb\n", "flush", "c\n", "flush"]);
        assert_eq!(output.printed(), 3);
        drop(output);
        writer.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn batches_of_many_shards_never_mix() {
        let recorder = Recorder::default();
        let (output, writer) = Output::start(recorder.clone());
        let mut shards = tokio::task::JoinSet::new();
        for shard in 0..8 {
            let output = output.clone();
            shards.spawn(async move {
                for _ in 0..50 {
                    output.write(format!("{shard}\n").repeat(100).into_bytes(), 100).await.unwrap();
                }
            });
        }
        shards.join_all().await;
        drop(output);
        writer.await.unwrap().unwrap();
        let batches = recorder.calls().into_iter().filter(|call| call != "flush");
        assert!(batches.clone().all(|text| text == text[..2].repeat(100)));
        assert_eq!(batches.count(), 8 * 50);
    }

    #[tokio::test]
    async fn a_failed_write_does_not_count_and_ends_the_writer() {
        let (output, writer) = Output::start(Broken);
        assert_eq!(output.write(b"a\n".to_vec(), 1).await, Err(OutputEnded));
        assert_eq!(writer.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(output.write(b"b\n".to_vec(), 1).await, Err(OutputEnded));
        assert_eq!(output.printed(), 0);
    }
}
