//! The learning rate of each step.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// How the learning rate falls over a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    Constant,
    /// In a line, to a tenth.
    Linear,
    /// Along half a cosine, to a tenth.
    Cosine,
}

impl FromStr for Decay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "constant" => Ok(Self::Constant),
            "linear" => Ok(Self::Linear),
            "cosine" => Ok(Self::Cosine),
            _ => Err(format!(
                "{text:?} is not a decay: constant, linear or cosine"
            )),
        }
    }
}

impl fmt::Display for Decay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Constant => "constant",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
        })
    }
}

/// The learning rate over a phase: it falls from the first step on, times a rise at the start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// What the rate would be without rise and fall.
    pub peak: f32,
    pub steps: usize,
    /// The share of the steps in which the rate rises, in a line.
    pub warmup: f32,
    pub decay: Decay,
}

impl Schedule {
    /// The rate of step `step`, from 0.
    pub fn rate(&self, step: usize) -> f32 {
        let warmup = (self.steps as f32 * self.warmup).floor().max(1.0);
        let rise = ((step + 1) as f32 / warmup).min(1.0);
        let progress = step as f32 / self.steps.max(1) as f32;
        let left = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => 1.0 - 0.9 * progress,
            Decay::Cosine => 0.55 + 0.45 * (std::f32::consts::PI * progress).cos(),
        };
        self.peak * rise * left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls() {
        let schedule = |decay| Schedule {
            peak: 2.0,
            steps: 100,
            warmup: 0.1,
            decay,
        };
        for decay in [Decay::Constant, Decay::Linear, Decay::Cosine] {
            let schedule = schedule(decay);
            assert!((schedule.rate(0) - 0.2).abs() < 0.01);
            assert!(schedule.rate(4) < schedule.rate(9));
        }
        assert_eq!(schedule(Decay::Constant).rate(99), 2.0);
        assert!((schedule(Decay::Linear).rate(50) - 1.1).abs() < 1e-6);
        assert!((schedule(Decay::Cosine).rate(99) - 0.2).abs() < 0.01);
        // No warm-up at all starts at the peak.
        let whole = Schedule {
            warmup: 0.0,
            ..schedule(Decay::Constant)
        };
        assert_eq!(whole.rate(0), 2.0);
    }
}
