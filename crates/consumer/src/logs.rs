//! Logs of the library and the AWS SDK on stderr: warnings, or what RUST_LOG selects.
//!
//! The default leaves out the worker's events: `console` prints them as plain lines.

use std::io;

use aws_command::terminal::has_colours;
use tracing_subscriber::EnvFilter;

use crate::options::Verbosity;

/// Starts logging. Only the first call in a process has an effect.
pub(crate) fn start(verbosity: Verbosity) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| default_filter(verbosity));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    log.with_ansi(has_colours()).try_init().ok();
}

fn default_filter(verbosity: Verbosity) -> EnvFilter {
    // A condition that the SDK warns about, such as a provider without credentials, ends in an
    // error that the command reports itself.
    EnvFilter::new(match verbosity {
        Verbosity::Quiet => "error,kcl_lite=warn,kcl_lite::event=off",
        Verbosity::Verbose => "warn,kcl_lite=info,kcl_lite::event=off",
    })
}
