//! Everything that training goes on from, as one folder: the trained tensors, the optimizer's
//! moments, where the run stands, and the checksums of all three.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::atomic::{new_folder, write_file};
use super::hash::sha256_file;
use super::reader::TensorFile;
use super::save::{Precision, stream_safetensors};
use crate::error::{Error, Result};
use crate::model::LazyTensor;
use crate::ops::adamw::StateType;
use crate::train::{Evaluations, FIRST_MOMENT, HostMoments, Position, SECOND_MOMENT};

const FORMAT: &str = "plumbline-checkpoint-1";
const TENSORS: &str = "adapter.safetensors";
const MOMENTS: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const SUMS: &str = "SHA256SUMS";

/// `state.json` of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingState {
    /// Always `plumbline-checkpoint-1`.
    pub format: String,
    /// Version of the program that wrote it.
    pub version: String,
    /// The backend that trained.
    pub device: String,
    /// Fingerprint of what is trained.
    pub base_sha256: String,
    /// Fingerprint of what it is trained on.
    pub data_sha256: String,
    /// Where the run stands.
    pub position: Position,
    /// What the evaluations said so far.
    pub evaluations: Evaluations,
    /// SHA-256 of the run's `recipe.toml`.
    pub recipe_sha256: String,
    /// Bytes of every file of the run that grows, when this was written.
    pub logs: BTreeMap<String, u64>,
}

impl TrainingState {
    /// The state of a run on `device` that has not begun.
    pub fn new(
        device: String,
        base_sha256: String,
        data_sha256: String,
        recipe_sha256: String,
    ) -> Self {
        Self {
            format: FORMAT.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            device,
            base_sha256,
            data_sha256,
            recipe_sha256,
            position: Position::default(),
            evaluations: Evaluations::default(),
            logs: BTreeMap::new(),
        }
    }
}

/// A checkpoint whose every byte was checked.
pub struct Checkpoint {
    /// Its `state.json`.
    pub state: TrainingState,
    tensors: TensorFile,
    moments: TensorFile,
}

/// Writes a checkpoint as a new folder; the moments in the type that the optimizer keeps them in.
/// No more than one tensor at a time is on the host.
///
/// # Errors
/// `File` when the folder exists; `Io`; when the device failed.
pub fn save_checkpoint(
    folder: &Path,
    tensors: Vec<LazyTensor<'_>>,
    (moments, moment_type): (Vec<LazyTensor<'_>>, StateType),
    state: &TrainingState,
) -> Result<()> {
    let precision = match moment_type {
        StateType::F32 => Precision::F32,
        StateType::Bf16 => Precision::Bf16,
    };
    new_folder(folder, |folder| {
        let metadata = [("format", FORMAT)];
        stream_safetensors(&folder.join(TENSORS), tensors, Precision::F32, &metadata)?;
        stream_safetensors(&folder.join(MOMENTS), moments, precision, &metadata)?;
        let text = serde_json::to_string_pretty(state).expect("plain data serialises");
        write_file(&folder.join(STATE), text.as_bytes())?;
        write_file(&folder.join(SUMS), checksums(folder)?.as_bytes())
    })
}

/// One line a file, as `sha256sum --check` reads them.
fn checksums(folder: &Path) -> Result<String> {
    let mut lines = String::new();
    for name in [TENSORS, MOMENTS, STATE] {
        _ = writeln!(lines, "{}  {name}", sha256_file(&folder.join(name))?);
    }
    Ok(lines)
}

/// Opens a checkpoint after comparing every byte with its checksums.
///
/// # Errors
/// `Io` for a file that is missing; `File` for one that was changed.
pub fn open_checkpoint(folder: &Path) -> Result<Checkpoint> {
    let sums_path = folder.join(SUMS);
    let stated = std::fs::read(&sums_path).map_err(Error::io(&sums_path, "read"))?;
    let actual = checksums(folder)?;
    if stated != actual.as_bytes() {
        let stated = String::from_utf8_lossy(&stated);
        let changed = actual.lines().find(|line| !stated.lines().any(|other| other == *line));
        return Err(match changed.and_then(|line| line.split_once("  ")) {
            Some((sum, name)) => {
                let reason = format!("has SHA-256 {sum}, {SUMS} states another: it is damaged");
                Error::file(folder.join(name), reason)
            }
            None => Error::file(sums_path, "states more than the files' checksums: it is damaged"),
        });
    }
    let path = folder.join(STATE);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
    let header: Header = serde_json::from_str(&text).map_err(|error| Error::file(&path, error))?;
    if header.format != FORMAT {
        let reason = format!("format is {}, expected {FORMAT}", header.format);
        return Err(Error::file(&path, reason));
    }
    let state = serde_json::from_str(&text).map_err(|error| Error::file(&path, error))?;
    let tensors = TensorFile::open(&folder.join(TENSORS))?;
    Ok(Checkpoint { state, tensors, moments: TensorFile::open(&folder.join(MOMENTS))? })
}

/// What every format of `state.json` begins with.
#[derive(Deserialize)]
struct Header {
    format: String,
}

impl Checkpoint {
    /// A trained tensor, by the name it has in the model.
    ///
    /// # Errors
    /// `File` naming the tensor.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.tensors.floats(name, shape)
    }

    /// The moments of a trained tensor of `len` values.
    ///
    /// # Errors
    /// `File` naming the tensor.
    pub fn moments(&self, name: &str, len: usize) -> Result<HostMoments> {
        let read = |which: &str| self.moments.bits(&format!("{name}.{which}"), &[len]);
        Ok(HostMoments { first: read(FIRST_MOMENT)?, second: read(SECOND_MOMENT)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path) -> TrainingState {
        let lazy = |name: &str, shape: &[usize], values: [f32; 2]| LazyTensor {
            name: name.into(),
            shape: shape.to_vec(),
            values: Box::new(move || Ok(values.to_vec())),
        };
        let tensors = vec![lazy("a.scale", &[2, 1], [0.1, -2.5])];
        let moments = vec![
            lazy("a.scale.second_moment", &[2], [0.0, f32::INFINITY]),
            lazy("a.scale.first_moment", &[2], [1e-40, 3.0]),
        ];
        let [base, data, recipe] = ["b", "d", "r"].map(|letter| letter.repeat(64));
        let mut state = TrainingState::new("cpu".into(), base, data, recipe);
        state.position = Position { step: 7, seconds: 0.1 + 0.2, ..Position::default() };
        save_checkpoint(folder, tensors, (moments, StateType::F32), &state).unwrap();
        state
    }

    #[test]
    fn a_checkpoint_reads_back_bit_for_bit() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("step-7");
        let state = write(&folder);
        let read = open_checkpoint(&folder).unwrap();
        assert_eq!(read.state, state);
        assert_eq!(read.tensor("a.scale", &[2, 1]).unwrap(), [0.1, -2.5]);
        let moments = read.moments("a.scale", 2).unwrap();
        assert_eq!(
            moments,
            HostMoments { first: vec![1e-40, 3.0], second: vec![0.0, f32::INFINITY] }
        );
        assert!(read.moments("b.scale", 2).is_err());
    }

    /// Every bit of every file, every length, and every file gone.
    #[test]
    fn any_damage_is_seen() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("step-7");
        write(&folder);
        for name in [TENSORS, MOMENTS, STATE, SUMS] {
            let path = folder.join(name);
            let good = std::fs::read(&path).unwrap();
            let damaged = |bytes: &[u8], what: &str| {
                std::fs::write(&path, bytes).unwrap();
                assert!(open_checkpoint(&folder).is_err(), "{name}: {what} is not seen");
            };
            for at in 0..good.len() {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << (at % 8);
                damaged(&bytes, &format!("a flipped bit of byte {at}"));
                damaged(&good[..at], &format!("an end at byte {at}"));
            }
            damaged(&[&good[..], b"\n"].concat(), "a byte too many");
            std::fs::remove_file(&path).unwrap();
            let error = open_checkpoint(&folder).err().unwrap().to_string();
            assert!(error.contains(name), "{error}");
            std::fs::write(&path, &good).unwrap();
        }
        open_checkpoint(&folder).unwrap();
    }
}
