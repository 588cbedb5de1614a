//! The demo as a test: its verdict must be good, and its output complete.

use anyhow::Result;
use e2e::binaries::Binaries;
use e2e::process::Process;
use tokio::process::Command;

use crate::INT;

fn demo(arguments: &str) -> Result<Process> {
    let mut command = Command::new(Binaries::built()?.path("demo"));
    command.args(arguments.split_whitespace());
    Process::start("the demo", command)
}

/// Returns the numbers of the table's row with that name.
fn row(stdout: &str, name: &str) -> Vec<u64> {
    let row = stdout.lines().find(|line| line.trim_start().starts_with(name)).expect(stdout);
    row.split_whitespace().skip(1).map(|number| number.parse().expect(row)).collect()
}

#[tokio::test]
async fn the_demo_loses_nothing_and_says_so_in_a_table() -> Result<()> {
    let mut demo = demo("--seconds 10 --seed 7 --failover 2")?;
    let code = demo.ended().await?.code();
    let transcript = demo.transcript();
    let stdout = String::from_utf8_lossy(&transcript.stdout).into_owned();
    assert_eq!(code, Some(0), "{stdout}\n{}", transcript.stderr);
    let total = row(&stdout, "together");
    let unicorns = [row(&stdout, "Shadowfax"), row(&stdout, "Bucephalus")];
    assert!(total[0] > 0, "{stdout}");
    assert_eq!((total[0], total[2]), (total[1], 0), "{stdout}");
    assert_eq!(total[0], unicorns[0][0] + unicorns[1][0], "{stdout}");
    assert!(!stdout.contains("not measured"), "every act was played to its end: {stdout}");
    assert!(stdout.contains("No record was lost."));
    for line in stdout.lines() {
        assert!(!line.contains('\x1b'), "no colour in a pipe: {line}");
        let is_part = |word: &str, name: &str| word != name && name.starts_with(word);
        let is_cut = |word| is_part(word, "Shadowfax") || is_part(word, "Bucephalus");
        assert!(!line.split_whitespace().any(is_cut), "a pipe has no width: {line}");
    }
    Ok(())
}

#[tokio::test]
async fn ctrl_c_ends_the_demo_earlier_with_the_table() -> Result<()> {
    let mut demo = demo("--seconds 600")?;
    let prints = |t: &e2e::process::Transcript| {
        String::from_utf8_lossy(&t.stdout).contains("] Shadowfax ").then_some(())
    };
    demo.wait_for("a consumer prints Shadowfax", prints).await?;
    assert_eq!(demo.stop(INT).await?, 0);
    let stdout = String::from_utf8_lossy(&demo.transcript().stdout).into_owned();
    let total = row(&stdout, "together");
    assert_eq!((total[0], total[2]), (total[1], 0), "{stdout}");
    Ok(())
}
