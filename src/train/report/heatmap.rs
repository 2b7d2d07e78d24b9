//! Where in the base the mask lies: the share of each parameter's weights, by layer and projection.

use std::collections::BTreeMap;

use serde::Serialize;

use super::format::{count, percent, rounded};

/// The projections that tickets adapt, in a layer's order.
const PROJECTIONS: [&str; 7] = ["q", "k", "v", "o", "gate", "up", "down"];

/// Beyond this many times the whole's density, colours go by the root, or one cell would take all.
const SKEWED: f64 = 3.0;

#[derive(Serialize)]
pub struct Heatmap {
    projections: Vec<Total>,
    layers: Vec<Layer>,
    /// Parameters that are no projection of a layer: name, share, weights.
    others: Vec<(String, String, String)>,
    scale: Vec<Step>,
    /// Where the whole's density lies on the scale, in percent.
    mean_at: f64,
    mean: String,
    summary: String,
}

/// A sum over a row or a column.
#[derive(Serialize)]
struct Total {
    name: String,
    share: String,
    /// Percent of the longest bar.
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
    /// Place on the scale, from 0 to 1.
    tone: f64,
    title: String,
}

/// A colour of the scale and the share that it stands for.
#[derive(Serialize)]
struct Step {
    tone: f64,
    text: String,
}

/// Weights kept, and weights that there are.
#[derive(Clone, Copy, Default)]
struct Part {
    kept: usize,
    all: usize,
}

impl Part {
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

/// Maps a share to a place on the scale of colours.
struct Tones {
    most: f64,
    by_root: bool,
}

impl Tones {
    fn tone(&self, share: f64) -> f64 {
        let tone = (share / self.most).min(1.0);
        let tone = if self.by_root { tone.sqrt() } else { tone };
        rounded(tone)
    }

    fn share(&self, tone: f64) -> f64 {
        let share = if self.by_root { tone * tone } else { tone };
        share * self.most
    }
}

impl Heatmap {
    /// Draws a mask: weights kept of each parameter, by checkpoint name, and how many it has.
    pub fn new(parameters: &BTreeMap<String, (usize, usize)>) -> Self {
        let mut layers: BTreeMap<usize, [Option<Part>; 7]> = BTreeMap::new();
        let mut others = Vec::new();
        let mut whole = Part::default();
        for (name, &(kept, all)) in parameters {
            let part = Part { kept, all };
            whole.add(part);
            match place(name) {
                Some((layer, column)) => layers.entry(layer).or_default()[column] = Some(part),
                None => others.push((name.clone(), percent(part.share()), count(all))),
            }
        }
        let cells = layers.values().flatten().flatten();
        let most = cells.map(|part| part.share()).fold(0.0, f64::max);
        let tones = Tones {
            // An even mask has the scale's middle.
            most: most.max(2.0 * whole.share()).max(f64::MIN_POSITIVE),
            by_root: most > SKEWED * whole.share(),
        };
        let dashes = match layers.values().flatten().any(Option::is_none) {
            true => " A dash is a parameter that the mask leaves out; shares are of the others.",
            false => "",
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
            .map(|(layer, row)| cells_of(*layer, row, &tones));
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
                .map(|tone| Step {
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

fn sum(parts: impl Iterator<Item = Part>) -> Part {
    parts.fold(Part::default(), |mut sum, part| {
        sum.add(part);
        sum
    })
}

fn cells_of(layer: usize, row: &[Option<Part>; 7], tones: &Tones) -> Vec<Option<Cell>> {
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

fn totals(what: &str, parts: &[(String, Part)]) -> Vec<Total> {
    let longest = parts
        .iter()
        .map(|(_, part)| part.share())
        .fold(0.0, f64::max);
    let total = |(name, part): &(String, Part)| Total {
        name: name.clone(),
        share: percent(part.share()),
        bar: rounded(100.0 * part.share() / longest.max(f64::MIN_POSITIVE)),
        title: part.title(&format!("{what}{name}")),
    };
    parts.iter().map(total).collect()
}

/// The densest and the sparsest, in words.
fn summary(columns: &[(String, Part)], rows: &[(String, Part)]) -> String {
    let extremes = |parts: &[(String, Part)]| {
        let present = parts.iter().filter(|(_, part)| part.all > 0);
        let order = |a: &&(String, Part), b: &&(String, Part)| a.1.share().total_cmp(&b.1.share());
        let (least, most) = (present.clone().min_by(order)?, present.max_by(order)?);
        let words = |(name, part): &(String, Part)| (name.clone(), percent(part.share()));
        let (least, most) = (words(least), words(most));
        (least.1 != most.1).then_some((least, most))
    };
    let mut sentences = Vec::new();
    if let Some(((least, low), (most, high))) = extremes(columns) {
        sentences.push(format!(
            "Of the projections, {most} has the densest mask ({high} %) and {least} the sparsest ({low} %)."
        ));
    }
    if let Some(((least, low), (most, high))) = extremes(rows) {
        sentences.push(format!(
            "Of the layers, {most} has the densest ({high} %) and {least} the sparsest ({low} %)."
        ));
    }
    if sentences.is_empty() {
        return "Every projection and every layer has the same share.".to_owned();
    }
    sentences.join(" ")
}
