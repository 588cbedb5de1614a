//! The journal of a worker process: one JSON line per occurrence, written before the worker
//! continues.
//!
//! A line is one write to a file in append mode, so that kill -9 loses nothing that was written and
//! cuts at most the last line. Times come from the machine's monotonic clock, which all its
//! processes share. Never interprets what it reads.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Returns the time since the machine was started, the same in every process.
pub(crate) fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).expect("the machine was started in the past");
    Duration::from_secs(seconds) + Duration::from_nanos(now.tv_nsec.unsigned_abs())
}

/// One line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) at: Duration,
    /// The shard that it concerns, if any.
    pub(crate) shard: Option<String>,
    pub(crate) what: What,
}

/// An occurrence in a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum What {
    /// The lease was taken.
    Taken { reason: String },
    /// A processor was initialized.
    Begun { token: u64, checkpoint: String },
    /// `process` was called.
    Batch { token: u64, records: usize },
    /// A record was processed.
    Record { token: u64, sequence_number: String },
    /// A checkpoint was stored in the table.
    Stored { checkpoint: String },
    /// The lease was released after a drain.
    Released { checkpoint: String },
    /// Any other event.
    Reported { text: String },
}

/// The journal of one process. Clones write to the same file.
#[derive(Debug, Clone)]
pub(crate) struct Journal(Arc<Mutex<File>>);

impl Journal {
    /// Opens the file, which may exist.
    ///
    /// # Errors
    ///
    /// The system refuses to open it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("`{}` cannot be opened", path.display()))?;
        Ok(Self(Arc::new(Mutex::new(file))))
    }

    /// Writes a line.
    ///
    /// # Errors
    ///
    /// The system refuses to write it; then nothing may be acknowledged.
    pub(crate) fn note(&self, shard: Option<&str>, what: What) -> Result<()> {
        let entry = Entry { at: now(), shard: shard.map(str::to_owned), what };
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        // In one call, so that lines of different threads do not mix.
        let mut file = self.0.lock();
        file.write_all(&line).context("the journal cannot be written")
    }
}

/// Returns the lines of a file, without a last one that was cut by a kill.
///
/// # Errors
///
/// The file does not exist, or a complete line is malformed.
pub(crate) fn read(path: &Path) -> Result<Vec<Entry>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("`{}` cannot be read", path.display()))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let entries = whole.lines().map(serde_json::from_str).collect::<Result<Vec<_>, _>>();
    entries.with_context(|| format!("`{}` has a line that is not a journal's", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let journal = Journal::open(&path).unwrap();
        let what = What::Record { token: 3, sequence_number: "17".to_owned() };
        journal.note(Some("shardId-0"), what.clone()).unwrap();
        journal.note(None, What::Reported { text: "cut".to_owned() }).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 3]).unwrap();
        let entries = read(&path).unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!((entries[0].shard.as_deref(), &entries[0].what), (Some("shardId-0"), &what));
        assert!(entries[0].at <= now());
    }
}
