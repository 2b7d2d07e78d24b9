//! The folder of a run: `config.json`, `metrics.jsonl`, and `state.safetensors` while it is unfinished.

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
/// The tensor that says where a state was taken: phase, step, bytes of `metrics.jsonl` so far.
const PLACE: &str = "place";

/// What to do with a folder that holds a run already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Replace a finished run; fail on an unfinished one.
    ReplaceFinished,
    /// Resume the unfinished run.
    Resume,
    /// Replace any run.
    Overwrite,
}

/// A run's folder, open.
pub struct RunFolder {
    path: PathBuf,
    metrics: File,
    saved: Option<(Phase, usize)>,
}

/// Where a run was, and the tensors that it goes on with, which stay in their file until they are
/// wanted: of a calibration they are several times as large as the base.
pub struct SavedState {
    pub phase: Phase,
    /// Steps of the phase that were taken.
    pub step: usize,
    tensors: MmapedSafetensors,
    path: PathBuf,
}

impl SavedState {
    /// Reads one tensor.
    pub fn tensor(&self, name: &str) -> Result<Tensor, TrainError> {
        let tensor = self.tensors.load(name, &Device::Cpu);
        tensor.map_err(|error| TrainError::Folder {
            path: self.path.clone(),
            reason: format!("{name} of the saved state: {error}"),
        })
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.get(name).is_ok()
    }
}

impl RunFolder {
    /// Opens the folder for a run that `config` describes, making it where it is missing.
    ///
    /// # Errors
    /// The folder holds an unfinished run that is neither resumed nor overwritten; there is nothing to
    /// resume, or it was started with another configuration; the folder cannot be written.
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
        fs::create_dir_all(path).map_err(TrainError::io("make", path))?;
        if unfinished {
            let state = path.join(STATE);
            fs::remove_file(&state).map_err(TrainError::io("remove", &state))?;
        }
        let text = serde_json::to_string_pretty(config).expect("a configuration is JSON") + "\n";
        replace(&path.join(CONFIG), |temporary| fs::write(temporary, &text))?;
        let metrics_path = path.join(METRICS);
        let metrics = File::create(&metrics_path);
        let metrics = metrics.map_err(TrainError::io("make", &metrics_path))?;
        Ok((Self::at(path, metrics), None))
    }

    fn at(path: &Path, metrics: File) -> Self {
        Self {
            path: path.to_owned(),
            metrics,
            saved: None,
        }
    }

    fn resume(path: &Path, config: &Value) -> Result<(Self, Option<SavedState>), TrainError> {
        let config_path = path.join(CONFIG);
        let text = fs::read_to_string(&config_path);
        let text = text.map_err(TrainError::io("read", &config_path))?;
        let then: Value = serde_json::from_str(&text).map_err(|error| TrainError::Folder {
            path: config_path.clone(),
            reason: error.to_string(),
        })?;
        // Through text too, so that numbers are compared as they were written.
        let now = serde_json::to_string(config).expect("a configuration is JSON");
        let now = serde_json::from_str(&now).expect("what was just written");
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
        let metrics = OpenOptions::new().write(true).open(&metrics_path);
        let metrics = metrics.and_then(|mut metrics| {
            if metrics.metadata()?.len() < metrics_bytes {
                return Err(std::io::Error::other("it lacks steps that were saved"));
            }
            // What was written after the state was saved happens again.
            metrics.set_len(metrics_bytes)?;
            metrics.seek(SeekFrom::End(0))?;
            Ok(metrics)
        });
        let metrics = metrics.map_err(TrainError::io("open", &metrics_path))?;
        let folder = Self {
            saved: Some((state.phase, state.step)),
            ..Self::at(path, metrics)
        };
        Ok((folder, Some(state)))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line to `metrics.jsonl`.
    pub fn log(&mut self, event: &Event) -> Result<(), TrainError> {
        let line = serde_json::to_string(event).expect("an event is JSON") + "\n";
        let written = self.metrics.write_all(line.as_bytes());
        written.map_err(TrainError::io("write", &self.path.join(METRICS)))
    }

    /// Saves what the run goes on with after `step` steps of `phase`; the state before is kept until
    /// this one is whole on the disk.
    pub fn save(
        &mut self,
        phase: Phase,
        step: usize,
        tensors: Vec<(String, Tensor)>,
    ) -> Result<(), TrainError> {
        let path = self.path.join(METRICS);
        // On the disk before the state that speaks of them.
        let bytes = self.metrics.sync_data();
        let bytes = bytes.and_then(|()| self.metrics.stream_position());
        let bytes = bytes.map_err(TrainError::io("write", &path))?;
        let place = [u32::from(phase == Phase::Adapt), step as u32, bytes as u32];
        let mut all: HashMap<String, Tensor> = tensors.into_iter().collect();
        all.insert(PLACE.to_owned(), Tensor::new(&place, &Device::Cpu)?);
        replace(&self.path.join(STATE), |temporary| {
            let saved = candle_core::safetensors::save(&all, temporary);
            saved.map_err(std::io::Error::other)
        })?;
        self.saved = Some((phase, step));
        Ok(())
    }

    /// The saved state, in words.
    pub fn describe_saved(&self) -> String {
        match self.saved {
            Some((phase, step)) => format!("step {step} of the {phase} phase is saved"),
            None => "nothing was saved yet".to_owned(),
        }
    }

    /// The run is finished: there is nothing to resume.
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

/// Writes a file beside `path`, brings it to the disk and puts it in the place of `path`.
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
        // Half a file is of no use, and the disk may be full.
        let _ = fs::remove_file(&temporary);
        TrainError::io("write", path)(error)
    })
}

fn load(path: &Path) -> Result<(SavedState, u64), TrainError> {
    let broken = |reason: String| TrainError::Folder {
        path: path.to_owned(),
        reason,
    };
    // SAFETY: the map is undefined behaviour if the file changes while it is read. It is the run's
    // own, and a save does not write into it but puts another file in its place.
    let tensors = unsafe { MmapedSafetensors::new(path) };
    let tensors = tensors.map_err(|error| broken(error.to_string()))?;
    let place = tensors.load(PLACE, &Device::Cpu);
    let Ok(place) = place.and_then(|place| place.to_vec1::<u32>()) else {
        return Err(broken("it is not a saved run".to_owned()));
    };
    let [phase, step, metrics_bytes] = place[..] else {
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

/// The first place where two configurations differ, and both values.
fn difference(at: &str, a: &Value, b: &Value) -> Option<(String, String, String)> {
    if let (Value::Object(a), Value::Object(b)) = (a, b) {
        let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
        let missing = Value::Null;
        return keys.into_iter().find_map(|key| {
            let place = if at.is_empty() {
                key.clone()
            } else {
                format!("{at}.{key}")
            };
            let (a, b) = (
                a.get(key).unwrap_or(&missing),
                b.get(key).unwrap_or(&missing),
            );
            difference(&place, a, b)
        });
    }
    (a != b).then(|| (at.to_owned(), a.to_string(), b.to_string()))
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
    fn a_run_goes_on_where_it_was_saved() {
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
        // What was read from stays whole when another save takes its place.
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
    fn another_configuration_is_named() {
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
    fn what_cannot_be_written_leaves_what_was_there() {
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
