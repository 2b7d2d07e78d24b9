//! Random sequences through the scheduler, with its invariants checked after each step and the
//! contents of the KV blocks followed.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;

use super::*;

/// A sequence of the simulation.
#[derive(Clone, Debug)]
struct Job {
    prompt: usize,
    /// Tokens to generate.
    generate: usize,
    group: u8,
    /// Step of its arrival.
    arrives: usize,
    /// Tokens at its start that are those of every other sequence of the group, prompt or not.
    shared: usize,
    /// First row that scores the prompt.
    needed_from: Option<usize>,
}

/// A token in its context, on which its keys and values depend: group, position, and the sequence,
/// or 0 if the context is shared.
type Content = (u8, usize, u64);

impl Job {
    fn group(&self) -> Group {
        (self.group > 0).then_some(Digest([self.group; 32]))
    }

    fn content(&self, id: SequenceId, position: usize) -> Content {
        let owner = if position < self.shared { 0 } else { id };
        (self.group, position, owner)
    }

    /// Hashes of the blocks of its first `tokens` tokens: a block is what its last token is.
    fn chain(&self, id: SequenceId, tokens: usize) -> Vec<BlockHash> {
        let size = config().block_size;
        let hash = |at: usize| {
            let (group, position, owner) = self.content(id, at * size + size - 1);
            let mut hash = [0; 32];
            hash[..3].copy_from_slice(&[group, position as u8, owner as u8]);
            BlockHash(hash)
        };
        (0..tokens / size).map(hash).collect()
    }
}

fn jobs() -> impl Strategy<Value = Vec<Job>> {
    let needed_from = prop::option::weighted(0.2, 0usize..40);
    let job = (
        1usize..40,
        1usize..20,
        0u8..4,
        0usize..30,
        0usize..60,
        needed_from,
    );
    let job = job.prop_map(
        |(prompt, generate, group, arrives, shared, needed_from)| Job {
            prompt,
            generate,
            group,
            arrives,
            shared,
            needed_from: needed_from.filter(|&row| row + 1 < prompt),
        },
    );
    prop::collection::vec(job, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn everything_ends_and_every_block_holds_what_its_readers_expect(
        jobs in jobs(),
        blocks in 15usize..60,
        cancel in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        together in prop::collection::vec(any::<bool>(), 1..8),
        fails in prop::collection::vec(prop::bool::weighted(0.1), 1..20),
        caches in any::<bool>(),
        tenants in 0u64..4,
    ) {
        let mut s = ByTurns::new(SchedulerConfig { blocks, ..config() });
        s.set_pace(config().max_num_batched_tokens / 2);
        let (live, memory) = (BTreeMap::new(), HashMap::new());
        let mut simulation = Simulation { s, live, memory, caches, tenants };
        simulation.run(&jobs, &cancel, &together, &fails)?;
    }
}

/// A sequence that has not ended.
struct Live {
    job: Job,
    computed: usize,
    known: usize,
}

struct Simulation {
    s: ByTurns,
    live: BTreeMap<SequenceId, Live>,
    /// What is in each slot of the blocks: a block and an offset.
    memory: HashMap<(u32, usize), Content>,
    /// Whether sequences share blocks.
    caches: bool,
    /// Number of tenants; 0 for none.
    tenants: u64,
}

impl Simulation {
    fn run(
        &mut self,
        jobs: &[Job],
        cancel: &[prop::sample::Index],
        together: &[bool],
        fails: &[bool],
    ) -> Result<(), TestCaseError> {
        for now in 0.. {
            prop_assert!(now < 20_000, "{} never end", self.live.len());
            for (id, job) in (1..).zip(jobs).filter(|(_, job)| job.arrives == now) {
                self.add(id, job);
            }
            if let Some(index) = cancel.get(now / 7).filter(|_| now % 7 == 6)
                && !self.live.is_empty()
            {
                let id = *self.live.keys().nth(index.index(self.live.len())).unwrap();
                self.remove(id);
            }
            // The policy may change between all groups and one group at any step.
            let plan = if together[now % together.len()] {
                self.s.make_room();
                self.s.scheduler.schedule(&Groups::All)
            } else {
                self.s.schedule()
            };
            match plan {
                Some(plan) => self.step(&plan, fails[now % fails.len()] && now < 200)?,
                None => prop_assert!(self.live.is_empty()),
            }
            if self.live.is_empty() && jobs.iter().all(|job| job.arrives <= now) {
                break;
            }
        }
        prop_assert_eq!(self.s.blocks.available(), self.s.config.blocks);
        prop_assert!(self.s.served.is_empty() && self.s.claims.is_empty());
        prop_assert!(self.s.accounts.are_idle());
        prop_assert!(self.caches || self.s.evictions() == 0);
        Ok(())
    }

    fn add(&mut self, id: SequenceId, job: &Job) {
        self.s.scheduler.add(NewSequence {
            id,
            group: job.group(),
            account: match self.tenants {
                0 => Account::Group(job.group()),
                tenants => tenant(id % tenants),
            },
            priority: id as i32 % 3,
            tokens: job.prompt,
            chain: if self.caches {
                job.chain(id, job.prompt)
            } else {
                Vec::new()
            },
            needed_from: job.needed_from.unwrap_or(usize::MAX),
        });
        let (job, known) = (job.clone(), job.prompt);
        let computed = 0;
        self.live.insert(
            id,
            Live {
                job,
                computed,
                known,
            },
        );
    }

    fn remove(&mut self, id: SequenceId) {
        self.s.remove(id);
        self.live.remove(&id);
    }

    fn step(&mut self, plan: &Plan, fails: bool) -> Result<(), TestCaseError> {
        let tokens: usize = plan.chunks.iter().map(|chunk| chunk.len).sum();
        prop_assert!(tokens > 0 && tokens <= self.s.config.max_num_batched_tokens);
        prop_assert!(self.s.num_running() <= self.s.config.max_num_seqs);
        check_blocks(&self.s)?;
        check_claims(&self.s)?;
        check_groups(plan)?;
        check_tables(&self.s, plan)?;
        for chunk in &plan.chunks {
            self.compute(chunk, fails)?;
        }
        if fails {
            // Some end, as those of a ticket that cannot be laid out, and the others go on.
            self.s.roll_back(plan);
            let ends = plan.chunks.iter().filter(|chunk| chunk.id % 2 == 0);
            ends.for_each(|chunk| self.remove(chunk.id));
            return Ok(());
        }
        self.s.commit();
        for chunk in &plan.chunks {
            let live = self.live.get_mut(&chunk.id).unwrap();
            live.computed = chunk.start + chunk.len;
            if !chunk.samples {
                continue;
            }
            live.known += 1;
            if live.known == live.job.prompt + live.job.generate {
                self.remove(chunk.id);
            } else {
                let mut filled = live.job.chain(chunk.id, live.known);
                let full = live.known.is_multiple_of(config().block_size) && self.caches;
                filled.drain(..filled.len() - usize::from(full));
                self.s.scheduler.extend(chunk.id, filled);
            }
        }
        Ok(())
    }

    /// Computes a chunk: reads what is before it, and writes its own tokens, or garbage if the step
    /// fails.
    fn compute(&mut self, chunk: &Chunk, fails: bool) -> Result<(), TestCaseError> {
        let Live {
            job,
            computed,
            known,
        } = &self.live[&chunk.id];
        let end = chunk.start + chunk.len;
        // Chunks follow one another, or begin again after a preemption.
        let size = self.s.config.block_size;
        prop_assert!(chunk.start == *computed || chunk.start.is_multiple_of(size));
        prop_assert!(self.caches || chunk.start == *computed || chunk.start == 0);
        prop_assert_eq!(chunk.samples, end == *known);
        let needed_from = job.needed_from.unwrap_or(usize::MAX);
        prop_assert!(*known > job.prompt || chunk.start <= needed_from || *computed > 0);
        let slot = |position| (chunk.blocks[position / size], position % size);
        for position in 0..chunk.start {
            let content = Some(job.content(chunk.id, position));
            prop_assert_eq!(self.memory.get(&slot(position)).copied(), content);
        }
        for position in chunk.start..end {
            let content = if fails {
                (9, 0, 0)
            } else {
                job.content(chunk.id, position)
            };
            self.memory.insert(slot(position), content);
        }
        Ok(())
    }
}

/// A step holds only chunks of its groups, and the chunks of a group are adjacent.
fn check_groups(plan: &Plan) -> Result<(), TestCaseError> {
    let groups: Vec<Group> = plan.chunks.iter().map(|chunk| chunk.group).collect();
    prop_assert!(groups.is_sorted());
    prop_assert!(groups.iter().all(|group| plan.groups.contain(*group)));
    Ok(())
}

/// Each chunk carries its sequence's block table, which holds all positions up to its last, and
/// writes no cached block.
fn check_tables(s: &Scheduler, plan: &Plan) -> Result<(), TestCaseError> {
    for chunk in &plan.chunks {
        let entry = s.running.iter().find(|entry| entry.id == chunk.id).unwrap();
        prop_assert_eq!(&chunk.blocks, &entry.blocks);
        prop_assert!(chunk.blocks.len() * s.config.block_size >= chunk.start + chunk.len);
        prop_assert!(chunk.start >= entry.cached * s.config.block_size);
    }
    Ok(())
}

/// A block that can be written is in one table, every computed token has a slot, and the blocks in
/// no table are available.
fn check_blocks(s: &Scheduler) -> Result<(), TestCaseError> {
    let mut holders: HashMap<u32, (usize, usize)> = HashMap::new();
    for entry in &s.running {
        prop_assert!(entry.blocks.len() * s.config.block_size >= entry.computed);
        for (at, &block) in entry.blocks.iter().enumerate() {
            let (tables, writers) = holders.entry(block).or_default();
            *tables += 1;
            *writers += usize::from(at >= entry.cached);
        }
    }
    for (tables, writers) in holders.values() {
        prop_assert!(*writers == 0 || *tables == 1);
    }
    prop_assert_eq!(holders.len() + s.blocks.available(), s.config.blocks);
    prop_assert!(s.waiting.iter().all(|entry| entry.blocks.is_empty()));
    Ok(())
}

/// Running sequences claim blocks that they will fill, and no cached one.
fn check_claims(s: &Scheduler) -> Result<(), TestCaseError> {
    let owners: HashSet<_> = s.running.iter().map(|entry| entry.id).collect();
    for (hash, claim) in &s.claims {
        prop_assert!(owners.contains(&claim.id) && !s.blocks.is_cached(hash));
    }
    Ok(())
}

proptest! {
    /// Each of G active groups is served within G turns.
    #[test]
    fn no_group_starves(groups in 2u8..5) {
        let mut s = ByTurns::new(SchedulerConfig { blocks: 1000, max_num_seqs: 8, ..config() });
        for n in 0..groups {
            s.add(u64::from(n), ticket(n), 3);
        }
        let mut last = vec![0; groups.into()];
        for now in 1..200 {
            let Some(Digest([n, ..])) = s.turn() else { panic!() };
            last[usize::from(n)] = now;
            let oldest = now - last.iter().min().unwrap();
            prop_assert!(oldest <= usize::from(groups) * TURN_STEPS, "{last:?}");
        }
    }
}
