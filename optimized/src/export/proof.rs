//! What was written is read again, by code that shares nothing with what wrote it, and compared with
//! what was trained.

use std::fmt;

use plumbline_reference::spec::LlamaConfig;
use serde::Serialize;

use super::floats::FloatType;
use super::layer::{CodedLayer, Zero};
use crate::checkpoint::{ModelFolder, Shift, Unpacked};
use crate::error::{Error, Result};
use crate::model::{Projection, tensor_shapes};

/// How exactly a file holds a layer; each level has those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    /// Other codes.
    None,
    /// The same codes: as many steps from their zero.
    E0,
    /// The same stored parameters: scales and zeros too.
    E1,
    /// The same values after dequantizing.
    E2,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A layer as it was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerProof {
    /// Hugging Face name without `.weight`.
    pub name: String,
    /// Width of the trained codes; `None` for a layer that no method was on.
    pub bits: Option<u32>,
    /// Inputs of a group of the trained grid.
    pub group_size: Option<usize>,
    /// What the file holds of it.
    pub level: Level,
    /// Types of numbers in which dequantizing rounds nothing, so that engines that compute in them
    /// have the same values.
    pub exact_in: Vec<&'static str>,
}

/// Compares every tensor of what was written.
///
/// # Errors
/// `File` naming the first tensor that is not what it was; whatever reading gives.
pub(super) fn prove(source: &ModelFolder, written: &ModelFolder) -> Result<Vec<LayerProof>> {
    let config = source.config();
    if let Some(field) = other_model(config, written.config()) {
        let reason = format!("reads back with another {field} than {}", source.path().display());
        return Err(Error::file(written.path(), reason));
    }
    let all = Projection::all(config);
    for (name, shape) in tensor_shapes(config) {
        let is_linear = all.iter().any(|linear| name == format!("{}.weight", linear.name));
        if !is_linear && !same_bits(&written.tensor(&name, &shape)?, &source.tensor(&name, &shape)?)
        {
            let reason = format!("tensor {name} reads back with other values");
            return Err(Error::file(written.path(), reason));
        }
    }
    all.iter().map(|linear| layer(source, written, linear)).collect()
}

/// The first field of a configuration that makes another model of it.
fn other_model(ours: &LlamaConfig, theirs: &LlamaConfig) -> Option<&'static str> {
    let same = |field: fn(&LlamaConfig) -> usize| field(ours) == field(theirs);
    [
        ("hidden_size", same(|config| config.hidden_size)),
        ("intermediate_size", same(|config| config.intermediate_size)),
        ("num_hidden_layers", same(|config| config.num_hidden_layers)),
        ("num_attention_heads", same(|config| config.num_attention_heads)),
        ("num_key_value_heads", same(|config| config.num_key_value_heads)),
        ("head_dim", same(|config| config.head_dim)),
        ("vocab_size", same(|config| config.vocab_size)),
        ("number of positions", same(LlamaConfig::longest_sequence)),
        // What is computed with.
        ("rms_norm_eps", ours.rms_norm_eps as f32 == theirs.rms_norm_eps as f32),
        ("rope_scaling or rope_theta", ours.rope == theirs.rope),
        ("tie_word_embeddings", ours.tie_word_embeddings == theirs.tie_word_embeddings),
    ]
    .into_iter()
    .find_map(|(field, same)| (!same).then_some(field))
}

fn layer(source: &ModelFolder, written: &ModelFolder, linear: &Projection) -> Result<LayerProof> {
    let ours = CodedLayer::read(source, linear)?;
    let trained = match &ours {
        Some(layer) => layer.weight(),
        None => source.weight(linear)?.into_floats(),
    };
    let level = match (&ours, CodedLayer::read(written, linear)?) {
        (Some(ours), Some(theirs)) => match *ours == theirs {
            true => Level::E2,
            false => Level::None,
        },
        (ours, _) => {
            let is_same = same_bits(&written.weight(linear)?.into_floats(), &trained);
            let below = match (ours, written.unpacked(linear)?) {
                (Some(ours), Some(theirs)) => level_of(ours, &theirs),
                // Weights without codes.
                _ => Level::E1,
            };
            if is_same && below == Level::E1 { Level::E2 } else { below }
        }
    };
    if level != Level::E2 {
        let reason = format!("{} reads back as {level}, not E2", linear.name);
        return Err(Error::file(written.path(), reason));
    }
    let exact = FloatType::ALL.into_iter().filter(|kind| kind.first_lost(&trained).is_none());
    Ok(LayerProof {
        name: linear.name.clone(),
        bits: ours.as_ref().map(|layer| layer.bits),
        group_size: ours.as_ref().map(|layer| layer.group_size),
        level,
        exact_in: exact.map(FloatType::name).collect(),
    })
}

/// What integers and grid of a file have of a trained layer.
fn level_of(ours: &CodedLayer, theirs: &Unpacked) -> Level {
    let groups = theirs.groups();
    let columns = ours.in_features;
    let places = |at: usize| {
        let (row, input) = (at / columns, at % columns);
        (at / ours.group_size, row * groups + theirs.group_of[input])
    };
    if theirs.codes.len() != ours.codes.len() {
        return Level::None;
    }
    let same_code = |at: usize| {
        let (our_place, their_place) = places(at);
        let (our_code, their_code) = (i16::from(ours.codes[at]), theirs.codes[at]);
        match (&ours.zero, &theirs.shift) {
            (Zero::Codes(zeros), Shift::ZeroPoint(points)) => {
                our_code - i16::from(zeros[our_place]) == their_code - points[their_place]
            }
            (_, Shift::Bias(_)) => our_code == their_code,
            _ => false,
        }
    };
    let same_grid = |at: usize| {
        let (our_place, their_place) = places(at);
        let scale = ours.scale[our_place];
        let exact = match (&ours.zero, &theirs.shift) {
            (_, Shift::ZeroPoint(_)) => {
                return scale.to_bits() == theirs.scale[their_place].to_bits();
            }
            (Zero::Codes(zeros), _) => -f64::from(zeros[our_place]) * f64::from(scale),
            (Zero::Real(zeros), _) => -f64::from(zeros[our_place]) * f64::from(scale),
            (Zero::Offset(offset), _) => {
                f64::from(offset[our_place]) - f64::from(ours.middle()) * f64::from(scale)
            }
        };
        let Shift::Bias(bias) = &theirs.shift else { return false };
        scale.to_bits() == theirs.scale[their_place].to_bits() && bias[their_place] == exact as f32
    };
    let every = |same: &dyn Fn(usize) -> bool| (0..ours.codes.len()).all(same);
    match every(&same_code) {
        false => Level::None,
        true if every(&same_grid) => Level::E1,
        true => Level::E0,
    }
}

fn same_bits(left: &[f32], right: &[f32]) -> bool {
    left.len() == right.len()
        && left.iter().zip(right).all(|(left, right)| left.to_bits() == right.to_bits())
}
