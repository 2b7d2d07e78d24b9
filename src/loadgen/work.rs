//! What a server is asked for.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The work of a run.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub requests: usize,
    pub prompt_tokens: usize,
    /// Tokens that each request generates.
    pub max_tokens: usize,
    pub arrivals: Arrivals,
    pub popularity: Popularity,
    /// Requests before the clock starts.
    pub warmup: usize,
    /// Decides prompts, adapters and arrivals; another one for each round, or a prefix cache answers.
    pub seed: u64,
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// So many are always in flight: the next is sent when one ends.
    Closed { concurrency: usize },
    /// So many a second, at random times (a Poisson process), whether the server keeps up or not.
    Open { rate: f64 },
}

/// How requests choose among the adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Popularity {
    /// One after the other.
    #[default]
    Uniform,
    /// Adapter `k` (from 1) with a weight of `1/k`.
    Zipf,
}

impl Popularity {
    const ALL: [Self; 2] = [Self::Uniform, Self::Zipf];

    fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
        }
    }
}

impl std::str::FromStr for Popularity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL
            .into_iter()
            .find(|popularity| popularity.name() == text);
        found.ok_or_else(|| format!("{text:?} is not a popularity: `uniform` or `zipf`"))
    }
}

impl std::fmt::Display for Popularity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Work {
    /// The adapter of request `i`, of so many; `None` where there is none.
    pub fn adapter(&self, i: usize, adapters: usize) -> Option<usize> {
        if adapters == 0 {
            return None;
        }
        match self.popularity {
            Popularity::Uniform => Some(i % adapters),
            Popularity::Zipf => {
                let weights = || (1..=adapters).map(|k| 1.0 / k as f64);
                let mut rest = self.rng(i as u64).random::<f64>() * weights().sum::<f64>();
                let chosen = weights().position(|weight| {
                    rest -= weight;
                    rest < 0.0
                });
                Some(chosen.unwrap_or(adapters - 1))
            }
        }
    }

    /// The seconds after the begin at which requests are sent in an open loop.
    pub fn arrivals(&self, rate: f64) -> impl Iterator<Item = f64> {
        let mut rng = self.rng(u64::MAX);
        let mut now = 0.0;
        (0..self.requests).map(move |_| {
            // 1 − u is never 0.
            now -= (1.0 - rng.random::<f64>()).ln() / rate;
            now
        })
    }

    fn rng(&self, stream: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(stream);
        rng
    }
}
