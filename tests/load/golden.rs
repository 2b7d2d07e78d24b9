//! The golden answer to each request, taken while nothing else ran, and the check against it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::answer::Answer;

/// Number of a ticket's content; `None` is the base.
pub type Content = Option<usize>;

/// A request without its model.
pub struct Shape {
    /// Path of the endpoint.
    pub path: &'static str,
    /// Fields of the body.
    pub body: Value,
    /// Requested choices.
    pub choices: usize,
}

/// The requests of the run: greedy and seeded, short and long, with a shared prefix, with several
/// choices, stop strings, penalties and log-probabilities.
pub fn shapes() -> Vec<Shape> {
    let shared = "The quick brown fox jumps over the lazy dog. ".repeat(4);
    let completion = |body: Value| Shape {
        path: "/v1/completions",
        choices: body["n"].as_u64().unwrap_or(1) as usize,
        body,
    };
    let chat = |body: Value| Shape {
        path: "/v1/chat/completions",
        ..completion(body)
    };
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who are you?"},
    ]);
    vec![
        completion(json!({"prompt": "Hello, ", "max_tokens": 12, "temperature": 0})),
        completion(json!({"prompt": "Once upon a time", "max_tokens": 32, "seed": 1})),
        completion(json!({"prompt": "Roses are", "max_tokens": 16, "seed": 2, "n": 2})),
        chat(json!({"messages": messages, "max_tokens": 20, "temperature": 0})),
        completion(json!({"prompt": "0123456789".repeat(30), "max_tokens": 8, "temperature": 0})),
        completion(json!({"prompt": format!("{shared}It"), "max_tokens": 24, "seed": 3})),
        completion(json!({"prompt": format!("{shared}So"), "max_tokens": 16, "temperature": 0})),
        completion(json!({
            "prompt": "a b c", "max_tokens": 60, "seed": 4, "stop": ["e", "T", "9", "()"],
        })),
        completion(json!({
            "prompt": "x = ", "max_tokens": 16, "seed": 5, "top_p": 0.9, "frequency_penalty": 0.5,
            "repetition_penalty": 1.1,
        })),
        completion(json!({"prompt": "Yes or no?", "max_tokens": 1, "temperature": 0})),
        completion(json!({
            "prompt": "One, two, ", "max_tokens": 10, "seed": 6, "logprobs": 2,
        })),
        completion(json!({
            "prompt": "Again ", "max_tokens": 40, "seed": 7, "n": 3, "ignore_eos": true,
        })),
    ]
}

/// The golden answers, by shape and content.
#[derive(Default)]
pub struct Goldens(BTreeMap<(usize, Content), Answer>);

impl Goldens {
    /// Records the answer of a single run.
    pub fn insert(&mut self, shape: usize, content: Content, answer: Answer) {
        self.0.insert((shape, content), answer);
    }

    /// Number of golden answers.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Number of answers that differ from all others of their shape. If tickets did not change
    /// answers, a crossed one would not be seen.
    pub fn distinct(&self) -> usize {
        let unlike = |(&(shape, content), answer): (&(usize, Content), &Answer)| {
            let mut others = self
                .0
                .iter()
                .filter(|((s, c), _)| (*s, *c) != (shape, content));
            others.all(|((other, _), golden)| *other != shape || golden != answer)
        };
        self.0.iter().filter(|golden| unlike(*golden)).count()
    }

    /// Checks a whole answer, or the begin of one, against the goldens of the contents that it may
    /// have run on.
    ///
    /// # Errors
    /// What is wrong: a token is lost, or belongs to another request.
    pub fn check(
        &self,
        shape: usize,
        possible: &[Content],
        answer: &Answer,
        whole: bool,
    ) -> Result<(), String> {
        let fits = |golden: &Answer| {
            if whole {
                answer == golden
            } else {
                answer.begins(golden)
            }
        };
        let expected = || {
            possible
                .iter()
                .filter_map(|&content| self.0.get(&(shape, content)))
        };
        if expected().any(fits) {
            return Ok(());
        }
        if let Some(((other, content), _)) = self.0.iter().find(|(_, golden)| fits(golden)) {
            return Err(format!(
                "crossed: shape {shape} on {possible:?} got the answer of shape {other} on \
                 {content:?}"
            ));
        }
        let lost = expected().any(|golden| answer.begins(golden));
        let what = if lost { "lost tokens" } else { "wrong tokens" };
        let golden = expected().next();
        Err(format!(
            "{what}: shape {shape} on {possible:?} got {answer:?}, expected {golden:?}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Choice;

    fn answer(text: &str) -> Answer {
        let choice = Choice {
            text: text.to_owned(),
            finish: Some("length".to_owned()),
            logprobs: Vec::new(),
        };
        Answer {
            choices: vec![choice],
            usage: Some((3, text.len() as u64)),
        }
    }

    /// Two shapes on the base and on two contents.
    fn goldens() -> Goldens {
        let mut goldens = Goldens::default();
        for (shape, content, text) in [
            (0, None, "abcd"),
            (0, Some(0), "efgh"),
            (0, Some(1), "ijkl"),
            (1, None, "mnop"),
        ] {
            goldens.insert(shape, content, answer(text));
        }
        goldens
    }

    #[test]
    fn the_golden_answer_of_any_possible_content_passes() {
        let goldens = goldens();
        assert_eq!((goldens.len(), goldens.distinct()), (4, 4));
        for (possible, text) in [(vec![None], "abcd"), (vec![Some(0), Some(1)], "ijkl")] {
            assert_eq!(goldens.check(0, &possible, &answer(text), true), Ok(()));
        }
    }

    #[test]
    fn a_crossed_answer_is_found_and_named() {
        let goldens = goldens();
        let others = |text| goldens.check(0, &[None], &answer(text), true).unwrap_err();
        assert!(others("efgh").contains("crossed: shape 0 on [None] got the answer of shape 0"));
        assert!(others("mnop").contains("of shape 1 on None"));
    }

    #[test]
    fn one_crossed_token_is_found() {
        let goldens = goldens();
        let two = [Some(0), Some(1)];
        for text in ["efgl", "ijch", "ifkl", "efgi", "efghi", "xefgh"] {
            let error = goldens.check(0, &two, &answer(text), true).unwrap_err();
            assert!(error.contains("tokens: "), "{error}");
        }
        let mut early = Answer::empty(1);
        early.choices[0].text = "efk".to_owned();
        assert!(goldens.check(0, &two, &early, false).is_err());
    }

    #[test]
    fn a_lost_token_is_found() {
        let goldens = goldens();
        let mut lost = answer("abc");
        lost.usage = Some((3, 3));
        let error = goldens.check(0, &[None], &lost, true).unwrap_err();
        assert!(error.contains("wrong tokens"), "{error}");
        lost.choices[0].finish = None;
        lost.usage = None;
        let error = goldens.check(0, &[None], &lost, true).unwrap_err();
        assert!(error.contains("lost tokens"), "{error}");
        assert_eq!(goldens.check(0, &[None], &lost, false), Ok(()));
        let swapped = answer("bacd");
        assert!(goldens.check(0, &[None], &swapped, true).is_err());
    }

    #[test]
    fn a_wrong_count_is_found() {
        let mut miscounted = answer("abcd");
        miscounted.usage = Some((3, 5));
        assert!(goldens().check(0, &[None], &miscounted, true).is_err());
    }
}
