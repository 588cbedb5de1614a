//! The clock of one machine: it runs slightly fast or slow. It runs while the process is frozen,
//! and stands still while the machine is suspended.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use kcl_lite::clock::Clock;
use tokio::time::Instant;

use crate::machine::Machine;

/// A clock with drift.
#[derive(Debug, Clone)]
pub(crate) struct DriftingClock(pub(crate) Arc<Machine>);

impl DriftingClock {
    fn read(machine: &Machine) -> Instant {
        let awake = machine.born.elapsed().saturating_sub(machine.suspended());
        machine.born + awake.mul_f64(machine.rate)
    }

    /// Completes when a clock has reached `deadline` and its machine runs.
    pub(crate) async fn wait(machine: Arc<Machine>, deadline: Instant) {
        let wait = deadline.saturating_duration_since(machine.born).div_f64(machine.rate);
        loop {
            tokio::time::sleep_until(machine.born + wait + machine.suspended()).await;
            machine.awake().await;
            if Self::read(&machine) >= deadline {
                return;
            }
            // The conversion may be a nanosecond off, or the machine has been suspended meanwhile.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Clock for DriftingClock {
    fn now(&self) -> Instant {
        Self::read(&self.0)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(Self::wait(Arc::clone(&self.0), deadline))
    }

    fn suspended(&self) -> Duration {
        self.0.suspended()
    }

    fn resumed(&self, before: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let machine = Arc::clone(&self.0);
        Box::pin(async move { machine.resumed(before).await })
    }
}
