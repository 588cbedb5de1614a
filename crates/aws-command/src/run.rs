//! The run of a command from its options to its exit code: usage errors and signals.
//!
//! The first Ctrl-C or SIGTERM requests a graceful shutdown, the second ends the command at once.
//! Never ends the process itself.

use std::future::Future;
use std::io::{self, Write};
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::signals::Signals;
use crate::terminal;

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It completed, it was stopped, or its reader closed stdout.
    Done = 0,
    /// A call failed permanently, or stdout cannot be written.
    Failed = 1,
    /// The arguments are invalid.
    Usage = 2,
    /// A second signal came during the graceful shutdown.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Writes a line of the command `name` to stderr, for use without a console.
pub fn complain(name: &str, line: &str) {
    // If stderr is closed, the exit code still reports the failure.
    writeln!(io::stderr(), "{name}: {line}").ok();
}

/// Runs `work` with the options of the command `name`, and returns the exit code.
///
/// Prints usage errors and raises the limit of open files. Listens for signals from the start: the
/// first cancels the token, the second drops `work`.
///
/// # Cancel safety
/// Dropping the future drops `work`.
pub async fn run<O, F>(
    name: &str,
    options: Result<O, clap::Error>,
    work: impl FnOnce(O, CancellationToken) -> F,
) -> ExitCode
where
    F: Future<Output = Exit>,
{
    let options = match options {
        Ok(options) => options,
        Err(error) => {
            // If the output is closed, the exit code still reports the error.
            error.print().ok();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            complain(name, &format!("cannot listen to signals: {error}; hint: report this bug"));
            return Exit::Failed.into();
        }
    };
    terminal::raise_open_files();
    let stop = CancellationToken::new();
    let exit = tokio::select! {
        biased;
        () = signals.second_after_cancelling(stop.clone()) => Exit::Interrupted,
        exit = Box::pin(work(options, stop.clone())) => exit,
    };
    exit.into()
}
