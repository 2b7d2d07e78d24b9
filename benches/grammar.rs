//! Constrained outputs of the default base on the CPU: the time per mask, and the time of a step of
//! 16 constrained rows beside that of 16 free ones.
//!
//! Masks are timed along a given text, over several sequences. Steps are timed one by one, in
//! turns of constrained and of free rows.
//!
//! `cargo bench --bench grammar > benches/results/grammar.md`

use std::fs::File;
use std::io::BufReader;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::quantized::gguf_file::Content;
use serde_json::json;
use tombola::engine::{
    Costs, EngineConfig, EngineHandle, OutputStream, Request, SamplingParams, TicketMode, spawn,
};
use tombola::grammar::{CompiledGrammar, Grammar, Grammars};
use tombola::metrics::Metrics;
use tombola::model::{
    Base, CacheDir, Checkpoint, DeviceSpec, Dtype, Files, LoadOptions, default_gguf,
};
use tombola::text::Text;

/// Rows of a step.
const ROWS: usize = 16;
/// Generated tokens per row and turn.
const TOKENS: usize = 24;
const TURNS: usize = 5;
/// Sequences that masks are timed along.
const SEQUENCES: usize = 30;

/// A grammar with a text that it allows.
struct Case {
    name: &'static str,
    grammar: Grammar,
    text: String,
}

fn main() {
    let (base, text) = default_base();
    let vocab_size = base.decoder.config().vocab_size;
    let ends = text.eos_token_ids().to_vec();
    let start = Instant::now();
    let grammars = Grammars::new(&text, vocab_size, &ends).expect("a vocabulary");
    let prepared = start.elapsed();
    println!("# Constrained outputs, measured on the CPU\n");
    println!("Made by `cargo bench --bench grammar > benches/results/grammar.md`;");
    println!(
        "the file says what is timed. A vocabulary of {vocab_size} tokens is prepared once per"
    );
    println!("server, in {:.0} ms.\n", ms(prepared));
    let compiled = masks(&text, &grammars);
    steps(base, ends, &compiled);
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The default base in bf16, and its tokenizer.
fn default_base() -> (Base, Text) {
    let cache = CacheDir::at(CacheDir::default_path());
    let gguf = default_gguf(&cache, &mut |_| ()).expect("the default base");
    let file = File::open(&gguf).expect("the default base");
    let content = Content::read(&mut BufReader::new(file)).expect("a GGUF");
    let text = Text::from_gguf(&content).expect("a tokenizer");
    let options = LoadOptions {
        dtype: Dtype::Bf16,
        device: DeviceSpec::Cpu,
        max_positions: None,
        keep_quantized: false,
    };
    let checkpoint = Checkpoint::open(&Files::Gguf(gguf)).expect("a checkpoint");
    let base = Base::load("base", &checkpoint, &options, &cache, &mut |_| ()).expect("a base");
    (base, text)
}

/// Grammars whose texts have more than [`TOKENS`] tokens.
fn cases() -> Vec<Case> {
    let person = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 80},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "email": {"type": "string", "format": "email"},
            "role": {"enum": ["admin", "editor", "viewer"]},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 8},
            "address": {"$ref": "#/$defs/address"},
            "joined": {"type": "string", "format": "date-time"},
            "score": {"type": ["number", "null"]},
        },
        "required": ["name", "age", "email", "role", "tags", "address", "joined", "score"],
        "additionalProperties": false,
    });
    let address = json!({
        "type": "object",
        "properties": {
            "street": {"type": "string"}, "city": {"type": "string"},
            "zip": {"type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$"},
        },
        "required": ["street", "city", "zip"],
        "additionalProperties": false,
    });
    let people = json!({
        "type": "array", "items": person, "minItems": 20, "$defs": {"address": address},
    });
    let person = concat!(
        r#"{"name": "Ada Lovelace", "age": 36, "email": "ada@example.org", "role": "admin", "#,
        r#""tags": ["mathematics", "engines"], "address": {"street": "12 St James's Square", "#,
        r#""city": "London", "zip": "12345"}, "joined": "1843-10-01T12:00:00Z", "score": 9.75}"#
    );
    let object = concat!(
        r#"{"title": "Notes on the Analytical Engine", "pages": [1, 2, 3], "author": "#,
        r#"{"name": "Ada Lovelace", "born": 1815, "alive": false}, "summary": "The engine "#,
        r#"weaves patterns just as the Jacquard loom weaves flowers and leaves."}"#
    );
    vec![
        Case {
            name: "JSON schema",
            grammar: Grammar::JsonSchema(people),
            text: format!("[{}]", [person; 20].join(", ")),
        },
        Case {
            name: "JSON object",
            grammar: Grammar::JsonObject,
            text: object.to_owned(),
        },
        Case {
            name: "regular expression",
            grammar: Grammar::Regex(
                "([A-Z][a-z]+ (said|wrote): [^\"\n]{10,200}\\.\n){20}".to_owned(),
            ),
            text: "Ada wrote: the engine weaves algebraic patterns as the loom weaves leaves.\n"
                .repeat(20),
        },
    ]
}

/// Times the masks of each grammar, and returns the grammars.
fn masks(text: &Text, grammars: &Grammars) -> Vec<(&'static str, Arc<CompiledGrammar>)> {
    println!(
        "| grammar | compiled | started | mask, median | 99 % | first 32, median | accept, median |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let mut all = Vec::new();
    for Case {
        name,
        grammar,
        text: output,
    } in cases()
    {
        let start = Instant::now();
        let compiled = grammars.compile(&grammar).expect("a grammar");
        let compile = start.elapsed();
        let tokens = text.encode(&output, false).expect("tokens");
        let tokens = &tokens[..tokens.len().min(400)];
        let (mut starts, mut firsts) = (Vec::new(), Vec::new());
        let (mut masks, mut accepts) = (Vec::new(), Vec::new());
        for _ in 0..SEQUENCES {
            let start = Instant::now();
            let mut constraint = compiled.start();
            starts.push(start.elapsed());
            for (i, &token) in tokens.iter().enumerate() {
                let start = Instant::now();
                let mask = constraint.mask().expect("a mask");
                let took = start.elapsed();
                assert!(mask.allows(token), "{name}: token {i} of {output}");
                masks.push(took);
                if i < 32 {
                    firsts.push(took);
                }
                let start = Instant::now();
                constraint.accept(token).expect("an allowed token");
                accepts.push(start.elapsed());
            }
        }
        println!(
            "| {name} | {:.1} ms | {:.2} ms | {:.0} µs | {:.0} µs | {:.0} µs | {:.1} µs |",
            ms(compile),
            ms(quantile(&mut starts, 0.5)),
            us(quantile(&mut masks, 0.5)),
            us(quantile(&mut masks, 0.99)),
            us(quantile(&mut firsts, 0.5)),
            us(quantile(&mut accepts, 0.5)),
        );
        all.push((name, compiled));
    }
    println!();
    all
}

fn quantile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * share) as usize]
}

/// Times the steps of constrained and of free rows.
fn steps(base: Base, end_tokens: Vec<u32>, compiled: &[(&'static str, Arc<CompiledGrammar>)]) {
    let config = EngineConfig {
        max_num_seqs: ROWS,
        max_num_batched_tokens: 512,
        max_queue: 2 * ROWS,
        kv_cache_bytes: 512 << 20,
        enable_prefix_caching: false,
        ticket_mode: TicketMode::Overlay,
        costs: None::<Costs>,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        enforce_eager: false,
        end_tokens,
    };
    let metrics = Arc::new(Metrics::new(16).expect("metrics"));
    let (engine, _thread) = spawn(base, &config, metrics).expect("an engine");
    println!("Steps of {ROWS} rows, medians; the last column compares means.\n");
    println!("| grammar | constrained | steps | free | steps | ratio | ratio of means |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for (name, grammar) in compiled {
        for (sampling, temperature) in [("greedy", 0.0), ("temperature 0.8", 0.8)] {
            let (mut constrained, mut free) = (Vec::new(), Vec::new());
            for _ in 0..TURNS {
                constrained.extend(step_times(&engine, Some(grammar), temperature));
                free.extend(step_times(&engine, None, temperature));
            }
            if constrained.is_empty() {
                println!("| {name}, {sampling} | a row ends at once | | | | | |");
                continue;
            }
            let means = mean(&constrained) / mean(&free);
            let medians = [&mut constrained, &mut free].map(|times| ms(quantile(times, 0.5)));
            println!(
                "| {name}, {sampling} | {:.2} ms | {} | {:.2} ms | {} | {:.3} | {means:.3} |",
                medians[0],
                constrained.len(),
                medians[1],
                free.len(),
                medians[0] / medians[1],
            );
        }
    }
}

/// Mean in milliseconds.
fn mean(times: &[Duration]) -> f64 {
    ms(times.iter().sum()) / times.len() as f64
}

/// Times of the steps that all rows take part in.
fn step_times(
    engine: &EngineHandle,
    grammar: Option<&Arc<CompiledGrammar>>,
    temperature: f32,
) -> Vec<Duration> {
    let request = |row: usize| Request {
        prompt: (0..8).map(|i| 1000 + 37 * row as u32 + i).collect(),
        params: SamplingParams {
            max_tokens: TOKENS,
            temperature,
            seed: Some(row as u64),
            ignore_eos: true,
            ..SamplingParams::default()
        },
        constraint: grammar.map(|grammar| grammar.start()),
        ..Request::default()
    };
    let streams = engine.submit_all((0..ROWS).map(request).collect());
    let mut streams = streams.expect("room for the rows");
    let next =
        |stream: &mut OutputStream| stream.blocking_recv().expect("a token").expect("a token");
    if streams
        .iter_mut()
        .any(|stream| next(stream).finish.is_some())
    {
        return Vec::new();
    }
    let (mut start, mut times) = (Instant::now(), Vec::new());
    // The first rows that end make the later steps shorter, so only full steps count.
    while streams
        .iter_mut()
        .all(|stream| next(stream).finish.is_none())
    {
        let now = Instant::now();
        times.push(now - start);
        start = now;
    }
    times
}
