//! `cargo demo`: unicorns stream through consumers that share a stream and survive a kill.
//!
//! Everything is real except AWS: the commands are processes, and this process serves Kinesis and
//! DynamoDB on a loopback port. The verdict compares the records in the stream with those that the
//! consumers printed; a lost record makes the exit code 1.
//!
//! ```text
//! main      arguments, signals, exit code
//! story     the acts, and their order
//! stage     the processes, and their observation
//! verdict   the table at the end
//! screen    lines on stdout, with colour where it is wanted
//! ```

mod screen;
mod stage;
mod story;
mod verdict;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::screen::Screen;
use crate::stage::Stage;

const AFTER_HELP: &str = "\
Needs no account and no network. Ctrl-C ends it early, with the table; a second one exits immediately.

Exit codes: 0 no record was lost, 1 one was or something failed, 2 usage, 130 interrupted twice.";

/// Watch consumers share a stream, lose one of them to kill -9, and lose no record
#[derive(Debug, Clone, Parser)]
#[command(name = "demo", version, max_term_width = 80, after_help = AFTER_HELP)]
struct Cli {
    /// Length in seconds, at least 10; acts that take longer are waited for
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(10..=86_400))]
    seconds: u64,

    /// Random seed of the rides and of which consumer is killed and stopped [default: random]
    #[arg(long)]
    seed: Option<u64>,

    /// Milliseconds between two records of a unicorn
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    interval: u64,

    /// Seconds a consumer may be silent before the other takes its shards
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    failover: u64,
}

/// The settings of a run.
#[derive(Debug, Clone, Copy)]
struct Settings {
    length: Duration,
    interval: Duration,
    failover: Duration,
    seed: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let settings = Settings {
        length: Duration::from_secs(cli.seconds),
        interval: Duration::from_millis(cli.interval),
        failover: Duration::from_secs(cli.failover),
        seed: cli.seed.unwrap_or_else(|| fastrand::u64(..10_000)),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("the system grants threads, a timer and an event queue");
    let screen = Screen::new();
    let failed = screen.clone();
    runtime.block_on(run(settings, screen)).unwrap_or_else(|error| {
        failed.bad(&format!("the demo failed: {error:#}"));
        ExitCode::FAILURE
    })
}

async fn run(settings: Settings, screen: Screen) -> Result<ExitCode> {
    let mut interrupts = Interrupts::listen()?;
    tokio::select! {
        biased;
        () = interrupts.second() => Ok(ExitCode::from(130)),
        good = Box::pin(play(settings, screen)) => {
            Ok(if good? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// Runs the demo; returns whether it succeeded.
async fn play(settings: Settings, screen: Screen) -> Result<bool> {
    let mut interrupts = Interrupts::listen()?;
    let mut stage = Stage::open(settings, screen).await?;
    let reported = tokio::select! {
        biased;
        () = interrupts.next() => {
            stage.screen.say("interrupted: printing the table now");
            Ok(())
        }
        reported = story::tell(&mut stage) => reported,
    };
    if let Err(error) = &reported {
        stage.screen.bad(&format!("the demo was cut short: {error:#}"));
    }
    let verdict = verdict::settle(&mut stage).await?;
    verdict.print(&stage.screen);
    stage.close().await;
    Ok(reported.is_ok() && verdict.is_good())
}

/// Ctrl-C, SIGTERM, and the hangup of the terminal.
struct Interrupts([tokio::signal::unix::Signal; 3]);

impl Interrupts {
    fn listen() -> std::io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            biased;
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }

    async fn second(&mut self) {
        self.next().await;
        self.next().await;
    }
}
