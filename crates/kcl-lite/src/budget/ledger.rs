//! Who may read next: the bytes in use, who uses them, and who waits in which order.
//!
//! Pure: wakes nobody, reads no clock. The rules stand on [`Ledger::grants`].

use std::collections::{BTreeMap, VecDeque};

/// The number of a shard's account.
pub(super) type AccountId = u64;
/// The number of a request.
pub(super) type Ticket = u64;

/// The books of one budget.
#[derive(Debug)]
pub(super) struct Ledger {
    size: u64,
    /// May be more than `size`: a reply may turn out larger than was set aside for it.
    used: u64,
    accounts: BTreeMap<AccountId, Account>,
    queue: VecDeque<Request>,
    /// The shard that may read beyond the budget until it has given everything back.
    exempt: Option<AccountId>,
    numbers: u64,
}

#[derive(Debug, Default)]
struct Account {
    used: u64,
    /// Its processor has nothing to work on and waits for records.
    is_starved: bool,
    /// Its shard task is gone. Batches that a processor has kept may not be.
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

/// A request that was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) ticket: Ticket,
    pub(super) account: AccountId,
    pub(super) bytes: u64,
}

/// What becomes of a request for now.
enum Verdict {
    Granted,
    /// It waits, and nobody behind it may have what it waits for.
    First,
    /// It waits, and others may pass.
    Waits,
}

impl Ledger {
    pub(super) fn new(size: u64) -> Self {
        let (accounts, queue) = (BTreeMap::new(), VecDeque::new());
        Self { size, used: 0, accounts, queue, exempt: None, numbers: 0 }
    }

    /// A shard begins.
    pub(super) fn open(&mut self) -> AccountId {
        self.numbers += 1;
        self.accounts.insert(self.numbers, Account::default());
        self.numbers
    }

    /// A shard task has ended.
    pub(super) fn close(&mut self, account: AccountId) {
        self.exempt.take_if(|exempt| *exempt == account);
        if let Some(account) = self.accounts.get_mut(&account) {
            account.is_closed = true;
        }
        self.tidy(account);
    }

    /// A shard asks for memory, behind all that have asked before.
    pub(super) fn ask(&mut self, account: AccountId, bytes: u64) -> Ticket {
        self.numbers += 1;
        // More than there is cannot be had: all of it has to do.
        let bytes = bytes.min(self.size);
        self.queue.push_back(Request { ticket: self.numbers, account, bytes, insists: false });
        self.numbers
    }

    /// A request is taken back, if it has not been granted.
    pub(super) fn withdraw(&mut self, ticket: Ticket) {
        self.queue.retain(|request| request.ticket != ticket);
    }

    /// A request has waited for long.
    pub(super) fn insist(&mut self, ticket: Ticket) {
        for request in self.queue.iter_mut().filter(|request| request.ticket == ticket) {
            request.insists = true;
        }
    }

    /// Whether a shard's processor waits for records, with nothing else to do.
    pub(super) fn starved(&mut self, account: AccountId, is_starved: bool) {
        if let Some(account) = self.accounts.get_mut(&account) {
            account.is_starved = is_starved;
        }
    }

    /// What `from` bytes were set aside for takes `to` bytes. More is always granted: it is there.
    pub(super) fn resize(&mut self, account: AccountId, from: u64, to: u64) {
        self.used = self.used - from + to;
        if let Some(account) = self.accounts.get_mut(&account) {
            account.used = account.used - from + to;
        }
        self.tidy(account);
    }

    /// Takes the requests out that may be granted now:
    ///
    /// 1. in the order in which they were made, as long as the budget has room for them; all of it is
    ///    room for the largest;
    /// 2. one shard may read *ahead* of its processor while less than half of the budget is in use,
    ///    or within its own share, and nobody in front of it waits for room;
    /// 3. a shard whose processor has nothing to do, and which has waited for long, is exempt: it may
    ///    read beyond the budget until it has given everything back. One shard at a time.
    ///
    /// So nobody overtakes for ever (1), a stuck processor does not fill the budget with what it will
    /// not look at (2), and whoever needs more records to finish those it has gets them (3).
    pub(super) fn grants(&mut self) -> Vec<Grant> {
        let mut granted = Vec::new();
        let (mut is_blocked, mut index) = (false, 0);
        while let Some(request) = self.queue.get(index).cloned() {
            match self.verdict(&request, is_blocked) {
                Verdict::Granted => {
                    self.queue.remove(index);
                    let Request { ticket, account, bytes, .. } = request;
                    self.resize(account, 0, bytes);
                    granted.push(Grant { ticket, account, bytes });
                    continue;
                }
                Verdict::First => is_blocked = true,
                Verdict::Waits => {}
            }
            index += 1;
        }
        granted
    }

    fn verdict(&mut self, request: &Request, is_blocked: bool) -> Verdict {
        let Some(account) = self.accounts.get(&request.account) else { return Verdict::Waits };
        let fits = self.used + request.bytes <= self.size;
        let is_ahead = account.used > 0 && !account.is_starved;
        if is_ahead {
            let within_half = self.used + request.bytes <= self.size / 2;
            let within_share = account.used + request.bytes <= self.share();
            let may = fits && !is_blocked && (within_half || within_share);
            return if may { Verdict::Granted } else { Verdict::Waits };
        }
        if fits && !is_blocked {
            return Verdict::Granted;
        }
        if self.exempt.is_none() && request.insists {
            self.exempt = Some(request.account);
        }
        if self.exempt == Some(request.account) {
            return Verdict::Granted;
        }
        Verdict::First
    }

    /// What every shard could have at once.
    fn share(&self) -> u64 {
        let open = self.accounts.values().filter(|account| !account.is_closed).count();
        self.size / u64::try_from(open).unwrap_or(u64::MAX).max(1)
    }

    fn tidy(&mut self, id: AccountId) {
        let Some(account) = self.accounts.get(&id) else { return };
        if account.used == 0 {
            self.exempt.take_if(|exempt| *exempt == id);
            if account.is_closed {
                self.accounts.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A ledger of 100 bytes with `count` shards, all of which have nothing to do.
    fn ledger(count: usize) -> (Ledger, Vec<AccountId>) {
        let mut ledger = Ledger::new(100);
        let accounts: Vec<_> = (0..count).map(|_| ledger.open()).collect();
        accounts.iter().for_each(|account| ledger.starved(*account, true));
        (ledger, accounts)
    }

    /// Who is granted what, by the place of its account.
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
        assert_eq!(granted(&mut ledger), [(ids[2], 20)], "who reads ahead is in nobody's way");
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
        waiting.iter().for_each(|ticket| ledger.insist(*ticket));
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
    fn what_a_shard_leaves_behind_is_in_use_until_it_is_given_back_but_holds_nobody_up() {
        let (mut ledger, ids) = ledger(2);
        ledger.resize(ids[0], 0, 100);
        let ticket = ledger.ask(ids[0], 10);
        ledger.insist(ticket);
        assert_eq!(granted(&mut ledger), [(ids[0], 10)]);
        ledger.close(ids[0]);
        let ticket = ledger.ask(ids[1], 10);
        ledger.insist(ticket);
        assert_eq!(granted(&mut ledger), [(ids[1], 10)], "the exemption does not stay with it");
        ledger.resize(ids[0], 110, 0);
        assert_eq!((ledger.used, ledger.accounts.len()), (10, 1));
    }

    /// What a shard of the model does with a batch.
    #[derive(Debug, Clone, Copy)]
    enum Handler {
        Processes,
        /// Acknowledges when it has seen so many batches.
        Collects(usize),
        Stuck,
    }

    fn handler() -> impl Strategy<Value = Handler> {
        prop_oneof![
            3 => Just(Handler::Processes),
            2 => (2_usize..6).prop_map(Handler::Collects),
            1 => Just(Handler::Stuck),
        ]
    }

    proptest! {
        /// Whatever the others do, every shard whose processor works gets on and on, and at most one
        /// shard exceeds the budget.
        #[test]
        fn nobody_starves_and_nothing_is_counted_twice(
            handlers in proptest::collection::vec((handler(), 1_u64..60), 1..12),
        ) {
            let (mut ledger, ids) = ledger(handlers.len());
            let mut held = vec![Vec::new(); ids.len()];
            let mut done = vec![0; ids.len()];
            let mut asked: BTreeMap<Ticket, usize> = BTreeMap::new();
            for _round in 0..handlers.len() * 30 {
                for place in 0..ids.len() {
                    if !asked.values().any(|asking| *asking == place) {
                        asked.insert(ledger.ask(ids[place], handlers[place].1), place);
                    }
                }
                asked.keys().for_each(|ticket| ledger.insist(*ticket));
                for grant in ledger.grants() {
                    let place = asked.remove(&grant.ticket).unwrap();
                    held[place].push(grant.bytes);
                    ledger.starved(grant.account, false);
                }
                let total: u64 = held.iter().flatten().sum();
                prop_assert_eq!(ledger.used, total);
                let exempt = ids.iter().position(|id| ledger.exempt == Some(*id));
                let excess = exempt.map_or(0, |place| held[place].iter().sum());
                prop_assert!(total - excess <= 100, "{} of others", total - excess);
                for place in 0..ids.len() {
                    let is_done = match handlers[place].0 {
                        Handler::Processes => !held[place].is_empty(),
                        Handler::Collects(batches) => held[place].len() >= batches,
                        Handler::Stuck => continue,
                    };
                    if is_done {
                        done[place] += 1;
                        for bytes in held[place].drain(..) {
                            ledger.resize(ids[place], bytes, 0);
                        }
                    }
                    ledger.starved(ids[place], true);
                }
            }
            for (place, (handler, _)) in handlers.iter().enumerate() {
                let stuck_exempt = ids.iter().zip(&handlers).any(|(id, (handler, _))| {
                    ledger.exempt == Some(*id) && matches!(handler, Handler::Stuck)
                });
                prop_assert!(
                    matches!(handler, Handler::Stuck) || stuck_exempt || done[place] >= 3,
                    "{place} was done {} times: {handlers:?}", done[place]
                );
            }
        }
    }
}
