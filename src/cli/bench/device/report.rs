//! The figures as a table and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::measure::{Figures, Overlay, Step, Swap};

/// What was measured, and where.
pub struct About {
    pub shape: String,
    pub dtype: String,
    pub device: String,
    pub threads: usize,
    pub context: usize,
}

impl Overlay {
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
    let step = |step: &Step| {
        json!({
            "rows": step.rows,
            "ms": 1e3 * step.seconds,
            "floor_ms": 1e3 * step.floor,
            "of_floor": step.seconds / step.floor,
            "tokens_per_second": step.rows as f64 / step.seconds,
            "launches": step.launches,
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
            "launches": overlay.launches,
        })
    };
    json!({
        "shape": about.shape,
        "dtype": about.dtype,
        "device": about.device,
        "threads": about.threads,
        "context": about.context,
        "bandwidth_gb_per_second": figures.bandwidth / 1e9,
        "steps": figures.steps.iter().map(step).collect::<Vec<_>>(),
        "swaps": figures.swaps.iter().map(swap).collect::<Vec<_>>(),
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
    // Writing to a string cannot fail.
    let mut line = |line: String| {
        let _ = writeln!(text, "{line}");
    };
    line("\n| step | ms | floor | times the floor | tokens/s | launches |".to_owned());
    line("|---|---:|---:|---:|---:|---:|".to_owned());
    for step in &figures.steps {
        line(format!(
            "| {} rows | {:.3} | {:.3} | {:.2} | {:.0} | {} |",
            step.rows,
            1e3 * step.seconds,
            1e3 * step.floor,
            step.seconds / step.floor,
            step.rows as f64 / step.seconds,
            step.launches,
        ));
    }
    line("\n| swap | apply, ms | times the floor | revert, ms | times the floor |".to_owned());
    line("|---|---:|---:|---:|---:|".to_owned());
    for swap in &figures.swaps {
        line(format!(
            "| {} % | {:.3} | {:.2} | {:.3} | {:.2} |",
            100.0 * swap.density,
            1e3 * swap.apply,
            swap.apply / swap.apply_floor,
            1e3 * swap.revert,
            swap.revert / swap.revert_floor,
        ));
    }
    line("\n| overlaid | ms | the base's | tokens/s beside the base | the floors' | of what the floor leaves |".to_owned());
    line("|---|---:|---:|---:|---:|---:|".to_owned());
    for overlay in &figures.overlays {
        line(format!(
            "| {} x {} %, {} rows | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} |",
            overlay.tickets,
            100.0 * overlay.density,
            overlay.base.rows,
            1e3 * overlay.seconds,
            1e3 * overlay.base.seconds,
            overlay.of_base(),
            overlay.floor_of_base(),
            overlay.of_base() / overlay.floor_of_base(),
        ));
    }
    text
}
