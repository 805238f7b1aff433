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

#[cfg(test)]
mod tests {
    use super::*;

    fn trained() -> CodedLayer {
        CodedLayer {
            bits: 4,
            out_features: 2,
            in_features: 4,
            group_size: 2,
            codes: vec![0, 15, 8, 3, 7, 7, 1, 2],
            scale: vec![0.5, 0.25, 1.0, 2.0],
            zero: Zero::Codes(vec![8, 0, 15, 7]),
        }
    }

    fn read() -> Unpacked {
        Unpacked {
            codes: trained().codes.iter().map(|code| i16::from(*code)).collect(),
            scale: trained().scale,
            shift: Shift::ZeroPoint(vec![8, 0, 15, 7]),
            group_of: vec![0, 0, 1, 1],
        }
    }

    /// Each level is lost with what it is about, and with nothing else.
    #[test]
    fn a_level_is_lost_with_what_it_is_about() {
        assert_eq!(level_of(&trained(), &read()), Level::E1);
        assert_eq!(read().weight(), trained().weight());
        let mut code = read();
        code.codes[5] += 1;
        assert_eq!(level_of(&trained(), &code), Level::None);
        let mut zero = read();
        let Shift::ZeroPoint(zeros) = &mut zero.shift else { unreachable!() };
        zeros[3] -= 1;
        assert_eq!(level_of(&trained(), &zero), Level::None);
        // Code and zero moved together are the same steps.
        let mut moved = read();
        moved.codes.iter_mut().for_each(|code| *code += 8);
        let Shift::ZeroPoint(zeros) = &mut moved.shift else { unreachable!() };
        zeros.iter_mut().for_each(|zero| *zero += 8);
        assert_eq!(level_of(&trained(), &moved), Level::E1);
        let mut scale = read();
        scale.scale[2] = f32::from_bits(scale.scale[2].to_bits() + 1);
        assert_eq!(level_of(&trained(), &scale), Level::E0);
        // The group of one input is another's.
        let mut group = read();
        group.group_of[1] = 1;
        assert_eq!(level_of(&trained(), &group), Level::None);
    }

    /// With a bias, the product that it stands for.
    #[test]
    fn a_bias_is_the_zero_times_the_scale() {
        let bias =
            |by: f32| Unpacked { shift: Shift::Bias(vec![-4.0, 0.0, -15.0, -14.0 + by]), ..read() };
        assert_eq!(level_of(&trained(), &bias(0.0)), Level::E1);
        assert_eq!(bias(0.0).weight(), trained().weight());
        assert_eq!(level_of(&trained(), &bias(0.5)), Level::E0);
    }
}
