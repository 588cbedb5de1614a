//! Behaviour of local-aws for its users: with the real SDK over a socket and in process, through
//! the control interface, and of the `local-aws` binary.
//!
//! One test binary, because linking the SDK takes most of the time. No test calls AWS.

#![expect(clippy::unwrap_used, reason = "a step of a test that cannot go on shall fail it")]

mod cli;
mod clients;
mod control;
mod dynamo;
mod faults;
mod kinesis;
mod persistence;
mod server;
mod stream_faults;
