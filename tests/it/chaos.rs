//! A short run of `chaos`: real workers under kill -9, SIGSTOP and SIGTERM during resharding. For
//! ten minutes and other seeds: `cargo run -p e2e --bin chaos -- --seed 7`.

use anyhow::Result;
use e2e::binaries::Binaries;
use e2e::process::Process;
use tokio::process::Command;
use tokio::time::Duration;

/// Covers a run of 20 seconds and a slow settling on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

#[tokio::test]
async fn workers_that_are_killed_and_paused_amid_reshards_lose_nothing() -> Result<()> {
    let mut command = Command::new(Binaries::built()?.path("chaos"));
    command.args(["--seed", "7", "--seconds", "20", "--lease", "2"]);
    let mut chaos = Process::start("chaos", command)?;
    let code = chaos.ended_within(PATIENCE).await?.code();
    let transcript = chaos.transcript();
    let stdout = String::from_utf8_lossy(&transcript.stdout);
    assert_eq!(code, Some(0), "{stdout}\n{}", transcript.stderr);
    let row = |name: &str| -> Option<u64> {
        let row = stdout.lines().find_map(|line| line.trim_start().strip_prefix(name))?;
        row.trim().parse().ok()
    };
    assert!(row("records sent") > Some(0), "{stdout}");
    assert_eq!(row("records sent"), row("records seen"));
    for name in ["lost", "out of order", "two owners past the fence"] {
        assert_eq!(row(name), Some(0), "{stdout}");
    }
    Ok(())
}
