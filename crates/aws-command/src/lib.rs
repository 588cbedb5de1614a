//! The parts that the `producer` and `consumer` commands share.
//!
//! [`args`] parses flags in the workshop's syntax, [`run`] turns a command into an exit code and listens
//! for signals, [`Target`] checks the flags that select the stream, and [`configure`] finds region,
//! endpoints and credentials for it. [`Place`] names the result in every message, and [`failure`] explains
//! a failed call to AWS to a user. [`terminal`] knows what stderr supports. [`reader_is_gone`] watches
//! stdout.
//!
//! Makes no call to AWS, and knows nothing about records.

pub mod args;
mod config;
pub mod failure;
mod pipe;
mod place;
mod run;
mod signals;
mod target;
pub mod terminal;

pub use config::{configure, with_credentials};
pub use pipe::reader_is_gone;
pub use place::{Place, RegionSource};
pub use run::{Exit, complain, run};
pub use target::Target;
