//! A command from its options to its exit code: usage errors, signals, and what ends it.
//!
//! The first Ctrl-C or SIGTERM asks for a graceful end, the second ends the command at once. Never
//! ends the process itself.

use std::future::Future;
use std::io::{self, Write};
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::signals::Signals;
use crate::terminal;

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what was asked, it was stopped, or its reader closed stdout.
    Done = 0,
    /// A call failed for good, or stdout cannot be written.
    Failed = 1,
    /// The arguments make no sense.
    Usage = 2,
    /// A second signal came before the graceful end.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Writes a line of the command `name` to stderr, for when it has no console.
pub fn complain(name: &str, line: &str) {
    // Nobody reads stderr: the exit code still tells.
    writeln!(io::stderr(), "{name}: {line}").ok();
}

/// Runs `work` with the options of the command `name`, and returns the exit code.
///
/// Prints what is wrong with the arguments. Raises the limit of open files. Listens to signals from the
/// start: the first cancels the
/// token, the second drops `work`.
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
            // Nobody reads the message: the exit code still tells.
            error.print().ok();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            complain(name, &format!("cannot listen to signals: {error}; hint: report this"));
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
