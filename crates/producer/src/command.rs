//! The command from arguments to exit code: connects the parts, owns the wall clock.

use std::ffi::OsString;
use std::io::{self, ErrorKind, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use aws_command::args::parsed;
use aws_command::{Exit, Place, complain, configure, failure, reader_is_gone, with_credentials};
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::aws;
use crate::cli::Cli;
use crate::emit::Emitter;
use crate::options::Options;
use crate::report::Console;
use crate::send::Sender;
use crate::session::{Halt, Session};

/// What messages begin with.
const NAME: &str = "producer";

/// How long a stop may take, if stdout takes nothing: more than the last put needs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the `producer` command with `args`, the program's name first.
///
/// Listens to signals from the start; the first ends it gracefully, the second at once.
pub async fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let options = parsed(args, |cli: Cli| Options::try_from(cli));
    aws_command::run(NAME, options, stoppable).await
}

/// Writing to stdout blocks while the reader of a pipe pauses, so the work has a thread of its own:
/// signals are heard meanwhile. A stop waits for it for a while.
async fn stoppable(options: Options, stop: CancellationToken) -> Exit {
    let runtime = Handle::current();
    let stopped = stop.clone();
    let work = spawn_blocking(move || runtime.block_on(produce(options, stop)));
    let given_up = async {
        stopped.cancelled().await;
        sleep(PATIENCE).await;
    };
    tokio::select! {
        biased;
        // The hook has told of a panic.
        exit = work => exit.unwrap_or(Exit::Failed),
        () = given_up => Exit::Done,
    }
}

async fn produce(options: Options, stop: CancellationToken) -> Exit {
    let (found, place) = match configure(&options.target).await {
        Ok((found, place)) => (found, place.without_table()),
        Err(line) => {
            complain(NAME, &line);
            return Exit::Failed;
        }
    };
    // Not locked for long: a thread that logs would wait for it, holding what this one needs to go on.
    let (mut out, mut notes) = (io::stdout(), io::stderr());
    let shared = out.is_terminal() && notes.is_terminal();
    let mut console = Console::new(&mut out, &mut notes, shared, Instant::now());
    console.note(&opening(&options, &place));
    let config = tokio::select! {
        biased;
        () = stop.cancelled() => return Exit::Done,
        config = with_credentials(found, &place) => config,
    };
    let config = match config {
        Ok(config) => config,
        Err(line) => {
            console.note(&line);
            return Exit::Failed;
        }
    };
    let sender = Sender::new(aws::client(&config), options.target.stream().to_owned());
    let session =
        Session::new(sender, console, stop, place.clone(), (options.seed, options.timeout));
    let ended = tokio::select! {
        biased;
        ended = Emitter::new(options, session, wall_clock).run() => ended,
        // Between two periods, which may be far apart, no write would tell.
        () = reader_is_gone() => Err(Halt::Output(ErrorKind::BrokenPipe.into())),
    };
    match ended {
        Ok(()) | Err(Halt::Stopped) => Exit::Done,
        Err(Halt::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Exit::Done,
        Err(Halt::Output(error)) => {
            let line = format!("cannot write to stdout: {error}; hint: look at where it goes");
            complain(NAME, &line);
            Exit::Failed
        }
        Err(Halt::Failed(call)) => {
            complain(NAME, &failure::explained(&call, &place));
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

/// The only reader of the wall clock.
fn wall_clock() -> Timestamp {
    Timestamp::now()
}
