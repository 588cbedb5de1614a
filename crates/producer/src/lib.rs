//! The `producer` command: a unicorn's sensor, one record a second into a Kinesis stream.
//!
//! The binary calls [`run`] and nothing else. A record travels through the modules like this:
//!
//! ```text
//! cli → options ─────────────┐ the checked command line
//! aws_command                │ flags, signals, region and credentials
//! pace → emit                │ when, and how many
//!        unicorn → reading   │ the data: pure and seeded, time is an argument
//!        batch               │ which records share a request; order per key
//!        aggregate ← shards  │ with --aggregate: which records share a Kinesis record
//!        send ← aws          │ the calls
//!        session             │ handling of failures (failure, retry) and messages
//!        report              ┘ stdout: periods and the summary; stderr: everything else
//! ```
//!
//! Delivery is at least once: a request whose reply was lost is sent again. Records of one unicorn
//! are stored in the order in which they were created.

mod aggregate;
mod aws;
mod batch;
mod cli;
mod command;
mod emit;
mod failure;
mod options;
mod pace;
mod reading;
mod report;
mod retry;
mod send;
mod session;
mod shards;
mod stream;
mod unicorn;

pub use command::run;
