//! `tombola train`: trains a ticket from rows, evaluates it and reports.

mod args;
mod outcome;
mod watch;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};

pub use args::{EXAMPLES, TrainArgs};

use super::base::{ModelFiles, OpenBase};
use super::evaluation::report_cut_rows;
use super::ticket;
use super::ticket_folder::ticket_file;
use crate::data::{self, DataOptions, Dataset};
use crate::model::Dtype;
use crate::ticket::{BaseManifest, BoundTicket, validate_name};
use crate::train::{self, Callbacks, MaskSource, RunFolder, Score, Start, TrainRequest, Trained};
use watch::{Stop, Watch};

/// Trains a ticket, writes it, and evaluates the written file.
///
/// # Errors
/// The base, a ticket or the data cannot be used, or the run ends early; its last saved state
/// stays.
pub fn run(args: &TrainArgs) -> anyhow::Result<()> {
    validate_name(&args.name)?;
    if args.compute.dtype != Dtype::F32 {
        bail!("--dtype {}: training needs f32", args.compute.dtype);
    }
    let base = args.base.open()?;
    if args.name == base.name {
        bail!("--name {}: this is the name of the base", args.name);
    }
    if let Some(folder) = &args.method.save_calibrated {
        if args.method.score != Score::TaskVector {
            let score = args.method.score;
            bail!("--save-calibrated: with --score {score}, calibration moves no weight");
        }
        // A resumed run may have written the folder already.
        if !args.run.resume {
            base.check_save_as(folder).context("--save-calibrated")?;
        }
    }
    let data = Data::read(args, &base)?;
    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let trained = train(args, &base, &data)?;
    outcome::report(args, base, data.valid.as_ref(), &trained)
}

/// Training and validation rows.
struct Data {
    train: Dataset,
    valid: Option<Dataset>,
}

impl Data {
    fn read(args: &TrainArgs, base: &OpenBase) -> anyhow::Result<Self> {
        let max_length = args.steps.max_length.min(base.trained_positions());
        let read = |path: &Path, limit| {
            let options = DataOptions {
                max_length,
                limit,
                end_token: base.end_token()?,
            };
            let dataset = data::read(path, &base.text, &options)?;
            report_cut_rows(&dataset, max_length);
            anyhow::Ok(dataset)
        };
        let valid = args.valid.as_deref();
        let valid = valid.map(|path| read(path, Some(args.run.valid_rows)));
        Ok(Self {
            train: read(&args.data, None)?,
            valid: valid.transpose()?,
        })
    }
}

/// Runs the training, and writes the ticket.
fn train(args: &TrainArgs, base: &OpenBase, data: &Data) -> anyhow::Result<Trained> {
    let method = &args.method;
    let tuned = method
        .calibrate_from
        .as_deref()
        .map(|model| ModelFiles::open(model, &args.base.cache.dir()))
        .transpose()?;
    let resident = base.load(&args.compute.load_options())?;
    let manifest = Arc::clone(&resident.manifest);
    let ticket = |name: &String| bound(name, &args.out, &manifest);
    let avoid = method.avoid.iter().map(ticket);
    let stop = Stop::listen()?;
    let config = args.config();
    let request = TrainRequest {
        config: config.clone(),
        start: Start {
            checkpoint: base.checkpoint(),
            on_top_of: method.on_top_of.as_ref().map(ticket).transpose()?,
            manifest: Arc::clone(&manifest),
        },
        train: &data.train,
        valid: data.valid.as_ref(),
        mask: match (&method.mask_from, &tuned) {
            (Some(name), _) => MaskSource::Ticket(ticket(name)?),
            (None, Some(tuned)) => MaskSource::Checkpoint {
                checkpoint: &tuned.checkpoint,
                fingerprint: tuned.manifest.fingerprint,
            },
            (None, None) => MaskSource::Score,
        },
        avoid: avoid.collect::<anyhow::Result<_>>()?,
        license: args.run.license.clone(),
        eval_every: args.run.eval_every,
        save_every: args.run.save_every,
        stop: &stop.requested,
        threads: args.compute.threads(),
    };
    let existing = args.run.existing();
    let (mut folder, saved) = RunFolder::open(&args.run_dir(), &request.describe(), existing)?;
    let mut watch = Watch::new(&config);
    let callbacks = Callbacks {
        observe: &mut |event| watch.see(event),
        save_calibrated: &mut |parameters| match &method.save_calibrated {
            Some(folder) => base
                .save_as(folder, parameters)
                .map_err(|error| format!("{error:#}")),
            None => Ok(()),
        },
    };
    let trained = train::train(resident, &request, &mut folder, saved, callbacks)?;
    trained.ticket.write(&args.ticket_path())?;
    // Done last, so that the run can be resumed until the ticket is on disk.
    folder.finish()?;
    stop.training_is_over();
    Ok(trained)
}

/// A ticket given by file or name, bound to the base.
fn bound(name: &str, folder: &Path, base: &BaseManifest) -> anyhow::Result<Arc<BoundTicket>> {
    let path = ticket_file(name, folder)?;
    let bound = ticket::read(&path)?.bind(base, false);
    Ok(Arc::new(
        bound.map_err(|error| ticket::name_file(&path, error))?,
    ))
}
