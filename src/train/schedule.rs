//! Learning rate schedule of a phase.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// Decay of the learning rate over a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    Constant,
    /// Linearly, to a tenth of the peak.
    Linear,
    /// Along a half cosine, to a tenth of the peak.
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
                "{text:?} is not a decay: expected constant, linear or cosine"
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

/// Learning rate schedule: a linear warm-up multiplied by a decay that starts at the first step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Learning rate before warm-up and decay.
    pub peak: f32,
    pub steps: usize,
    /// Share of the steps during which the rate rises.
    pub warmup: f32,
    pub decay: Decay,
}

impl Schedule {
    /// The learning rate of step `step`, from 0.
    pub fn rate(&self, step: usize) -> f32 {
        let warmup = (self.steps as f32 * self.warmup).floor().max(1.0);
        let rise = ((step + 1) as f32 / warmup).min(1.0);
        let progress = step as f32 / self.steps.max(1) as f32;
        let decay = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => 1.0 - 0.9 * progress,
            Decay::Cosine => 0.55 + 0.45 * (std::f32::consts::PI * progress).cos(),
        };
        self.peak * rise * decay
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
        // Without warm-up the rate starts at the peak.
        let no_warmup = Schedule {
            warmup: 0.0,
            ..schedule(Decay::Constant)
        };
        assert_eq!(no_warmup.rate(0), 2.0);
    }
}
