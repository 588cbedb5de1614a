//! The situations that runs have reached: a sweep proves nothing about a situation that it never
//! reaches.

use std::fmt;

use crate::plan::{Service, Tier, Trouble};

/// Declares the situations once: as variants, and in words.
macro_rules! situations {
    ($($name:ident: $words:literal,)+) => {
        /// A situation that a sweep has to reach.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Situation {
            $(#[doc = $words] $name,)+
        }

        impl Situation {
            /// All situations.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Returns the situation in words.
            #[must_use]
            pub fn words(self) -> &'static str {
                match self {
                    $(Self::$name => $words,)+
                }
            }
        }
    };
}

situations! {
    TableSlow: "table: a call is slow",
    TableRefused: "table: an error before anything was done",
    TableThrottled: "table: a call is throttled",
    TableRequestLost: "table: a request is lost",
    TableReplyBroken: "table: done, but the answer is an error",
    TableReplyLost: "table: done, but not answered",
    TableLate: "table: done late, and not answered",
    StreamSlow: "stream: a call is slow",
    StreamRefused: "stream: an error before anything was done",
    StreamThrottled: "stream: a call is throttled",
    StreamRequestLost: "stream: a request is lost",
    StreamReplyBroken: "stream: done, but the answer is an error",
    StreamReplyLost: "stream: done, but not answered",
    StreamLate: "stream: done late, and not answered",
    StreamNotFound: "stream: an existing shard is reported as missing",
    Killed: "a worker is killed",
    KilledAtStart: "a worker is killed while it starts",
    Stopped: "a worker is stopped",
    StoppedAtStart: "a worker is stopped while it starts",
    Frozen: "a worker is frozen",
    FrozenForLong: "a worker is frozen for longer than a lease lasts",
    SuspendedForLong: "a machine is suspended for longer than a lease lasts",
    SameId: "a worker restarts under its old ID",
    GaveUp: "a worker stops, because a service does not answer",
    Split: "a shard is split",
    Merged: "two shards are merged",
    StaleListing: "a listing is stale",
    NamelessEnd: "the end of a shard names no children",
    Trimmed: "a record is gone before it was acknowledged",
    ShardGone: "a shard is forgotten by the service",
    RowForgotten: "a row is deleted by hand",
    RowPutBack: "an owner re-creates its row",
    Burst: "a burst of records arrives",
    Drought: "no records arrive",
    BatchSlow: "a batch takes long",
    BatchFailed: "a batch fails",
    BatchPanicked: "a processor panics",
    BatchHung: "a batch hangs",
    TokenDropped: "a token is dropped",
    RejectedByToken: "a record is rejected by its token",
    RejectedByError: "a record is rejected by an error",
    CutShort: "a processor is cut short",
    PutAside: "a record is dead-lettered",
    NotPutAside: "a record cannot be dead-lettered",
    Delivered: "a record is delivered",
    DeliveredFromAggregate: "a record inside an aggregate is delivered",
    DeliveredFromMerge: "a record of a merged shard is delivered",
    Repeated: "a record is delivered again",
    DeliveredWithHoles: "a part of a failed batch is delivered again",
    Expired: "an expired lease is taken",
    AskedFor: "a lease is requested",
    Withdrawn: "a request for a lease is withdrawn",
    HandedOver: "a lease is handed off",
    Forced: "a lease is taken over from an owner that does not hand it off",
    Released: "a lease is released",
    Finished: "a shard is finished",
    Deleted: "a finished lease is removed",
    Refused: "a write is refused",
    RefusedOfTheDead: "a write of a dead worker is refused",
    AppliedOfTheDead: "a write of a dead worker is applied",
    AppliedLate: "a write is applied five seconds after it was sent",
    LeaseLost: "a processor learns that its lease is lost",
    ShutdownRequested: "a processor is requested to stop",
    ShardEnded: "a processor learns that its shard has ended",
    TakenUp: "a record of a re-created stream is delivered",
    WrongTime: "a request is refused, because the wall clock of its sender has jumped",
    LeftAlone: "a worker does not start with the leases of a re-created stream",
}

impl Situation {
    /// Returns whether runs of a tier can reach it.
    #[must_use]
    pub fn is_possible(self, tier: Tier) -> bool {
        // See `Plan::on`.
        let is_above = [Self::Trimmed, Self::ShardGone, Self::DeliveredFromAggregate];
        match tier {
            Tier::Protocol => self != Self::WrongTime,
            Tier::Full => !is_above.contains(&self),
        }
    }

    pub(crate) fn of(service: Service, trouble: Trouble) -> Self {
        use Service::{Stream, Table};
        match (service, trouble) {
            (Table, Trouble::Slow(_)) => Self::TableSlow,
            // The table never answers that it does not exist: that fault becomes a plain refusal.
            (Table, Trouble::Refused | Trouble::NotFound) => Self::TableRefused,
            (Table, Trouble::Throttled) => Self::TableThrottled,
            (Table, Trouble::RequestLost) => Self::TableRequestLost,
            (Table, Trouble::ReplyBroken) => Self::TableReplyBroken,
            (Table, Trouble::ReplyLost) => Self::TableReplyLost,
            (Table, Trouble::Late(_)) => Self::TableLate,
            (Stream, Trouble::Slow(_)) => Self::StreamSlow,
            (Stream, Trouble::Refused) => Self::StreamRefused,
            (Stream, Trouble::Throttled) => Self::StreamThrottled,
            (Stream, Trouble::RequestLost) => Self::StreamRequestLost,
            (Stream, Trouble::ReplyBroken) => Self::StreamReplyBroken,
            (Stream, Trouble::ReplyLost) => Self::StreamReplyLost,
            (Stream, Trouble::Late(_)) => Self::StreamLate,
            (Stream, Trouble::NotFound) => Self::StreamNotFound,
        }
    }
}

/// How often each situation was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts([u64; Situation::ALL.len()]);

impl Default for Counts {
    fn default() -> Self {
        Self([0; Situation::ALL.len()])
    }
}

impl Counts {
    pub(crate) fn note(&mut self, situation: Situation) {
        self.note_many(situation, 1);
    }

    pub(crate) fn note_many(&mut self, situation: Situation, times: usize) {
        self.0[situation as usize] += times as u64;
    }

    /// Returns how often a situation was reached.
    #[must_use]
    pub fn of(&self, situation: Situation) -> u64 {
        self.0[situation as usize]
    }

    /// Adds the counts of other runs.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
    }

    /// Returns the situations that runs of a tier can reach, and these runs did not.
    #[must_use]
    pub fn never(&self, tier: Tier) -> Vec<&'static str> {
        let missed = |it: &&Situation| it.is_possible(tier) && self.of(**it) == 0;
        Situation::ALL.iter().filter(missed).map(|it| it.words()).collect()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut reached = Situation::ALL.iter().filter(|it| self.of(**it) > 0);
        reached.try_for_each(|it| writeln!(f, "{:>12}  {}", self.of(*it), it.words()))
    }
}
