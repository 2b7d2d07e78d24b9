use std::collections::BTreeMap;

use serde_json::json;

use super::super::config::Phase;
use super::super::event::StepReport;
use super::*;

const MODULES: [(&str, usize); 7] = [
    ("self_attn.q_proj", 4096),
    ("self_attn.k_proj", 1024),
    ("self_attn.v_proj", 1024),
    ("self_attn.o_proj", 4096),
    ("mlp.gate_proj", 8192),
    ("mlp.up_proj", 8192),
    ("mlp.down_proj", 8192),
];

fn config() -> Value {
    json!({
        "base": { "name": "small", "fingerprint": "f".repeat(64) },
        "data": { "sha256": "d".repeat(64), "rows": 2000, "learned_tokens": 31000 },
        "valid": { "sha256": "e".repeat(64), "rows": 200, "learned_tokens": 3100 },
        "mask_from": null,
        "avoid": [],
        "on_top_of": null,
        "train": {
            "name": "sql", "density": 0.01, "score": "task-vector", "scope": "global",
            "calibrate": { "steps": 30, "learning_rate": 3e-5f32 },
            "adapt": { "steps": 80, "learning_rate": 6e-4f32 },
        },
        "tool": "tombola 0.1.0",
    })
}

fn step(phase: Phase, step: usize, loss: f64) -> Event {
    Event::Step(StepReport {
        phase,
        step,
        loss,
        learning_rate: 1e-4,
        gradient_norm: 1.5,
        tokens: 1000,
        seconds: 2.0,
    })
}

fn phase(phase: Phase, steps: usize, trained: usize) -> Vec<Event> {
    let bytes = 16 * trained;
    let begin = Event::Phase {
        phase,
        steps,
        trained,
        bytes,
    };
    let loss = |n: usize| 1.3 + 1.2 * (-(n as f64) / 10.0).exp();
    let steps = (1..=steps).map(|n| step(phase, n, loss(n)));
    std::iter::once(begin).chain(steps).collect()
}

fn valid(phase: Option<Phase>, step: usize, loss: f64) -> Event {
    Event::Valid { phase, step, loss }
}

/// The mask of a base with `layers` layers; every parameter has a different share.
fn mask(layers: usize) -> Event {
    let parameters = (0..layers).flat_map(|layer| {
        let module = move |(index, (module, all)): (usize, (&str, usize))| {
            let name = format!("model.layers.{layer}.{module}.weight");
            (name, (8 + 7 * layer + index, all))
        };
        MODULES.into_iter().enumerate().map(module)
    });
    Event::Mask {
        parameters: parameters.collect(),
    }
}

fn ticket(loss: Option<f64>) -> Event {
    Event::Ticket {
        digest: "ab".repeat(32),
        bytes: 4_400_000,
        loss,
    }
}

/// A whole run with validation rows.
fn run(calibrate: usize, adapt: usize, layers: usize) -> Vec<Event> {
    let mut events = vec![valid(None, 0, 2.3147)];
    events.extend(phase(Phase::Calibrate, calibrate, 1_000_000));
    events.push(valid(Some(Phase::Calibrate), calibrate, 1.4121));
    events.push(mask(layers));
    events.extend(phase(Phase::Adapt, adapt, 10_000));
    events.push(valid(Some(Phase::Adapt), adapt / 2, 1.6));
    events.push(ticket(Some(1.4367)));
    events
}

fn result(label: &str, loss: f64, score: f64) -> ReportResult {
    ReportResult {
        label: label.to_owned(),
        loss,
        perplexity: loss.exp(),
        score: Some(("exact match".to_owned(), score)),
    }
}

fn sample(prompt: &str, expected: &str, base: &str, ticket: &str) -> Sample {
    let [prompt, expected, base, ticket] = [prompt, expected, base, ticket].map(str::to_owned);
    Sample {
        prompt,
        expected,
        base,
        ticket,
    }
}

fn page(config: &Value, events: &[Event]) -> String {
    render(&ReportInput {
        config,
        events,
        results: &[],
        samples: &[],
    })
}

fn full(text: &str) -> String {
    let mut config = config();
    config["train"]["name"] = text.into();
    config["base"]["name"] = text.into();
    config["mask_from"] = json!({ "checkpoint": text, "fingerprint": "f".repeat(64) });
    config["tool"] = text.into();
    config[text] = text.into();
    let Event::Mask { mut parameters } = mask(2) else {
        unreachable!("a mask is made")
    };
    parameters.insert(text.to_owned(), (1, 10));
    let mut events = run(3, 5, 2);
    events.push(Event::Mask { parameters });
    let mut results = [result("base", 2.3147, 0.12), result(text, 1.4367, 0.715)];
    results[0].score = Some((text.to_owned(), 0.5));
    render(&ReportInput {
        config: &config,
        events: &events,
        results: &results,
        samples: &[sample(text, text, text, &format!("{text} too"))],
    })
}

/// The tag names of a page, without the text between them.
fn tags(page: &str) -> Vec<&str> {
    let tags = page.split('<').skip(1);
    tags.map(|rest| rest.split(['>', ' ', '\n']).next().unwrap_or(rest))
        .collect()
}

#[test]
fn untrusted_text_stays_text() {
    let evil = "</style></script><script>alert('x')</script><img src=x onerror=\"y\">\" & ' -->";
    let (page, harmless) = (full(evil), full("harmless"));
    assert!(page.contains("&lt;script&gt;alert("), "shown as text");
    // The answer that differs in one word is cut into spans, so it has as many tags.
    assert_eq!(tags(&page), tags(&harmless));
    for evil in ["<script>alert", "<img", "onerror=\"", "-->"] {
        assert!(!page.contains(evil), "{evil} is in the page");
    }
}

#[test]
fn control_characters_are_shown() {
    let samples = [sample("a\0b\u{1b}[31m\r\nc", "x", "\u{85}", "x")];
    let page = render(&ReportInput {
        config: &config(),
        events: &[],
        results: &[],
        samples: &samples,
    });
    assert!(page.contains("a␀b␛[31m\nc"));
    assert!(!page.contains(['\0', '\u{1b}', '\r', '\u{85}']));
}

#[test]
fn nothing_is_fetched() {
    let page = full("see https://example.com/x.png and url(http://example.com)");
    // Everything a browser could fetch by. Slashes in the text of a sample are escaped.
    for address in [
        "http://", "https://", "src=", "href=", "@import", "<link", "fetch(",
    ] {
        assert!(!page.contains(address), "{address} is in the page");
    }
    let style = page.split("<style>").nth(1).unwrap();
    let style = style.split("</style>").next().unwrap();
    assert!(style.contains("--page:") && !style.contains("url("));
}

#[test]
fn headline_numbers_are_shown() {
    let results = [result("base", 2.3147, 0.12), result("sql", 1.4367, 0.715)];
    let page = render(&ReportInput {
        config: &config(),
        events: &run(30, 80, 30),
        results: &results,
        samples: &[sample("q", "SELECT a", "no", "SELECT a")],
    });
    for text in [
        "<h1 dir=\"auto\">sql</h1>",
        "2.315",
        "1.412",
        "1.437",
        "12.0 %",
        "71.5 %",
        "Exact match",
        "30 calibrate + 80 adapt",
        "4.40 MB",
        "16.0 MB",
        "160 kB",
        "1.00 % of the calibrate phase.",
        "2,000 rows, 31,000 learned tokens",
        "over the whole model at once",
        "✓ matches",
        "≠ differs",
    ] {
        assert!(page.contains(text), "{text:?} is not in the page");
    }
    // The digits of the f32 as given, not those of its f64.
    assert!(page.contains("<th>train.adapt.learning_rate</th><td dir=\"auto\">0.0006</td>"));
    assert!(!page.contains("class=\"note\">No "));
    assert!(!page.contains("<aside>"));
}

#[test]
fn every_layer_and_projection_is_shown() {
    for layers in [1, 30, 100] {
        let page = page(&config(), &run(3, 8, layers));
        for layer in 0..layers {
            assert!(page.contains(&format!("<th scope=\"row\">{layer}</th>")));
            for projection in ["q", "k", "v", "o", "gate", "up", "down"] {
                let cell = format!("title=\"layer {layer}, {projection}: ");
                assert_eq!(page.matches(&cell).count(), 1, "{cell}");
            }
        }
        let cells = page.matches("style=\"--tone:").count();
        assert_eq!(cells, 7 * layers);
        assert_eq!(page.contains("heat many"), layers == 100);
    }
}

#[test]
fn parameters_outside_the_mask_are_dashes() {
    let parameters = BTreeMap::from([
        ("model.layers.0.mlp.up_proj.weight".to_owned(), (10, 1000)),
        ("model.layers.2.mlp.up_proj.weight".to_owned(), (0, 1000)),
        ("lm_head.weight".to_owned(), (5, 100)),
    ]);
    let page = page(&config(), &[Event::Mask { parameters }]);
    assert_eq!(page.matches("<td class=\"none\"").count(), 12);
    assert!(page.contains("A dash is a parameter"));
    assert!(page.contains("<th>lm_head.weight</th><td>5.00 %</td><td>100</td>"));
}

#[test]
fn incomplete_runs_say_so() {
    let mut without_valid = config();
    without_valid["valid"] = Value::Null;
    without_valid["train"]["score"] = "random".into();
    let mut random = vec![mask(2)];
    random.extend(phase(Phase::Adapt, 4, 100));
    random.push(ticket(None));
    let mut cut = run(6, 9, 2);
    cut.truncate(14);
    let cases: [(&str, &Value, &[Event], &[&str]); 5] = [
        (
            "no validation rows, no calibration",
            &without_valid,
            &random,
            &[
                "No validation rows were given",
                "There is no calibrate phase",
                "Training loss",
                "drawn at random",
            ],
        ),
        (
            "cut off while adapting",
            &config(),
            &cut,
            &[
                "The run is unfinished",
                "has taken 3 of 9 steps",
                "3 of 9 adapt",
            ],
        ),
        (
            "cut off before the first step",
            &config(),
            &run(6, 9, 2)[..2],
            &["No step was taken yet", "The mask is not chosen yet"],
        ),
        (
            "one step per phase",
            &config(),
            &run(1, 1, 1),
            &["1 calibrate + 1 adapt", "not measured through the engine"],
        ),
        (
            "nothing at all",
            &Value::Null,
            &[],
            &[
                "Unnamed ticket",
                "No samples were taken",
                "The run is unfinished",
            ],
        ),
    ];
    for (case, config, events, texts) in cases {
        let page = page(config, events);
        for text in texts {
            assert!(page.contains(text), "{case}: {text:?} is not in the page");
        }
        assert!(!page.contains("NaN") && !page.contains("inf"), "{case}");
        assert!(page.ends_with("</html>"), "{case}");
    }
}

#[test]
fn non_finite_losses_are_not_drawn() {
    let mut events = run(4, 6, 1);
    for loss in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX] {
        events.push(step(Phase::Adapt, events.len(), loss));
        events.push(valid(Some(Phase::Adapt), events.len(), loss));
        events.push(valid(None, 0, loss));
        events.push(ticket(Some(loss)));
    }
    let page = page(&config(), &events);
    for attribute in ["=\"NaN", "=\"inf", "MNaN", "LNaN", " NaN", "NaN%", "inf%"] {
        assert!(!page.contains(attribute), "{attribute} is in the page");
    }
}

#[test]
fn a_resumed_run_shows_each_step_once() {
    let mut events = phase(Phase::Adapt, 8, 100);
    // Steps 7 and 8 were recorded before the run was cut off, and again after the resume.
    events.extend([step(Phase::Adapt, 7, 77.0), step(Phase::Adapt, 8, 88.0)]);
    let page = page(&config(), &events);
    assert!(page.contains("<tr><th>Tokens</th><td>8,000</td></tr>"));
    assert!(page.contains("<tr><th>Steps</th><td>8</td></tr>"));
    assert!(page.contains("77.0") && page.contains("88.0"));
}

#[test]
fn a_long_run_is_thinned_and_says_so() {
    let page = page(&config(), &run(3, 12_000, 1));
    assert!(page.contains("Each point of the adapt phase is the mean of 8 steps."));
    assert!(page.len() < 400_000, "{} bytes", page.len());
}

#[test]
fn the_same_input_gives_the_same_page() {
    assert_eq!(full("x"), full("x"));
}

#[test]
fn events_are_read_and_a_bad_line_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let events = run(2, 3, 2);
    let lines = events
        .iter()
        .map(|e| serde_json::to_string(e).unwrap() + "\n");
    let mut text: String = lines.collect();
    fs::write(&path, &text).unwrap();
    assert_eq!(read_events(&path).unwrap(), events);
    text += "{\"event\": \"step\"";
    fs::write(&path, &text).unwrap();
    let error = read_events(&path).unwrap_err().to_string();
    let line = format!("line {} is not an event of a run", events.len() + 1);
    assert!(error.contains(&line), "{error}");
    let error = read_events(&folder.path().join("none")).unwrap_err();
    assert!(error.to_string().starts_with("cannot read "), "{error}");
}
