//! The command from arguments to exit code: connects the modules and owns the wall clock.

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

/// The prefix of every message on stderr.
const NAME: &str = "producer";

/// How long a stop may take if stdout accepts nothing: longer than the last put needs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the `producer` command with `args`, the program's name first.
///
/// Listens for signals from the start: the first shuts the command down gracefully, the second ends
/// it immediately.
pub async fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let options = parsed(args, |cli: Cli| Options::try_from(cli));
    aws_command::run(NAME, options, stoppable).await
}

/// Runs the work on a thread of its own, because writing to stdout blocks while the reader of a
/// pipe pauses: signals are handled meanwhile. A stop waits for the work for a limited time.
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
        // A panic has been reported by the panic hook.
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
    // Locks neither output for long: a thread that logs would wait for the lock while it holds what
    // this one needs to continue.
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
        // The next period may be far off, so a closed pipe is watched for and not left to the next
        // write.
        () = reader_is_gone() => Err(Halt::Output(ErrorKind::BrokenPipe.into())),
    };
    match ended {
        Ok(()) | Err(Halt::Stopped) => Exit::Done,
        Err(Halt::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Exit::Done,
        Err(Halt::Output(error)) => {
            let line = format!("cannot write to stdout: {error}; hint: check its disk or device");
            complain(NAME, &line);
            Exit::Failed
        }
        Err(Halt::Failed(call)) => {
            complain(NAME, &failure::explained(&call, &place));
            Exit::Failed
        }
    }
}

/// Returns the first line on stderr: the unicorns, the stream, and the seed with which a run can be
/// repeated.
fn opening(options: &Options, place: &Place) -> String {
    let who = match options.names.as_slice() {
        [one] => format!("unicorn `{one}`"),
        herd => format!("{} unicorns", herd.len()),
    };
    format!("{who} to {place}, seed {}", options.seed)
}

/// Reads the wall clock, which no other code does.
fn wall_clock() -> Timestamp {
    Timestamp::now()
}
