//! Runs steps, swaps and overlays, and says what nothing can avoid to move.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::kernels;
use crate::kernels::sample::{RandomSampling, SamplingMethod, sample};
use crate::kernels::step::graphs::Graphs;
use crate::kernels::training::accumulate;
use crate::model::{BLOCK, Base, Batch, KvCache, TicketOverlay};
use crate::ticket::{BoundTicket, random_ticket};

/// Rows of the steps that are measured.
const ROWS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Rows of the steps with tickets.
const STREAMS: usize = 32;
/// Densities of the tickets that are applied.
const SWAPS: [f64; 3] = [0.001, 0.01, 0.1];
/// Tickets that are overlaid together, and their density.
const OVERLAYS: [(usize, f64); 6] = [
    (1, 0.001),
    (8, 0.001),
    (32, 0.001),
    (1, 0.01),
    (8, 0.01),
    (32, 0.01),
];
/// Bytes that are added to as many, to see how fast the memory is.
const ADDED: usize = 256 << 20;
/// Bytes that are fetched from memory together, at least.
const SECTOR: usize = 32;

/// All that was measured.
pub struct Figures {
    /// Bytes a second that a sum in place reads and writes.
    pub bandwidth: f64,
    pub steps: Vec<Step>,
    pub swaps: Vec<Swap>,
    pub overlays: Vec<Overlay>,
    /// Of [`STREAMS`] rows of logits.
    pub chosen: Vec<Chosen>,
}

/// Tokens chosen by their logits.
pub struct Chosen {
    pub how: &'static str,
    pub seconds: f64,
}

/// A decoding step of the bare base.
#[derive(Clone, Copy)]
pub struct Step {
    pub rows: usize,
    pub seconds: f64,
    /// Seconds that its weights, keys and values take at the memory's speed.
    pub floor: f64,
    /// On a GPU.
    pub launches: Option<Launches>,
}

/// How a step gets to a GPU: replayed, which is what its time is of, or kernel by kernel.
#[derive(Clone, Copy)]
pub struct Launches {
    /// What is launched for it: a graph, and the few kernels around it.
    pub replayed: u64,
    pub kernels: u64,
    /// Seconds that it takes kernel by kernel.
    pub eager_seconds: f64,
}

/// A ticket applied and reverted.
pub struct Swap {
    pub density: f64,
    pub nonzeros: usize,
    pub apply: f64,
    pub revert: f64,
    /// Of each, by the memory's sectors that it touches.
    pub apply_floor: f64,
    pub revert_floor: f64,
}

/// A step of [`STREAMS`] rows under tickets.
pub struct Overlay {
    pub tickets: usize,
    pub density: f64,
    pub seconds: f64,
    /// As a step's, with 4 bytes a nonzero.
    pub floor: f64,
    pub base: Step,
    pub launches: Option<Launches>,
}

pub struct Bench {
    base: Base,
    cache: KvCache,
    graphs: Graphs,
    eager: Graphs,
    context: usize,
    repeats: usize,
}

impl Bench {
    /// Takes room for the sequences' keys and values.
    pub fn new(base: Base, context: usize, repeats: usize) -> anyhow::Result<Self> {
        let most = ROWS.into_iter().max().unwrap_or(1);
        Ok(Self {
            cache: base.kv_cache(most * context.div_ceil(BLOCK))?,
            graphs: Graphs::new(base.device()),
            eager: Graphs::eager(base.device()),
            base,
            context,
            repeats,
        })
    }

    pub fn run(&mut self) -> anyhow::Result<Figures> {
        let bandwidth = self.bandwidth()?;
        let mut steps = Vec::new();
        for rows in ROWS {
            steps.push(self.step(rows, bandwidth)?);
        }
        let swaps = SWAPS.iter().map(|&density| self.swap(density, bandwidth));
        let swaps = swaps.collect::<anyhow::Result<_>>()?;
        let mut overlays = Vec::new();
        for (tickets, density) in OVERLAYS {
            overlays.push(self.overlay(tickets, density, bandwidth)?);
        }
        Ok(Figures {
            chosen: self.choices()?,
            bandwidth,
            steps,
            swaps,
            overlays,
        })
    }

    fn bandwidth(&self) -> anyhow::Result<f64> {
        let zeros = || Tensor::zeros(ADDED / 4, DType::F32, self.base.device());
        let (sum, values) = (zeros()?, zeros()?);
        let seconds = median(self.repeats, self.base.device(), || {
            Ok(accumulate::add(&sum, &values)?)
        })?;
        Ok(3.0 * ADDED as f64 / seconds)
    }

    /// Choosing tokens, beside reading their logits.
    fn choices(&self) -> anyhow::Result<Vec<Chosen>> {
        let (device, vocabulary) = (self.base.device(), self.base.decoder.config().vocab_size);
        let logits = Tensor::randn(0f32, 3.0, (STREAMS, vocabulary), &Device::Cpu)?;
        let logits = logits.to_device(device)?;
        let drawn = |top_k, top_p| {
            SamplingMethod::Random(RandomSampling {
                temperature: 0.8,
                min_p: 0.0,
                top_k,
                top_p,
                random: 0.5,
            })
        };
        let mut chosen = Vec::new();
        for (how, choice) in [
            ("greedy", SamplingMethod::Greedy),
            ("drawn", drawn(None, 1.0)),
            ("drawn by top_p", drawn(None, 0.95)),
            ("drawn by top_k and top_p", drawn(Some(50), 0.95)),
        ] {
            let choices: Vec<_> = (0..STREAMS as u32).map(|row| (row, choice)).collect();
            let choose = || {
                sample(&logits, &choices)?;
                Ok(())
            };
            let seconds = median(self.repeats, device, choose)?;
            chosen.push(Chosen { how, seconds });
        }
        let read = || {
            logits.to_vec2::<f32>()?;
            Ok(())
        };
        let seconds = median(self.repeats, device, read)?;
        let how = "logits read";
        chosen.push(Chosen { how, seconds });
        Ok(chosen)
    }

    fn step(&mut self, rows: usize, bandwidth: f64) -> anyhow::Result<Step> {
        self.run_step(&self.batch(rows, &[]), bandwidth)
    }

    fn run_step(&mut self, batch: &Batch, bandwidth: f64) -> anyhow::Result<Step> {
        let rows = batch.tokens.len();
        let (decoder, device) = (&self.base.decoder, self.base.device());
        let (eager_seconds, kernels) = timed(self.repeats, device, || {
            decoder.forward_captured(batch, &self.cache, &mut self.eager)?;
            Ok(())
        })?;
        let (seconds, replayed) = match self.graphs.warm_up() {
            // There is nothing to replay.
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

    /// Bytes of one position's keys and values.
    fn token_bytes(&self) -> usize {
        self.base.block_bytes() / BLOCK
    }

    /// One token of each of `rows` sequences, under the tickets in turn, each for as many neighbours.
    fn batch(&self, rows: usize, tickets: &[Arc<TicketOverlay>]) -> Batch {
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

    fn swap(&mut self, density: f64, bandwidth: f64) -> anyhow::Result<Swap> {
        let ticket = ticket(&self.base, density, 0)?;
        let resident = &mut self.base.resident;
        let (mut applies, mut reverts) = (Vec::new(), Vec::new());
        // The first lays the ticket out.
        for run in 0..=self.repeats {
            for (ticket, times) in [(Some(&ticket), &mut applies), (None, &mut reverts)] {
                let report = resident.swap(ticket, 1.0)?;
                times.extend(report.filter(|_| run > 0).map(|report| report.took));
            }
        }
        let weights = self.base.manifest.adaptable_weights();
        let size = self.base.weight_bytes();
        // Sectors with a nonzero among their weights are read and written; the table of nonzeros is read, and what was
        // there is kept.
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

    fn overlay(&mut self, tickets: usize, density: f64, bandwidth: f64) -> anyhow::Result<Overlay> {
        let base = &self.base;
        let lay_out = |seed| -> anyhow::Result<_> {
            let overlay = base.lay_out(&*ticket(base, density, seed)?)?;
            Ok(Arc::new(overlay))
        };
        let laid_out = (0..tickets as u64).into_par_iter().map(lay_out);
        let laid_out: Vec<Arc<TicketOverlay>> = laid_out.collect::<anyhow::Result<_>>()?;
        let nonzeros: usize = laid_out.iter().map(|ticket| ticket.nonzeros()).sum();
        // In turn with the base, which is what it is compared with.
        let base = self.step(STREAMS, bandwidth)?;
        let with = self.run_step(&self.batch(STREAMS, &laid_out), bandwidth)?;
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

fn ticket(base: &Base, density: f64, seed: u64) -> anyhow::Result<Arc<BoundTicket>> {
    let ticket = random_ticket(&base.manifest, density, seed, |_| true)?;
    Ok(Arc::new(ticket))
}

/// The median time of a few runs, the device's work included, and what each launches.
fn timed(
    repeats: usize,
    device: &Device,
    mut run: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<(f64, u64)> {
    let seconds = median(repeats, device, &mut run)?;
    let before = kernels::launches();
    run()?;
    Ok((seconds, kernels::launches() - before))
}

/// The median time of a few runs, the device's work included; the first two do not count.
fn median(
    repeats: usize,
    device: &Device,
    mut run: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
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

/// The median, in seconds.
fn middle(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}
