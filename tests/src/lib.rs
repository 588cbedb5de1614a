//! The harness of the demo and of the end-to-end tests: real commands, a real socket, no account.
//!
//! ```text
//! binaries     builds producer and consumer, and says where they are
//! server       local-aws in this process, on loopback; what the stream holds, read back
//! workshop     a directory with ./producer and ./consumer, and the environment they run in
//! process      a running command: its stdout record by record, its stderr, signals, its end
//! group        several consumers watched as one
//! account      records sent against records seen: lost, seen twice, out of order
//! ```
//!
//! Nothing here asserts: a failure is an error that contains the output of the commands. Nothing
//! sleeps to let time pass: every wait is for an event and has a generous bound.

pub mod account;
pub mod binaries;
pub mod group;
pub mod process;
pub mod server;
pub mod workshop;
