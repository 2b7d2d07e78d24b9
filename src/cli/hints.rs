//! Hints that name the command-line flag that fixes a library error.

use crate::device_bench::DeviceBenchError;
use crate::engine::EngineError;
use crate::loadgen::LoadError;
use crate::model::ModelError;
use crate::train::{ExtractError, TrainError};

/// Appends the flag that fixes an error, if there is one.
pub fn add(error: anyhow::Error) -> anyhow::Error {
    match error.chain().find_map(hint) {
        Some(hint) => anyhow::anyhow!("{error:#}; {hint}"),
        None => error,
    }
}

fn hint(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    if let Some(error) = error.downcast_ref() {
        of_model(error)
    } else if let Some(error) = error.downcast_ref() {
        of_engine(error)
    } else if let Some(error) = error.downcast_ref() {
        of_training(error)
    } else if let Some(error) = error.downcast_ref() {
        of_load_client(error)
    } else if let Some(DeviceBenchError::Model(error)) = error.downcast_ref() {
        of_model(error)
    } else if let Some(ExtractError::Model(error)) = error.downcast_ref() {
        of_model(error)
    } else {
        None
    }
}

fn of_model(error: &ModelError) -> Option<&'static str> {
    match error {
        ModelError::ContextLength { .. } => Some("lower --max-model-len"),
        ModelError::Device { .. } => Some("choose another --device"),
        ModelError::QuantizedOnGpu => Some("use --device cpu, or leave --keep-quantized out"),
        ModelError::NoMemory { .. } => Some("lower --kv-cache-mib"),
        ModelError::FetchDefaultBase { .. } => Some("or pass another base with --model"),
        ModelError::KeepQuantized { .. } => Some("leave --keep-quantized out"),
        _ => None,
    }
}

fn of_engine(error: &EngineError) -> Option<&'static str> {
    match error {
        EngineError::Budget { .. } => {
            Some("raise --max-num-batched-tokens, or lower --max-num-seqs")
        }
        EngineError::Cache { .. } => Some("raise --kv-cache-mib"),
        EngineError::Quantized => Some("use --ticket-mode overlay"),
        EngineError::Model(error) => of_model(error),
        _ => None,
    }
}

fn of_training(error: &TrainError) -> Option<&'static str> {
    match error {
        TrainError::Stopped { .. } => Some("--resume continues it"),
        TrainError::Unfinished(_) => Some("--resume continues it, --overwrite starts again"),
        TrainError::Model(error) => of_model(error),
        _ => None,
    }
}

fn of_load_client(error: &LoadError) -> Option<&'static str> {
    match error {
        LoadError::NoModel { .. } => Some("name one with --model"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;
    use crate::train::Phase;

    #[test]
    fn an_error_names_the_flag_that_fixes_it_in_any_layer() {
        let length = || ModelError::ContextLength {
            requested: 9000,
            trained: 8192,
        };
        let engine = EngineError::Model(length());
        let training = TrainError::Model(length());
        for error in [length().into(), engine.into(), training.into()] {
            let error: anyhow::Error = error;
            let text = format!("{:#}", add(error.context("starting")));
            assert!(text.starts_with("starting: "), "{text}");
            assert!(
                text.contains("9000 ") && text.ends_with("; lower --max-model-len"),
                "{text}"
            );
        }
    }

    #[test]
    fn each_fixable_error_names_its_flags() {
        let text = || "text".to_owned();
        let device = || ModelError::Device {
            device: text(),
            reason: text(),
        };
        let cases: Vec<(anyhow::Error, &[&str])> = vec![
            (device().into(), &["--device"]),
            (DeviceBenchError::Model(device()).into(), &["--device"]),
            (ExtractError::Model(device()).into(), &["--device"]),
            (
                ModelError::QuantizedOnGpu.into(),
                &["--device cpu", "--keep-quantized"],
            ),
            (
                ModelError::NoMemory { bytes: 1 }.into(),
                &["--kv-cache-mib"],
            ),
            (
                ModelError::FetchDefaultBase {
                    what: text(),
                    reason: text(),
                }
                .into(),
                &["--model"],
            ),
            (
                ModelError::KeepQuantized {
                    path: "base".into(),
                    reason: text(),
                }
                .into(),
                &["--keep-quantized"],
            ),
            (
                EngineError::Budget { tokens: 1, seqs: 2 }.into(),
                &["--max-num-batched-tokens", "--max-num-seqs"],
            ),
            (
                EngineError::Cache { given: 1, block: 2 }.into(),
                &["--kv-cache-mib"],
            ),
            (EngineError::Quantized.into(), &["--ticket-mode overlay"]),
            (
                TrainError::Unfinished("run".into()).into(),
                &["--resume", "--overwrite"],
            ),
            (
                TrainError::Stopped {
                    phase: Phase::Adapt,
                    step: 1,
                }
                .into(),
                &["--resume"],
            ),
            (LoadError::NoModel { url: text() }.into(), &["--model"]),
        ];
        for (error, flags) in cases {
            let plain = format!("{error:#}");
            assert!(!plain.contains("--"), "{plain}");
            let hinted = format!("{:#}", add(error));
            for flag in flags {
                assert!(hinted.contains(flag), "{hinted}");
            }
        }
    }

    #[test]
    fn a_hub_that_fails_has_no_hint() {
        let error = ModelError::Fetch {
            what: "a/b".to_owned(),
            reason: "404".to_owned(),
        };
        assert_eq!(format!("{:#}", add(error.into())), "cannot fetch a/b: 404");
    }

    #[test]
    fn other_errors_stay_as_they_are() {
        let error = Err::<(), _>(ModelError::UnknownParameter("a".to_owned()));
        let error = error.context("reading").unwrap_err();
        let text = format!("{error:#}");
        assert_eq!(format!("{:#}", add(error)), text);
    }
}
