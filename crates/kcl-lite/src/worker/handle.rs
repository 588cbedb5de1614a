//! What a user holds of a running worker, and the thread it runs on.
//!
//! Dropping the handle ends the worker at once, without releasing its leases.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::coordinator::Command;
use super::{Health, Report, Status};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind};
use crate::lease::balance::Explanation;
use crate::record::WorkerId;
use crate::settings::ControlPlane;

type Outcome = Result<Report, Error>;

/// A running worker.
pub struct WorkerHandle {
    me: WorkerId,
    clock: Arc<dyn Clock>,
    stop: watch::Sender<Option<Instant>>,
    status: watch::Receiver<Status>,
    commands: mpsc::Sender<Command>,
    outcome: watch::Receiver<Option<Outcome>>,
    _end: DropGuard,
    /// The control plane when it runs on the caller's runtime.
    _inline: Mutex<JoinSet<()>>,
}

impl WorkerHandle {
    /// This worker's id.
    #[must_use]
    pub fn worker_id(&self) -> &WorkerId {
        &self.me
    }

    /// What the worker held when it last did something; at most a second or two old.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// What is wrong, if anything: for a liveness probe, and for people. At most a second or two old.
    #[must_use]
    pub fn health(&self) -> Health {
        if crate::mutant::is("all-is-always-well") {
            return Health::default();
        }
        self.status.borrow().health.clone()
    }

    /// Lets go of every shard in good order and takes no other, but keeps running: for maintenance.
    /// [`resume`](Self::resume) ends it.
    ///
    /// # Cancel safety
    /// Dropping the future may take the request back.
    pub async fn drain(&self) {
        self.command(Command::Drain(true)).await;
    }

    /// Delivers nothing more until [`resume`](Self::resume), and keeps every lease: for a sink that is
    /// being repaired. What is being processed goes on to its end; `idle` is still called.
    ///
    /// # Cancel safety
    /// Dropping the future may take the request back.
    pub async fn pause(&self) {
        self.command(Command::Pause(true)).await;
    }

    /// Goes on after [`drain`](Self::drain) or [`pause`](Self::pause).
    ///
    /// # Cancel safety
    /// Dropping the future may take the request back.
    pub async fn resume(&self) {
        self.command(Command::Pause(false)).await;
        self.command(Command::Drain(false)).await;
    }

    /// What this worker would do now with every lease, and why. Empty once it has stopped.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn explain(&self) -> Vec<Explanation> {
        let (answer, answered) = oneshot::channel();
        self.command(Command::Explain(answer)).await;
        answered.await.unwrap_or_default()
    }

    /// A worker that has stopped has nothing left to do.
    async fn command(&self, command: Command) {
        let _stopped = self.commands.send(command).await;
    }

    /// Stops in good order: no new shards, every shard drained and its checkpoint stored, leases
    /// released. What is not done after `deadline` is abandoned without a checkpoint. May be called
    /// again; the first deadline counts.
    ///
    /// # Cancel safety
    /// Dropping the future does not take the request back.
    ///
    /// # Errors
    /// Why the worker had stopped by itself before, if it had.
    pub async fn shutdown(&self, deadline: Duration) -> Outcome {
        let now = self.clock.now();
        let a_year = Duration::from_secs(365 * 24 * 3_600);
        let deadline = now + deadline.min(a_year);
        self.stop.send_if_modified(|stop| {
            let first = stop.is_none();
            stop.get_or_insert(deadline);
            first
        });
        self.stopped().await
    }

    /// Completes when the worker has stopped, by [`shutdown`](Self::shutdown) or by itself.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    ///
    /// # Errors
    /// Why it stopped by itself.
    pub async fn stopped(&self) -> Outcome {
        let mut outcome = self.outcome.clone();
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(ended_early())),
            Err(_) => Err(ended_early()),
        }
    }
}

/// The control plane's task is gone without an outcome: it panicked.
pub(super) fn ended_early() -> Error {
    Error::new(ErrorKind::Internal, "the worker's control plane ended without a result")
}

/// Runs the control plane where the settings say.
pub(super) fn spawn(
    place: ControlPlane,
    me: WorkerId,
    clock: Arc<dyn Clock>,
    stop: watch::Sender<Option<Instant>>,
    status: watch::Receiver<Status>,
    commands: mpsc::Sender<Command>,
    run: impl Future<Output = Outcome> + Send + 'static,
) -> Result<WorkerHandle, Error> {
    let end = CancellationToken::new();
    let (done, outcome) = watch::channel(None);
    let ended = end.clone();
    let control = async move {
        tokio::select! {
            biased;
            () = ended.cancelled() => {}
            result = run => {
                done.send_replace(Some(result));
            }
        }
    };
    let mut inline = JoinSet::new();
    match place {
        ControlPlane::Inline => {
            inline.spawn(control);
        }
        ControlPlane::OwnThread => on_own_thread(control)?,
    }
    let handle = WorkerHandle {
        me,
        clock,
        stop,
        status,
        commands,
        outcome,
        _end: end.drop_guard(),
        _inline: Mutex::new(inline),
    };
    Ok(handle)
}

fn on_own_thread(control: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Internal, format!("the control thread could not start: {error}"))
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    std::thread::Builder::new()
        .name("kcl-lite-control".to_owned())
        .spawn(move || runtime.block_on(control))
        .map_err(failed)?;
    Ok(())
}

impl fmt::Debug for WorkerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerHandle").field("id", &self.me).finish_non_exhaustive()
    }
}
