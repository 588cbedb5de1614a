//! The command from arguments to exit code: connects the parts, owns the wall clock and signals.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::args::with_two_dashes;
use crate::cli::Cli;
use crate::console::Console;
use crate::options::{Options, Sharing};
use crate::place::Place;
use crate::session::{Ending, Session};
use crate::signals::Signals;
use crate::{aws, failure, logs, session};

/// How the command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// It was stopped, or stdout was closed.
    Done = 0,
    /// The stream cannot be read, or stdout cannot be written.
    Failed = 1,
    /// The arguments make no sense.
    Usage = 2,
    /// A second signal came before the end in good order.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Runs the `consumer` command with `args`, the program's name first.
///
/// Listens to signals from the start; the first ends it in good order, the second at once.
pub async fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let options = match options(args) {
        Ok(options) => options,
        Err(error) => {
            // Nobody reads the message: the exit code still tells.
            error.print().ok();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    logs::start(options.verbosity);
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            complain(&format!("cannot listen to signals: {error}; hint: report this"));
            return Exit::Failed.into();
        }
    };
    let stop = CancellationToken::new();
    let exit = tokio::select! {
        biased;
        () = signals.second_after_cancelling(stop.clone()) => Exit::Interrupted,
        exit = Box::pin(consume(options, stop.clone())) => exit,
    };
    exit.into()
}

fn options(args: impl IntoIterator<Item = OsString>) -> Result<Options, clap::Error> {
    let cli = Cli::try_parse_from(with_two_dashes(&Cli::command(), args))?;
    Options::new(cli, wall_clock())
        .map_err(|message| Cli::command().error(ErrorKind::ValueValidation, message))
}

async fn consume(options: Options, stop: CancellationToken) -> Exit {
    let (config, place) = aws::configure(&options).await;
    let mut console = Console::new(io::stderr(), options.verbosity, place.clone());
    console.say(&opening(&options, &place));
    let mut session = Session::new(console, io::stdout());
    let ending = session.run(session::worker(&options, config), &options, &stop).await;
    let last_words = match ending {
        Ending::Stopped => return Exit::Done,
        Ending::OutputEnded(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            return Exit::Done;
        }
        Ending::OutputEnded(error) => failure::unwritable(&error),
        Ending::Failed(error) => failure::explained(&error, &place),
    };
    session.console().say(&last_words);
    Exit::Failed
}

/// Which stream is read for whom: the three things that learners mix up.
fn opening(options: &Options, place: &Place) -> String {
    match &options.sharing {
        Sharing::Alone => format!("reading {place} alone; nothing is stored"),
        Sharing::Group { application, .. } => format!(
            "reading {place} as application `{application}`; \
             checkpoints in DynamoDB table `{application}`"
        ),
    }
}

fn complain(message: &str) {
    writeln!(io::stderr(), "consumer: {message}").ok();
}

/// The only reader of the wall clock.
fn wall_clock() -> Timestamp {
    Timestamp::now()
}
