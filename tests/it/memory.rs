//! A short run of `memory`: the memory of a worker process while its processors stall. The full one,
//! with 200 shards and a budget of 256 MiB: `cargo run -p e2e --bin memory`.

use anyhow::Result;
use e2e::binaries::Binaries;
use e2e::process::Process;
use tokio::process::Command;
use tokio::time::Duration;

/// The run takes half a minute on an idle machine.
const PATIENCE: Duration = Duration::from_secs(300);

#[tokio::test]
async fn c08_c09_a_worker_process_keeps_to_its_budget_and_to_its_threads() -> Result<()> {
    let mut command = Command::new(Binaries::built()?.path("memory"));
    command.args(["--shards", "30", "--budget", "64", "--stall", "300", "--stuck", "2"]);
    command.args(["--many", "200"]);
    let mut memory = Process::start("memory", command)?;
    let code = memory.ended_within(PATIENCE).await?.code();
    let transcript = memory.transcript();
    let stdout = String::from_utf8_lossy(&transcript.stdout);
    assert_eq!(code, Some(0), "{stdout}\n{}", transcript.stderr);
    Ok(())
}
