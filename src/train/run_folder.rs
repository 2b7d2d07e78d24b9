//! The folder of a run: `config.json`, `metrics.jsonl` and, until the run finishes,
//! `state.safetensors`.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{Device, Tensor};
use serde_json::Value;

use super::config::Phase;
use super::error::TrainError;
use super::event::Event;

const CONFIG: &str = "config.json";
const METRICS: &str = "metrics.jsonl";
const STATE: &str = "state.safetensors";
/// Tensor that holds the position of a saved state: phase, step, and bytes of `metrics.jsonl`. The
/// name is part of the file format.
const POSITION: &str = "place";

/// What to do if the folder already holds a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Replace a finished run; fail on an unfinished one.
    ReplaceFinished,
    /// Resume the unfinished run.
    Resume,
    /// Replace any run.
    Overwrite,
}

/// The open folder of a run.
pub struct RunFolder {
    path: PathBuf,
    metrics: File,
    /// Phase and step of the saved state.
    saved: Option<(Phase, usize)>,
}

/// The saved state of a run. Its tensors are read from the mapped file on demand: those of a
/// calibration are several times as large as the base.
pub struct SavedState {
    pub(super) phase: Phase,
    /// Number of steps taken in the phase.
    pub(super) step: usize,
    tensors: MmapedSafetensors,
    path: PathBuf,
}

impl SavedState {
    /// Reads one tensor, to the CPU.
    ///
    /// # Errors
    /// The state has no such tensor, or it cannot be read.
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor, TrainError> {
        let tensor = self.tensors.load(name, &Device::Cpu);
        tensor.map_err(|error| TrainError::Folder {
            path: self.path.clone(),
            reason: format!("{name} of the saved state: {error}"),
        })
    }

    /// Whether the state has a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.get(name).is_ok()
    }
}

impl RunFolder {
    /// Opens the folder for the run that `config` describes, creating it if it is missing. Returns
    /// the saved state if the run is resumed.
    ///
    /// # Errors
    /// The folder holds an unfinished run that is neither resumed nor overwritten, the run to
    /// resume is missing or was started with another configuration, or the folder cannot be
    /// written.
    pub fn open(
        path: &Path,
        config: &Value,
        existing: Existing,
    ) -> Result<(Self, Option<SavedState>), TrainError> {
        let unfinished = path.join(STATE).exists();
        match existing {
            Existing::ReplaceFinished if unfinished => {
                return Err(TrainError::Unfinished(path.to_owned()));
            }
            Existing::Resume if !unfinished => {
                return Err(TrainError::NothingToResume(path.to_owned()));
            }
            Existing::Resume => return Self::resume(path, config),
            Existing::ReplaceFinished | Existing::Overwrite => {}
        }
        fs::create_dir_all(path).map_err(TrainError::io("create", path))?;
        if unfinished {
            let state = path.join(STATE);
            fs::remove_file(&state).map_err(TrainError::io("remove", &state))?;
        }
        let text = serde_json::to_string_pretty(config).expect("a configuration is JSON") + "\n";
        replace(&path.join(CONFIG), |temporary| fs::write(temporary, &text))?;
        let metrics_path = path.join(METRICS);
        let metrics =
            File::create(&metrics_path).map_err(TrainError::io("create", &metrics_path))?;
        Ok((Self::new(path, metrics), None))
    }

    fn new(path: &Path, metrics: File) -> Self {
        Self {
            path: path.to_owned(),
            metrics,
            saved: None,
        }
    }

    fn resume(path: &Path, config: &Value) -> Result<(Self, Option<SavedState>), TrainError> {
        let config_path = path.join(CONFIG);
        let text =
            fs::read_to_string(&config_path).map_err(TrainError::io("read", &config_path))?;
        let then: Value = serde_json::from_str(&text).map_err(|error| TrainError::Folder {
            path: config_path.clone(),
            reason: error.to_string(),
        })?;
        // A round trip through text, so that numbers compare as they are written.
        let text = serde_json::to_string(config).expect("a configuration is JSON");
        let now = serde_json::from_str(&text).expect("serialized JSON parses");
        if let Some((what, then, now)) = difference("", &then, &now) {
            let path = path.to_owned();
            return Err(TrainError::OtherRun {
                path,
                what,
                then,
                now,
            });
        }
        let (state, metrics_bytes) = load(&path.join(STATE))?;
        let metrics_path = path.join(METRICS);
        let metrics = open_metrics(&metrics_path, metrics_bytes)
            .map_err(TrainError::io("open", &metrics_path))?;
        let folder = Self {
            saved: Some((state.phase, state.step)),
            ..Self::new(path, metrics)
        };
        Ok((folder, Some(state)))
    }

    /// Appends an event to `metrics.jsonl`.
    pub(super) fn log(&mut self, event: &Event) -> Result<(), TrainError> {
        let line = serde_json::to_string(event).expect("an event is JSON") + "\n";
        let written = self.metrics.write_all(line.as_bytes());
        written.map_err(TrainError::io("write", &self.path.join(METRICS)))
    }

    /// Saves the state after `step` steps of `phase`. The previous state stays until the new one is
    /// completely on the disk.
    pub(super) fn save(
        &mut self,
        phase: Phase,
        step: usize,
        tensors: Vec<(String, Tensor)>,
    ) -> Result<(), TrainError> {
        let path = self.path.join(METRICS);
        // The metrics must be on the disk before the state that refers to them.
        let synced = self.metrics.sync_data();
        let bytes = synced
            .and_then(|()| self.metrics.stream_position())
            .map_err(TrainError::io("write", &path))?;
        let position = [u32::from(phase == Phase::Adapt), step as u32, bytes as u32];
        let mut all: HashMap<String, Tensor> = tensors.into_iter().collect();
        all.insert(POSITION.to_owned(), Tensor::new(&position, &Device::Cpu)?);
        replace(&self.path.join(STATE), |temporary| {
            let saved = candle_core::safetensors::save(&all, temporary);
            saved.map_err(std::io::Error::other)
        })?;
        self.saved = Some((phase, step));
        Ok(())
    }

    /// The saved state, in words.
    pub(super) fn describe_saved(&self) -> String {
        match self.saved {
            Some((phase, step)) => format!("step {step} of the {phase} phase is saved"),
            None => "nothing was saved yet".to_owned(),
        }
    }

    /// Removes the saved state of a finished run.
    pub fn finish(&mut self) -> Result<(), TrainError> {
        let state = self.path.join(STATE);
        match fs::remove_file(&state) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(TrainError::io("remove", &state)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Opens `metrics.jsonl` for appending and drops the lines after its first `bytes` bytes: the
/// resumed run repeats the steps after the saved state.
fn open_metrics(path: &Path, bytes: u64) -> std::io::Result<File> {
    let mut metrics = OpenOptions::new().write(true).open(path)?;
    if metrics.metadata()?.len() < bytes {
        return Err(std::io::Error::other("it lacks steps that were saved"));
    }
    metrics.set_len(bytes)?;
    metrics.seek(SeekFrom::End(0))?;
    Ok(metrics)
}

/// Replaces the file at `path` atomically: writes a temporary file beside it, syncs it to the disk
/// and renames it.
fn replace(
    path: &Path,
    write: impl FnOnce(&Path) -> std::io::Result<()>,
) -> Result<(), TrainError> {
    let temporary = path.with_extension("tmp");
    let written = write(&temporary)
        .and_then(|()| File::open(&temporary)?.sync_all())
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all());
    written.map_err(|error| {
        // Remove the partial file: the disk may be full.
        let _ = fs::remove_file(&temporary);
        TrainError::io("write", path)(error)
    })
}

/// Maps the state file at `path`; returns the state and the length of its metrics in bytes.
fn load(path: &Path) -> Result<(SavedState, u64), TrainError> {
    let broken = |reason: String| TrainError::Folder {
        path: path.to_owned(),
        reason,
    };
    // SAFETY: reading the map is undefined behaviour if the file changes meanwhile. The file
    // belongs to the run, and a save never writes into it but replaces it by another file.
    let mapped = unsafe { MmapedSafetensors::new(path) };
    let tensors = mapped.map_err(|error| broken(error.to_string()))?;
    let position = tensors.load(POSITION, &Device::Cpu);
    let Ok(position) = position.and_then(|position| position.to_vec1::<u32>()) else {
        return Err(broken("it is not a saved run".to_owned()));
    };
    let [phase, step, metrics_bytes] = position[..] else {
        return Err(broken("it is not a saved run".to_owned()));
    };
    let state = SavedState {
        phase: if phase == 0 {
            Phase::Calibrate
        } else {
            Phase::Adapt
        },
        step: step as usize,
        tensors,
        path: path.to_owned(),
    };
    Ok((state, u64::from(metrics_bytes)))
}

/// Path of the first difference between two configurations, and both values. `path` is the path of
/// `a` and `b`.
fn difference(path: &str, a: &Value, b: &Value) -> Option<(String, String, String)> {
    if let (Value::Object(a), Value::Object(b)) = (a, b) {
        let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
        let missing = Value::Null;
        return keys.into_iter().find_map(|key| {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            let (a, b) = (
                a.get(key).unwrap_or(&missing),
                b.get(key).unwrap_or(&missing),
            );
            difference(&path, a, b)
        });
    }
    (a != b).then(|| (path.to_owned(), a.to_string(), b.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn state(values: &[f32]) -> Vec<(String, Tensor)> {
        let tensor = Tensor::new(values, &Device::Cpu).unwrap();
        vec![("x".to_owned(), tensor)]
    }

    fn event(step: usize) -> Event {
        Event::Valid {
            phase: Some(Phase::Adapt),
            step,
            loss: 1.5,
        }
    }

    #[test]
    fn a_run_resumes_where_it_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({"seed": 1, "adapt": {"learning_rate": 3e-4f32}});
        let (mut run, none) =
            RunFolder::open(folder.path(), &config, Existing::ReplaceFinished).unwrap();
        assert!(none.is_none());
        run.log(&event(1)).unwrap();
        run.save(Phase::Calibrate, 1, state(&[1.0])).unwrap();
        run.save(Phase::Adapt, 7, state(&[2.0])).unwrap();
        run.log(&event(8)).unwrap();
        drop(run);
        let again = RunFolder::open(folder.path(), &config, Existing::ReplaceFinished);
        assert!(matches!(again, Err(TrainError::Unfinished(_))));
        let (mut run, saved) = RunFolder::open(folder.path(), &config, Existing::Resume).unwrap();
        let saved = saved.unwrap();
        assert_eq!((saved.phase, saved.step), (Phase::Adapt, 7));
        assert_eq!(saved.tensor("x").unwrap().to_vec1::<f32>().unwrap(), [2.0]);
        assert!(saved.has("x") && !saved.has("y"));
        let error = saved.tensor("y").unwrap_err().to_string();
        assert!(error.contains("y of the saved state"), "{error}");
        // The mapped state stays intact when another save replaces its file.
        run.save(Phase::Adapt, 8, state(&[3.0])).unwrap();
        assert_eq!(saved.tensor("x").unwrap().to_vec1::<f32>().unwrap(), [2.0]);
        run.log(&event(9)).unwrap();
        let metrics = fs::read_to_string(folder.path().join(METRICS)).unwrap();
        let steps = metrics
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let steps: Vec<Value> = steps.map(|line| line["step"].clone()).collect();
        assert_eq!(steps, [1, 9]);
        run.finish().unwrap();
        let resumed = RunFolder::open(folder.path(), &config, Existing::Resume);
        assert!(matches!(resumed, Err(TrainError::NothingToResume(_))));
        assert!(RunFolder::open(folder.path(), &config, Existing::ReplaceFinished).is_ok());
    }

    #[test]
    fn a_changed_configuration_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({"seed": 1, "adapt": {"steps": 5, "rate": 0.1}});
        let (mut run, _) =
            RunFolder::open(folder.path(), &config, Existing::ReplaceFinished).unwrap();
        run.save(Phase::Adapt, 1, state(&[1.0])).unwrap();
        let other = json!({"seed": 1, "adapt": {"steps": 6, "rate": 0.1}});
        let error = RunFolder::open(folder.path(), &other, Existing::Resume);
        let error = error.err().unwrap().to_string();
        assert!(error.contains("another adapt.steps: 5, now 6"), "{error}");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        fs::write(&path, "good").unwrap();
        let full = |temporary: &Path| {
            fs::write(temporary, "half")?;
            Err(std::io::Error::from(std::io::ErrorKind::StorageFull))
        };
        assert!(replace(&path, full).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "good");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
