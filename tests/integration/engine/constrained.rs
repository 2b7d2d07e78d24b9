//! Constrained sequences: beside free ones, under a ticket, several per grammar, and preempted.

use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};
use tombola::engine::{
    Constraint, ConstraintError, EngineConfig, EngineHandle, EngineThread, FinishReason, Output,
    Request, SamplingParams, SequenceError, TicketMode, TokenMask, spawn,
};
use tombola::grammar::{Grammar, Grammars};
use tombola::metrics::Metrics;
use tombola::model::{Dtype, TicketMemory};
use tombola::registry::{Lease, Registry, RegistryOptions};
use tombola::text::Text;

use crate::support::bases::{LLAMA, default_text, load_default, load_tiny};
use crate::support::engine::{config, drain, start, tokens};
use crate::support::environment::golden;

static TEXT: LazyLock<Text> = LazyLock::new(default_text);

/// An engine over the default base, with its grammars.
struct Real {
    handle: EngineHandle,
    grammars: Grammars,
    sql: Lease,
    _folder: tempfile::TempDir,
    _thread: EngineThread,
}

fn real() -> Real {
    let base = load_default(Dtype::Bf16);
    let config = EngineConfig {
        max_num_seqs: 16,
        max_num_batched_tokens: 256,
        kv_cache_bytes: 256 << 20,
        ticket_mode: TicketMode::Overlay,
        end_tokens: TEXT.eos_token_ids().to_vec(),
        ..config()
    };
    let vocab_size = base.decoder.config().vocab_size;
    let grammars = Grammars::new(&TEXT, vocab_size, &config.end_tokens).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ticket = folder.path().join("sql.safetensors");
    std::fs::copy(golden("sql.safetensors"), ticket).unwrap();
    let options = RegistryOptions {
        ticket_memory: TicketMemory::without_layouts(),
        memory_budget: 1 << 30,
        max_ticket_bytes: 1 << 30,
        ..RegistryOptions::default()
    };
    let opened = Registry::open(folder.path(), None, base.manifest.clone(), options).unwrap();
    let metrics = Arc::new(Metrics::new(16).unwrap());
    let (handle, thread) = spawn(base, &config, metrics).unwrap();
    Real {
        handle,
        grammars,
        sql: opened.registry.lease(None, "sql").unwrap(),
        _folder: folder,
        _thread: thread,
    }
}

impl Real {
    fn constraint(&self, grammar: &Grammar) -> Option<Box<dyn Constraint>> {
        Some(self.grammars.compile(grammar).unwrap().start())
    }

    /// Runs all requests at once.
    fn run(&self, requests: Vec<Request>) -> Vec<Vec<Output>> {
        let streams = requests.into_iter().map(|r| self.handle.submit(r).unwrap());
        let streams: Vec<_> = streams.collect();
        streams
            .into_iter()
            .map(|mut stream| drain(&mut stream))
            .collect()
    }
}

fn request(prompt: &str, temperature: f32, seed: u64) -> Request {
    Request {
        prompt: TEXT.encode(prompt, false).unwrap(),
        params: SamplingParams {
            max_tokens: 120,
            temperature,
            seed: Some(seed),
            ..SamplingParams::default()
        },
        ..Request::default()
    }
}

/// The text of an output, without the token that stopped it.
fn text(outputs: &[Output]) -> String {
    let shown = outputs
        .iter()
        .filter(|output| output.finish != Some(FinishReason::Stop));
    let ids: Vec<u32> = shown.map(|output| output.token).collect();
    TEXT.decode(&ids, false).unwrap()
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "colours": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
        },
        "required": ["name", "age", "colours"],
        "additionalProperties": false,
    })
}

fn is_person(outputs: &[Output]) {
    assert_eq!(outputs.last().unwrap().finish, Some(FinishReason::Complete));
    let text = text(outputs);
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
    assert!(jsonschema::is_valid(&person(), &value), "{text}");
}

#[test]
fn constrained_rows_validate_and_free_rows_do_not_notice_them() {
    let real = real();
    let free = || -> Vec<Request> {
        let request = |i: u64| {
            let temperature = if i.is_multiple_of(2) { 0.0 } else { 0.9 };
            let mut request = request("The capital of France is", temperature, i);
            request.params.max_tokens = 40;
            request.params.logprobs = (i >= 2).then_some(2);
            request
        };
        (0..4).map(request).collect()
    };
    let alone = real.run(free());
    let grammar = Grammar::JsonSchema(person());
    let constrained = |i: u64| Request {
        constraint: real.constraint(&grammar),
        // The last run under a ticket.
        ticket: (i >= 4).then(|| real.sql.clone()),
        ..request(
            "A person as JSON:",
            if i.is_multiple_of(2) { 0.0 } else { 1.5 },
            i,
        )
    };
    let mut both = free();
    both.extend((0..6).map(constrained));
    let mut outputs = real.run(both);
    let people = outputs.split_off(4);
    assert_eq!(outputs, alone);
    people.iter().for_each(|outputs| is_person(outputs));
    // Equal grammars and seeds give equal outputs, others other ones.
    let again = real.run(vec![constrained(1), constrained(3)]);
    assert_eq!(again, [people[1].clone(), people[3].clone()]);
    assert_ne!(again[0], again[1]);
}

#[test]
fn the_end_is_the_grammars() {
    let real = real();
    let run = |grammar: &Grammar, change: &dyn Fn(&mut SamplingParams)| {
        let mut request = request("Is water wet? Answer:", 0.0, 0);
        change(&mut request.params);
        request.constraint = real.constraint(grammar);
        real.run(vec![request]).remove(0)
    };
    let finish = |outputs: &[Output]| outputs.last().unwrap().finish;
    // `min_tokens` and `ignore_eos` do not keep a complete output from its end.
    let choice = Grammar::Choice(vec![" yes".to_owned(), " no".to_owned()]);
    let long = |params: &mut SamplingParams| {
        (params.min_tokens, params.ignore_eos) = (50, true);
    };
    for change in [
        &|_: &mut SamplingParams| (),
        &long as &dyn Fn(&mut SamplingParams),
    ] {
        let outputs = run(&choice, change);
        assert_eq!(finish(&outputs), Some(FinishReason::Complete));
        assert!([" yes", " no"].contains(&text(&outputs).as_str()));
    }
    // Where the output may end or go on, `min_tokens` holds.
    let digits = Grammar::Regex("[0-9]{1,60}".to_owned());
    let outputs = run(&digits, &|params| params.min_tokens = 10);
    assert!(outputs.len() >= 10 && text(&outputs).bytes().all(|b| b.is_ascii_digit()));
    // A stop token that the grammar allows ends the output too.
    let one = TEXT.encode("1", false).unwrap()[0];
    let ones = Grammar::Regex("1{5,9}".to_owned());
    let outputs = run(&ones, &|params| params.stop_token_ids = vec![one].into());
    assert_eq!(
        (outputs.len(), finish(&outputs)),
        (1, Some(FinishReason::Stop))
    );
    // Log-probabilities are the model's, not the grammar's.
    let outputs = run(&ones, &|params| params.logprobs = Some(1));
    let logprobs = outputs[0].logprobs.as_ref().unwrap();
    assert!(logprobs.top[0].0 != outputs[0].token && logprobs.chosen < logprobs.top[0].1);
}

/// Allows one token at each position, by a rule, then ends.
#[derive(Debug)]
struct Rule {
    seed: u32,
    position: u32,
    len: u32,
}

impl Rule {
    fn token(&self, position: u32) -> u32 {
        3 + (self.seed * 31 + position * 7) % 250
    }
}

impl Constraint for Rule {
    fn mask(&mut self) -> Result<TokenMask, ConstraintError> {
        let mut words = vec![0; 8];
        let token = self.token(self.position);
        words[token as usize / 32] |= 1 << (token % 32);
        Ok(TokenMask::new(words, false))
    }

    fn accept(&mut self, token: u32) -> Result<bool, ConstraintError> {
        assert_eq!(token, self.token(self.position));
        self.position += 1;
        Ok(self.position == self.len)
    }
}

#[test]
fn preempted_sequences_keep_their_place_in_the_grammar() {
    let tight = EngineConfig {
        kv_cache_bytes: 10 * load_tiny(LLAMA, Dtype::F32).block_bytes(),
        ..config()
    };
    let engine = start(Dtype::F32, &tight);
    let rule = |seed| Rule {
        seed,
        position: 0,
        len: 60,
    };
    let request = |seed: u32| Request {
        prompt: vec![seed + 5; 20],
        params: SamplingParams {
            max_tokens: 100,
            ..SamplingParams::default()
        },
        constraint: Some(Box::new(rule(seed))),
        ..Request::default()
    };
    let streams = (0..12).map(|seed| engine.handle.submit(request(seed)).unwrap());
    let streams: Vec<_> = streams.collect();
    for (seed, mut stream) in (0..12).zip(streams) {
        let want: Vec<u32> = (0..60).map(|i| rule(seed).token(i)).collect();
        assert_eq!(tokens(&mut stream), want);
    }
    assert!(
        engine.metrics.engine.preemptions.get() > 0,
        "nothing was preempted"
    );
}

/// Allows nothing, or fails.
#[derive(Debug)]
struct Broken(Result<TokenMask, ConstraintError>);

impl Constraint for Broken {
    fn mask(&mut self) -> Result<TokenMask, ConstraintError> {
        self.0.clone()
    }

    fn accept(&mut self, _: u32) -> Result<bool, ConstraintError> {
        Ok(false)
    }
}

#[test]
fn a_constraint_that_cannot_go_on_ends_its_sequence_only() {
    let engine = start(Dtype::F32, &config());
    let request = |mask: Option<Result<TokenMask, ConstraintError>>| Request {
        prompt: vec![5, 6, 7],
        constraint: mask.map(|mask| Box::new(Broken(mask)) as Box<dyn Constraint>),
        ..Request::default()
    };
    let submit = |mask| engine.handle.submit(request(mask)).unwrap();
    let nothing = TokenMask::new(vec![0; 8], false);
    let mut free = submit(None);
    for (mask, error) in [
        (Ok(nothing), ConstraintError::NoTokenAllowed),
        (
            Err(ConstraintError::TooComplex),
            ConstraintError::TooComplex,
        ),
    ] {
        let failed = submit(Some(mask)).blocking_recv();
        assert_eq!(failed, Some(Err(SequenceError::Constraint(error))));
    }
    assert!(!tokens(&mut free).is_empty());
}
