//! The application: processors that record their deliveries, and that behave as the run demands.
//!
//! They record an acknowledgement when they give it; a token of an older delivery of the same
//! record does not count.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kcl_lite::dead_letter::{DeadLetter, DeadLetterRecord};
use kcl_lite::lease::LeaseKey;
use kcl_lite::{Ack, Batch, BoxError, PoisonRecord, RecordProcessor, ShardContext};
use tokio::time::sleep;

use crate::checks::{Delivery, NOT_COUNTED, Promise, TenureId};
use crate::machine::{Machine, Running};
use crate::plan::{Mood, Style, between};
use crate::reached::Situation;

/// The panic message of these processors; any other panic is the library's.
pub(crate) const PANIC: &str = "a processor of the simulation panics";

/// The longest duration of a batch in a good mood.
const USUAL: Duration = Duration::from_millis(20);
/// The longest delay of a deferred acknowledgement in a good mood.
const LATER: Duration = Duration::from_millis(400);

/// The phase of a processor's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Ready,
    Busy,
    Over,
}

/// A processor of one shard.
pub(crate) struct SimProcessor {
    machine: Arc<Machine>,
    _running: Running,
    shard: Option<usize>,
    key: LeaseKey,
    tenure: TenureId,
    stage: Stage,
    /// The number of the next record that it may receive; `None` before the first one.
    next: Option<usize>,
}

/// The number of a delivery, and the numbers of its records.
#[derive(Debug, Clone)]
struct Given {
    delivery: u64,
    records: Vec<usize>,
}

/// Records the end of a callback, also if it is dropped.
struct Call<'a> {
    of: &'a mut SimProcessor,
    is_over: bool,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.of.stage = Stage::Ready;
        if self.of.machine.is_dead() {
            return;
        }
        let mut truth = self.of.machine.world.lock();
        if !self.is_over {
            truth.ledger.counts.note(Situation::CutShort);
        }
        let (now, thawed) = (truth.now, self.of.machine.thawed_at());
        if let Some(shard) = self.of.shard {
            truth.ledger.processed(now, self.of.tenure, shard, &self.of.key, thawed);
        }
    }
}

impl SimProcessor {
    pub(crate) fn new(machine: &Arc<Machine>, context: &ShardContext) -> Self {
        let tenure = (machine.number, context.fencing_token);
        let mut truth = machine.world.lock();
        let shard = truth.ledger.shard_of(&context.lease_key, tenure, &truth.shards);
        if let Some(shard) = shard {
            truth.shards.begin(shard);
        }
        drop(truth);
        Self {
            _running: machine.hold(),
            machine: Arc::clone(machine),
            shard,
            key: context.lease_key.clone(),
            tenure,
            stage: Stage::New,
            next: None,
        }
    }

    fn moves(&mut self, from: &[Stage], to: Stage, call: &str) {
        if !from.contains(&self.stage) {
            let text = format!("{call} when {:?}", self.stage);
            let mut truth = self.machine.world.lock();
            let now = truth.now;
            truth.ledger.broken(Promise::Lifecycle, now, Some(&self.key), text);
        }
        self.stage = to;
    }

    /// Records the delivery.
    fn note(&mut self, batch: &Batch) -> Given {
        let mut truth = self.machine.world.lock();
        let truth = &mut *truth;
        let records = batch.records();
        let first = records.first().map(|it| it.sequence_number.to_string()).unwrap_or_default();
        truth.say(
            &*self.machine,
            format_args!("processes {} of {}, from {first}", records.len(), self.key),
        );
        let delivery = Delivery {
            at: truth.now,
            tenure: self.tenure,
            shard: self.shard.unwrap_or_default(),
            records,
            next: self.next,
        };
        let (delivery, records) = truth.ledger.delivered(&delivery, &mut truth.shards, &truth.rows);
        if delivery != NOT_COUNTED {
            self.next = records.last().map(|last| last + 1);
        }
        Given { delivery, records }
    }

    async fn work(&self, mut batch: Batch, given: &Given) -> Result<(), BoxError> {
        let world = &self.machine.world;
        let now = world.now();
        let mood = world.lock().weather.mood(now, self.machine.slot);
        let chance = self.machine.draw(|rng| rng.u8(0..100));
        let takes = match mood {
            Some((Mood::Slow(most), _)) => {
                world.note(Situation::BatchSlow);
                most
            }
            _ => USUAL,
        };
        sleep(self.machine.draw(|rng| between(rng, Duration::ZERO, takes))).await;
        self.machine.awake().await;
        let mut spoiled = None;
        match mood {
            Some((Mood::Failing(percent), _)) if chance < percent => {
                match chance % 4 {
                    // Some processors have taken the tokens, and the acknowledgement may still
                    // arrive.
                    1 => self.acknowledge(&mut batch, given, 0),
                    2 => self.acknowledge_some(&mut batch, given),
                    3 if given.delivery != NOT_COUNTED => return Err(self.rejects(&batch, given)),
                    _ => {}
                }
                world.note(Situation::BatchFailed);
                return Err("a failure of the simulation".into());
            }
            Some((Mood::Panicking(percent), _)) if chance < percent => {
                if chance % 2 == 1 {
                    self.acknowledge_some(&mut batch, given);
                }
                world.note(Situation::BatchPanicked);
                fails(&self.machine, self.shard, given);
                panic!("{PANIC}");
            }
            Some((Mood::Hanging(percent), until)) if chance < percent => {
                world.note(Situation::BatchHung);
                sleep(until.saturating_sub(now)).await;
                self.machine.awake().await;
            }
            Some((Mood::Dropping(percent), _)) => spoiled = Some(percent),
            _ => {}
        }
        if world.plan.style == Style::Return {
            if spoiled.is_some_and(|percent| chance < percent) {
                return Err("a failure of the simulation".into());
            }
            settle(&self.machine, self.shard, given);
        } else {
            self.acknowledge(&mut batch, given, spoiled.unwrap_or(0));
        }
        Ok(())
    }

    /// Records the failure: the records of this batch that are not acknowledged are delivered
    /// again.
    fn failed(&mut self, given: &Given) {
        let mut truth = self.machine.world.lock();
        if let Some(shard) = self.shard.filter(|_| given.delivery != NOT_COUNTED) {
            self.next = given.records.first().copied();
            truth.shards.fail(shard, &given.records, given.delivery);
            let id = truth.shards.all[shard].id.clone();
            truth.say(&*self.machine, format_args!("  (a processor of {id} fails)"));
        }
    }

    /// Rejects one of the records as a poison record.
    fn rejects(&self, batch: &Batch, given: &Given) -> BoxError {
        let index = self.machine.draw(|rng| rng.usize(..given.records.len()));
        let mut truth = self.machine.world.lock();
        truth.ledger.counts.note(Situation::RejectedByError);
        if let Some(shard) = self.shard {
            truth.shards.reject(shard, given.records[index]);
        }
        PoisonRecord::new(&batch.records()[index], "the simulation rejects it").into()
    }

    /// Acknowledges about half of the records at once, before the batch fails.
    fn acknowledge_some(&self, batch: &mut Batch, given: &Given) {
        if self.machine.world.plan.style != Style::Split || given.delivery == NOT_COUNTED {
            return;
        }
        for (part, ack) in given.each().zip(batch.split().into_iter().map(|(_, ack)| ack)) {
            match self.machine.draw(|rng| rng.u8(0..8)) {
                0..4 => {
                    settle(&self.machine, self.shard, &part);
                    ack.acknowledge();
                }
                4 => {
                    self.machine.world.note(Situation::RejectedByToken);
                    if let Some(shard) = self.shard {
                        let mut truth = self.machine.world.lock();
                        truth.shards.reject(shard, part.records[0]);
                    }
                    ack.reject("the simulation rejects it");
                }
                _ => {}
            }
        }
    }

    /// Takes the token, and acknowledges later.
    fn acknowledge(&self, batch: &mut Batch, given: &Given, dropped: u8) {
        let count = given.records.len();
        let mut acks: Vec<(Given, Ack)> = match self.machine.world.plan.style {
            Style::Return => return,
            Style::Defer => vec![(given.clone(), batch.defer())],
            Style::Split => {
                let acks = batch.split().into_iter().map(|(_, ack)| ack);
                given.each().zip(acks).collect()
            }
        };
        let (machine, shard) = (Arc::clone(&self.machine), self.shard);
        machine.draw(|rng| rng.shuffle(&mut acks));
        self.machine.world.spawn(async move {
            for (part, ack) in acks {
                let (pause, chance) = machine.draw(|rng| {
                    (between(rng, Duration::ZERO, LATER.div_f64(count as f64)), rng.u8(0..100))
                });
                sleep(pause).await;
                machine.awake().await;
                if chance < dropped {
                    machine.world.note(Situation::TokenDropped);
                    fails(&machine, shard, &part);
                    drop(ack);
                } else {
                    settle(&machine, shard, &part);
                    ack.acknowledge();
                }
            }
        });
    }
}

impl Given {
    /// Returns one delivery for each record.
    fn each(&self) -> impl Iterator<Item = Self> {
        let delivery = self.delivery;
        self.records.iter().map(move |record| Self { delivery, records: vec![*record] })
    }
}

fn settle(machine: &Machine, shard: Option<usize>, given: &Given) {
    if machine.is_dead() {
        return;
    }
    if let Some(shard) = shard {
        let mut truth = machine.world.lock();
        let records = given.records.iter();
        records.for_each(|index| truth.shards.acknowledge(shard, *index, given.delivery));
    }
}

/// Records that a processor panics, or drops a token.
fn fails(machine: &Machine, shard: Option<usize>, given: &Given) {
    let mut truth = machine.world.lock();
    if let Some(shard) = shard {
        truth.shards.fail_all(shard, &given.records, given.delivery);
        let id = truth.shards.all[shard].id.clone();
        truth.say(machine, format_args!("  (a processor of {id} fails)"));
    }
}

/// The dead-letter queue: a record stored there counts as processed.
#[derive(Debug)]
pub(crate) struct Morgue(pub(crate) Arc<Machine>);

impl DeadLetter for Morgue {
    fn store<'a>(&'a self, letter: &'a DeadLetterRecord) -> BoxFuture<'a, Result<(), BoxError>> {
        async move {
            sleep(self.0.draw(|rng| between(rng, Duration::ZERO, USUAL))).await;
            self.0.awake().await;
            if self.0.draw(|rng| rng.u8(0..4)) == 0 {
                self.0.world.note(Situation::NotPutAside);
                return Err("a dead letter cannot be stored".into());
            }
            let mut truth = self.0.world.lock();
            truth.ledger.counts.note(Situation::PutAside);
            truth.say(&*self.0, format_args!("stores {} of {}", letter.position, letter.shard));
            let is_rejected = letter.attempts == 0;
            let id = letter.shard.as_str();
            if !truth.shards.put_aside(self.0.number, id, &letter.position, is_rejected) {
                let text = format!("{} is dead-lettered without a rejection", letter.position);
                let now = truth.now;
                truth.ledger.broken(Promise::Loss, now, Some(&letter.shard), text);
            }
            Ok(())
        }
        .boxed()
    }
}

impl RecordProcessor for SimProcessor {
    async fn process(&mut self, batch: Batch) -> Result<(), BoxError> {
        self.moves(&[Stage::Ready], Stage::Busy, "process");
        let given = self.note(&batch);
        let mut call = Call { of: self, is_over: false };
        call.of.machine.awake().await;
        let result = call.of.work(batch, &given).await;
        if result.is_err() {
            call.of.failed(&given);
        }
        call.is_over = true;
        result
    }

    async fn initialize(&mut self, _: &ShardContext) -> Result<(), BoxError> {
        self.moves(&[Stage::New], Stage::Ready, "initialize");
        Ok(())
    }

    async fn idle(&mut self) -> Result<(), BoxError> {
        self.moves(&[Stage::Ready], Stage::Ready, "idle");
        Ok(())
    }

    async fn shard_ended(&mut self) {
        self.moves(&[Stage::Ready], Stage::Over, "shard_ended");
        let mut truth = self.machine.world.lock();
        truth.ledger.counts.note(Situation::ShardEnded);
        if !self.shard.is_some_and(|shard| truth.ledger.is_finished(shard)) {
            let (now, text) = (truth.now, "shard_ended before it is stored".to_owned());
            truth.ledger.broken(Promise::Lifecycle, now, Some(&self.key), text);
        }
    }

    async fn shutdown_requested(&mut self) {
        self.moves(&[Stage::Ready], Stage::Over, "shutdown_requested");
        self.machine.world.note(Situation::ShutdownRequested);
        if let Some(shard) = self.shard {
            let mut truth = self.machine.world.lock();
            let truth = &mut *truth;
            truth.ledger.asked_to_stop(truth.now, self.tenure, shard, &mut truth.shards);
        }
    }

    async fn lease_lost(&mut self) {
        self.moves(&[Stage::New, Stage::Ready], Stage::Over, "lease_lost");
        self.machine.world.note(Situation::LeaseLost);
    }
}
