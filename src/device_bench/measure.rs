//! Measures steps, swaps and overlays, and computes their minimum memory traffic.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::DeviceBenchError;
use crate::kernels;
use crate::kernels::sample::{RandomSampling, SamplingMethod, sample};
use crate::kernels::step::graphs::Graphs;
use crate::kernels::training::accumulate;
use crate::model::{BLOCK, Base, Batch, KvCache, LoadedTicket, TicketLayout};
use crate::ticket::random_ticket;

/// Rows of the measured steps of the bare base.
const ROWS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Rows of the steps with overlaid tickets, and of the sampled logits.
const STREAMS: usize = 32;
/// Densities of the applied tickets.
const SWAPS: [f64; 3] = [0.001, 0.01, 0.1];
/// Tickets overlaid together, and their density.
const OVERLAYS: [(usize, f64); 6] = [
    (1, 0.001),
    (8, 0.001),
    (32, 0.001),
    (1, 0.01),
    (8, 0.01),
    (32, 0.01),
];
/// Bytes per operand of the in-place sum that measures the memory bandwidth.
const ADDED: usize = 256 << 20;
/// Smallest number of bytes that a memory access transfers.
const SECTOR: usize = 32;

/// Measured times. All times are medians, in seconds.
pub struct Figures {
    /// Bytes per second that an in-place sum reads and writes.
    pub bandwidth: f64,
    pub steps: Vec<Step>,
    pub swaps: Vec<Swap>,
    pub overlays: Vec<Overlay>,
    pub sampling: Vec<Sampling>,
}

/// Sampling of one token for each of [`STREAMS`] rows of logits.
pub struct Sampling {
    pub method: &'static str,
    pub seconds: f64,
}

/// A decoding step of the bare base.
#[derive(Clone, Copy)]
pub struct Step {
    pub rows: usize,
    pub seconds: f64,
    /// Time to move the weights, keys and values at the memory bandwidth.
    pub floor: f64,
    /// `None` on the CPU.
    pub launches: Option<Launches>,
}

/// Launches of a step on a GPU. The time of the step is that of the replayed graph.
#[derive(Clone, Copy)]
pub struct Launches {
    /// Launches of a replayed step: the graph, and the few kernels around it.
    pub replayed: u64,
    /// Launches of the step kernel by kernel.
    pub kernels: u64,
    /// Time of the step kernel by kernel.
    pub eager_seconds: f64,
}

/// A ticket applied and reverted.
pub struct Swap {
    pub density: f64,
    pub nonzeros: usize,
    pub apply: f64,
    pub revert: f64,
    /// Time to move the touched memory sectors at the memory bandwidth.
    pub apply_floor: f64,
    pub revert_floor: f64,
}

/// A step of [`STREAMS`] rows with overlaid tickets.
pub struct Overlay {
    pub tickets: usize,
    pub density: f64,
    pub seconds: f64,
    /// Floor of the bare step, plus 4 bytes per nonzero.
    pub floor: f64,
    /// The bare step, measured right before.
    pub base: Step,
    pub launches: Option<Launches>,
}

/// A base, and the caches to measure it with.
pub struct Bench {
    base: Base,
    cache: KvCache,
    graphs: Graphs,
    eager: Graphs,
    context: usize,
    repeats: usize,
}

impl Bench {
    /// Allocates keys and values for the largest step.
    pub fn new(base: Base, context: usize, repeats: usize) -> Result<Self, DeviceBenchError> {
        let sequences = ROWS.into_iter().max().unwrap_or(1);
        Ok(Self {
            cache: base.kv_cache(sequences * context.div_ceil(BLOCK))?,
            graphs: Graphs::new(base.device()),
            eager: Graphs::eager(base.device()),
            base,
            context,
            repeats,
        })
    }

    /// Runs all measurements.
    pub fn run(&mut self) -> Result<Figures, DeviceBenchError> {
        let bandwidth = self.bandwidth()?;
        let mut steps = Vec::new();
        for rows in ROWS {
            steps.push(self.step(rows, bandwidth)?);
        }
        let swaps = SWAPS.iter().map(|&density| self.swap(density, bandwidth));
        let swaps = swaps.collect::<Result<_, _>>()?;
        let mut overlays = Vec::new();
        for (tickets, density) in OVERLAYS {
            overlays.push(self.overlay(tickets, density, bandwidth)?);
        }
        Ok(Figures {
            sampling: self.sampling()?,
            bandwidth,
            steps,
            swaps,
            overlays,
        })
    }

    /// Bytes per second that an in-place sum reads and writes.
    fn bandwidth(&self) -> Result<f64, DeviceBenchError> {
        let zeros = || Tensor::zeros(ADDED / 4, DType::F32, self.base.device());
        let (sum, values) = (zeros()?, zeros()?);
        let seconds = median(self.repeats, self.base.device(), || {
            Ok(accumulate::add(&sum, &values)?)
        })?;
        Ok(3.0 * ADDED as f64 / seconds)
    }

    /// Sampling methods, and for comparison the copy of the logits to the CPU.
    fn sampling(&self) -> Result<Vec<Sampling>, DeviceBenchError> {
        let (device, vocabulary) = (self.base.device(), self.base.decoder.config().vocab_size);
        let logits = Tensor::randn(0f32, 3.0, (STREAMS, vocabulary), &Device::Cpu)?;
        let logits = logits.to_device(device)?;
        let random = |top_k, top_p| {
            SamplingMethod::Random(RandomSampling {
                temperature: 0.8,
                min_p: 0.0,
                top_k,
                top_p,
                random: 0.5,
            })
        };
        let mut figures = Vec::new();
        for (name, method) in [
            ("greedy", SamplingMethod::Greedy),
            ("drawn", random(None, 1.0)),
            ("drawn by top_p", random(None, 0.95)),
            ("drawn by top_k and top_p", random(Some(50), 0.95)),
        ] {
            let rows: Vec<_> = (0..STREAMS as u32).map(|row| (row, method)).collect();
            let seconds = median(self.repeats, device, || {
                sample(&logits, &rows)?;
                Ok(())
            })?;
            figures.push(Sampling {
                method: name,
                seconds,
            });
        }
        let seconds = median(self.repeats, device, || {
            logits.to_vec2::<f32>()?;
            Ok(())
        })?;
        figures.push(Sampling {
            method: "logits read",
            seconds,
        });
        Ok(figures)
    }

    fn step(&mut self, rows: usize, bandwidth: f64) -> Result<Step, DeviceBenchError> {
        self.run_step(&self.batch(rows, &[]), bandwidth)
    }

    fn run_step(&mut self, batch: &Batch, bandwidth: f64) -> Result<Step, DeviceBenchError> {
        let rows = batch.tokens.len();
        let (decoder, device) = (&self.base.decoder, self.base.device());
        let (eager_seconds, kernels) = timed(self.repeats, device, || {
            decoder.forward_captured(batch, &self.cache, &mut self.eager)?;
            Ok(())
        })?;
        let (seconds, replayed) = match self.graphs.warm_up() {
            // No graphs on this device: the step was eager.
            0 => (eager_seconds, 0),
            _ => timed(self.repeats, device, || {
                decoder.forward_captured(batch, &self.cache, &mut self.graphs)?;
                Ok(())
            })?,
        };
        let launches = Launches {
            replayed,
            kernels,
            eager_seconds,
        };
        let moved = self.base.step_bytes() + rows * self.context * self.token_bytes();
        Ok(Step {
            rows,
            seconds,
            floor: moved as f64 / bandwidth,
            launches: (kernels > 0).then_some(launches),
        })
    }

    /// Bytes of the keys and values of one position.
    fn token_bytes(&self) -> usize {
        self.base.block_bytes() / BLOCK
    }

    /// One token of each of `rows` sequences; each ticket is overlaid on an equal run of rows.
    fn batch(&self, rows: usize, tickets: &[Arc<TicketLayout>]) -> Batch {
        let vocabulary = self.base.decoder.config().vocab_size;
        let blocks = self.context.div_ceil(BLOCK);
        let mut batch = Batch::default();
        for row in 0..rows {
            let table: Vec<u32> = (row * blocks..(row + 1) * blocks)
                .map(|b| b as u32)
                .collect();
            let token = (row * 7 % vocabulary) as u32;
            batch.push(&[token], self.context - 1, &table, true);
            if let Some(ticket) = tickets.get(row * tickets.len() / rows) {
                batch.overlay(ticket);
            }
        }
        batch
    }

    fn swap(&mut self, density: f64, bandwidth: f64) -> Result<Swap, DeviceBenchError> {
        let ticket = ticket(&self.base, density, 0)?;
        let resident = &mut self.base.resident;
        let (mut applies, mut reverts) = (Vec::new(), Vec::new());
        // The first run builds the layout of the ticket and is discarded.
        for run in 0..=self.repeats {
            for (ticket, times) in [(Some(&ticket), &mut applies), (None, &mut reverts)] {
                let report = resident.swap(ticket, 1.0)?;
                times.extend(report.filter(|_| run > 0).map(|report| report.took));
            }
        }
        let weights = self.base.manifest.adaptable_weights();
        let size = self.base.weight_bytes();
        // Each sector with at least one nonzero is read and written. In addition, the table of
        // nonzeros is read, and the base's values are saved (apply) or read back (revert).
        let touched = 1.0 - (1.0 - density).powf(SECTOR as f64 / size as f64);
        let sectors = 2.0 * touched * (weights * size) as f64;
        let nonzeros = ticket.nonzeros();
        Ok(Swap {
            density,
            nonzeros,
            apply: middle(&mut applies),
            revert: middle(&mut reverts),
            apply_floor: (sectors + (nonzeros * (4 + size)) as f64) / bandwidth,
            revert_floor: (sectors + (nonzeros * (2 + size)) as f64) / bandwidth,
        })
    }

    fn overlay(
        &mut self,
        tickets: usize,
        density: f64,
        bandwidth: f64,
    ) -> Result<Overlay, DeviceBenchError> {
        let base = &self.base;
        let lay_out = |seed| -> Result<_, DeviceBenchError> {
            let overlay = base.lay_out(&*ticket(base, density, seed)?)?;
            Ok(Arc::new(overlay))
        };
        let layouts: Vec<Arc<TicketLayout>> = (0..tickets as u64)
            .into_par_iter()
            .map(lay_out)
            .collect::<Result<_, _>>()?;
        let nonzeros: usize = layouts.iter().map(|ticket| ticket.nonzeros()).sum();
        // The bare base right before, so that both run under the same conditions.
        let base = self.step(STREAMS, bandwidth)?;
        let with = self.run_step(&self.batch(STREAMS, &layouts), bandwidth)?;
        Ok(Overlay {
            tickets,
            density,
            seconds: with.seconds,
            floor: base.floor + (4 * nonzeros) as f64 / bandwidth,
            base,
            launches: with.launches,
        })
    }
}

fn ticket(base: &Base, density: f64, seed: u64) -> Result<Arc<LoadedTicket>, DeviceBenchError> {
    let ticket = random_ticket(&base.manifest, density, seed, |_| true)?;
    Ok(Arc::new(LoadedTicket::new(ticket)))
}

/// Median time of `repeats` runs in seconds, with the device synchronised, and the launches of one.
fn timed(
    repeats: usize,
    device: &Device,
    mut run: impl FnMut() -> Result<(), DeviceBenchError>,
) -> Result<(f64, u64), DeviceBenchError> {
    let seconds = median(repeats, device, &mut run)?;
    let before = kernels::launches();
    run()?;
    Ok((seconds, kernels::launches() - before))
}

/// Median time of `repeats` runs in seconds, with the device synchronised, after two warm-up runs.
fn median(
    repeats: usize,
    device: &Device,
    mut run: impl FnMut() -> Result<(), DeviceBenchError>,
) -> Result<f64, DeviceBenchError> {
    let mut times = Vec::with_capacity(repeats);
    for _ in 0..repeats + 2 {
        device.synchronize()?;
        let start = Instant::now();
        run()?;
        device.synchronize()?;
        times.push(start.elapsed());
    }
    Ok(middle(&mut times[2..]))
}

/// Median in seconds.
fn middle(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}
