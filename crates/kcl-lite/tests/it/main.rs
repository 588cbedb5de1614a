//! Tests of the behaviour of the library, on in-process services.

#![expect(clippy::unwrap_used, reason = "a step of a test that cannot go on shall fail it")]
#![expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one case among many")]

mod accounts;
mod aggregate;
mod canned;
mod dynamo_store;
mod dynamo_table;
mod fan_out;
mod faults;
mod fleet;
mod initial_position;
mod java;
mod java_rows;
mod lease_table;
mod lifecycle;
mod own_thread;
mod polling;
mod processing;
mod refused;
mod scenarios;
mod streams;
mod worker;
