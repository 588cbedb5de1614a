//! The process's environment: colours on stderr, and the limit of open files.
//!
//! Reads the environment and the limits of the process; writes no output.

use std::env;
use std::io::{self, IsTerminal};

/// Returns whether stderr supports escape sequences: only a terminal does, unless `NO_COLOR` is set
/// or `TERM` is `dumb`.
#[must_use]
pub fn has_colours() -> bool {
    let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || env::var_os("TERM").is_some_and(|value| value == "dumb");
    io::stderr().is_terminal() && !unwanted
}

/// Raises the limit of open files to the maximum that the process is allowed. Each shard that is
/// read by enhanced fan-out needs its own connection, and shells start programs with a limit of 256
/// or 1,024.
///
/// If it cannot be raised, the hint of the error that follows names the limit.
#[cfg(unix)]
pub(crate) fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    /// Some systems refuse more than this although they report no maximum.
    const COMMON_MOST: u64 = 10_240;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    for wanted in [maximum, Some(maximum.map_or(COMMON_MOST, |most| most.min(COMMON_MOST)))] {
        let is_more = wanted.is_none_or(|wanted| current.is_some_and(|current| wanted > current));
        if is_more && setrlimit(Resource::Nofile, Rlimit { current: wanted, maximum }).is_ok() {
            return;
        }
    }
}

#[cfg(not(unix))]
pub(crate) fn raise_open_files() {}
