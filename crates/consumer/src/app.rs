//! The command from arguments to exit code: connects the modules.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use aws_command::args::parsed;
use aws_command::{Exit, Place, complain, configure, reader_is_gone, with_credentials};
use tokio_util::sync::CancellationToken;

use crate::console::Console;
use crate::options::{Options, Sharing};
use crate::session::{Ending, Session};
use crate::{failure, logs, session};

/// The prefix of every message on stderr.
const NAME: &str = "consumer";

/// Runs the `consumer` command with `args`, the program's name first.
///
/// Listens for signals from the start: the first shuts the command down gracefully, the second ends
/// it immediately.
pub async fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    aws_command::run(NAME, parsed(args, Options::new), consume).await
}

async fn consume(options: Options, stop: CancellationToken) -> Exit {
    logs::start(options.verbosity);
    let (found, place) = match configure(&options.target).await {
        Ok((found, place)) => (found, place_of(&options, place)),
        Err(line) => {
            complain(NAME, &line);
            return Exit::Failed;
        }
    };
    let mut console = Console::new(io::stderr(), options.verbosity, place.clone());
    console.say(&opening(&options, &place));
    let config = tokio::select! {
        biased;
        () = stop.cancelled() => return Exit::Done,
        config = with_credentials(found, &place) => config,
    };
    let config = match config {
        Ok(config) => config,
        Err(line) => {
            console.say(&line);
            return Exit::Failed;
        }
    };
    let mut session = Session::new(console, io::stdout(), reader_is_gone());
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

/// Returns the place that messages name: the stream and, for a group, the lease table.
fn place_of(options: &Options, place: Place) -> Place {
    match options.sharing {
        Sharing::Alone => place.without_table(),
        Sharing::Group { .. } => place,
    }
}

/// Returns the first line on stderr: stream, region and application, the three settings that users
/// most often confuse.
fn opening(options: &Options, place: &Place) -> String {
    match &options.sharing {
        Sharing::Alone => format!("reading {place} alone; nothing is stored"),
        Sharing::Group { application, .. } => format!(
            "reading {place} as application `{application}`; \
             checkpoints in DynamoDB table `{application}`"
        ),
    }
}
