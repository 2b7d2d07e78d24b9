//! Fairness between accounts: service, priority, and what a newcomer waits for.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Sequences that run together, and what each of them is still to generate.
struct Load {
    scheduler: ByTurns,
    left: BTreeMap<u64, usize>,
    next: u64,
}

impl Load {
    fn new(config: SchedulerConfig) -> Self {
        Self {
            scheduler: ByTurns::new(config),
            left: BTreeMap::new(),
            next: 0,
        }
    }

    /// Queues a request of an account for the base; returns its number.
    fn add(&mut self, account: &Account, priority: i32, prompt: usize, generated: usize) -> u64 {
        let id = self.next;
        self.next += 1;
        self.scheduler
            .add_for(account.clone(), priority, id, BASE, prompt);
        self.left.insert(id, generated);
        id
    }

    /// Runs a step of all groups; returns its chunks and the sequences that ended.
    fn step(&mut self) -> (Vec<Chunk>, Vec<u64>) {
        self.scheduler.make_room();
        let plan = self.scheduler.scheduler.schedule(&Groups::All);
        let chunks = plan.expect("there is work").chunks;
        let mut ended = Vec::new();
        for chunk in chunks.iter().filter(|chunk| chunk.samples) {
            let left = self.left.get_mut(&chunk.id).unwrap();
            *left -= 1;
            if *left == 0 {
                self.left.remove(&chunk.id);
                self.scheduler.remove(chunk.id);
                ended.push(chunk.id);
            } else {
                self.scheduler.extend(chunk.id);
            }
        }
        (chunks, ended)
    }

    fn rows(chunks: &[Chunk]) -> usize {
        chunks.iter().map(|chunk| chunk.len).sum()
    }
}

fn large() -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: 64,
        max_num_batched_tokens: 512,
        blocks: 2000,
        block_size: 16,
    }
}

/// Rows of a step while newcomers have to be expected.
const PACE: usize = 50;

#[test]
fn a_newcomer_waits_for_the_step_in_progress_and_not_for_the_rows_of_a_flood() {
    let (flood, light) = (tenant(1), tenant(2));
    let mut load = Load::new(large());
    load.scheduler.set_pace(PACE);
    for _ in 0..200 {
        load.add(&flood, 0, 40, 100);
    }
    (0..20).for_each(|_| drop(load.step()));
    // As many requests as a patient client sends one after another.
    let mut longest = 0;
    for request in 0..30 {
        let id = load.add(&light, 0, 40, 10);
        let (chunks, _) = load.step();
        let sampled = chunks.iter().any(|chunk| chunk.id == id && chunk.samples);
        assert!(sampled && Load::rows(&chunks) <= PACE, "request {request}");
        while load.left.contains_key(&id) {
            longest = longest.max(Load::rows(&load.step().0));
        }
    }
    // Nor is any later step longer, which the next request waits for.
    assert!(longest <= PACE, "{longest}");
}

#[test]
fn a_long_prompt_of_a_newcomer_does_not_stop_a_few_others() {
    let mut load = Load::new(large());
    for _ in 0..8 {
        load.add(&tenant(1), 0, 4, 1000);
    }
    load.step();
    load.add(&tenant(2), 0, 400, 10);
    let (chunks, _) = load.step();
    assert_eq!(chunks.len(), 9);
}

#[test]
fn priority_orders_the_requests_of_an_account_and_of_no_other() {
    let config = SchedulerConfig {
        max_num_seqs: 1,
        ..large()
    };
    let mut load = Load::new(config);
    let requests = [(1, 5), (1, -3), (1, 0), (2, 9), (1, 0)];
    for (account, priority) in requests {
        load.add(&tenant(account), priority, 10, 1);
    }
    let mut order = Vec::new();
    while !load.left.is_empty() {
        order.extend(load.step().1);
    }
    // The other account is light: its request comes first, whatever its priority.
    assert_eq!(order, [3, 1, 2, 4, 0]);
}

#[test]
fn the_least_important_sequence_is_preempted() {
    let mut s = ByTurns::new(SchedulerConfig {
        blocks: 4,
        ..config()
    });
    s.add_for(tenant(1), 7, 1, BASE, 8);
    s.add_for(tenant(1), 0, 2, BASE, 8);
    s.step();
    // Both need a third block, but none is free.
    s.step();
    assert!(!is_running(&s, 1) && is_running(&s, 2));
}

#[test]
fn recomputing_after_a_preemption_is_not_charged() {
    let mut s = ByTurns::new(config());
    s.add(1, BASE, 8);
    s.step();
    let account = s.running[0].account.clone();
    let (before, _) = s.accounts.service(&account, BASE);
    assert_eq!(before, 9);
    s.scheduler.preempt(0);
    s.step();
    // The generated token's row, and the next token: the eight before are computed for nothing.
    assert_eq!(s.accounts.service(&account, BASE).0, before + 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Two accounts that always have work get about the same service, whatever they ask for.
    #[test]
    fn backlogged_accounts_get_equal_service(
        first in (1usize..300, 1usize..60),
        second in (1usize..300, 1usize..60),
        seqs in 2usize..40,
    ) {
        let config = SchedulerConfig { max_num_seqs: seqs, ..large() };
        let mut load = Load::new(config);
        let mut owner = BTreeMap::new();
        let kinds = [(tenant(1), first), (tenant(2), second)];
        for _ in 0..2 * seqs {
            for (n, (account, (prompt, generated))) in kinds.iter().enumerate() {
                owner.insert(load.add(account, 0, *prompt, *generated), n);
            }
        }
        let mut service = [0i64; 2];
        // Tokens of each sequence so far: one that is computed again is no service.
        let mut computed: BTreeMap<u64, usize> = BTreeMap::new();
        // As long as the sequences that run at once may be served ahead, and a step.
        let bound = 2 * (config.max_num_batched_tokens
            + seqs * (first.0.max(second.0) + 2 * first.1.max(second.1))) as i64;
        for _ in 0..1500 {
            let (chunks, ended) = load.step();
            for chunk in &chunks {
                let before = computed.entry(chunk.id).or_default();
                let new = (chunk.start + chunk.len).saturating_sub(*before);
                *before += new;
                service[owner[&chunk.id]] += (new + usize::from(chunk.samples)) as i64;
            }
            for id in ended {
                let n = owner[&id];
                let (account, (prompt, generated)) = &kinds[n];
                owner.insert(load.add(account, 0, *prompt, *generated), n);
            }
            let difference = (service[0] - service[1]).abs();
            prop_assert!(difference <= bound, "{service:?}, {bound}");
        }
    }
}
