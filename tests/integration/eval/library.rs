//! `eval::evaluate` on a tiny model, against the decoder, and on engines that fail.

use std::sync::Arc;

use tombola::data::{Dataset, Example};
use tombola::engine::{Command, EngineHandle, EngineInbox, Limits, Output, channel};
use tombola::eval::{Answers, EvalOptions, EvalResult, MatchRule, evaluate};
use tombola::model::Dtype;
use tombola::registry::Lease;
use tombola::text::Text;
use tombola::ticket::Digest;

use crate::support::bases::{LLAMA, load_tiny};
use crate::support::engine::{config, registry, start};
use crate::support::player::Player;
use crate::support::tokenizer::text;

fn example(
    line: usize,
    tokens: &[u32],
    learned: &[(usize, usize)],
    answer: Option<&str>,
) -> Example {
    Example {
        line,
        tokens: tokens.to_vec(),
        learned: learned.iter().map(|&(from, to)| from..to).collect(),
        answer: answer.map(str::to_owned),
    }
}

fn dataset(examples: Vec<Example>) -> Dataset {
    Dataset {
        examples,
        digest: Digest::of(b""),
        cut: 0,
        left_out: 0,
    }
}

/// Rows of different lengths, with one and with several learned parts, with answers and without.
fn examples() -> Vec<Example> {
    let tokens: Vec<u32> = (0..90).map(|i| 40 + (i * 37) % 80).collect();
    vec![
        example(1, &tokens[..30], &[(10, 12), (20, 30)], Some("no")),
        example(2, &tokens[5..], &[(1, 2), (40, 85)], None),
        example(4, &tokens[60..70], &[(9, 10)], Some("neither")),
    ]
}

fn options(answers: Option<MatchRule>) -> EvalOptions {
    EvalOptions {
        answers,
        max_tokens: 5,
    }
}

fn run(
    engine: &EngineHandle,
    ticket: Option<&Lease>,
    data: &Dataset,
    options: &EvalOptions,
) -> Result<EvalResult, String> {
    let text: Arc<Text> = text();
    let mut progress = Vec::new();
    let result = evaluate(engine, ticket, data, &text, options, &mut |done, total| {
        progress.push((done, total));
    });
    if result.is_ok() {
        let total = progress.len();
        let want: Vec<_> = (1..=total).map(|done| (done, total)).collect();
        assert_eq!(progress, want);
    }
    result.map_err(|error| error.to_string())
}

#[test]
fn the_loss_is_the_decoders_over_all_learned_tokens() {
    let base = load_tiny(LLAMA, Dtype::F32);
    let engine = start(Dtype::F32, &config());
    let (mut sum, mut tokens) = (0.0, 0);
    for example in examples() {
        let mut player = Player::new(&base, 1, 100);
        let steps = example.tokens.iter();
        let after: Vec<Vec<f32>> = steps
            .map(|&t| player.step(&[(0, &[t])]).remove(0))
            .collect();
        for position in example.learned.into_iter().flatten() {
            sum += f64::from(after[position - 1][example.tokens[position] as usize]);
            tokens += 1;
        }
    }
    let result = run(&engine.handle, None, &dataset(examples()), &options(None)).unwrap();
    assert_eq!(
        (result.rows, result.tokens, result.answers),
        (3, tokens, None)
    );
    let want = -sum / f64::from(tokens as u32);
    assert!(
        (result.loss - want).abs() < 1e-5,
        "{result:?}, the decoder says {want}"
    );
    assert_eq!(result.perplexity(), result.loss.exp());
}

#[test]
fn answers_change_no_loss_and_are_the_greedy_ones() {
    let engine = start(Dtype::F32, &config());
    let base = load_tiny(LLAMA, Dtype::F32);
    let mut examples = examples();
    // The answer of the model to the first row.
    let prompt = examples[0].prompt().unwrap();
    let ids = Player::new(&base, 1, 100).greedy(prompt, 5);
    let end = ids.iter().position(|&id| id == 2).unwrap_or(ids.len());
    examples[0].answer = Some(text().decode(&ids[..end], true).unwrap());
    let data = dataset(examples);
    let alone = run(&engine.handle, None, &data, &options(None)).unwrap();
    let both = run(&engine.handle, None, &data, &options(Some(MatchRule::Text))).unwrap();
    assert_eq!(both.loss, alone.loss);
    let answers = Answers {
        rule: MatchRule::Text,
        rows: 2,
        score: 1.0,
    };
    assert_eq!(both.answers, Some(answers));
}

#[test]
fn rows_that_cannot_be_run_are_named() {
    let engine = start(Dtype::F32, &config());
    let refusal = |example| {
        let data = dataset([examples(), vec![example]].concat());
        run(&engine.handle, None, &data, &options(None)).unwrap_err()
    };
    let limit = engine.handle.limits().max_model_len;
    let error = refusal(example(7, &vec![9; limit + 1], &[(1, 2)], None));
    assert!(
        error.contains("line 7") && error.contains(&limit.to_string()),
        "{error}"
    );
    let error = refusal(example(8, &[9, 256], &[(1, 2)], None));
    assert!(
        error.contains("line 8") && error.contains("token 256"),
        "{error}"
    );
    let none = run(&engine.handle, None, &dataset(Vec::new()), &options(None));
    assert!(none.unwrap_err().contains("no row"));
    // A row as long as the context fits.
    let longest = dataset(vec![example(
        1,
        &vec![9; limit],
        &[(1, 2), (5, limit)],
        None,
    )]);
    assert!(run(&engine.handle, None, &longest, &options(None)).is_ok());
}

#[test]
fn a_ticket_that_breaks_the_model_is_reported_with_the_row() {
    let (registry, _folder) = registry(1, 1e38, 1 << 24);
    let engine = start(Dtype::F32, &config());
    let lease = registry.lease(None, "t0").unwrap();
    let error = run(
        &engine.handle,
        Some(&lease),
        &dataset(examples()),
        &options(None),
    );
    let error = error.unwrap_err();
    assert!(
        error.contains("line 1: no logit is a finite number"),
        "{error}"
    );
    // The base is unchanged.
    assert!(run(&engine.handle, None, &dataset(examples()), &options(None)).is_ok());
}

/// An engine that gives each sequence one token and no end, and stops after `sequences` of them.
fn stops_after(sequences: usize) -> EngineHandle {
    let limits = Limits {
        max_model_len: 100,
        vocab_size: 256,
        max_logprobs: 0,
        hidden_size: 8,
    };
    let (handle, inbox): (EngineHandle, EngineInbox) = channel(limits, 4);
    std::thread::spawn(move || {
        for _ in 0..sequences {
            let Some(Command::Submit { outputs, .. }) = inbox.recv() else {
                return;
            };
            let output = Output {
                token: 9,
                logprobs: None,
                finish: None,
                prompt_logprobs: None,
                cached_tokens: None,
                pooled: None,
            };
            let _ = outputs.send(Ok(output));
        }
    });
    handle
}

#[test]
fn an_engine_that_stops_ends_the_evaluation() {
    for sequences in [0, 1, 3] {
        let engine = stops_after(sequences);
        let error = run(&engine, None, &dataset(examples()), &options(None)).unwrap_err();
        assert!(
            error.contains("line ") && error.contains("stopped"),
            "{error}"
        );
    }
}
