//! The wish to stop: first signal, second signal, and how the rest of the program hears of it.
//!
//! The first Ctrl-C or SIGTERM asks for an end in good order, the second ends the program at once.
//! Never ends the process itself.

use std::io;

use tokio::sync::watch;

/// Makes a pair: whoever holds the first asks, whoever holds the second hears.
pub(crate) fn pair() -> (StopSender, Stop) {
    let (tx, rx) = watch::channel(false);
    (StopSender(tx), Stop(rx))
}

/// Asks for a stop.
#[derive(Debug)]
pub(crate) struct StopSender(watch::Sender<bool>);

impl StopSender {
    pub(crate) fn request(&self) {
        self.0.send_replace(true);
    }
}

/// Hears that a stop was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    pub(crate) fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once a stop was asked for.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again at any time; a request is never forgotten.
    pub(crate) async fn requested(&self) {
        let mut heard = self.0.clone();
        if heard.wait_for(|requested| *requested).await.is_err() {
            // Nobody is left who could ask.
            std::future::pending::<()>().await;
        }
    }
}

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
    /// Starts listening: from here on a signal no longer ends the process by itself.
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
    /// Listens from the first wait on.
    ///
    /// # Errors
    ///
    /// Never here.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {})
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Signals {
    /// Passes the first signal on and returns at the second.
    pub(crate) async fn second_after_asking(mut self, stop: StopSender) {
        self.next().await;
        stop.request();
        self.next().await;
    }
}
