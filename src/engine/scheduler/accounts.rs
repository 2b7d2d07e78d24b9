//! Service of accounts, by the virtual token counters of S-LoRA's fair scheduler (VTC,
//! arXiv 2401.00588).
//!
//! Each account counts the tokens that were computed and generated for it: 1 per token of a prompt,
//! 2 per generated one, which is also computed. The account with the lowest counter is served
//! first, and within it the ticket with the lowest counter. The counter of a newcomer is lifted to
//! the lowest one of those with work, so that idle time cannot be saved up.

use std::collections::HashMap;
use std::hash::Hash;

use crate::engine::account::Account;
use crate::engine::plan::Group;

/// Tokens served to an account, and to the group of the sequence within it: the smaller pair is
/// served first.
pub type Service = (u64, u64);

/// The counters of all accounts, and of the groups within each.
#[derive(Debug, Default)]
pub struct Accounts {
    accounts: Counters<Account>,
    groups: HashMap<Account, Counters<Group>>,
}

impl Accounts {
    /// Counts a sequence that joins the queue. Returns whether its account had none while others
    /// had some.
    pub fn enter(&mut self, account: &Account, group: Group) -> bool {
        let is_newcomer = self.accounts.enter(account);
        let groups = self.groups.entry(account.clone()).or_default();
        groups.enter(&group);
        is_newcomer
    }

    /// Counts a sequence that leaves the queues.
    pub fn leave(&mut self, account: &Account, group: Group) {
        self.accounts.leave(account);
        if let Some(groups) = self.groups.get_mut(account) {
            groups.leave(&group);
        }
        let accounts = &self.accounts.by_key;
        self.groups
            .retain(|account, _| accounts.contains_key(account));
    }

    /// Counts tokens that were computed or generated.
    pub fn charge(&mut self, account: &Account, group: Group, tokens: usize) {
        self.accounts.charge(account, tokens);
        if let Some(groups) = self.groups.get_mut(account) {
            groups.charge(&group, tokens);
        }
    }

    /// Tokens served so far.
    pub fn service(&self, account: &Account, group: Group) -> Service {
        let groups = self.groups.get(account);
        let within = groups.map_or(0, |groups| groups.tokens(&group));
        (self.accounts.tokens(account), within)
    }

    /// Whether no account has sequences.
    #[cfg(test)]
    pub fn are_idle(&self) -> bool {
        self.accounts.active().next().is_none() && self.groups.is_empty()
    }

    /// What tells the light accounts from the others.
    pub fn balance(&self) -> Balance {
        let active = || self.accounts.active();
        let (accounts, sequences) = (active().count(), active().map(|own| own.sequences).sum());
        let heavy = active().filter(|own| own.sequences * accounts >= sequences);
        Balance {
            accounts,
            sequences,
            most_served: heavy.map(|own| own.tokens).max().unwrap_or(0),
        }
    }

    /// Whether an account has fewer sequences than the average, and was served no more than the
    /// best-served of the others.
    pub fn is_light(&self, account: &Account, balance: Balance) -> bool {
        self.accounts.by_key.get(account).is_some_and(|own| {
            own.sequences * balance.accounts < balance.sequences
                && own.tokens <= balance.most_served
        })
    }
}

/// Summary of the accounts that have sequences.
#[derive(Clone, Copy, Debug)]
pub struct Balance {
    accounts: usize,
    sequences: usize,
    /// Highest counter of an account with no fewer sequences than the average.
    most_served: u64,
}

/// One counter for each key.
#[derive(Debug)]
struct Counters<K> {
    by_key: HashMap<K, Counter>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    /// Tokens served, and the lifts.
    tokens: u64,
    /// Sequences in the queues.
    sequences: usize,
}

impl<K> Default for Counters<K> {
    fn default() -> Self {
        Self {
            by_key: HashMap::new(),
        }
    }
}

impl<K: Clone + Eq + Hash> Counters<K> {
    fn active(&self) -> impl Iterator<Item = &Counter> {
        self.by_key.values().filter(|counter| counter.sequences > 0)
    }

    fn lowest(&self) -> Option<u64> {
        self.active().map(|counter| counter.tokens).min()
    }

    /// Counts a sequence. Returns whether its key had none while others had some.
    fn enter(&mut self, key: &K) -> bool {
        let lowest = self.lowest();
        let counter = self.by_key.entry(key.clone()).or_default();
        let is_first = counter.sequences == 0;
        if is_first {
            counter.tokens = counter.tokens.max(lowest.unwrap_or(0));
        }
        counter.sequences += 1;
        is_first && lowest.is_some()
    }

    /// Counts a sequence that leaves. Idle keys are forgotten once their counter would be lifted
    /// anyway; until then leaving does not wipe out what was received in advance.
    fn leave(&mut self, key: &K) {
        let Some(counter) = self.by_key.get_mut(key) else {
            return;
        };
        counter.sequences -= 1;
        if counter.sequences == 0 {
            let lowest = self.lowest().unwrap_or(u64::MAX);
            self.by_key
                .retain(|_, counter| counter.sequences > 0 || counter.tokens > lowest);
        }
    }

    fn charge(&mut self, key: &K, tokens: usize) {
        if let Some(counter) = self.by_key.get_mut(key) {
            counter.tokens += tokens as u64;
        }
    }

    fn tokens(&self, key: &K) -> u64 {
        self.by_key.get(key).map_or(0, |counter| counter.tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticket::Digest;

    fn group(n: u8) -> Group {
        Some(Digest([n; 32]))
    }

    fn account(n: u8) -> Account {
        Account::Group(group(n))
    }

    /// Enters a sequence of account `n`.
    fn enter(accounts: &mut Accounts, n: u8) -> bool {
        accounts.enter(&account(n), group(n))
    }

    fn tokens(accounts: &Accounts, n: u8) -> u64 {
        accounts.service(&account(n), group(n)).0
    }

    #[test]
    fn a_newcomer_is_lifted_to_the_lowest_counter() {
        let mut accounts = Accounts::default();
        assert!(!enter(&mut accounts, 1) && enter(&mut accounts, 2));
        accounts.charge(&account(1), group(1), 100);
        accounts.charge(&account(2), group(2), 70);
        assert!(enter(&mut accounts, 3) && !enter(&mut accounts, 3));
        assert_eq!(tokens(&accounts, 3), 70);
    }

    #[test]
    fn leaving_and_coming_back_does_not_wipe_out_service() {
        let mut accounts = Accounts::default();
        enter(&mut accounts, 1);
        enter(&mut accounts, 2);
        accounts.charge(&account(1), group(1), 100);
        accounts.leave(&account(1), group(1));
        enter(&mut accounts, 1);
        assert_eq!(tokens(&accounts, 1), 100);
        // Once the others have caught up, the account is forgotten.
        accounts.leave(&account(1), group(1));
        accounts.charge(&account(2), group(2), 100);
        enter(&mut accounts, 3);
        accounts.leave(&account(3), group(3));
        assert_eq!((tokens(&accounts, 1), accounts.groups.len()), (0, 1));
        accounts.leave(&account(2), group(2));
        assert!(accounts.are_idle() && accounts.accounts.by_key.is_empty());
    }

    #[test]
    fn the_tickets_of_an_account_have_counters_of_their_own() {
        let mut accounts = Accounts::default();
        let tenant = Account::Tenant("north".parse().unwrap());
        accounts.enter(&tenant, group(1));
        accounts.charge(&tenant, group(1), 50);
        accounts.enter(&tenant, group(2));
        accounts.charge(&tenant, group(2), 20);
        assert_eq!(accounts.service(&tenant, group(1)), (70, 50));
        assert_eq!(accounts.service(&tenant, group(2)), (70, 70));
    }

    #[test]
    fn an_account_is_light_while_it_asks_for_and_got_less_than_others() {
        let mut accounts = Accounts::default();
        (0..10).for_each(|_| {
            enter(&mut accounts, 1);
        });
        let is_light = |accounts: &Accounts, n| accounts.is_light(&account(n), accounts.balance());
        assert!(!is_light(&accounts, 1));
        accounts.charge(&account(1), group(1), 100);
        enter(&mut accounts, 2);
        assert!(is_light(&accounts, 2) && !is_light(&accounts, 1));
        accounts.charge(&account(2), group(2), 1);
        assert!(!is_light(&accounts, 2));
    }
}
