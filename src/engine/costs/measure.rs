//! Measures the costs of steps and tickets on the resident base, with synthetic tickets.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};

use crate::engine::costs::{Costs, PerTicket};
use crate::kernels::step::graphs::Graphs;
use crate::kernels::step::inputs::Inputs;
use crate::kernels::ticket::overlay::{OverlayRows, Overlays, overlay};
use crate::model::{
    BLOCK, Base, Batch, LoadedTicket, ModelError, Projection, TicketLayout, layers, weight_number,
};
use crate::ticket::{BaseManifest, BoundTicket, random_ticket};

/// Measured costs.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The costs.
    pub costs: Costs,
    /// Duration of the measurement.
    pub took: Duration,
}

/// Time limit of measuring. A large base may exceed it for the points that are always measured.
const BUDGET: Duration = Duration::from_millis(1500);
/// Runs per point; the median is used.
const REPEATS: usize = 3;
/// Densities of the synthetic tickets, ascending. Both tickets get vectorised layouts; a sparser
/// one costs less than the line through the two.
const DENSITIES: [f64; 2] = [0.006, 0.02];
/// Maximum nonzeros of a synthetic ticket: on a large base it touches only the first layers.
const MAX_NONZEROS: usize = 2_000_000;
/// Rows of the measured overlays.
const OVERLAY_ROWS: [usize; 4] = [1, 4, 16, 64];
/// Rows of the measured steps, the most important first.
const STEP_ROWS: [usize; 5] = [1, 16, 64, 256, 4];
/// Steps that are always measured: a single one would not give the cost of a row.
const MIN_STEPS: usize = 2;
/// Maximum rows of a decoding step, one row per sequence. Larger steps compute prompts, in chunks
/// of one block.
const DECODE_ROWS: usize = 64;

/// Measures costs on all threads of the pool that it is called in. Steps run as they do with
/// `graphs`. The base is bit-identical afterwards.
///
/// # Errors
/// The device has no memory for a step or a ticket, or a step fails.
pub fn measure_costs(base: &mut Base, graphs: &mut Graphs) -> Result<Measured, ModelError> {
    let start = Instant::now();
    let end = start + BUDGET;
    let small = ticket_costs(base, DENSITIES[0], end)?;
    let large = ticket_costs(base, DENSITIES[1], end)?;
    let per_ticket = |cost: &dyn Fn(&TicketCosts) -> f64| {
        let line = PerTicket::through(
            (small.nonzeros, cost(&small)),
            (large.nonzeros, cost(&large)),
        );
        // Measured on the touched layers, scaled to all.
        let fixed = line.fixed * large.layers_per_touched;
        PerTicket { fixed, ..line }
    };
    let overlays = OVERLAY_ROWS
        .iter()
        .enumerate()
        .map(|(at, &rows)| (rows, per_ticket(&|ticket| ticket.overlays[at])))
        .collect();
    let apply = per_ticket(&|ticket| ticket.apply);
    let revert = per_ticket(&|ticket| ticket.revert);
    let layout = per_ticket(&|ticket| ticket.layout);
    let steps = steps(base, graphs, end)?;
    Ok(Measured {
        costs: Costs::new(steps, overlays, apply, revert, layout),
        took: start.elapsed(),
    })
}

/// Costs of one synthetic ticket, in seconds.
struct TicketCosts {
    nonzeros: usize,
    /// Layers of the base per layer that the ticket touches.
    layers_per_touched: f64,
    apply: f64,
    revert: f64,
    layout: f64,
    /// One per entry of [`OVERLAY_ROWS`].
    overlays: Vec<f64>,
}

/// Measures a synthetic ticket of a density, until `end`.
fn ticket_costs(base: &mut Base, density: f64, end: Instant) -> Result<TicketCosts, ModelError> {
    let manifest = Arc::clone(&base.manifest);
    let all = layers(&manifest);
    let nonzeros_of_layer = DENSITIES[1] * manifest.adaptable_weights() as f64 / all as f64;
    let touched = ((MAX_NONZEROS as f64 / nonzeros_of_layer) as usize).clamp(1, all);
    let ticket = Arc::new(LoadedTicket::new(synthetic(&manifest, touched, density)));

    let mut swap = |ticket: Option<&Arc<LoadedTicket>>| {
        let report = base.resident.swap(ticket, 1.0)?;
        Ok::<_, ModelError>(report.map_or(Duration::ZERO, |report| report.took))
    };
    let (mut applies, mut reverts) = (Vec::new(), Vec::new());
    while applies.len() < REPEATS && (applies.is_empty() || Instant::now() < end) {
        applies.push(swap(Some(&ticket))?);
        reverts.push(swap(None)?);
    }
    let start = Instant::now();
    let layout = base.lay_out(&ticket)?;
    let layout_time = start.elapsed();
    let time = |&rows: &usize| median(end, || time_overlay(&layout, rows, base));
    Ok(TicketCosts {
        nonzeros: ticket.nonzeros(),
        layers_per_touched: all as f64 / touched as f64,
        apply: median_seconds(applies),
        revert: median_seconds(reverts),
        layout: layout_time.as_secs_f64(),
        overlays: OVERLAY_ROWS.iter().map(time).collect::<Result<_, _>>()?,
    })
}

/// Time of all products that a ticket adds to a step of `rows` rows, on synthetic activations. The
/// rest of the step is not timed.
fn time_overlay(layout: &TicketLayout, rows: usize, base: &Base) -> Result<Duration, ModelError> {
    let (manifest, device) = (&base.manifest, base.device());
    let dtype = base.decoder.weights().norm.dtype();
    let mut took = Duration::ZERO;
    let ticket = OverlayRows {
        rows: 0..rows,
        ticket: layout.layouts(),
        scale: 1.0,
    };
    let mut inputs = Inputs::new(device);
    let overlays = Overlays::new(vec![ticket], rows, &mut inputs)?;
    inputs.upload()?;
    for projection in Projection::ALL {
        // All layers have the shapes of the first. The activations are created before the timing
        // starts.
        let [out, inner] = shape_of(manifest, projection);
        let y = Tensor::ones((rows, out), DType::F32, device)?;
        let x = Tensor::ones((rows, inner), dtype, device)?;
        device.synchronize()?;
        let start = Instant::now();
        for layer in 0..layers(manifest) {
            let weight = weight_number(layer, projection);
            if overlays.touches(weight) {
                overlay(y.clone(), &x, &overlays, weight)?;
            }
        }
        device.synchronize()?;
        took += start.elapsed();
    }
    Ok(took)
}

/// Shape `[out, in]` of a fused weight in the first layer.
fn shape_of(manifest: &BaseManifest, projection: Projection) -> [usize; 2] {
    let parts = projection.parts(0, manifest).into_iter();
    parts.fold([0, 0], |_, (name, first, rows)| {
        [first + rows, manifest.parameters[&name].shape[1]]
    })
}

/// Measures steps of the bare base, as many as fit until `end`: `(rows, seconds)` each.
fn steps(base: &Base, graphs: &mut Graphs, end: Instant) -> Result<Vec<(usize, f64)>, ModelError> {
    let most = STEP_ROWS.into_iter().max().unwrap_or(1);
    let cache = base.kv_cache(most.div_ceil(block(base)))?;
    let warm_up = graphs.warm_up();
    let mut steps: Vec<(usize, f64)> = Vec::new();
    for rows in STEP_ROWS {
        let left = end.saturating_duration_since(Instant::now()).as_secs_f64();
        // At worst, a row takes as long as in the last measured step.
        let (last, seconds) = steps.last().copied().unwrap_or((1, 0.0));
        if steps.len() >= MIN_STEPS && seconds * rows as f64 / last as f64 > left {
            continue;
        }
        let batch = batch(base, rows);
        let mut time = || {
            let start = Instant::now();
            base.decoder.forward_captured(&batch, &cache, graphs)?;
            base.device().synchronize()?;
            Ok(start.elapsed())
        };
        for _ in 0..warm_up {
            time()?;
        }
        steps.push((rows, median(end, time)?));
    }
    Ok(steps)
}

/// Positions of a block, or all of the base's if it has fewer.
fn block(base: &Base) -> usize {
    BLOCK.min(base.max_positions)
}

/// Synthetic batch of `rows` rows.
fn batch(base: &Base, rows: usize) -> Batch {
    let (block, vocabulary) = (block(base), base.decoder.config().vocab_size);
    let chunk = if rows <= DECODE_ROWS { 1 } else { block };
    let mut batch = Batch::default();
    for first in (0..rows).step_by(chunk) {
        let last = rows.min(first + chunk);
        let tokens: Vec<u32> = (first..last).map(|i| (i % vocabulary) as u32).collect();
        batch.push(&tokens, first % block, &[(first / block) as u32], true);
    }
    batch
}

/// Median time in seconds of a few runs, fewer if `end` is near.
fn median(
    end: Instant,
    mut run: impl FnMut() -> Result<Duration, ModelError>,
) -> Result<f64, ModelError> {
    let mut runs = vec![run()?];
    while runs.len() < REPEATS && Instant::now() + runs[0] < end {
        runs.push(run()?);
    }
    Ok(median_seconds(runs))
}

/// Median in seconds.
fn median_seconds(mut runs: Vec<Duration>) -> f64 {
    runs.sort_unstable();
    runs[runs.len() / 2].as_secs_f64()
}

/// Ticket of random positions in the first `layers` layers.
fn synthetic(manifest: &BaseManifest, layers: usize, density: f64) -> BoundTicket {
    let parts = |layer| Projection::ALL.map(|projection| projection.parts(layer, manifest));
    let touched: HashSet<String> = (0..layers)
        .flat_map(parts)
        .flatten()
        .map(|(name, ..)| name)
        .collect();
    let touched = |name: &str| touched.contains(name);
    let ticket = random_ticket(manifest, density, layers as u64, touched);
    ticket.expect("every layer has weights, and some are kept")
}
