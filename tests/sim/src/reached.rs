//! What runs have reached: a sweep that never meets a situation proves nothing about it.

use std::fmt;

use crate::plan::{Service, Tier, Trouble};

/// Names the situations once: as variants, and in words.
macro_rules! situations {
    ($($name:ident: $words:literal,)+) => {
        /// Something that a sweep has to meet.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Situation {
            $(#[doc = $words] $name,)+
        }

        impl Situation {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// In words.
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
    StreamNotFound: "stream: a shard that exists is said not to",
    Killed: "a worker is killed",
    KilledAtStart: "a worker is killed while it starts",
    Stopped: "a worker is stopped",
    StoppedAtStart: "a worker is stopped while it starts",
    Frozen: "a worker is frozen",
    FrozenForLong: "a worker is frozen for longer than a lease lasts",
    SuspendedForLong: "a machine is suspended for longer than a lease lasts",
    SameId: "a worker comes back under its old id",
    GaveUp: "a worker gives up, because a service does not answer",
    Split: "a shard is split",
    Merged: "two shards are merged",
    StaleListing: "a listing shows the past",
    NamelessEnd: "the end of a shard names no children",
    Trimmed: "a record is gone before it was acknowledged",
    ShardGone: "a shard is forgotten by the service",
    RowForgotten: "a row is deleted by hand",
    RowPutBack: "an owner puts its row back",
    Burst: "many records come at once",
    Drought: "no records come",
    BatchSlow: "a batch takes long",
    BatchFailed: "a batch fails",
    BatchPanicked: "a processor panics",
    BatchHung: "a batch hangs",
    TokenDropped: "a token is dropped",
    RejectedByToken: "a record is rejected by its token",
    RejectedByError: "a record is rejected by an error",
    CutShort: "a processor is cut short",
    PutAside: "a record is put aside",
    NotPutAside: "a record cannot be put aside",
    Delivered: "a record is delivered",
    DeliveredFromAggregate: "a record inside an aggregate is delivered",
    DeliveredFromMerge: "a record of a merged shard is delivered",
    Repeated: "a record is delivered again",
    DeliveredWithHoles: "of a batch that failed a part is delivered again",
    Expired: "a lease is taken because nobody renewed it",
    AskedFor: "a lease is asked for",
    Withdrawn: "a request for a lease is withdrawn",
    HandedOver: "a lease is handed over",
    Forced: "a lease is taken from an owner that does not let go",
    Released: "a lease is released",
    Finished: "a shard is finished",
    Deleted: "a finished lease is removed",
    Refused: "a write is refused",
    RefusedOfTheDead: "a write of a worker that is gone is refused",
    AppliedOfTheDead: "a write of a worker that is gone is applied",
    AppliedLate: "a write is applied five seconds after it was sent",
    LeaseLost: "a processor is told that its lease is lost",
    ShutdownRequested: "a processor is told to let go",
    ShardEnded: "a processor is told that its shard has ended",
    TakenUp: "a record of a stream that was made again is delivered",
    WrongTime: "a request is refused, because the wall clock of its sender has jumped",
    LeftAlone: "a worker does not start with the leases of a stream that was made again",
}

impl Situation {
    /// Whether runs of a tier can reach it.
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
            // The table is never said not to exist: that call goes well.
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

    /// How often this one was reached.
    #[must_use]
    pub fn of(&self, situation: Situation) -> u64 {
        self.0[situation as usize]
    }

    /// The counts of several runs.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
    }

    /// What runs of a tier can reach, and these did not.
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
