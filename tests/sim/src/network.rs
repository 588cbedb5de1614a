//! The network: a call takes time, its request may be lost, and its reply may be lost.
//!
//! A request that has left its sender is a separate task: a sender that timed out or died cannot
//! recall it. Therefore a write may be applied long after its sender has forgotten it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future;
use kcl_lite::{ServiceError, ServiceErrorKind};
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::machine::Machine;
use crate::plan::{Service, Trouble};
use crate::reached::Situation;
use crate::world::Truth;

/// The operation that may be refused because its shard does not exist.
pub(crate) const READING: &str = "reading";

/// Why a call has no answer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Failure {
    /// An error of the service; nothing was applied.
    Refused(ServiceErrorKind),
    /// It was applied, but the reply is unreadable.
    Broken,
}

/// The outcome of one call.
enum Fate {
    /// Not applied; an error arrives after a while.
    Refused(ServiceErrorKind, Duration),
    /// Neither applied nor answered.
    Lost,
    /// Applied after `request`.
    Done { request: Duration, answer: Answer },
}

/// The reply that the sender gets to an applied call.
enum Answer {
    After(Duration),
    Broken(Duration),
    Never,
}

impl Machine {
    /// Does the same as [`attempt`](Self::attempt), with the errors of the ports.
    pub(crate) async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        service: Service,
        what: &str,
        work: impl FnOnce(&mut Truth) -> T + Send + 'static,
    ) -> Result<T, ServiceError> {
        self.attempt(service, what, work).await.map_err(|failure| {
            let kind = match failure {
                Failure::Refused(kind) => kind,
                Failure::Broken => ServiceErrorKind::Unavailable,
            };
            ServiceError::new(kind, format!("{what} in the simulation"))
        })
    }

    /// Executes `work` at the service, if the request arrives, and returns its answer, if that
    /// arrives.
    pub(crate) async fn attempt<T: Send + 'static>(
        self: &Arc<Self>,
        service: Service,
        what: &str,
        work: impl FnOnce(&mut Truth) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        self.awake().await;
        match self.fate(service, what) {
            Fate::Refused(kind, after) => {
                sleep(after).await;
                self.awake().await;
                Err(Failure::Refused(kind))
            }
            // The caller's own timeout ends the call.
            Fate::Lost => future::pending().await,
            Fate::Done { request, answer } => {
                let (done, result) = oneshot::channel();
                let world = Arc::clone(&self.world);
                self.world.spawn(async move {
                    sleep(request).await;
                    let result = work(&mut world.lock());
                    // The sender may be gone.
                    drop(done.send(result));
                });
                let (after, is_broken) = match answer {
                    Answer::After(after) => (after, false),
                    Answer::Broken(after) => (after, true),
                    Answer::Never => future::pending().await,
                };
                let result = result.await.expect("a request that has left is always done");
                sleep(after).await;
                self.awake().await;
                if is_broken { Err(Failure::Broken) } else { Ok(result) }
            }
        }
    }

    fn fate(&self, service: Service, what: &str) -> Fate {
        let mut truth = self.world.lock();
        let now = truth.now;
        let weather = &mut truth.weather;
        let trouble = self.draw(|rng| weather.trouble(now, self.slot, service, rng));
        let trouble = trouble.filter(|it| *it != Trouble::NotFound || what == READING);
        if let Some(trouble) = trouble {
            truth.ledger.counts.note(Situation::of(service, trouble));
            truth.say(self, format_args!("  ({what}: {trouble:?})"));
        }
        drop(truth);
        let millis = |most: Duration| {
            let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
            self.draw(|rng| Duration::from_millis(rng.u64(1..=most.max(1))))
        };
        let usual = Duration::from_millis(15);
        let request = millis(usual);
        let after = millis(usual);
        match trouble {
            None => Fate::Done { request, answer: Answer::After(after) },
            Some(Trouble::Slow(most)) => {
                Fate::Done { request: millis(most), answer: Answer::After(millis(most)) }
            }
            Some(Trouble::Refused) => Fate::Refused(ServiceErrorKind::Unavailable, after),
            Some(Trouble::NotFound) => Fate::Refused(ServiceErrorKind::Missing, after),
            Some(Trouble::Throttled) => Fate::Refused(ServiceErrorKind::Throttled, after),
            Some(Trouble::RequestLost) => Fate::Lost,
            Some(Trouble::ReplyBroken) => Fate::Done { request, answer: Answer::Broken(after) },
            Some(Trouble::ReplyLost) => Fate::Done { request, answer: Answer::Never },
            Some(Trouble::Late(most)) => {
                Fate::Done { request: millis(most), answer: Answer::Never }
            }
        }
    }
}
