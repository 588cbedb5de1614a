//! A learner's setup: a directory with `./producer` and `./consumer`, and a shell.
//!
//! A shell runs command lines exactly as a page prints them. The environment contains only what
//! selects local-aws, so that no profile or key of this machine can interfere.

use std::path::Path;

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tokio::process::Command;

use crate::binaries::Binaries;
use crate::process::Process;
use crate::server::Aws;

/// The directory, and the services that its commands reach.
#[derive(Debug)]
pub struct Workshop {
    /// The services.
    pub aws: Aws,
    directory: TempDir,
}

impl Workshop {
    /// Creates a workshop whose services change streams at once.
    ///
    /// # Errors
    ///
    /// The commands cannot be built, or the services cannot be started.
    pub async fn open() -> Result<Self> {
        Self::with(Aws::start().await?)
    }

    /// Creates a workshop with a stream `wildrydes` of this many shards.
    ///
    /// # Errors
    ///
    /// The errors of [`open`](Self::open), or the stream cannot be created.
    pub async fn with_shards(shards: i32) -> Result<Self> {
        let workshop = Self::open().await?;
        workshop.aws.create_stream("wildrydes", shards).await?;
        Ok(workshop)
    }

    /// Creates a workshop with these services.
    ///
    /// # Errors
    ///
    /// The commands cannot be built.
    pub fn with(aws: Aws) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let binaries = Binaries::built()?;
        for name in ["producer", "consumer"] {
            link(&binaries.path(name), &directory.path().join(name))?;
        }
        Ok(Self { aws, directory })
    }

    /// Returns the shell that runs `line`, as access key `client`, which names it for faults and
    /// the request log.
    #[must_use]
    pub fn shell(&self, client: &str, line: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(line).current_dir(self.directory.path());
        point(&mut command, &self.aws.endpoint_url(), client);
        command
    }

    /// Runs `line`, one command such as `./producer -region us-east-1`, as access key `client`.
    ///
    /// # Errors
    ///
    /// The shell cannot be started.
    pub fn run(&self, client: &str, line: &str) -> Result<Process> {
        // With `exec`, signals reach the command and not the shell.
        let name = format!("`{line}` ({client})");
        Process::start(&name, self.shell(client, &format!("exec {line}")))
    }
}

/// Gives a command an environment with only the services at `endpoint`, as access key `client`.
pub fn point(command: &mut Command, endpoint: &str, client: &str) {
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
    command.env("AWS_ENDPOINT_URL", endpoint);
    command.env("AWS_ACCESS_KEY_ID", client).env("AWS_SECRET_ACCESS_KEY", "not-a-secret");
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    // Without HOME the SDK would still find the user's home directory.
    for file in ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"] {
        command.env(file, "/dev/null");
    }
}

fn link(from: &Path, to: &Path) -> Result<()> {
    std::os::unix::fs::symlink(from, to)
        .with_context(|| format!("`{}` cannot be linked to", from.display()))
}
