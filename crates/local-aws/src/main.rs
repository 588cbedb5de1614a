//! `local-aws`: Kinesis and DynamoDB for any AWS SDK or CLI on this machine.
//!
//! Prints four `export` lines and a comment with the endpoint on stdout, so that a shell can
//! evaluate them; everything else goes to stderr. Owns the life of the process; `cli` declares the
//! flags.

mod cli;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use local_aws::REGION;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let options = cli::Options::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && !is_set("NO_COLOR"))
        .init();
    if let Err(error) = run(options).await {
        cli::explain(&error);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

async fn run(options: cli::Options) -> anyhow::Result<()> {
    // Signals are handled before anything is printed, because a reader of the output may send one.
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("Ctrl-C cannot be handled")?;
    let address = cli::address(options.port);
    let server =
        options.services().build()?.serve_on(address).await.map_err(cli::cannot_listen(address))?;
    announce(&server.endpoint_url()).context("the endpoint cannot be printed")?;
    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    server.shutdown().await;
    Ok(())
}

fn announce(endpoint: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    // boto3 and the first AWS CLI read only the second name of the region.
    writeln!(out, "# local-aws serves Kinesis and DynamoDB at {endpoint}")?;
    writeln!(out, "export AWS_ENDPOINT_URL={endpoint}")?;
    writeln!(out, "export AWS_REGION={REGION} AWS_DEFAULT_REGION={REGION}")?;
    writeln!(out, "export AWS_ACCESS_KEY_ID=local\nexport AWS_SECRET_ACCESS_KEY=local")?;
    out.flush()
}
