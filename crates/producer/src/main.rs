//! The `producer` binary: a runtime around [`producer::run`], and logs if `RUST_LOG` is set.

use std::io;
use std::process::ExitCode;

use aws_command::terminal::has_colours;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Without RUST_LOG nothing is logged: the command reports what a user must know as plain lines.
    if let Ok(filter) = EnvFilter::try_from_default_env() {
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
        log.with_ansi(has_colours()).init();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the system grants a thread its timer and event queue");
    let code = runtime.block_on(producer::run(std::env::args_os()));
    // Does not wait for a name lookup that hangs: the user has asked to exit.
    runtime.shutdown_background();
    code
}
