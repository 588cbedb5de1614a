//! The ledger of a memory budget: the bytes in use, which shards use them, and the queue of requests.
//!
//! Pure: wakes no task, reads no clock. [`Ledger::grants`] states the rules.

use std::collections::{BTreeMap, VecDeque};

/// The ID of a shard's account.
pub(super) type AccountId = u64;
/// The ID of a request.
pub(super) type Ticket = u64;

/// The accounts and requests of one budget.
#[derive(Debug)]
pub(super) struct Ledger {
    size: u64,
    /// May exceed `size`: a reply can be larger than what was set aside for it.
    used: u64,
    accounts: BTreeMap<AccountId, Account>,
    queue: VecDeque<Request>,
    /// The shard that may exceed the budget.
    exempt: Option<Exempt>,
    /// Whether a request waits for room, or more than the budget is in use because there was no room.
    is_short: bool,
    numbers: u64,
}

#[derive(Debug)]
struct Exempt {
    account: AccountId,
    /// Whether it has released memory since its last grant, or has withdrawn its request.
    made_progress: bool,
}

#[derive(Debug, Default)]
struct Account {
    used: u64,
    /// Its processor has nothing to work on and waits for records.
    is_starved: bool,
    /// Its shard task is gone. Batches that a processor has kept may still exist.
    is_closed: bool,
}

#[derive(Debug, Clone)]
struct Request {
    ticket: Ticket,
    account: AccountId,
    bytes: u64,
    /// It has waited so long that the budget may be exceeded for it.
    insists: bool,
}

/// A granted request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) ticket: Ticket,
    pub(super) account: AccountId,
    pub(super) bytes: u64,
}

/// The decision about a request for now.
enum Verdict {
    Granted,
    /// It waits, and no request behind it may use the room it waits for.
    First,
    /// It waits, and requests behind it may be granted.
    Waits,
}

impl Ledger {
    pub(super) fn new(size: u64) -> Self {
        let (accounts, queue) = (BTreeMap::new(), VecDeque::new());
        Self { size, used: 0, accounts, queue, exempt: None, is_short: false, numbers: 0 }
    }

    /// Opens the account of a shard.
    pub(super) fn open(&mut self) -> AccountId {
        self.numbers += 1;
        self.accounts.insert(self.numbers, Account::default());
        self.numbers
    }

    /// Closes the account of a shard task that has ended or was abandoned.
    pub(super) fn close(&mut self, account: AccountId) {
        self.exempt.take_if(|exempt| exempt.account == account);
        // An abandoned task would never take the permit.
        self.queue.retain(|request| request.account != account);
        if let Some(account) = self.accounts.get_mut(&account) {
            account.is_closed = true;
        }
        self.tidy(account);
    }

    /// Queues a request for memory behind all earlier ones.
    pub(super) fn ask(&mut self, account: AccountId, bytes: u64) -> Ticket {
        self.numbers += 1;
        // A request for more than the budget waits for all of it, and has to make do with that.
        let bytes = bytes.min(self.size);
        self.queue.push_back(Request { ticket: self.numbers, account, bytes, insists: false });
        self.numbers
    }

    /// Withdraws a request that has not been granted.
    pub(super) fn withdraw(&mut self, ticket: Ticket) {
        let Some(place) = self.queue.iter().position(|it| it.ticket == ticket) else { return };
        let account = self.queue.remove(place).map(|request| request.account);
        // The shard may not ask again, and would keep the exemption from those that wait.
        if let Some(exempt) = account.and_then(|account| self.exempt(account)) {
            exempt.made_progress = true;
        }
    }

    /// Marks a request that has waited for long.
    pub(super) fn escalate(&mut self, ticket: Ticket) {
        for request in self.queue.iter_mut().filter(|request| request.ticket == ticket) {
            request.insists = true;
        }
    }

    /// Sets whether a shard's processor waits for records and has nothing else to do.
    pub(super) fn starved(&mut self, account: AccountId, is_starved: bool) {
        if let Some(account) = self.accounts.get_mut(&account) {
            account.is_starved = is_starved;
        }
    }

    /// Changes memory that is set aside from `from` to `to` bytes. An increase is always granted: the
    /// memory is in use already.
    pub(super) fn resize(&mut self, account: AccountId, from: u64, to: u64) {
        self.used = self.used - from + to;
        if let Some(account) = self.accounts.get_mut(&account) {
            account.used = account.used - from + to;
        }
        if let Some(exempt) = self.exempt(account) {
            // Only a release counts: a reply smaller than its reservation shrinks a permit, too.
            exempt.made_progress |= to == 0;
        }
        self.tidy(account);
    }

    /// Returns whether other shards wait for the memory of this one: it holds more than any other,
    /// and there is no room.
    pub(super) fn blocks_others(&self, account: AccountId) -> bool {
        // A closed account is left out: its shard task has ended or was abandoned.
        let open = |account: &&Account| !account.is_closed;
        let Some(account) = self.accounts.get(&account).filter(open) else { return false };
        let holds_most = || self.accounts.values().filter(open).all(|it| it.used <= account.used);
        self.is_short && account.used > 0 && holds_most()
    }

    /// Returns the exemption if this shard has it.
    fn exempt(&mut self, account: AccountId) -> Option<&mut Exempt> {
        self.exempt.as_mut().filter(|exempt| exempt.account == account)
    }

    /// Removes and returns the requests that can be granted now:
    ///
    /// 1. in order, as long as the budget has room for them; the largest request needs no more than
    ///    the whole budget;
    /// 2. a shard may *prefetch* while less than half of the budget is in use, or within its own
    ///    share, if no request in front of it waits for room;
    /// 3. a shard whose processor has nothing to do, and which has waited for long, is exempt: it may
    ///    exceed the budget, up to about twice its size. One shard at a time has the exemption: until
    ///    there is room again, or until it has released memory and another shard has waited for long.
    ///
    /// So no request is overtaken indefinitely (1), a stuck processor does not fill the budget with
    /// records that it will not process (2), and a shard that needs more records to finish those it
    /// has gets them (3).
    pub(super) fn grants(&mut self) -> Vec<Grant> {
        self.choose_exempt();
        let mut granted = Vec::new();
        let (mut is_blocked, mut index) = (false, 0);
        while let Some(request) = self.queue.get(index).cloned() {
            match self.verdict(&request, is_blocked) {
                Verdict::Granted => {
                    self.queue.remove(index);
                    let Request { ticket, account, bytes, .. } = request;
                    self.resize(account, 0, bytes);
                    if let Some(exempt) = self.exempt(account) {
                        exempt.made_progress = false;
                    }
                    granted.push(Grant { ticket, account, bytes });
                    continue;
                }
                Verdict::First => is_blocked = true,
                Verdict::Waits => {}
            }
            index += 1;
        }
        self.is_short = is_blocked || self.used > self.size;
        granted
    }

    fn choose_exempt(&mut self) {
        // Ends the exemption only with some room to spare: while the budget stays full, one exemption
        // would immediately follow another.
        self.exempt.take_if(|_| self.used <= self.size / 8 * 7);
        if self.exempt.as_ref().is_some_and(|exempt| !exempt.made_progress) {
            return;
        }
        let present = self.exempt.as_ref().map(|exempt| exempt.account);
        let needs = |request: &&Request| {
            let account = self.accounts.get(&request.account);
            request.insists
                && Some(request.account) != present
                && self.used + request.bytes > self.size
                && account.is_some_and(|account| !account.has_work())
        };
        if let Some(account) = self.queue.iter().find(needs).map(|request| request.account) {
            self.exempt = Some(Exempt { account, made_progress: false });
        }
    }

    fn verdict(&self, request: &Request, is_blocked: bool) -> Verdict {
        let Some(account) = self.accounts.get(&request.account) else { return Verdict::Waits };
        let fits = self.used + request.bytes <= self.size;
        if account.has_work() {
            let within_half = self.used + request.bytes <= self.size / 2;
            let within_share = account.used + request.bytes <= self.share();
            let may = fits && !is_blocked && (within_half || within_share);
            // Never `First`: a shard that has work to do must not block others by a prefetch.
            return if may { Verdict::Granted } else { Verdict::Waits };
        }
        if fits && !is_blocked {
            return Verdict::Granted;
        }
        let is_exempt = self.exempt.as_ref().is_some_and(|it| it.account == request.account);
        // Without the requested bytes: the exempt shard may end one reply above twice the budget.
        if is_exempt && self.used < self.size * 2 { Verdict::Granted } else { Verdict::First }
    }

    /// Returns the bytes that every shard could have at the same time.
    fn share(&self) -> u64 {
        let open = self.accounts.values().filter(|account| !account.is_closed).count();
        self.size / u64::try_from(open).unwrap_or(u64::MAX).max(1)
    }

    fn tidy(&mut self, id: AccountId) {
        if self.accounts.get(&id).is_some_and(|account| account.is_closed && account.used == 0) {
            self.accounts.remove(&id);
        }
    }
}

impl Account {
    /// Returns whether a read now would be a prefetch.
    fn has_work(&self) -> bool {
        self.used > 0 && !self.is_starved
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns a ledger of 100 bytes with `count` shards whose processors have nothing to do.
    fn ledger(count: usize) -> (Ledger, Vec<AccountId>) {
        let mut ledger = Ledger::new(100);
        let accounts: Vec<_> = (0..count).map(|_| ledger.open()).collect();
        accounts.iter().for_each(|account| ledger.starved(*account, true));
        (ledger, accounts)
    }

    /// Makes a request that has waited for long.
    fn escalated(ledger: &mut Ledger, account: AccountId, bytes: u64) -> Ticket {
        let ticket = ledger.ask(account, bytes);
        ledger.escalate(ticket);
        ticket
    }

    /// Returns the granted accounts and bytes, in the order of the grants.
    fn granted(ledger: &mut Ledger) -> Vec<(u64, u64)> {
        ledger.grants().into_iter().map(|grant| (grant.account, grant.bytes)).collect()
    }

    #[test]
    fn requests_are_granted_in_order_and_a_small_one_does_not_overtake_a_large_one() {
        let (mut ledger, ids) = ledger(3);
        ledger.ask(ids[0], 60);
        ledger.ask(ids[1], 60);
        ledger.ask(ids[2], 10);
        assert_eq!(granted(&mut ledger), [(ids[0], 60)]);
        ledger.resize(ids[0], 60, 30);
        assert_eq!(granted(&mut ledger), [(ids[1], 60), (ids[2], 10)]);
    }

    #[test]
    fn a_request_for_more_than_there_is_gets_all_of_it_when_nothing_is_in_use() {
        let (mut ledger, ids) = ledger(2);
        ledger.ask(ids[0], 1);
        ledger.ask(ids[1], 1_000);
        assert_eq!(granted(&mut ledger), [(ids[0], 1)]);
        ledger.resize(ids[0], 1, 0);
        assert_eq!(granted(&mut ledger), [(ids[1], 100)]);
    }

    #[test]
    fn a_reply_that_is_larger_than_thought_is_counted_and_paid_back_before_others_read() {
        let (mut ledger, ids) = ledger(2);
        ledger.ask(ids[0], 10);
        assert_eq!(granted(&mut ledger).len(), 1);
        ledger.resize(ids[0], 10, 150);
        ledger.ask(ids[1], 0);
        assert_eq!(granted(&mut ledger), []);
        ledger.resize(ids[0], 150, 100);
        assert_eq!(granted(&mut ledger), [(ids[1], 0)]);
    }

    #[test]
    fn reading_ahead_is_within_half_of_the_budget_or_within_the_shards_share() {
        let (mut ledger, ids) = ledger(4);
        ledger.resize(ids[0], 0, 20);
        ledger.starved(ids[0], false);
        ledger.ask(ids[0], 30);
        assert_eq!(granted(&mut ledger), [(ids[0], 30)], "half of the budget");
        ledger.ask(ids[0], 1);
        assert_eq!(granted(&mut ledger), [], "more than half");
        ledger.resize(ids[1], 0, 10);
        ledger.starved(ids[1], false);
        ledger.ask(ids[1], 15);
        assert_eq!(granted(&mut ledger), [(ids[1], 15)], "a quarter for each of four");
        ledger.ask(ids[2], 20);
        assert_eq!(granted(&mut ledger), [(ids[2], 20)], "prefetching does not block others");
    }

    #[test]
    fn nobody_reads_ahead_while_another_waits_for_room() {
        let (mut ledger, ids) = ledger(2);
        ledger.resize(ids[0], 0, 30);
        ledger.ask(ids[1], 80);
        assert_eq!(granted(&mut ledger), []);
        ledger.starved(ids[0], false);
        ledger.ask(ids[0], 10);
        assert_eq!(granted(&mut ledger), []);
    }

    #[test]
    fn one_starved_shard_at_a_time_may_exceed_the_budget_until_it_has_given_all_back() {
        let (mut ledger, ids) = ledger(3);
        ledger.resize(ids[0], 0, 90);
        let waiting = [ledger.ask(ids[1], 50), ledger.ask(ids[2], 50)];
        assert_eq!(granted(&mut ledger), []);
        waiting.iter().for_each(|ticket| ledger.escalate(*ticket));
        assert_eq!(granted(&mut ledger), [(ids[1], 50)]);
        ledger.ask(ids[1], 50);
        assert_eq!(granted(&mut ledger), [(ids[1], 50)], "it needs more to finish what it has");
        ledger.starved(ids[1], false);
        ledger.ask(ids[1], 1);
        assert_eq!(granted(&mut ledger), [], "it has something to do");
        ledger.resize(ids[1], 100, 0);
        let rest = granted(&mut ledger);
        assert_eq!(rest[0], (ids[2], 50), "the next one, in order");
    }

    #[test]
    fn what_a_shard_leaves_behind_is_in_use_until_it_is_returned_but_holds_nobody_up() {
        let (mut ledger, ids) = ledger(2);
        ledger.resize(ids[0], 0, 100);
        escalated(&mut ledger, ids[0], 10);
        assert_eq!(granted(&mut ledger), [(ids[0], 10)]);
        escalated(&mut ledger, ids[0], 10);
        ledger.close(ids[0]);
        escalated(&mut ledger, ids[1], 10);
        assert_eq!(granted(&mut ledger), [(ids[1], 10)], "the exemption does not stay with it");
        ledger.resize(ids[0], 110, 0);
        assert_eq!((ledger.used, ledger.accounts.len()), (10, 1));
    }

    #[test]
    fn a_shard_with_a_sliding_window_passes_the_exemption_on() {
        let (mut ledger, ids) = ledger(3);
        ledger.resize(ids[0], 0, 100);
        ledger.starved(ids[0], false);
        escalated(&mut ledger, ids[1], 10);
        assert_eq!(granted(&mut ledger), [(ids[1], 10)]);
        escalated(&mut ledger, ids[1], 10);
        assert_eq!(granted(&mut ledger), [(ids[1], 10)]);
        escalated(&mut ledger, ids[2], 10);
        escalated(&mut ledger, ids[1], 10);
        ledger.resize(ids[1], 10, 5);
        assert_eq!(granted(&mut ledger), [(ids[1], 10)], "it has released nothing yet");
        ledger.resize(ids[1], 10, 0);
        escalated(&mut ledger, ids[1], 10);
        assert_eq!(granted(&mut ledger), [(ids[2], 10)]);
    }

    #[test]
    fn a_shard_that_reads_nothing_does_not_keep_the_exemption() {
        let (mut ledger, ids) = ledger(3);
        ledger.resize(ids[0], 0, 100);
        escalated(&mut ledger, ids[1], 10);
        assert_eq!(granted(&mut ledger), [(ids[1], 10)]);
        // A read at the tip of a subscription uses no memory.
        ledger.ask(ids[1], 0);
        assert_eq!(granted(&mut ledger), [(ids[1], 0)]);
        ledger.resize(ids[1], 0, 0);
        escalated(&mut ledger, ids[2], 10);
        assert_eq!(granted(&mut ledger), [(ids[2], 10)]);
    }

    #[test]
    fn the_exemption_ends_when_the_budget_is_enough_and_not_before_what_was_granted_is_used() {
        let (mut ledger, ids) = ledger(3);
        ledger.resize(ids[0], 0, 105);
        escalated(&mut ledger, ids[1], 10);
        assert_eq!(granted(&mut ledger), [(ids[1], 10)]);
        ledger.resize(ids[1], 10, 0);
        escalated(&mut ledger, ids[1], 10);
        assert_eq!(granted(&mut ledger), [(ids[1], 10)], "no other shard waits");
        let waits = escalated(&mut ledger, ids[2], 10);
        assert_eq!(granted(&mut ledger), []);
        ledger.withdraw(waits);
        ledger.resize(ids[0], 105, 74);
        assert_eq!(granted(&mut ledger), []);
        ledger.resize(ids[0], 74, 100);
        escalated(&mut ledger, ids[2], 10);
        assert_eq!(granted(&mut ledger), [(ids[2], 10)], "beyond the budget again");
    }

    #[test]
    fn a_shard_that_asks_no_more_is_not_exempt_any_more() {
        let (mut ledger, ids) = ledger(3);
        ledger.resize(ids[0], 0, 199);
        let first = ledger.ask(ids[1], 10);
        ledger.escalate(first);
        assert_eq!(granted(&mut ledger), [(ids[1], 10)]);
        let second = ledger.ask(ids[1], 10);
        assert_eq!(granted(&mut ledger), [], "twice the budget is in use");
        ledger.withdraw(second);
        escalated(&mut ledger, ids[2], 10);
        ledger.resize(ids[0], 199, 150);
        assert_eq!(granted(&mut ledger), [(ids[2], 10)]);
    }

    #[test]
    fn the_exempt_shard_does_not_use_more_than_twice_the_budget_and_a_reply() {
        let (mut ledger, ids) = ledger(2);
        ledger.resize(ids[0], 0, 100);
        for used in (100..200).step_by(40) {
            assert_eq!(ledger.used, used);
            escalated(&mut ledger, ids[1], 40);
            assert_eq!(granted(&mut ledger), [(ids[1], 40)]);
        }
        escalated(&mut ledger, ids[1], 40);
        assert_eq!(granted(&mut ledger), []);
    }

    #[test]
    fn a_shard_is_in_the_way_when_it_holds_most_and_another_waits_for_room() {
        let (mut ledger, ids) = ledger(4);
        ledger.resize(ids[0], 0, 70);
        ledger.resize(ids[1], 0, 24);
        let blocking =
            |ledger: &Ledger| ids.iter().map(|id| ledger.blocks_others(*id)).collect::<Vec<_>>();
        assert_eq!(granted(&mut ledger), []);
        assert_eq!(blocking(&ledger), [false; 4], "there is room");
        let ticket = ledger.ask(ids[2], 10);
        assert_eq!(granted(&mut ledger), []);
        assert_eq!(blocking(&ledger), [true, false, false, false]);
        ledger.escalate(ticket);
        assert_eq!(granted(&mut ledger).len(), 1);
        assert_eq!(blocking(&ledger), [true, false, false, false], "as long as one is exempt");
        ledger.resize(ids[1], 24, 80);
        assert_eq!(blocking(&ledger), [false, true, false, false]);
        ledger.close(ids[1]);
        assert_eq!(blocking(&ledger), [true, false, false, false], "closed ones block nobody");
        ledger.resize(ids[1], 80, 0);
        assert_eq!(granted(&mut ledger), []);
        assert_eq!(blocking(&ledger), [false; 4]);
    }

    /// What the processor of a shard of the model does with its batches.
    #[derive(Debug, Clone, Copy)]
    enum Handler {
        Processes,
        /// Acknowledges once it has this many.
        Collects(usize),
        /// Acknowledges the oldest once it has more than this many.
        Slides(usize),
        /// Never returns from its first batch.
        Hangs,
        /// Takes all that it can get.
        Hoards,
    }

    impl Handler {
        fn is_judged(self) -> bool {
            matches!(self, Self::Hangs | Self::Hoards)
        }
    }

    /// A shard: its handler, and the size of its batches. All windows together fit into twice the
    /// budget, and a handler that processes batches one by one needs room for only one.
    fn shard() -> impl Strategy<Value = (Handler, u64)> {
        prop_oneof![
            3 => (1_u64..60).prop_map(|bytes| (Handler::Processes, bytes)),
            2 => (2_usize..5, 1_u64..4).prop_map(|(count, bytes)| (Handler::Collects(count), bytes)),
            2 => (1_usize..5, 1_u64..4).prop_map(|(count, bytes)| (Handler::Slides(count), bytes)),
            1 => (1_u64..60).prop_map(|bytes| (Handler::Hangs, bytes)),
            1 => (1_u64..60).prop_map(|bytes| (Handler::Hoards, bytes)),
        ]
    }

    /// A shard of the model.
    struct Shard {
        id: AccountId,
        handler: Handler,
        bytes: u64,
        /// Read and not delivered.
        ahead: VecDeque<u64>,
        /// Delivered and not acknowledged.
        held: VecDeque<u64>,
        request: Option<Ticket>,
        done: usize,
    }

    impl Shard {
        fn new(ledger: &mut Ledger, (handler, bytes): (Handler, u64)) -> Self {
            let (ahead, held) = (VecDeque::new(), VecDeque::new());
            Self { id: ledger.open(), handler, bytes, ahead, held, request: None, done: 0 }
        }

        fn used(&self) -> u64 {
            self.ahead.iter().chain(&self.held).sum()
        }

        /// Reads: one batch waits while one more is read.
        fn read(&mut self, ledger: &mut Ledger) {
            if self.request.is_none() && self.ahead.len() < 2 {
                self.request = Some(escalated(ledger, self.id, self.bytes));
            }
        }

        /// Returns whether the processor waits for a batch.
        fn returns(&self) -> bool {
            !matches!(self.handler, Handler::Hangs) || self.held.is_empty()
        }

        /// Delivers one batch to the processor if it waits for one.
        fn process(&mut self, ledger: &mut Ledger) {
            if self.returns() {
                self.held.extend(self.ahead.pop_front());
            }
            let done = match self.handler {
                Handler::Processes => self.held.len(),
                Handler::Collects(count) if self.held.len() >= count => count,
                Handler::Slides(count) => self.held.len().saturating_sub(count),
                Handler::Collects(_) | Handler::Hangs | Handler::Hoards => 0,
            };
            self.done += usize::from(done > 0);
            for bytes in self.held.drain(..done) {
                ledger.resize(self.id, bytes, 0);
            }
            ledger.starved(self.id, self.returns() && self.ahead.is_empty());
        }

        /// Ends its task and releases what it held.
        fn end(&mut self, ledger: &mut Ledger) {
            self.request.take().into_iter().for_each(|ticket| ledger.withdraw(ticket));
            ledger.close(self.id);
            for bytes in self.ahead.drain(..).chain(self.held.drain(..)) {
                ledger.resize(self.id, bytes, 0);
            }
        }
    }

    /// After this many rounds a handler that hangs or hoards is ended.
    const DEADLINE: usize = 20;

    proptest! {
        /// Whatever the others do, every shard with a working processor keeps making progress; and
        /// the counted memory is the memory in use, within the bounds.
        #[test]
        fn nobody_starves_and_nothing_is_counted_twice(
            kinds in proptest::collection::vec(shard(), 1..12),
        ) {
            let mut ledger = Ledger::new(100);
            let mut shards: Vec<_> =
                kinds.iter().map(|kind| Shard::new(&mut ledger, *kind)).collect();
            let most = kinds.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
            for round in 1..=kinds.len() * DEADLINE * 5 {
                shards.iter_mut().for_each(|shard| shard.read(&mut ledger));
                for grant in ledger.grants() {
                    let shard = shards.iter_mut().find(|shard| shard.id == grant.account).unwrap();
                    prop_assert_eq!(shard.request.take(), Some(grant.ticket));
                    shard.ahead.push_back(grant.bytes);
                    ledger.starved(grant.account, false);
                }
                let total: u64 = shards.iter().map(Shard::used).sum();
                prop_assert_eq!(ledger.used, total);
                prop_assert!(total < 200 + most, "{} in use", total);
                let all_hang = kinds.iter().all(|(handler, _)| matches!(handler, Handler::Hangs));
                prop_assert!(!all_hang || total <= 100 + most, "{} in use by hanging shards", total);
                shards.iter_mut().for_each(|shard| shard.process(&mut ledger));
                let is_any = shards.iter().any(|shard| ledger.blocks_others(shard.id));
                let is_blocked = ledger.is_short && shards.iter().any(|shard| shard.used() > 0);
                prop_assert_eq!(is_any, is_blocked, "which shard blocks others");
                if round % DEADLINE == 0 {
                    for shard in shards.iter_mut().filter(|shard| shard.handler.is_judged()) {
                        shard.end(&mut ledger);
                        *shard = Shard::new(&mut ledger, (shard.handler, shard.bytes));
                    }
                }
            }
            for (place, shard) in shards.iter().enumerate() {
                let is_healthy = shard.handler.is_judged() || shard.done >= 2;
                prop_assert!(is_healthy, "{place} was done {} times: {kinds:?}", shard.done);
            }
        }
    }
}
