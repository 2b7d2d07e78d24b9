//! `tombola bench costs`: the costs of steps, swaps and overlays on this machine.

use std::fmt::Write as _;

use clap::Args;
use serde_json::{Value, json};

use crate::cli::base::{BaseArgs, ComputeArgs, print};
use crate::engine::{Costs, Load, Measured, PerTicket, TURN_STEPS, measure_costs};
use crate::kernels;
use crate::kernels::step::graphs::Graphs;

/// Arguments of `tombola bench costs`.
#[derive(Debug, Args)]
pub struct CostsArgs {
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Print JSON instead of a table.
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tombola bench costs
  tombola bench costs --model Qwen/Qwen2.5-0.5B-Instruct --dtype bf16 --json";

/// Densities of the example tickets.
const DENSITIES: [f64; 3] = [0.001, 0.01, 0.1];
/// Largest number of groups that [`Estimate::together_from`] considers.
const MAX_GROUPS: usize = 64;

/// Loads the base, measures the costs and prints them.
///
/// # Errors
/// The base cannot be loaded or run.
pub fn run(args: &CostsArgs) -> anyhow::Result<()> {
    let mut base = args.base.open()?.load(&args.compute.load_options())?;
    let threads = args.compute.threads();
    let pool = kernels::Pool::new(threads)?;
    let mut graphs = Graphs::new(base.device());
    let Measured { costs, took } = pool.install(|| measure_costs(&mut base, &mut graphs))?;
    let weights = base.manifest.adaptable_weights();
    let tickets = DENSITIES.map(|density| Estimate::new(&costs, weights, density));
    let (name, dtype) = (&base.manifest.name, args.compute.dtype);
    let text = if args.json {
        let report = json!({
            "model": name,
            "dtype": dtype.to_string(),
            "threads": threads,
            "seconds": took.as_secs_f64(),
            "costs": as_json(&costs),
            "tickets": tickets.map(|ticket| ticket.as_json()),
        });
        format!("{report:#}\n")
    } else {
        let took = took.as_secs_f64();
        let title = format!("{name} in {dtype}, {threads} threads, measured in {took:.2} s\n\n");
        title + &table(&costs) + &estimates(&tickets)
    };
    print(&text)
}

/// Estimated times for tickets of one density, each with one row per step.
struct Estimate {
    density: f64,
    nonzeros: usize,
    /// Seconds to apply and revert a ticket.
    swap: f64,
    /// Seconds that an overlay adds to a step of one row.
    overlay: f64,
    /// Steps after which a swap costs less than the overlay.
    applied_after: f64,
    /// Smallest number of tickets that run faster overlaid in one step than applied in turns;
    /// `None` if there is none up to [`MAX_GROUPS`].
    together_from: Option<usize>,
}

impl Estimate {
    fn new(costs: &Costs, weights: usize, density: f64) -> Self {
        let nonzeros = (density * weights as f64).round() as usize;
        let load = Load {
            group: None,
            rows: 1,
            nonzeros,
            has_layout: true,
            urgent: false,
        };
        let pays = |groups: &usize| {
            let loads = vec![load; *groups];
            costs.together(&loads) < costs.in_turns(&loads, TURN_STEPS)
        };
        let (swap, overlay) = (costs.swap(nonzeros), costs.overlay(nonzeros, 1));
        Self {
            density,
            nonzeros,
            swap,
            overlay,
            applied_after: (swap / overlay.max(f64::MIN_POSITIVE)).ceil(),
            together_from: (2..=MAX_GROUPS).find(pays),
        }
    }

    fn as_json(&self) -> Value {
        json!({
            "density": self.density,
            "nonzeros": self.nonzeros,
            "swap_ms": 1e3 * self.swap,
            "overlay_ms": 1e3 * self.overlay,
            "applied_after_steps": self.applied_after,
            "together_from_groups": self.together_from,
        })
    }
}

fn as_json(costs: &Costs) -> Value {
    let per_ticket = |cost: PerTicket| {
        json!({
            "fixed_ms": 1e3 * cost.fixed,
            "ns_per_nonzero": 1e9 * cost.per_nonzero,
        })
    };
    let step = |&(rows, seconds): &(usize, f64)| json!({"rows": rows, "ms": 1e3 * seconds});
    let overlay = |&(rows, cost): &(usize, PerTicket)| {
        let mut cost = per_ticket(cost);
        cost["rows"] = rows.into();
        cost
    };
    json!({
        "steps": costs.steps().iter().map(step).collect::<Vec<_>>(),
        "overlays": costs.overlays().iter().map(overlay).collect::<Vec<_>>(),
        "apply": per_ticket(costs.apply),
        "revert": per_ticket(costs.revert),
        "layout": per_ticket(costs.layout),
    })
}

fn table(costs: &Costs) -> String {
    let mut text = String::new();
    let mut line = |what: &str, rows: Option<usize>, value: String| {
        let rows = match rows {
            Some(1) => "1 row".to_owned(),
            Some(rows) => format!("{rows} rows"),
            None => String::new(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{what:<10}{rows:>10}  {value}");
    };
    let per_ticket = |cost: PerTicket| {
        let (fixed, nonzero) = (1e3 * cost.fixed, 1e9 * cost.per_nonzero);
        format!("{nonzero:8.2} ns per nonzero + {fixed:.2} ms")
    };
    for &(rows, seconds) in costs.steps() {
        line("step", Some(rows), format!("{:8.2} ms", 1e3 * seconds));
    }
    line("apply", None, per_ticket(costs.apply));
    line("revert", None, per_ticket(costs.revert));
    line("layout", None, per_ticket(costs.layout));
    for &(rows, cost) in costs.overlays() {
        line("overlay", Some(rows), per_ticket(cost));
    }
    text
}

fn estimates(tickets: &[Estimate]) -> String {
    let mut text = "\nTickets, each with one row per step:\n".to_owned();
    for ticket in tickets {
        let together = match ticket.together_from {
            Some(groups) => format!("together from {groups} tickets on"),
            None => "always in turns".to_owned(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:>6} %: swap {:.2} ms, overlay {:.2} ms; alone, applied after {} steps; {together}",
            100.0 * ticket.density,
            1e3 * ticket.swap,
            1e3 * ticket.overlay,
            ticket.applied_after,
        );
    }
    text
}
