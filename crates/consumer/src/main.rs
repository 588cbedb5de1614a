//! The `consumer` binary: a runtime around [`consumer::run`].

use std::process::ExitCode;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("the system grants threads, a timer and an event queue");
    let code = runtime.block_on(consumer::run(std::env::args_os()));
    // Does not wait for a write to a pipe that nobody reads: the user has asked to exit.
    runtime.shutdown_background();
    code
}
