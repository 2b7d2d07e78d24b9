//! Measures what steps and tickets cost on the resident base, with a made-up ticket.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::costs::{Costs, PerTicket};
use crate::kernels::step::graphs::Graphs;
use crate::model::{BLOCK, Base, Batch, ModelError, Projection, layers};
use crate::ticket::{BaseManifest, BoundTicket, random_ticket};

/// Costs, and how long it took to measure them.
#[derive(Clone, Debug)]
pub struct Measured {
    pub costs: Costs,
    pub took: Duration,
}

/// What measuring may take; a large base may need longer for the few points that there have to be.
const BUDGET: Duration = Duration::from_millis(1500);
/// Runs of one thing; their median counts.
const REPEATS: usize = 3;
/// Shares of the weights that the made-up tickets touch, the smaller first: both are overlaid in the same
/// way, by vectors; sparser ones cost less than the line through these says.
const DENSITIES: [f64; 2] = [0.006, 0.02];
/// Nonzeros of a made-up ticket at most: it touches the first layers only where the base is large.
const MOST_NONZEROS: usize = 2_000_000;
/// Rows of the overlays that are measured.
const OVERLAY_ROWS: [usize; 4] = [1, 4, 16, 64];
/// Rows of the steps that are measured, the most important first.
const STEP_ROWS: [usize; 5] = [1, 16, 64, 256, 4];
/// Steps that are measured in any case: with one alone nobody would know what a row costs.
const STEPS_AT_LEAST: usize = 2;
/// A step of more rows is of prompts, in chunks of a block; with fewer, each is a sequence's next token.
const DECODE_ROWS: usize = 64;

/// Measures, on all threads of the pool that it is called in, steps as they run with such graphs. The base is bit for
/// bit the same after.
///
/// # Errors
/// There is no memory, or a step fails.
pub fn measure_costs(base: &mut Base, graphs: &mut Graphs) -> Result<Measured, ModelError> {
    let start = Instant::now();
    let end = start + BUDGET;
    let small = of_ticket(base, DENSITIES[0], end)?;
    let large = of_ticket(base, DENSITIES[1], end)?;
    let per_ticket = |cost: &dyn Fn(&OfTicket) -> f64| {
        let line = PerTicket::through(
            (small.nonzeros, cost(&small)),
            (large.nonzeros, cost(&large)),
        );
        // Of the layers that were touched.
        let fixed = line.fixed * large.of_layers;
        PerTicket { fixed, ..line }
    };
    let overlays = OVERLAY_ROWS.iter().enumerate();
    let overlays = overlays.map(|(at, &rows)| (rows, per_ticket(&|ticket| ticket.overlays[at])));
    let overlays = overlays.collect();
    let apply = per_ticket(&|ticket| ticket.apply);
    let revert = per_ticket(&|ticket| ticket.revert);
    let layout = per_ticket(&|ticket| ticket.layout);
    let steps = steps(base, graphs, end)?;
    Ok(Measured {
        costs: Costs::new(steps, overlays, apply, revert, layout),
        took: start.elapsed(),
    })
}

/// What one made-up ticket costs, in seconds.
struct OfTicket {
    nonzeros: usize,
    /// How often the layers that it touches go into those of the base.
    of_layers: f64,
    apply: f64,
    revert: f64,
    layout: f64,
    /// By [`OVERLAY_ROWS`].
    overlays: Vec<f64>,
}

fn of_ticket(base: &mut Base, density: f64, end: Instant) -> Result<OfTicket, ModelError> {
    let manifest = Arc::clone(&base.manifest);
    let all = layers(&manifest);
    let nonzeros_of_layer = DENSITIES[1] * manifest.adaptable_weights() as f64 / all as f64;
    let touched = (MOST_NONZEROS as f64 / nonzeros_of_layer) as usize;
    let touched = touched.clamp(1, all);
    let ticket = Arc::new(synthetic(&manifest, touched, density));

    let mut swap = |ticket: Option<&Arc<BoundTicket>>| {
        let report = base.resident.swap(ticket, 1.0)?;
        Ok::<_, ModelError>(report.map_or(Duration::ZERO, |report| report.took))
    };
    let (mut applies, mut reverts) = (Vec::new(), Vec::new());
    while applies.len() < REPEATS && (applies.is_empty() || Instant::now() < end) {
        applies.push(swap(Some(&ticket))?);
        reverts.push(swap(None)?);
    }
    let start = Instant::now();
    let overlay = base.lay_out(&ticket)?;
    let layout = start.elapsed();
    let time = |&rows: &usize| median(end, || overlay.time(rows, base));
    Ok(OfTicket {
        nonzeros: ticket.nonzeros(),
        of_layers: all as f64 / touched as f64,
        apply: middle(applies),
        revert: middle(reverts),
        layout: layout.as_secs_f64(),
        overlays: OVERLAY_ROWS.iter().map(time).collect::<Result<_, _>>()?,
    })
}

/// Steps of the bare base, `(rows, seconds)`: as many as the time is enough for.
fn steps(base: &Base, graphs: &mut Graphs, end: Instant) -> Result<Vec<(usize, f64)>, ModelError> {
    let most = STEP_ROWS.into_iter().max().unwrap_or(1);
    let cache = base.kv_cache(most.div_ceil(block(base)))?;
    let warm_up = graphs.warm_up();
    let mut steps: Vec<(usize, f64)> = Vec::new();
    for rows in STEP_ROWS {
        let left = end.saturating_duration_since(Instant::now()).as_secs_f64();
        // At the worst, as long a row as in what was measured last.
        let (last, seconds) = steps.last().copied().unwrap_or((1, 0.0));
        if steps.len() >= STEPS_AT_LEAST && seconds * rows as f64 / last as f64 > left {
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

/// Positions of a block that a sequence may have.
fn block(base: &Base) -> usize {
    BLOCK.min(base.max_positions)
}

/// A step of so many rows.
fn batch(base: &Base, rows: usize) -> Batch {
    let (block, vocabulary) = (block(base), base.decoder.config().vocab_size);
    let at_once = if rows <= DECODE_ROWS { 1 } else { block };
    let mut batch = Batch::default();
    for first in (0..rows).step_by(at_once) {
        let last = rows.min(first + at_once);
        let tokens: Vec<u32> = (first..last).map(|i| (i % vocabulary) as u32).collect();
        batch.push(&tokens, first % block, &[(first / block) as u32], true);
    }
    batch
}

/// The median of a few runs, of fewer where time runs out.
fn median(
    end: Instant,
    mut run: impl FnMut() -> Result<Duration, ModelError>,
) -> Result<f64, ModelError> {
    let mut runs = vec![run()?];
    while runs.len() < REPEATS && Instant::now() + runs[0] < end {
        runs.push(run()?);
    }
    Ok(middle(runs))
}

/// The median, in seconds.
fn middle(mut runs: Vec<Duration>) -> f64 {
    runs.sort_unstable();
    runs[runs.len() / 2].as_secs_f64()
}

/// A ticket of random positions in the first `layers` layers.
fn synthetic(manifest: &BaseManifest, layers: usize, density: f64) -> BoundTicket {
    let layer = |layer| Projection::ALL.map(|projection| projection.parts(layer, manifest));
    let touched = (0..layers).flat_map(layer).flatten();
    let touched: HashSet<String> = touched.map(|(name, ..)| name).collect();
    let ticket = random_ticket(manifest, density, layers as u64, |name| {
        touched.contains(name)
    });
    ticket.expect("every layer has weights, and some are kept")
}
