//! The loop that mutates inputs, runs a target on them, and judges what it does.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tombola::ticket::Digest;

use crate::counting;
use crate::mutate::mutant;

/// Longest input.
const MAX_INPUT: usize = 64 << 10;
/// Time after which an input counts as hanging.
const MAX_TIME: Duration = Duration::from_secs(20);

/// A parser under test.
pub struct Target<'a> {
    /// Its folder in the corpus.
    pub name: &'a str,
    /// Words that inputs are made of.
    pub dictionary: &'a [&'a [u8]],
    /// Bytes that an input of any length may make it allocate.
    pub memory: usize,
    /// Further bytes that it may allocate per byte of the input.
    pub memory_per_byte: usize,
    /// Runs it on an input. The outcome (an error without its details) tells inputs apart: those
    /// with a new one are mutated further.
    pub run: &'a mut dyn FnMut(&[u8]) -> String,
}

/// Waits until no other test runs: the allocator counts for all threads.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a target on its corpus and on mutants of it.
///
/// # Panics
/// The target panics, hangs, or allocates too much.
pub fn fuzz(mut target: Target<'_>) {
    let _turn = turn();
    let seconds = number("TOMBOLA_FUZZ_SECONDS").unwrap_or(2);
    let seed = number("TOMBOLA_FUZZ_SEED").unwrap_or(0);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut pool = corpus(target.name);
    assert!(!pool.is_empty(), "{} has no corpus", target.name);
    let watchdog = Watchdog::start(target.name);
    let mut outcomes = HashSet::new();
    for input in &pool {
        outcomes.insert(run(&mut target, input, &watchdog));
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut runs = 0;
    while Instant::now() < end {
        let (input, other) = (pool.choose(&mut rng), pool.choose(&mut rng));
        let (Some(input), Some(other)) = (input, other) else {
            unreachable!("the pool is not empty");
        };
        let mut input = mutant(&mut rng, input, other, target.dictionary);
        input.truncate(MAX_INPUT);
        if outcomes.insert(run(&mut target, &input, &watchdog)) {
            pool.push(input);
        } else if rng.random_ratio(1, 1000) {
            // Some of the rest too, so that faults can add up.
            pool.push(input);
        }
        runs += 1;
    }
    println!(
        "{}: {runs} inputs, {} outcomes, seed {seed}",
        target.name,
        outcomes.len()
    );
}

/// Runs the target on one input and judges it.
fn run(target: &mut Target<'_>, input: &[u8], watchdog: &Watchdog) -> String {
    watchdog.watch(input);
    let work = || catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let (outcome, peak) = counting::peak(work);
    let most = target.memory + target.memory_per_byte * input.len();
    let fault = match outcome {
        Err(_) => "panicked".to_owned(),
        Ok(_) if peak > most => format!("allocated {peak} bytes, at most {most} are allowed"),
        Ok(outcome) => return outcome,
    };
    let path = save(target.name, input);
    panic!("{} {fault} on {}", target.name, path.display());
}

/// The message of an error without its details: numbers, and words in quotes.
pub fn outcome(message: &str) -> String {
    let mut quoted = false;
    let mut kind = String::new();
    for c in message.chars().take(300) {
        if matches!(c, '`' | '"' | '\'') {
            quoted = !quoted;
        } else if !quoted && c.is_ascii_alphabetic() {
            kind.push(c);
        }
    }
    kind
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable} is {text:?}, expected a number")))
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let folder = folder.join(name);
    let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn save(name: &str, input: &[u8]) -> PathBuf {
    let digest = Digest::of(input).to_string();
    let path = env::temp_dir().join(format!("fuzz-{name}-{}", &digest[..16]));
    fs::write(&path, input).unwrap();
    path
}

/// Ends the process if an input hangs: a thread cannot be ended.
struct Watchdog(mpsc::Sender<Vec<u8>>);

impl Watchdog {
    fn start(name: &str) -> Self {
        let (sender, inputs) = mpsc::channel::<Vec<u8>>();
        let name = name.to_owned();
        thread::spawn(move || {
            let Ok(mut input) = inputs.recv() else {
                return;
            };
            loop {
                match inputs.recv_timeout(MAX_TIME) {
                    Ok(next) => input = next,
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        let path = save(&name, &input);
                        eprintln!("{name} hangs on {}", path.display());
                        process::abort();
                    }
                }
            }
        });
        Self(sender)
    }

    fn watch(&self, input: &[u8]) {
        self.0.send(input.to_vec()).expect("the watchdog runs");
    }
}
