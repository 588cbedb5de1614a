//! The command line of `local-aws`: its flags, and its errors with their hints.
//!
//! Owns texts for people. Never starts anything.

use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Parser;
use local_aws::{Builder, LocalAws};

/// Kinesis and DynamoDB on one loopback port, without an account.
///
/// Prints four `export` lines that point any AWS SDK or CLI at it, and runs until Ctrl-C.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Options {
    /// Port of 127.0.0.1 to listen on; 0 picks a free one
    #[arg(long, env = "LOCAL_AWS_PORT", default_value_t = 4566, value_name = "PORT")]
    pub(crate) port: u16,

    /// Keep streams and tables in this directory, also across kill -9 [default: in memory]
    #[arg(long, env = "LOCAL_AWS_DATA", value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,

    /// Enforce the limits of Kinesis: reads and writes per shard and second
    #[arg(long, env = "LOCAL_AWS_ENFORCE_LIMITS")]
    pub(crate) enforce_limits: bool,

    /// Random seed
    #[arg(long, env = "LOCAL_AWS_SEED", default_value_t = 0, value_name = "N")]
    pub(crate) seed: u64,
}

impl Options {
    /// Returns a builder with the options of the flags.
    pub(crate) fn services(self) -> Builder {
        let services = LocalAws::builder().enforce_limits(self.enforce_limits).seed(self.seed);
        match self.data {
            Some(dir) => services.data_dir(dir),
            None => services,
        }
    }
}

/// Returns the address to listen on. Loopback only: there is no authentication.
pub(crate) fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// An error with its hint.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
struct Hinted {
    what: String,
    hint: &'static str,
}

/// Returns a function that explains why `address` cannot be listened on.
pub(crate) fn cannot_listen(address: SocketAddr) -> impl FnOnce(io::Error) -> anyhow::Error {
    move |error| unusable(address, error)
}

fn unusable(address: SocketAddr, error: io::Error) -> anyhow::Error {
    let hint = if error.kind() == ErrorKind::AddrInUse {
        "another program listens on it; choose another port with --port, or --port 0"
    } else if error.kind() == ErrorKind::PermissionDenied {
        "ports below 1024 belong to root; choose one with --port"
    } else {
        return anyhow::Error::new(error).context(format!("{address} cannot be listened on"));
    };
    Hinted { what: format!("{address} cannot be listened on: {error}"), hint }.into()
}

/// Prints an error once, with its causes and its hint.
pub(crate) fn explain(error: &anyhow::Error) {
    let mut err = io::stderr().lock();
    let hint = error.downcast_ref::<Hinted>().map(|hinted| hinted.hint);
    // If stderr is closed, the error cannot be reported.
    drop(writeln!(err, "error: {error:#}"));
    if let Some(hint) = hint {
        drop(writeln!(err, "hint: {hint}"));
    }
}
