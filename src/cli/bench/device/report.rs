//! The figures as a table and as JSON.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::measure::{Chosen, Figures, Launches, Overlay, Step, Swap};

/// What was measured, and where.
pub struct About {
    pub shape: String,
    pub dtype: String,
    pub device: String,
    pub threads: usize,
    pub context: usize,
}

impl Overlay {
    /// What the step is called in a table.
    fn name(&self) -> String {
        let percent = 100.0 * self.density;
        format!("{} x {percent} %, {} rows", self.tickets, self.base.rows)
    }

    /// Tokens a second beside the bare base's.
    fn of_base(&self) -> f64 {
        self.base.seconds / self.seconds
    }

    /// The same, if both took what their memory traffic takes.
    fn floor_of_base(&self) -> f64 {
        self.base.floor / self.floor
    }
}

pub fn json(about: &About, figures: &Figures) -> Value {
    let launches = |launches: Launches| {
        json!({
            "replayed": launches.replayed,
            "kernels": launches.kernels,
            "eager_ms": 1e3 * launches.eager_seconds,
        })
    };
    let step = |step: &Step| {
        json!({
            "rows": step.rows,
            "ms": 1e3 * step.seconds,
            "floor_ms": 1e3 * step.floor,
            "of_floor": step.seconds / step.floor,
            "tokens_per_second": step.rows as f64 / step.seconds,
            "launches": step.launches.map(launches),
        })
    };
    let swap = |swap: &Swap| {
        json!({
            "density": swap.density,
            "nonzeros": swap.nonzeros,
            "apply_ms": 1e3 * swap.apply,
            "apply_of_floor": swap.apply / swap.apply_floor,
            "revert_ms": 1e3 * swap.revert,
            "revert_of_floor": swap.revert / swap.revert_floor,
        })
    };
    let overlay = |overlay: &Overlay| {
        json!({
            "tickets": overlay.tickets,
            "density": overlay.density,
            "ms": 1e3 * overlay.seconds,
            "base_ms": 1e3 * overlay.base.seconds,
            "of_base": overlay.of_base(),
            "floor_of_base": overlay.floor_of_base(),
            "of_what_the_floor_leaves": overlay.of_base() / overlay.floor_of_base(),
            "launches": overlay.launches.map(launches),
        })
    };
    let chosen = figures.chosen.iter();
    let chosen: Map<String, Value> = chosen
        .map(|chosen| (chosen.how.to_owned(), json!(1e3 * chosen.seconds)))
        .collect();
    json!({
        "shape": about.shape,
        "dtype": about.dtype,
        "device": about.device,
        "threads": about.threads,
        "context": about.context,
        "bandwidth_gb_per_second": figures.bandwidth / 1e9,
        "steps": figures.steps.iter().map(step).collect::<Vec<_>>(),
        "swaps": figures.swaps.iter().map(swap).collect::<Vec<_>>(),
        "chosen_ms": chosen,
        "overlays": figures.overlays.iter().map(overlay).collect::<Vec<_>>(),
    })
}

pub fn table(about: &About, figures: &Figures) -> String {
    let About {
        shape,
        dtype,
        device,
        threads,
        context,
    } = about;
    let mut text = format!(
        "# A base of shape {shape} in {dtype}\n\n{device}, {threads} threads, {context} positions a sequence. Adding \
         reads and writes {:.0} GB/s; floors are what has to be moved, at that speed.\n",
        figures.bandwidth / 1e9
    );
    for part in [steps(figures), swaps(figures), overlays(figures)] {
        text += &part;
    }
    text + &launched(figures) + &chosen(figures)
}

/// A table with columns of these names, but for empty ones.
fn lines(columns: [&str; 6], rows: impl Iterator<Item = String>) -> String {
    let columns = columns.into_iter().filter(|name| !name.is_empty());
    let columns: Vec<&str> = columns.collect();
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
        "the base's",
        "tokens/s beside the base",
        "the floors'",
        "of what the floor leaves",
    ];
    lines(columns, figures.overlays.iter().map(row))
}

fn chosen(figures: &Figures) -> String {
    let row = |chosen: &Chosen| format!("{} | {:.3}", chosen.how, 1e3 * chosen.seconds);
    let columns = ["32 tokens", "ms", "", "", "", ""];
    lines(columns, figures.chosen.iter().map(row))
}

/// How steps get to a GPU; nothing on the CPU.
fn launched(figures: &Figures) -> String {
    let steps = figures.steps.iter();
    let steps = steps.map(|step| (format!("{} rows", step.rows), step.seconds, step.launches));
    let overlays = figures.overlays.iter();
    let overlays = overlays.map(|overlay| (overlay.name(), overlay.seconds, overlay.launches));
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
