//! A running command: its output as it arrives, and the signals sent to it.
//!
//! Two tasks read stdout and stderr into one [`Transcript`]; every wait is for a change of it. A
//! process that is dropped is killed, by its id.

use std::fmt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::account::RecordId;

/// Ends a wait that would otherwise never end. No wait takes a tenth of it on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A record as printed: a JSON object over several lines, or any other line.
#[derive(Debug, Clone)]
pub struct Document {
    /// The time when its last line was read.
    pub at: Instant,
    /// The text with the final newline.
    pub text: String,
    /// The id of the record, if a producer created it.
    pub id: Option<RecordId>,
}

/// The output of a process so far.
#[derive(Debug, Default)]
pub struct Transcript {
    /// Stdout, byte by byte.
    pub stdout: Vec<u8>,
    /// Stdout as records. Text after the last newline is not a record yet.
    pub documents: Vec<Document>,
    /// Stderr.
    pub stderr: String,
    /// The offset of the first line after the last document.
    parsed: usize,
    open_outputs: u8,
}

impl Transcript {
    /// Returns the ids of the producers' records, in the order printed.
    pub fn ids(&self) -> impl Iterator<Item = &RecordId> {
        self.documents.iter().filter_map(|document| document.id.as_ref())
    }

    /// Returns how many records of `unicorn` were printed.
    #[must_use]
    pub fn count(&self, unicorn: &str) -> usize {
        self.ids().filter(|id| id.unicorn == unicorn).count()
    }

    /// Returns whether both outputs are closed, which happens when the process ends.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.open_outputs == 0
    }

    fn heard(&mut self, bytes: &[u8], at: Instant) {
        self.stdout.extend_from_slice(bytes);
        let mut line_start = self.parsed;
        while let Some(length) = self.stdout[line_start..].iter().position(|b| *b == b'\n') {
            let line = &self.stdout[line_start..line_start + length];
            let begins = line_start == self.parsed;
            line_start += length + 1;
            // An object over several lines begins and ends with a line that contains only a brace.
            let goes_on = if begins { line == b"{" } else { line != b"}" };
            if !goes_on {
                let bytes = &self.stdout[self.parsed..line_start];
                let text = String::from_utf8_lossy(bytes).into_owned();
                self.documents.push(Document { at, id: RecordId::of(bytes), text });
                self.parsed = line_start;
            }
        }
    }
}

/// A command that was started.
pub struct Process {
    name: String,
    pid: Pid,
    child: Child,
    transcript: watch::Receiver<Transcript>,
    unread: Option<(ChildStdout, watch::Sender<Transcript>)>,
    readers: JoinSet<()>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("name", &self.name).field("pid", &self.pid).finish()
    }
}

impl Process {
    /// Starts `command`; `name` names it in errors.
    ///
    /// It gets its own process group, so that Ctrl-C in a terminal reaches only the demo, which
    /// then decides.
    ///
    /// # Errors
    ///
    /// The system cannot start it.
    pub fn start(name: &str, command: Command) -> Result<Self> {
        let mut process = Self::start_unread(name, command)?;
        process.read_stdout();
        Ok(process)
    }

    /// Does the same as [`start`](Self::start), but stdout is not read before
    /// [`read_stdout`](Self::read_stdout).
    ///
    /// # Errors
    ///
    /// The system cannot start it.
    pub fn start_unread(name: &str, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let pid = pid.context("a process that was just started has an id")?;
        let (heard, transcript) =
            watch::channel(Transcript { open_outputs: 2, ..Transcript::default() });
        let stdout = child.stdout.take().context("stdout is piped")?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        let unread = Some((stdout, heard.clone()));
        let mut readers = JoinSet::new();
        readers.spawn(read(stderr, heard, |transcript, bytes, _| {
            transcript.stderr.push_str(&String::from_utf8_lossy(bytes));
        }));
        Ok(Self { name: name.to_owned(), pid, child, transcript, unread, readers })
    }

    /// Reads stdout from now on.
    pub fn read_stdout(&mut self) {
        if let Some((stdout, heard)) = self.unread.take() {
            self.readers.spawn(read(stdout, heard, Transcript::heard));
        }
    }

    /// Closes the reading end of stdout, if it is not being read.
    pub fn close_stdout(&mut self) {
        if let Some((stdout, heard)) = self.unread.take() {
            drop(stdout);
            heard.send_modify(|transcript| transcript.open_outputs -= 1);
        }
    }

    /// Returns its name in errors.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its process id.
    #[must_use]
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Returns the output so far. The guard must not be held while waiting for more.
    #[must_use]
    pub fn transcript(&self) -> watch::Ref<'_, Transcript> {
        self.transcript.borrow()
    }

    /// Returns when the process prints more, or at once if both outputs are closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect: the change is seen by the next call.
    pub async fn printed(&mut self) {
        self.transcript.changed().await.ok();
    }

    /// Waits until `find` returns a value.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    ///
    /// # Errors
    ///
    /// The process ends before, or a minute passes; the error contains the transcript.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        mut find: impl FnMut(&Transcript) -> Option<T>,
    ) -> Result<T> {
        let mut found = None;
        let mut transcript = self.transcript.clone();
        let waiting = transcript.wait_for(|transcript| {
            found = find(transcript);
            found.is_some() || transcript.is_complete()
        });
        // The guard must not outlive this line: the reading tasks would wait for it.
        let in_time = timeout(PATIENCE, waiting).await.is_ok();
        found.ok_or_else(|| {
            let why = if in_time { "ended before" } else { "took too long for" };
            self.complaint(&format!("{why} this: {what}"))
        })
    }

    /// Waits until `count` records have been printed in total.
    ///
    /// # Errors
    ///
    /// The errors of [`wait_for`](Self::wait_for).
    pub async fn wait_for_records(&self, count: usize) -> Result<()> {
        self.wait_for(&format!("{count} records"), |t| (t.documents.len() >= count).then_some(()))
            .await
    }

    /// Waits until stderr contains `text`.
    ///
    /// # Errors
    ///
    /// The errors of [`wait_for`](Self::wait_for).
    pub async fn wait_for_stderr(&self, text: &str) -> Result<()> {
        self.wait_for(text, |t| t.stderr.contains(text).then_some(())).await
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// The process has ended and was reaped.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // After reaping, the id may belong to another process.
        self.child.id().with_context(|| format!("{} has ended", self.name))?;
        kill_process(self.pid, signal)
            .with_context(|| format!("{} cannot be sent {signal:?}", self.name))
    }

    /// Waits until the process has ended and its whole output is in the transcript.
    ///
    /// # Errors
    ///
    /// It does not end within a minute; the error contains the transcript.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        self.ended_within(PATIENCE).await
    }

    /// Does the same as [`ended`](Self::ended) with another limit.
    ///
    /// # Errors
    ///
    /// It does not end within `limit`; the error contains the transcript.
    pub async fn ended_within(&mut self, limit: Duration) -> Result<ExitStatus> {
        let mut transcript = self.transcript.clone();
        let ending = async {
            let status = self.child.wait().await?;
            // Reads what is left in the pipe, if it was not read yet.
            self.read_stdout();
            transcript.wait_for(Transcript::is_complete).await.ok();
            Ok::<_, std::io::Error>(status)
        };
        match timeout(limit, ending).await {
            Ok(status) => Ok(status?),
            Err(_) => Err(self.complaint("does not end")),
        }
    }

    /// Sends `signal`, waits for the end, and returns the exit code.
    ///
    /// # Errors
    ///
    /// The errors of [`signal`](Self::signal) and [`ended`](Self::ended), or a signal killed it.
    pub async fn stop(&mut self, signal: Signal) -> Result<i32> {
        self.signal(signal)?;
        let status = self.ended().await?;
        status.code().ok_or_else(|| self.complaint(&format!("died by {status}")))
    }

    /// Kills the process as `kill -9` does, and waits until it is dead.
    ///
    /// # Errors
    ///
    /// The errors of [`signal`](Self::signal) and [`ended`](Self::ended).
    pub async fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.ended().await.map(drop)
    }

    fn complaint(&self, what: &str) -> anyhow::Error {
        let transcript = self.transcript.borrow();
        anyhow!(
            "{} {what}\n--- its stdout:\n{}\n--- its stderr:\n{}",
            self.name,
            String::from_utf8_lossy(&transcript.stdout),
            transcript.stderr
        )
    }
}

/// Reads to the end, and notes every piece on arrival.
async fn read(
    mut from: impl AsyncRead + Unpin,
    heard: watch::Sender<Transcript>,
    note: impl Fn(&mut Transcript, &[u8], Instant),
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        // An error is an end too: nothing more can be read.
        let length = from.read(&mut buffer).await.unwrap_or(0);
        if length == 0 {
            break heard.send_modify(|transcript| transcript.open_outputs -= 1);
        }
        heard.send_modify(|transcript| note(transcript, &buffer[..length], Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(pieces: &[&str]) -> Vec<String> {
        let mut transcript = Transcript::default();
        for piece in pieces {
            transcript.heard(piece.as_bytes(), Instant::now());
        }
        transcript.documents.into_iter().map(|document| document.text).collect()
    }

    #[test]
    fn a_record_is_complete_with_its_last_line_wherever_reads_cut_it() {
        let text = "{\n    \"a\": {\n        \"b\": 1\n    }\n}\nouch\n{\"c\":1}\n{\n";
        let whole = documents(&[text]);
        assert_eq!(whole.len(), 3, "{whole:?}");
        assert_eq!(whole.concat() + "{\n", text);
        for cut in 1..text.len() {
            assert_eq!(documents(&[&text[..cut], &text[cut..]]), whole, "{cut}");
        }
    }

    #[tokio::test]
    async fn a_process_that_ends_too_early_tells_what_it_has_printed() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let mut process = Process::start("the script", command).unwrap();
        let error = process.wait_for_records(2).await.unwrap_err().to_string();
        for part in ["the script ended before this: 2 records", "out\n", "err\n"] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(process.ended().await.unwrap().code(), Some(3));
        assert!(process.signal(Signal::KILL).is_err(), "its id may be another's by now");
    }
}
