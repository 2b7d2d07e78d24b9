//! The contents of `config.json`, in words. Missing values are skipped.

use serde::Serialize;
use serde_json::Value;

use super::super::config::Phase;
use super::format::{count, counted, short};
use super::history::History;

/// The configuration of a run.
#[derive(Clone, Copy)]
pub struct RunConfig<'a>(pub &'a Value);

/// A value of the configuration and its path.
#[derive(Debug, PartialEq, Serialize)]
pub struct Setting {
    pub path: String,
    pub value: String,
}

impl<'a> RunConfig<'a> {
    /// The text at a JSON pointer.
    pub fn text(self, pointer: &str) -> Option<&'a str> {
        self.0.pointer(pointer)?.as_str()
    }

    /// Name of the ticket.
    pub fn name(self) -> String {
        let name = self.text("/train/name").filter(|name| !name.is_empty());
        name.unwrap_or("Unnamed ticket").to_owned()
    }

    /// The requested density.
    pub fn density(self) -> Option<f64> {
        self.0.pointer("/train/density")?.as_f64()
    }

    /// The peak learning rate of a phase; `None` if the phase moves no weight.
    pub fn learning_rate(self, phase: Phase) -> Option<String> {
        if phase == Phase::Calibrate && self.only_sums() {
            return None;
        }
        let rate = self.0.pointer(&format!("/train/{phase}/learning_rate"))?;
        Some(scalar(rate))
    }

    /// Row and token counts of a data file.
    pub fn data(self, pointer: &str) -> Option<String> {
        let data = self.0.pointer(pointer)?;
        let number = |name: &str| data.get(name)?.as_u64().map(|number| number as usize);
        let (rows, tokens) = (number("rows")?, number("learned_tokens")?);
        Some(format!(
            "{}, {} learned tokens",
            counted(rows, "row"),
            count(tokens)
        ))
    }

    /// Describes what a phase does.
    pub fn caption(self, phase: Phase, history: &History) -> String {
        let start = history.phases.get(&phase).and_then(|phase| phase.start);
        let trained = match start {
            Some(start) => format!("{} weights", count(start.trained)),
            None => "weights".to_owned(),
        };
        let moved = history.phases.contains_key(&Phase::Calibrate) && !self.only_sums();
        match phase {
            Phase::Calibrate if moved => format!("Trains {trained}, to find those that matter."),
            Phase::Calibrate => format!("Sums the gradients of {trained}."),
            Phase::Adapt if moved => format!("Back at the start, trains {trained}."),
            Phase::Adapt => format!("Trains {trained}."),
        }
    }

    /// Whether the calibrate phase only sums gradients and moves no weight.
    fn only_sums(self) -> bool {
        matches!(self.text("/train/score"), Some("gradient" | "saliency"))
    }

    /// Describes how the mask is chosen, as a clause without a full stop.
    pub fn mask_rule(self) -> String {
        if let Some(ticket) = self.text("/mask_from/ticket") {
            return format!("the mask is that of ticket {}", short(ticket));
        }
        let by = if let Some(checkpoint) = self.text("/mask_from/checkpoint") {
            format!("the mask keeps the weights that differ most from the base in {checkpoint}")
        } else {
            match self.text("/train/score") {
                Some("task-vector") => "the mask keeps the weights that calibration moved most",
                Some("gradient") => "the mask keeps the weights with the largest gradients",
                Some("saliency") => "the mask keeps the weights with the largest weight × gradient",
                Some("random") => "the mask is drawn at random",
                _ => return "the configuration does not say how the mask is chosen".to_owned(),
            }
            .to_owned()
        };
        let scope = match self.text("/train/scope") {
            Some("global") => ", over the whole model at once".to_owned(),
            Some("tensor") => ", the same share of every parameter".to_owned(),
            Some(scope) => format!(", scope {scope}"),
            None => String::new(),
        };
        let avoid = self.0.get("avoid").and_then(Value::as_array);
        let avoid = match avoid.map_or(0, Vec::len) {
            0 => String::new(),
            tickets => format!(", avoiding {}", counted(tickets, "other ticket")),
        };
        format!("{by}{scope}{avoid}")
    }

    /// All settings, one per leaf of the JSON.
    pub fn settings(self) -> Vec<Setting> {
        let mut settings = Vec::new();
        flatten("", self.0, &mut settings);
        settings
    }
}

fn flatten(path: &str, value: &Value, settings: &mut Vec<Setting>) {
    match value.as_object() {
        Some(object) if !object.is_empty() => {
            for (key, value) in object {
                let path = match path {
                    "" => key.clone(),
                    _ => format!("{path}.{key}"),
                };
                flatten(&path, value, settings);
            }
        }
        _ => settings.push(Setting {
            path: path.to_owned(),
            value: scalar(value),
        }),
    }
}

/// A scalar as written: an f32 is printed with the shortest digits that identify it, not
/// with those of its f64.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "none".to_owned(),
        Value::Number(number) if number.is_f64() => {
            let wide = number.as_f64().unwrap_or(f64::NAN);
            let narrow = wide as f32;
            if f64::from(narrow) == wide {
                format!("{narrow:?}")
            } else {
                number.to_string()
            }
        }
        _ => value.to_string(),
    }
}
