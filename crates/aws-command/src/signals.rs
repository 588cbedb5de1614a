//! Ctrl-C and SIGTERM: the first requests a graceful shutdown, the second an immediate exit.
//!
//! Never ends the process itself.

use std::io;

use tokio_util::sync::CancellationToken;

/// Ctrl-C and, where it exists, SIGTERM.
#[derive(Debug)]
pub(crate) struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    /// Starts listening: from now on a signal does not end the process.
    ///
    /// # Errors
    ///
    /// The system refuses to install a handler.
    pub(crate) fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    /// Does nothing; listening starts at the first wait.
    ///
    /// # Errors
    ///
    /// Never fails on this platform.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {})
    }

    async fn next(&mut self) {
        // Without a handler no signal can come; returning would stop the command.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Signals {
    /// Cancels `stop` at the first signal and returns at the second.
    pub(crate) async fn second_after_cancelling(mut self, stop: CancellationToken) {
        self.next().await;
        stop.cancel();
        self.next().await;
    }
}
