//! Sampler: picks one token from one row of logits.

mod forbidden;

use std::collections::{HashMap, HashSet};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use self::forbidden::Forbidden;
use super::constraint::TokenMask;
use super::request::{GREEDY_BELOW, SamplingParams, TokenLogprobs};
use crate::kernels::sample::{RandomSampling, SamplingMethod, argmax, heavier};

/// Sampling state of one sequence. It depends on that sequence alone, not on its neighbours in a
/// batch. Each token uses one random number.
pub struct Sampler {
    params: SamplingParams,
    /// End-of-text tokens of the base that end the sequence, besides its stop tokens. Neither are
    /// sampled before `min_tokens`.
    ends: Vec<u32>,
    /// Whether a mask comes with each row of logits.
    constrained: bool,
    rng: ChaCha8Rng,
    /// Random number of the next token, in [0, 1).
    random: f64,
    /// Tokens of the prompt; empty if no penalty needs them.
    prompt: HashSet<u32>,
    forbidden: Forbidden,
    /// Generated tokens with their counts.
    output: HashMap<u32, u32>,
    generated: usize,
}

/// A sampled token, with its log-probabilities if requested.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    pub token: u32,
    pub logprobs: Option<TokenLogprobs>,
}

impl Sampler {
    /// A sampler for the tokens after `prompt`. `ends` are the base's end-of-text tokens.
    pub fn new(params: SamplingParams, prompt: &[u32], ends: &[u32]) -> Self {
        let mut rng = match params.seed {
            Some(seed) => ChaCha8Rng::seed_from_u64(seed),
            None => ChaCha8Rng::from_os_rng(),
        };
        let ends = if params.ignore_eos {
            Vec::new()
        } else {
            ends.to_vec()
        };
        Self {
            ends,
            constrained: false,
            random: rng.random(),
            rng,
            prompt: if params.repetition_penalty == 1.0 {
                HashSet::new()
            } else {
                prompt.iter().copied().collect()
            },
            forbidden: Forbidden::new(&params),
            output: HashMap::new(),
            generated: 0,
            params,
        }
    }

    /// [`Self::new`] for logits that come with a mask each. `ends` end the sequence even if the
    /// request ignores them: then they are sampled only if no other token is allowed.
    pub fn constrained(params: SamplingParams, prompt: &[u32], ends: &[u32]) -> Self {
        Self {
            ends: ends.to_vec(),
            constrained: true,
            ..Self::new(params, prompt, &[])
        }
    }

    /// Whether `token` ends the sequence.
    pub fn ends_with(&self, token: u32) -> bool {
        self.ends.contains(&token) || self.params.stop_token_ids.contains(&token)
    }

    /// Tokens that may be sampled next under a constraint whose mask this is: end-of-text tokens
    /// too if the output may end, but before `min_tokens`, or if they are ignored, only if there is
    /// no other.
    pub fn allowed(&self, mut mask: TokenMask) -> TokenMask {
        if mask.may_end() {
            mask.allow(&self.ends);
        }
        if self.generated < self.params.min_tokens {
            mask.forbid_unless_last(self.ends.iter().chain(&*self.params.stop_token_ids));
        } else if self.params.ignore_eos {
            mask.forbid_unless_last(self.ends.iter());
        }
        mask
    }

    /// How the device can sample the next token from the raw logits; `None` if they have to be
    /// adjusted first, or are needed for log-probabilities.
    pub fn sampling_method(&self) -> Option<SamplingMethod> {
        let params = &self.params;
        let plain = !self.constrained
            && params.logit_bias.is_empty()
            && self.forbidden.is_empty()
            && params.repetition_penalty == 1.0
            && params.presence_penalty == 0.0
            && params.frequency_penalty == 0.0;
        let never_ends = self.ends.is_empty() && params.stop_token_ids.is_empty();
        let may_end = self.generated >= params.min_tokens || never_ends;
        (plain && may_end && params.logprobs.is_none()).then(|| self.method())
    }

    fn method(&self) -> SamplingMethod {
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

    /// Records a token that was sampled by [`Self::sampling_method`].
    pub fn record(&mut self, token: u32) -> Sampled {
        self.count(token);
        Sampled {
            token,
            logprobs: None,
        }
    }

    /// Counts a token, and draws the random number of the next.
    fn count(&mut self, token: u32) {
        *self.output.entry(token).or_default() += 1;
        self.forbidden.record(token);
        self.generated += 1;
        self.random = self.rng.random();
    }

    /// Samples the next token from a row of logits `[vocab]`, which is adjusted in place.
    /// `allowed` comes from [`Self::allowed`]; `None` allows all tokens. Returns `None` if no logit
    /// of an allowed token is finite: the ticket breaks the model.
    pub fn sample(&mut self, logits: &mut [f32], allowed: Option<&TokenMask>) -> Option<Sampled> {
        let raw = self.params.logprobs.map(|top| {
            let mut raw = logits.to_vec();
            mask_non_finite(&mut raw);
            (top, raw)
        });
        self.adjust(logits);
        if let Some(allowed) = allowed {
            allowed.apply(logits);
        }
        let token = self.method().sample(logits)?;
        self.count(token);
        let logprobs = raw.map(|(top, raw)| logprobs(&raw, token, top));
        Some(Sampled { token, logprobs })
    }

    /// Applies biases, penalties and forbidden tokens.
    fn adjust(&self, logits: &mut [f32]) {
        let params = &self.params;
        for &(token, bias) in &*params.logit_bias {
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
        self.forbidden.mask(logits);
        if self.generated < params.min_tokens && !self.constrained {
            for &token in self.ends.iter().chain(&*params.stop_token_ids) {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Sets non-finite logits to −∞.
fn mask_non_finite(logits: &mut [f32]) {
    for logit in logits.iter_mut().filter(|logit| !logit.is_finite()) {
        *logit = f32::NEG_INFINITY;
    }
}

/// Log-probabilities of a token and of the `top` most likely ones by a row of raw logits `[vocab]`;
/// `None` if no logit is finite. Non-finite logits count as −∞, as in sampling.
pub fn token_logprobs(logits: &mut [f32], token: u32, top: usize) -> Option<TokenLogprobs> {
    mask_non_finite(logits);
    argmax(logits)?;
    Some(logprobs(logits, token, top))
}

/// Function from a logit of the row to its log-probability. At least one logit is finite, and none
/// is NaN.
fn log_softmax(logits: &[f32]) -> impl Fn(f32) -> f32 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    move |x| (f64::from(x - max) - sum.ln()) as f32
}

/// Log-probabilities of the sampled token and of the `top` most likely tokens, by the raw logits.
fn logprobs(raw: &[f32], token: u32, top: usize) -> TokenLogprobs {
    let logprob = log_softmax(raw);
    let chosen = raw[token as usize];
    let top = likeliest(raw, top).into_iter();
    TokenLogprobs {
        chosen: logprob(chosen),
        rank: 1 + raw.iter().filter(|&&logit| logit > chosen).count(),
        top: top.map(|(id, logit)| (id, logprob(logit))).collect(),
    }
}

/// The `top` tokens with the largest logits, in descending order.
fn likeliest(raw: &[f32], top: usize) -> Vec<(u32, f32)> {
    if top == 0 {
        return Vec::new();
    }
    let mut all: Vec<(u32, f32)> = (0u32..).zip(raw.iter().copied()).collect();
    if top < all.len() {
        all.select_nth_unstable_by(top, heavier);
        all.truncate(top);
    }
    all.sort_unstable_by(heavier);
    all
}

#[cfg(test)]
mod tests;
