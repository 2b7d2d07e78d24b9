//! The figures of a device benchmark as a Markdown table and as JSON.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value, json};

use super::measure::{Figures, Launches, Overlay, Sampling, Step, Swap};

/// Figures of a device, and the conditions of the measurement.
pub struct Report {
    pub shape: String,
    pub dtype: String,
    pub device: String,
    pub threads: usize,
    /// Positions per sequence.
    pub context: usize,
    pub figures: Figures,
}

impl Overlay {
    /// Label of the step in a table.
    fn name(&self) -> String {
        let percent = 100.0 * self.density;
        format!("{} x {percent} %, {} rows", self.tickets, self.base.rows)
    }

    /// Tokens per second relative to the bare base.
    fn of_base(&self) -> f64 {
        self.base.seconds / self.seconds
    }

    /// [`Self::of_base`] if both steps ran at their floors.
    fn floor_of_base(&self) -> f64 {
        self.base.floor / self.floor
    }
}

impl Report {
    /// The report as JSON; times are in milliseconds.
    pub fn json(&self) -> Value {
        let figures = &self.figures;
        json!({
            "shape": self.shape,
            "dtype": self.dtype,
            "device": self.device,
            "threads": self.threads,
            "context": self.context,
            "bandwidth_gb_per_second": figures.bandwidth / 1e9,
            "steps": figures.steps.iter().map(step_json).collect::<Vec<_>>(),
            "swaps": figures.swaps.iter().map(swap_json).collect::<Vec<_>>(),
            "chosen_ms": sampling_json(&figures.sampling),
            "overlays": figures.overlays.iter().map(overlay_json).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            shape,
            dtype,
            device,
            threads,
            context,
            figures,
        } = self;
        write!(
            f,
            "# A base of shape {shape} in {dtype}\n\n{device}, {threads} threads, {context} \
             positions per sequence. Adding reads and writes {:.0} GB/s; a floor is the time to \
             move, at that speed, what has to be moved.\n",
            figures.bandwidth / 1e9
        )?;
        for table in [steps, swaps, overlays, launched, sampling] {
            f.write_str(&table(figures))?;
        }
        Ok(())
    }
}

fn launches_json(launches: Launches) -> Value {
    json!({
        "replayed": launches.replayed,
        "kernels": launches.kernels,
        "eager_ms": 1e3 * launches.eager_seconds,
    })
}

fn step_json(step: &Step) -> Value {
    json!({
        "rows": step.rows,
        "ms": 1e3 * step.seconds,
        "floor_ms": 1e3 * step.floor,
        "of_floor": step.seconds / step.floor,
        "tokens_per_second": step.rows as f64 / step.seconds,
        "launches": step.launches.map(launches_json),
    })
}

fn swap_json(swap: &Swap) -> Value {
    json!({
        "density": swap.density,
        "nonzeros": swap.nonzeros,
        "apply_ms": 1e3 * swap.apply,
        "apply_of_floor": swap.apply / swap.apply_floor,
        "revert_ms": 1e3 * swap.revert,
        "revert_of_floor": swap.revert / swap.revert_floor,
    })
}

fn overlay_json(overlay: &Overlay) -> Value {
    json!({
        "tickets": overlay.tickets,
        "density": overlay.density,
        "ms": 1e3 * overlay.seconds,
        "base_ms": 1e3 * overlay.base.seconds,
        "of_base": overlay.of_base(),
        "floor_of_base": overlay.floor_of_base(),
        "of_what_the_floor_leaves": overlay.of_base() / overlay.floor_of_base(),
        "launches": overlay.launches.map(launches_json),
    })
}

fn sampling_json(sampling: &[Sampling]) -> Map<String, Value> {
    let entry = |s: &Sampling| (s.method.to_owned(), json!(1e3 * s.seconds));
    sampling.iter().map(entry).collect()
}

/// Table with these columns; columns with empty names are left out.
fn lines(columns: [&str; 6], rows: impl Iterator<Item = String>) -> String {
    let columns: Vec<&str> = columns
        .into_iter()
        .filter(|name| !name.is_empty())
        .collect();
    let mut text = format!(
        "\n| {} |\n|---|{}\n",
        columns.join(" | "),
        "---:|".repeat(columns.len() - 1)
    );
    for row in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {row} |");
    }
    text
}

fn steps(figures: &Figures) -> String {
    let row = |step: &Step| {
        format!(
            "{} rows | {:.3} | {:.3} | {:.2} | {:.0}",
            step.rows,
            1e3 * step.seconds,
            1e3 * step.floor,
            step.seconds / step.floor,
            step.rows as f64 / step.seconds,
        )
    };
    let columns = ["step", "ms", "floor", "times the floor", "tokens/s", ""];
    lines(columns, figures.steps.iter().map(row))
}

fn swaps(figures: &Figures) -> String {
    let row = |swap: &Swap| {
        format!(
            "{} % | {:.3} | {:.2} | {:.3} | {:.2}",
            100.0 * swap.density,
            1e3 * swap.apply,
            swap.apply / swap.apply_floor,
            1e3 * swap.revert,
            swap.revert / swap.revert_floor,
        )
    };
    let [apply, revert] = ["apply, ms", "revert, ms"];
    let columns = [
        "swap",
        apply,
        "times the floor",
        revert,
        "times the floor",
        "",
    ];
    lines(columns, figures.swaps.iter().map(row))
}

fn overlays(figures: &Figures) -> String {
    let row = |overlay: &Overlay| {
        format!(
            "{} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3}",
            overlay.name(),
            1e3 * overlay.seconds,
            1e3 * overlay.base.seconds,
            overlay.of_base(),
            overlay.floor_of_base(),
            overlay.of_base() / overlay.floor_of_base(),
        )
    };
    let columns = [
        "overlaid",
        "ms",
        "base, ms",
        "tokens/s, of the base's",
        "of the floors",
        "share of that reached",
    ];
    lines(columns, figures.overlays.iter().map(row))
}

fn sampling(figures: &Figures) -> String {
    let row = |s: &Sampling| format!("{} | {:.3}", s.method, 1e3 * s.seconds);
    let columns = ["32 tokens", "ms", "", "", "", ""];
    lines(columns, figures.sampling.iter().map(row))
}

/// Launches of the steps on a GPU; empty on the CPU.
fn launched(figures: &Figures) -> String {
    let bare = |step: &Step| (format!("{} rows", step.rows), step.seconds, step.launches);
    let overlaid = |overlay: &Overlay| (overlay.name(), overlay.seconds, overlay.launches);
    let row = |(name, seconds, launches): (String, f64, Option<Launches>)| {
        let launches = launches?;
        Some(format!(
            "{name} | {:.3} | {} | {:.3} | {}",
            1e3 * seconds,
            launches.replayed,
            1e3 * launches.eager_seconds,
            launches.kernels,
        ))
    };
    let steps = figures.steps.iter().map(bare);
    let overlays = figures.overlays.iter().map(overlaid);
    let mut rows = steps.chain(overlays).filter_map(row).peekable();
    if rows.peek().is_none() {
        return String::new();
    }
    let columns = [
        "step",
        "replayed, ms",
        "launches",
        "kernel by kernel, ms",
        "kernels",
        "",
    ];
    lines(columns, rows)
}
