//! Heatmap of the mask's density, by layer and projection.

use std::collections::BTreeMap;

use serde::Serialize;

use super::format::{count, percent, rounded};

/// The projections that tickets adapt, in their order in a layer.
const PROJECTIONS: [&str; 7] = ["q", "k", "v", "o", "gate", "up", "down"];

/// If a cell is denser than the whole mask by more than this factor, colours follow the square root
/// of the density, so that one cell does not make all others pale.
const SKEWED: f64 = 3.0;

/// The values of the heatmap and its legend.
#[derive(Serialize)]
pub struct Heatmap {
    projections: Vec<Total>,
    layers: Vec<Layer>,
    /// Parameters outside the layers' projections: name, share, weights.
    others: Vec<(String, String, String)>,
    scale: Vec<ScaleTick>,
    /// Position of the whole mask's density on the scale, in percent.
    mean_at: f64,
    mean: String,
    summary: String,
}

/// The density of a row or a column.
#[derive(Serialize)]
struct Total {
    name: String,
    share: String,
    /// Length in percent of the longest bar.
    bar: f64,
    title: String,
}

#[derive(Serialize)]
struct Layer {
    total: Total,
    cells: Vec<Option<Cell>>,
}

#[derive(Serialize)]
struct Cell {
    share: String,
    /// Position on the scale, in [0, 1].
    tone: f64,
    title: String,
}

/// A tick of the colour scale.
#[derive(Serialize)]
struct ScaleTick {
    tone: f64,
    text: String,
}

/// Weights in the mask, and weights in total.
#[derive(Clone, Copy, Default)]
struct Coverage {
    kept: usize,
    all: usize,
}

impl Coverage {
    fn share(self) -> f64 {
        if self.all == 0 {
            return 0.0;
        }
        self.kept as f64 / self.all as f64
    }

    fn add(&mut self, other: Self) {
        self.kept += other.kept;
        self.all += other.all;
    }

    fn title(self, name: &str) -> String {
        let (kept, all) = (count(self.kept), count(self.all));
        format!(
            "{name}: {kept} of {all} weights, {} %",
            percent(self.share())
        )
    }
}

/// Maps a share to a position on the colour scale.
struct Tones {
    max: f64,
    by_root: bool,
}

impl Tones {
    fn tone(&self, share: f64) -> f64 {
        let tone = (share / self.max).min(1.0);
        let tone = if self.by_root { tone.sqrt() } else { tone };
        rounded(tone)
    }

    fn share(&self, tone: f64) -> f64 {
        let share = if self.by_root { tone * tone } else { tone };
        share * self.max
    }
}

impl Heatmap {
    /// Draws a mask: weights in the mask and weights in total, by checkpoint name.
    pub fn new(parameters: &BTreeMap<String, (usize, usize)>) -> Self {
        let mut layers: BTreeMap<usize, [Option<Coverage>; 7]> = BTreeMap::new();
        let mut others = Vec::new();
        let mut whole = Coverage::default();
        for (name, &(kept, all)) in parameters {
            let part = Coverage { kept, all };
            whole.add(part);
            match place(name) {
                Some((layer, column)) => layers.entry(layer).or_default()[column] = Some(part),
                None => others.push((name.clone(), percent(part.share()), count(all))),
            }
        }
        let cells = layers.values().flatten().flatten();
        let densest = cells.map(|part| part.share()).fold(0.0, f64::max);
        let tones = Tones {
            // An even mask is at the middle of the scale.
            max: densest.max(2.0 * whole.share()).max(f64::MIN_POSITIVE),
            by_root: densest > SKEWED * whole.share(),
        };
        let dashes = if layers.values().flatten().any(Option::is_none) {
            " A dash is a parameter outside the mask; shares are of the other parameters."
        } else {
            ""
        };
        let columns = (0..7).map(|column| sum(layers.values().filter_map(|row| row[column])));
        let columns = PROJECTIONS.map(str::to_owned).into_iter().zip(columns);
        let rows = layers.iter().map(|(layer, row)| {
            let name = layer.to_string();
            (name, sum(row.iter().copied().flatten()))
        });
        let (columns, rows): (Vec<_>, Vec<_>) = (columns.collect(), rows.collect());
        let cells = layers
            .iter()
            .map(|(layer, row)| row_cells(*layer, row, &tones));
        let layers = totals("layer ", &rows).into_iter().zip(cells);
        Self {
            summary: summary(&columns, &rows) + dashes,
            projections: totals("", &columns),
            layers: layers
                .map(|(total, cells)| Layer { total, cells })
                .collect(),
            others,
            scale: (0..=4)
                .map(|step| f64::from(step) / 4.0)
                .map(|tone| ScaleTick {
                    tone,
                    text: percent(tones.share(tone)),
                })
                .collect(),
            mean_at: 100.0 * tones.tone(whole.share()),
            mean: percent(whole.share()),
        }
    }
}

/// The layer and the column of a parameter, by its checkpoint name.
fn place(name: &str) -> Option<(usize, usize)> {
    let mut words = name.split('.').skip_while(|word| *word != "layers");
    let layer = words.nth(1)?.parse().ok()?;
    let projection = words.find_map(|word| word.strip_suffix("_proj"))?;
    let column = PROJECTIONS.iter().position(|name| *name == projection)?;
    Some((layer, column))
}

fn sum(parts: impl Iterator<Item = Coverage>) -> Coverage {
    parts.fold(Coverage::default(), |mut sum, part| {
        sum.add(part);
        sum
    })
}

fn row_cells(layer: usize, row: &[Option<Coverage>; 7], tones: &Tones) -> Vec<Option<Cell>> {
    let cells = row.iter().zip(PROJECTIONS);
    let cells = cells.map(|(part, projection)| {
        let part = (*part)?;
        Some(Cell {
            share: percent(part.share()),
            tone: tones.tone(part.share()),
            title: part.title(&format!("layer {layer}, {projection}")),
        })
    });
    cells.collect()
}

fn totals(what: &str, parts: &[(String, Coverage)]) -> Vec<Total> {
    let longest = parts
        .iter()
        .map(|(_, part)| part.share())
        .fold(0.0, f64::max);
    let total = |(name, part): &(String, Coverage)| Total {
        name: name.clone(),
        share: percent(part.share()),
        bar: rounded(100.0 * part.share() / longest.max(f64::MIN_POSITIVE)),
        title: part.title(&format!("{what}{name}")),
    };
    parts.iter().map(total).collect()
}

/// Names the densest and the sparsest projection and layer.
fn summary(columns: &[(String, Coverage)], rows: &[(String, Coverage)]) -> String {
    let extremes = |parts: &[(String, Coverage)]| {
        let present = parts.iter().filter(|(_, part)| part.all > 0);
        let order =
            |a: &&(String, Coverage), b: &&(String, Coverage)| a.1.share().total_cmp(&b.1.share());
        let (sparsest, densest) = (present.clone().min_by(order)?, present.max_by(order)?);
        let words = |(name, part): &(String, Coverage)| (name.clone(), percent(part.share()));
        let (sparsest, densest) = (words(sparsest), words(densest));
        (sparsest.1 != densest.1).then_some((sparsest, densest))
    };
    let mut sentences = Vec::new();
    if let Some(((sparsest, low), (densest, high))) = extremes(columns) {
        sentences.push(format!(
            "Of the projections, {densest} has the densest mask ({high} %) and {sparsest} the \
             sparsest ({low} %)."
        ));
    }
    if let Some(((sparsest, low), (densest, high))) = extremes(rows) {
        sentences.push(format!(
            "Of the layers, {densest} has the densest ({high} %) and {sparsest} the sparsest \
             ({low} %)."
        ));
    }
    if sentences.is_empty() {
        return "Every projection and every layer has the same share.".to_owned();
    }
    sentences.join(" ")
}
