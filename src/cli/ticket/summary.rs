//! Summary of a ticket, as a table for people and as JSON for machines.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use indicatif::HumanCount;
use serde::Serialize;
use serde_json::Value;

use crate::ticket::{TensorDelta, Ticket};

/// Layers per line of the table.
const LAYERS_PER_LINE: usize = 8;

/// Metadata of a ticket, and its nonzeros per projection and layer.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    name: String,
    base: String,
    base_fingerprint: String,
    digest: String,
    bytes: u64,
    nonzeros: usize,
    density: f64,
    dtype: String,
    parameters: usize,
    license: Option<String>,
    training: Option<Value>,
    /// Sorted by name, in byte order.
    projections: Vec<Projection>,
    /// Nonzeros by layer number; parameters outside the layers are left out.
    layers: BTreeMap<u32, usize>,
}

/// All parameters of one kind, such as `q_proj`.
#[derive(Debug, Default, Serialize)]
struct Projection {
    name: String,
    parameters: usize,
    rows: usize,
    nonzeros: usize,
}

impl Summary {
    /// Counts the nonzeros of a ticket.
    pub fn new(ticket: &Ticket) -> Self {
        let mut projections: BTreeMap<&str, Projection> = BTreeMap::new();
        let mut layers = BTreeMap::new();
        for (parameter, delta) in ticket.tensors() {
            let name = kind(parameter);
            let projection = projections.entry(name).or_default();
            projection.name = name.to_owned();
            projection.parameters += 1;
            projection.rows += delta.rows();
            projection.nonzeros += delta.nonzeros();
            if let Some(layer) = layer(parameter) {
                *layers.entry(layer).or_default() += delta.nonzeros();
            }
        }
        let metadata = ticket.metadata();
        Self {
            name: metadata.name.clone(),
            base: metadata.base_name.clone(),
            base_fingerprint: metadata.base_fingerprint.to_string(),
            digest: ticket.digest().to_string(),
            bytes: ticket.file_bytes(),
            nonzeros: ticket.nonzeros(),
            density: metadata.density,
            dtype: dtypes(ticket.tensors().values()),
            parameters: ticket.tensors().len(),
            license: metadata.license.clone(),
            training: metadata.training.clone(),
            projections: projections.into_values().collect(),
            layers,
        }
    }

    fn write_head(&self, f: &mut impl Write) -> fmt::Result {
        let mut line = |key: &str, value: &str| writeln!(f, "{key:<13}{value}");
        line("name", &self.name)?;
        line("base", &self.base)?;
        line("fingerprint", &self.base_fingerprint)?;
        line("digest", &self.digest)?;
        line("bytes", &HumanCount(self.bytes).to_string())?;
        let nonzeros = HumanCount(self.nonzeros as u64);
        let parameters = count_parameters(self.parameters);
        line("nonzeros", &format!("{nonzeros} in {parameters}"))?;
        line("density", &percent(self.density))?;
        line("deltas", &self.dtype)?;
        line("license", self.license.as_deref().unwrap_or("not stated"))?;
        match &self.training {
            None => line("training", "not stated"),
            Some(Value::Object(fields)) => {
                let mut key = "training";
                for (name, value) in fields {
                    let value = value.as_str().map_or(value.to_string(), str::to_owned);
                    line(key, &format!("{name}: {value}"))?;
                    key = "";
                }
                Ok(())
            }
            Some(other) => line("training", &other.to_string()),
        }
    }

    fn write_projections(&self, f: &mut impl Write) -> fmt::Result {
        let names = self.projections.iter().map(|p| p.name.chars().count());
        let width = names.max().unwrap_or(0).max("projection".len());
        let share = |p: &Projection| 100.0 * p.nonzeros as f64 / self.nonzeros as f64;
        let (parameters, nonzeros) = ("parameters", "nonzeros");
        writeln!(
            f,
            "\n{:<width$}  {parameters:>10}  {nonzeros:>13}   share",
            "projection"
        )?;
        for p in &self.projections {
            let nonzeros = HumanCount(p.nonzeros as u64).to_string();
            let (name, parameters, share) = (&p.name, p.parameters, share(p));
            writeln!(
                f,
                "{name:<width$}  {parameters:>10}  {nonzeros:>13}  {share:>4.1} %"
            )?;
        }
        Ok(())
    }

    fn write_layers(&self, f: &mut impl Write) -> fmt::Result {
        let grouped = |nonzeros: &usize| HumanCount(*nonzeros as u64).to_string();
        let layers: Vec<_> = self.layers.iter().collect();
        let counts = layers.iter().map(|(_, nonzeros)| grouped(nonzeros).len());
        let width = counts.max().unwrap_or(0);
        if !layers.is_empty() {
            writeln!(f, "\n{:<10}nonzeros", "layers")?;
        }
        for line in layers.chunks(LAYERS_PER_LINE) {
            let (Some((first, _)), Some((last, _))) = (line.first(), line.last()) else {
                continue;
            };
            write!(f, "{:<8}", format!("{first}-{last}"))?;
            for (_, nonzeros) in line {
                write!(f, "  {:>width$}", grouped(nonzeros))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write_head(&mut text)?;
        self.write_projections(&mut text)?;
        self.write_layers(&mut text)?;
        // Names and metadata come from the file: their control characters must not reach the
        // terminal.
        let is_control = |c: char| c.is_control() && c != '\n';
        f.write_str(&text.replace(is_control, "\u{fffd}"))
    }
}

/// `q_proj` of `model.layers.0.self_attn.q_proj.weight`.
fn kind(parameter: &str) -> &str {
    let module = parameter.strip_suffix(".weight").unwrap_or(parameter);
    module.rsplit('.').next().unwrap_or(module)
}

/// `0` of `model.layers.0.self_attn.q_proj.weight`.
fn layer(parameter: &str) -> Option<u32> {
    let (_, rest) = parameter.split_once("layers.")?;
    rest.split('.').next()?.parse().ok()
}

/// A number of parameters, in words.
pub(super) fn count_parameters(n: usize) -> String {
    format!("{n} parameter{}", if n == 1 { "" } else { "s" })
}

/// A share in percent with three decimals, or with more if two significant digits need them.
pub(super) fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    let decimals = if percent > 0.0 && percent < 0.001 {
        (1.0 - percent.log10().floor()).min(12.0) as usize
    } else {
        3
    };
    format!("{percent:.decimals$} %")
}

fn dtypes<'a>(deltas: impl Iterator<Item = &'a TensorDelta>) -> String {
    let mut names: Vec<_> = deltas.map(|d| d.deltas().dtype().to_string()).collect();
    names.sort();
    names.dedup();
    names.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticket::{Deltas, Digest, Metadata};

    fn ticket() -> Ticket {
        let delta = |indices: &[usize]| {
            let deltas = Deltas::F32(vec![0.5; indices.len()]);
            TensorDelta::from_flat([2, 3], indices, deltas).unwrap()
        };
        let name = |layer, kind| format!("model.layers.{layer}.self_attn.{kind}.weight");
        let tensors = BTreeMap::from([
            (name(0, "q_proj"), delta(&[0, 4])),
            (name(1, "q_proj"), delta(&[5])),
            (name(10, "k_proj"), delta(&[1, 2, 3])),
        ]);
        let metadata = Metadata {
            name: "sql".to_owned(),
            base_name: "tiny".to_owned(),
            base_fingerprint: Digest([0xab; 32]),
            density: 1.0 / 3.0,
            license: Some("CC-BY-4.0".to_owned()),
            training: Some(serde_json::json!({"seed": 7, "source": "a \u{9b}31m b"})),
        };
        Ticket::new(metadata, tensors).unwrap()
    }

    #[test]
    fn small_shares_keep_two_digits() {
        assert_eq!(percent(0.01), "1.000 %");
        assert_eq!(percent(2.0 / 106_168_320.0), "0.0000019 %");
        assert_eq!(count_parameters(1), "1 parameter");
    }

    #[test]
    fn the_table_counts_by_projection_and_layer() {
        let text = Summary::new(&ticket()).to_string();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines.contains(&"nonzeros     6 in 3 parameters"), "{text}");
        assert!(lines.contains(&"density      33.333 %"), "{text}");
        assert!(lines.contains(&"license      CC-BY-4.0"), "{text}");
        assert!(
            lines.contains(&"k_proj               1              3  50.0 %"),
            "{text}"
        );
        assert!(
            lines.contains(&"q_proj               2              3  50.0 %"),
            "{text}"
        );
        assert!(lines.contains(&"0-10      2  1  3"), "{text}");
    }

    #[test]
    fn the_table_does_not_pass_on_control_characters() {
        let text = Summary::new(&ticket()).to_string();
        assert!(text.contains("source: a \u{fffd}31m b"), "{text}");
    }

    #[test]
    fn json_holds_the_same_figures() {
        let json = serde_json::to_value(Summary::new(&ticket())).unwrap();
        assert_eq!(json["name"], "sql");
        assert_eq!(json["nonzeros"], 6);
        assert_eq!(json["dtype"], "f32");
        assert_eq!(json["layers"], serde_json::json!({"0": 2, "1": 1, "10": 3}));
        assert_eq!(json["projections"][1]["name"], "q_proj");
        assert_eq!(json["training"]["seed"], 7);
    }
}
