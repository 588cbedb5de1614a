//! The command from arguments to exit code: connects the parts, owns the wall clock and signals.

use std::ffi::OsString;
use std::io::{self, ErrorKind, IsTerminal};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use jiff::Timestamp;
use tokio::time::Instant;

use crate::aws;
use crate::cli::{Cli, with_two_dashes};
use crate::emit::Emitter;
use crate::failure::Place;
use crate::options::Options;
use crate::report::Console;
use crate::send::Sender;
use crate::session::{Halt, Session};
use crate::stop::{self, Signals, Stop};

/// How the command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// All records are sent, or the user stopped it.
    Done = 0,
    /// A call failed for good.
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

/// Runs the `producer` command with `args`, the program's name first.
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
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            complain(&format!("cannot listen to signals: {error}; hint: report this"));
            return Exit::Failed.into();
        }
    };
    let (stop_sender, stop) = stop::pair();
    let exit = tokio::select! {
        biased;
        () = signals.second_after_asking(stop_sender) => Exit::Interrupted,
        exit = Box::pin(produce(options, stop)) => exit,
    };
    exit.into()
}

fn options(args: impl IntoIterator<Item = OsString>) -> Result<Options, clap::Error> {
    let cli = Cli::try_parse_from(with_two_dashes(args))?;
    Options::try_from(cli)
        .map_err(|message| Cli::command().error(clap::error::ErrorKind::ValueValidation, message))
}

async fn produce(options: Options, stop: Stop) -> Exit {
    let (client, place) = aws::connect(&options).await;
    let (mut out, mut notes) = (io::stdout().lock(), io::stderr().lock());
    let shared = out.is_terminal() && notes.is_terminal();
    let mut console = Console::new(&mut out, &mut notes, shared, Instant::now());
    console.note(&opening(&options, &place));
    let sender = Sender::new(client, options.stream.clone());
    let session = Session::new(sender, console, stop, options.seed);
    let ended = Emitter::new(options, session, wall_clock).run().await;
    drop((out, notes));
    match ended {
        Ok(()) | Err(Halt::Stopped) => Exit::Done,
        Err(Halt::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Exit::Done,
        Err(Halt::Output(error)) => {
            complain(&format!("cannot write to stdout: {error}; hint: look at where it goes"));
            Exit::Failed
        }
        Err(Halt::Failed(failure)) => {
            complain(&failure.explained(&place));
            Exit::Failed
        }
    }
}

/// Who is sent where, and with which seed, so that a run can be repeated.
fn opening(options: &Options, place: &Place) -> String {
    let who = match options.names.as_slice() {
        [one] => format!("unicorn `{one}`"),
        herd => format!("{} unicorns", herd.len()),
    };
    format!("{who} to {place}, seed {}", options.seed)
}

#[expect(clippy::print_stderr, reason = "the last words of a command, when no console is held")]
fn complain(message: &str) {
    eprintln!("producer: {message}");
}

/// The only reader of the wall clock.
fn wall_clock() -> Timestamp {
    Timestamp::now()
}
