//! Flags that mend an error of the library, which knows no command line.

use crate::engine::EngineError;
use crate::loadgen::LoadError;
use crate::model::ModelError;
use crate::train::TrainError;

/// Appends the flag that mends an error, if there is one.
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
        ModelError::Fetch { .. } => Some("--model names another base"),
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

    #[test]
    fn an_error_names_the_flag_that_mends_it() {
        let length = || ModelError::ContextLength {
            asked: 9000,
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
    fn other_errors_stay_as_they_are() {
        let error = Err::<(), _>(ModelError::UnknownParameter("a".to_owned()));
        let error = error.context("reading").unwrap_err();
        let text = format!("{error:#}");
        assert_eq!(format!("{:#}", add(error)), text);
    }
}
