//! The requests of a run.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The requests of a run.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Measured requests.
    pub requests: usize,
    /// Tokens per prompt.
    pub prompt_tokens: usize,
    /// Tokens that each request generates.
    pub max_tokens: usize,
    /// Arrival process.
    pub arrivals: Arrivals,
    /// Distribution over the adapters.
    pub popularity: Popularity,
    /// Requests before the measurement starts.
    pub warmup: usize,
    /// Seed of prompts, adapters and arrivals. Use another one for each round, or a prefix cache
    /// may answer.
    pub seed: u64,
}

/// Arrival process of the requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// Closed loop: the next request is sent when one ends.
    Closed {
        /// Requests in flight.
        concurrency: usize,
    },
    /// Open loop: a Poisson process, whether the server keeps up or not.
    Open {
        /// Requests per second.
        rate: f64,
    },
}

/// Distribution of requests over the adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Popularity {
    /// Round robin.
    #[default]
    Uniform,
    /// Adapter `k` (from 1) with weight `1/k`.
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
        Self::ALL
            .into_iter()
            .find(|popularity| popularity.name() == text)
            .ok_or_else(|| format!("unknown popularity {text:?}; expected `uniform` or `zipf`"))
    }
}

impl std::fmt::Display for Popularity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Workload {
    /// Adapter of request `i`, of `adapters` adapters; `None` if there are none.
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

    /// Arrival times of an open loop, in seconds after its start.
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
