//! The `consumer` command: prints the records of a Kinesis stream, alone or shared with others.
//!
//! The binary calls [`run`] and nothing else. A record travels through the modules like this:
//!
//! ```text
//! cli → options        the checked command line
//! aws_command          flags, signals, region, endpoint and credentials, and their names in messages
//! session              a kcl-lite worker: start, watch, stop
//!   print → format     one shard's batch as text (indent: bytes in, bytes out)
//!   output             the one writer of stdout, record by record (pipe: whether its reader is gone)
//! console, failure     stderr: what happened, in one line each, with a hint
//! ```
//!
//! Delivery is at least once: a record is acknowledged when its text has been written to stdout and
//! flushed, so that after a crash the records since the last stored checkpoint are printed again. A
//! reader of stdout may be arbitrarily slow: this instance keeps the shards whose records wait for it.

mod app;
mod cli;
mod console;
mod failure;
mod format;
mod indent;
mod logs;
mod options;
mod output;
mod print;
mod session;

pub use app::run;
