//! Behaviour of local-aws as its users see it: by the real SDK over a socket and in process,
//! by the control interface, and by the `local-aws` binary.
//!
//! One test binary, because linking the SDK is what takes the time. No test talks to AWS.

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
