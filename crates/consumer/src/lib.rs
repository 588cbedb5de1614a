//! The `consumer` command: prints the records of a Kinesis stream, alone or shared with others.
//!
//! The binary calls [`run`] and nothing else. A record travels through the modules like this:
//!
//! ```text
//! cli → options        what was asked for, checked once
//! aws_command          flags, signals, region, endpoint and credentials, and how to name them
//! session              a kcl-lite worker: start, watch, stop
//!   print → format     one shard's batch as text (indent: bytes in, bytes out)
//!   output             the one writer of stdout, record by record (pipe: whether anybody reads it)
//! console, failure     stderr: what happened, in one line each, with a hint
//! ```
//!
//! Delivery is at least once: a record counts as processed when its text has been written to stdout
//! and flushed, so what a crash repeats is what was printed since the last stored checkpoint. A reader
//! of stdout may take as long as it likes: what waits for it keeps its shard.

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
