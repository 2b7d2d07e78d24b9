//! From one row of logits to one token.

use std::collections::{HashMap, HashSet};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::request::{GREEDY_BELOW, SamplingParams, TokenLogprobs};
use crate::kernels::sample::{RandomSampling, SamplingMethod, argmax, heavier};

/// A sequence's sampling state. It sees that sequence alone, so neighbours in a batch change
/// nothing, and there is one random number a token.
pub struct Sampler {
    params: SamplingParams,
    /// Tokens that end a text, kept out until `min_tokens`.
    ends: Vec<u32>,
    rng: ChaCha8Rng,
    /// The number of the next token.
    random: f64,
    prompt: HashSet<u32>,
    output: HashMap<u32, u32>,
    generated: usize,
}

/// A token and its log-probabilities, where they were asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    pub token: u32,
    pub logprobs: Option<TokenLogprobs>,
}

impl Sampler {
    /// `ends` are the base's end-of-text tokens.
    pub fn new(params: SamplingParams, prompt: &[u32], ends: &[u32]) -> Self {
        let mut rng = match params.seed {
            Some(seed) => ChaCha8Rng::seed_from_u64(seed),
            None => ChaCha8Rng::from_os_rng(),
        };
        let mut ends = if params.ignore_eos {
            Vec::new()
        } else {
            ends.to_vec()
        };
        ends.extend(&params.stop_token_ids);
        Self {
            ends,
            random: rng.random(),
            rng,
            prompt: if params.repetition_penalty == 1.0 {
                HashSet::new()
            } else {
                prompt.iter().copied().collect()
            },
            output: HashMap::new(),
            generated: 0,
            params,
        }
    }

    /// Whether `token` ends the sequence.
    pub fn ends_with(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    /// How the next token is chosen, where its logits are taken as they are and nothing else of them is wanted.
    pub fn sampling_method(&self) -> Option<SamplingMethod> {
        let params = &self.params;
        let plain = params.logit_bias.is_empty()
            && params.repetition_penalty == 1.0
            && params.presence_penalty == 0.0
            && params.frequency_penalty == 0.0;
        let may_end = self.generated >= params.min_tokens || self.ends.is_empty();
        (plain && may_end && params.logprobs.is_none()).then(|| self.choice())
    }

    fn choice(&self) -> SamplingMethod {
        let params = &self.params;
        if params.temperature < GREEDY_BELOW {
            return SamplingMethod::Greedy;
        }
        SamplingMethod::Random(RandomSampling {
            temperature: params.temperature,
            min_p: params.min_p,
            top_k: params.top_k,
            top_p: params.top_p,
            random: self.random,
        })
    }

    /// Takes the token that was chosen by [`Self::sampling_method`].
    pub fn take(&mut self, token: u32) -> Sampled {
        self.count(token);
        Sampled {
            token,
            logprobs: None,
        }
    }

    fn count(&mut self, token: u32) {
        *self.output.entry(token).or_default() += 1;
        self.generated += 1;
        self.random = self.rng.random();
    }

    /// Chooses the next token by a row of logits `[vocab]`, which is changed on the way. `None` where
    /// no logit is a finite number: the ticket has broken the model.
    pub fn sample(&mut self, logits: &mut [f32]) -> Option<Sampled> {
        let raw = self.params.logprobs.map(|top| {
            let mut raw = logits.to_vec();
            silence(&mut raw);
            (top, raw)
        });
        self.adjust(logits);
        let token = self.choice().sample(logits)?;
        self.count(token);
        let logprobs = raw.map(|(top, raw)| logprobs(&raw, token, top));
        Some(Sampled { token, logprobs })
    }

    /// Biases, penalties and forbidden tokens.
    fn adjust(&self, logits: &mut [f32]) {
        let params = &self.params;
        for &(token, bias) in &params.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        if params.repetition_penalty != 1.0 {
            let new = self
                .output
                .keys()
                .filter(|token| !self.prompt.contains(token));
            for &token in self.prompt.iter().chain(new) {
                let logit = &mut logits[token as usize];
                let factor = params.repetition_penalty;
                *logit = if *logit > 0.0 {
                    *logit / factor
                } else {
                    *logit * factor
                };
            }
        }
        if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
            for (&token, &count) in &self.output {
                let penalty = params.presence_penalty + params.frequency_penalty * count as f32;
                logits[token as usize] -= penalty;
            }
        }
        if self.generated < params.min_tokens {
            for &token in &self.ends {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Makes what is no finite number the least likely.
fn silence(logits: &mut [f32]) {
    for logit in logits.iter_mut().filter(|logit| !logit.is_finite()) {
        *logit = f32::NEG_INFINITY;
    }
}

/// The log-probability of a token by a row of raw logits `[vocab]`; `None` where no logit is a finite
/// number. What is none counts as −∞, as in sampling.
pub fn logprob(logits: &mut [f32], token: u32) -> Option<f32> {
    silence(logits);
    argmax(logits)?;
    Some(log_softmax(logits)(logits[token as usize]))
}

/// From a logit of the row to its log-probability. At least one logit is finite and none is NaN.
fn log_softmax(logits: &[f32]) -> impl Fn(f32) -> f32 {
    let most = logits
        .iter()
        .fold(f32::NEG_INFINITY, |most, &x| most.max(x));
    let sum: f64 = logits.iter().map(|&x| f64::from(x - most).exp()).sum();
    move |x| (f64::from(x - most) - sum.ln()) as f32
}

/// Log-probabilities of the raw logits: the chosen token's, and the `top` likeliest.
fn logprobs(raw: &[f32], token: u32, top: usize) -> TokenLogprobs {
    let logprob = log_softmax(raw);
    let mut all: Vec<(u32, f32)> = (0u32..).zip(raw.iter().copied()).collect();
    if top < all.len() {
        all.select_nth_unstable_by(top, heavier);
        all.truncate(top);
    }
    all.sort_unstable_by(heavier);
    TokenLogprobs {
        chosen: logprob(raw[token as usize]),
        top: all.into_iter().map(|(id, x)| (id, logprob(x))).collect(),
    }
}

#[cfg(test)]
mod tests;
