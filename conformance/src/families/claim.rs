//! What a case claims to have, and the proof on its binary64 evidence.

use half::{bf16, f16};
use std::collections::BTreeSet;
use std::fmt;

use crate::case::Request;
use crate::judge::bound::Evidence;
use crate::ops::quantizer::Element;
use crate::params;
use crate::precision::{Precision, Unit};
use crate::tensor::{Data, Tensor, Tensors};
use crate::witness::{Place, Witness, groups, is_zero, tie};

/// A property of a case without which it tests nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Claim {
    /// Some argument lies beyond an end of the grid.
    Clipped,
    /// Some argument lies between the ends.
    Inside,
    /// Some argument lies exactly halfway between two codes, with an odd or even integer below it,
    /// above or below zero.
    Tie {
        /// Whether the integer below is odd.
        odd: bool,
        /// Whether the argument is below zero.
        negative: bool,
    },
    /// Some argument is exactly the lowest and some is the highest code.
    OnBothEnds,
    /// Some argument is exactly half a step beyond each end.
    HalfBeyondBothEnds,
    /// A row has nothing but arguments beyond the ends.
    RowClipped,
    /// This output is not zero throughout.
    NonZero(&'static str),
    /// This output is zero throughout, and that is the point.
    Zero(&'static str),
    /// Every integer from 0 to the largest unsigned code is in this tensor, or every signed one.
    EveryCode(&'static str),
    /// Every finite bf16 number is in this tensor.
    EveryBf16(&'static str),
    /// Every element is halfway between two neighbours of the narrow type `dtype`.
    Halfway(&'static str),
    /// Some scale is raised to the floor.
    FloorScale,
    /// A group of this tensor repeats one number that is not zero.
    ConstantGroup(&'static str),
    /// A group of this tensor is zero.
    ZeroGroup(&'static str),
    /// In a group of this tensor one element is a thousand times as large as any other.
    Outlier(&'static str),
    /// Some element of this tensor is below the normal binary32 numbers.
    Subnormal(&'static str),
    /// Some element of this tensor is a negative zero.
    NegativeZero(&'static str),
    /// The low-rank update takes away all but a thousandth of some weight.
    Cancels,
    /// This axis of this tensor has this size.
    Size(&'static str, usize, usize),
    /// A row has so many groups.
    Groups(usize),
    /// Some target of the loss does not count.
    Ignored,
    /// This tensor reaches this magnitude.
    Reaches(&'static str, f64),
    /// Sums of integers that stay below `2^24`: every order gives the same, and equality is due.
    Exact,
    /// The request must be refused, with this text in the message.
    Refused(&'static str),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tie { odd, negative } => {
                let (parity, sign) =
                    (if *odd { "odd" } else { "even" }, if *negative { "below" } else { "above" });
                write!(f, "tie over an {parity} integer {sign} zero")
            }
            Self::NonZero(name) => write!(f, "{name} not zero"),
            Self::Zero(name) => write!(f, "{name} zero"),
            Self::EveryCode(name) => write!(f, "every code in {name}"),
            Self::EveryBf16(name) => write!(f, "every bf16 in {name}"),
            Self::Halfway(dtype) => write!(f, "halfway between numbers of {dtype}"),
            Self::ConstantGroup(name) => write!(f, "constant group of {name}"),
            Self::ZeroGroup(name) => write!(f, "zero group of {name}"),
            Self::Outlier(name) => write!(f, "outlier in {name}"),
            Self::Subnormal(name) => write!(f, "subnormal {name}"),
            Self::NegativeZero(name) => write!(f, "negative zero in {name}"),
            Self::Size(name, axis, size) => write!(f, "{name} axis {axis} of {size}"),
            Self::Groups(count) => write!(f, "{count} groups"),
            Self::Reaches(name, magnitude) => write!(f, "{name} reaches {magnitude:e}"),
            Self::Refused(text) => write!(f, "refused with {text:?}"),
            Self::Clipped => f.write_str("clipped"),
            Self::Inside => f.write_str("inside"),
            Self::OnBothEnds => f.write_str("on both ends"),
            Self::HalfBeyondBothEnds => f.write_str("half a step beyond both ends"),
            Self::RowClipped => f.write_str("row clipped"),
            Self::FloorScale => f.write_str("scale below its floor"),
            Self::Cancels => f.write_str("update cancels a weight"),
            Self::Ignored => f.write_str("ignored target"),
            Self::Exact => f.write_str("exact in every order"),
        }
    }
}

impl Claim {
    /// Whether the request has what is claimed; a claim of a refusal is checked by running it.
    ///
    /// # Errors
    /// Where the evidence is missing: a vacuous case, or a claim that does not fit the operation.
    pub fn check(&self, witness: &Witness) -> Result<(), String> {
        if self.holds(witness)? {
            return Ok(());
        }
        let op = witness.request.op.name;
        Err(format!("{op} claims {self}, and the f64 evidence shows nothing of it"))
    }

    fn holds(&self, witness: &Witness) -> Result<bool, String> {
        let tensor = |name: &str| {
            let none = || format!("{} has no {name} to claim anything of", witness.request.op.name);
            witness.tensor(name).ok_or_else(none)
        };
        let output = |name: &str| {
            let none = || format!("{} has no output {name}", witness.request.op.name);
            witness.outputs.get(name).ok_or_else(none)
        };
        Ok(match *self {
            Self::Clipped
            | Self::Inside
            | Self::Tie { .. }
            | Self::OnBothEnds
            | Self::HalfBeyondBothEnds
            | Self::RowClipped
            | Self::FloorScale
            | Self::Groups(_) => self.holds_on_grid(witness)?,
            Self::NonZero(name) => output(name)?.values().any(|value| value != 0.0),
            Self::Zero(name) => is_zero(output(name)?),
            Self::EveryCode(name) => has_every_code(witness, tensor(name)?),
            Self::EveryBf16(name) => has_every_bf16(tensor(name)?),
            Self::Halfway(dtype) => tensor("input")?.values().all(|value| is_halfway(value, dtype)),
            Self::ConstantGroup(name) => some_group(witness, tensor(name)?, |group| {
                group.len() > 1 && group[0] != 0.0 && group.iter().all(|x| *x == group[0])
            }),
            Self::ZeroGroup(name) => {
                some_group(witness, tensor(name)?, |group| group.iter().all(|x| *x == 0.0))
            }
            Self::Outlier(name) => some_group(witness, tensor(name)?, has_outlier),
            Self::Subnormal(name) => {
                let smallest = f64::from(f32::MIN_POSITIVE);
                tensor(name)?.values().any(|x| x != 0.0 && x.abs() < smallest)
            }
            Self::NegativeZero(name) => {
                tensor(name)?.values().any(|x| x == 0.0 && x.is_sign_negative())
            }
            Self::Size(name, axis, size) => tensor(name)?.shape().get(axis) == Some(&size),
            Self::Ignored => {
                let ignored = witness.request.params.number("ignore_index")?;
                tensor("targets")?.values().any(|target| target == ignored)
            }
            Self::Reaches(name, magnitude) => {
                tensor(name)?.values().any(|value| value.abs() >= magnitude)
            }
            Self::Cancels => cancels(&witness.request)?,
            Self::Exact => is_exact(witness)?,
            Self::Refused(_) => return Err("the request was answered".to_owned()),
        })
    }

    fn holds_on_grid(&self, witness: &Witness) -> Result<bool, String> {
        let none = || format!("{} has no grid to claim anything of", witness.request.op.name);
        let grid = witness.grid.as_ref().ok_or_else(none)?;
        let place = |element: &Element| Place::of(element, grid);
        let at = |code: f64| {
            grid.elements.iter().any(|e| e.error == 0.0 && e.argument + e.zero_point == code)
        };
        let ends = grid.ends;
        Ok(match *self {
            Self::Clipped => grid.elements.iter().any(|e| place(e) == Place::Beyond),
            Self::Inside => grid.elements.iter().any(|e| place(e) == Place::Inside),
            Self::Tie { odd, negative } => grid
                .elements
                .iter()
                .filter_map(|e| tie(e, grid))
                .any(|tie| tie.odd == odd && tie.negative == negative),
            Self::OnBothEnds => at(ends.low) && at(ends.high),
            Self::HalfBeyondBothEnds => at(ends.low - 0.5) && at(ends.high + 0.5),
            Self::RowClipped => grid
                .elements
                .rows()
                .into_iter()
                .any(|row| !row.is_empty() && row.iter().all(|e| place(e) == Place::Beyond)),
            Self::FloorScale => grid.raised.iter().any(|raised| *raised),
            Self::Groups(count) => grid.scale.ncols() == count,
            _ => false,
        })
    }
}

fn some_group(witness: &Witness, tensor: &Tensor, has: impl Fn(&[f64]) -> bool) -> bool {
    let values: Vec<f64> = tensor.values().collect();
    groups(&witness.request, tensor).into_iter().any(|group| has(&values[group]))
}

fn has_outlier(group: &[f64]) -> bool {
    let mut sizes: Vec<f64> = group.iter().map(|x| x.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    matches!(sizes[..], [.., second, first] if second > 0.0 && first >= 1000.0 * second)
}

fn has_every_code(witness: &Witness, tensor: &Tensor) -> bool {
    let Ok(bits) = witness.request.params.required::<u32>("bits") else { return false };
    let count = 1_i64 << bits;
    let low = if matches!(tensor.data(), Data::I8(_)) { -count / 2 } else { 0 };
    let found: BTreeSet<i64> = tensor.values().map(|value| value as i64).collect();
    found.iter().copied().eq(low..low + count)
}

fn has_every_bf16(tensor: &Tensor) -> bool {
    let found: BTreeSet<u16> = tensor
        .values()
        .filter(|x| f64::from(bf16::from_f64(*x)) == *x)
        .map(|x| bf16::from_f64(x).to_bits())
        .collect();
    // Two exponents of 2^7 patterns each are infinities and NaN.
    found.len() == (1 << 16) - 2 * (1 << 7)
}

/// The next number of a narrow type towards and away from zero are equally near.
fn is_halfway(value: f64, dtype: &str) -> bool {
    let magnitude = value.abs();
    let [below, above] = if dtype == "bf16" {
        let near = bf16::from_f64(magnitude).to_bits();
        let low = near - u16::from(f64::from(bf16::from_bits(near)) > magnitude);
        [low, low + 1].map(|bits| f64::from(bf16::from_bits(bits)))
    } else {
        let near = f16::from_f64(magnitude).to_bits();
        let low = near - u16::from(f64::from(f16::from_bits(near)) > magnitude);
        [low, low + 1].map(|bits| f64::from(f16::from_bits(bits)))
    };
    magnitude - below == above - magnitude && below < above
}

/// Of some weight that is not zero, a thousandth or less is left beside the update.
fn cancels(request: &Request) -> Result<bool, String> {
    let array = |name: &str| request.array::<f64, ndarray::Ix2>(name);
    let (weight, lora_a, lora_b) = (array("weight")?, array("lora_a")?, array("lora_b")?);
    let left = &weight + &(lora_b.dot(&lora_a) * params::lora_scaling(&request.params)?);
    let mut pairs = weight.iter().zip(&left);
    Ok(pairs.any(|(weight, left)| *weight != 0.0 && left.abs() * 1000.0 <= weight.abs()))
}

/// Whether every input and output is an integer and the sum of the absolute values of the terms of
/// every output stays below `2^24`. Then every partial sum is an integer that binary32 holds, in
/// whatever order the terms are added, and with a fused multiply-add as without.
fn is_exact(witness: &Witness) -> Result<bool, String> {
    let Witness { request, outputs, .. } = witness;
    let whole = |tensor: &Tensor| tensor.values().all(|x| x == x.round_ties_even());
    let numbers = request.params.0.values().filter_map(serde_json::Value::as_f64);
    let whole_params = numbers.clone().all(|x| x == x.round_ties_even());
    Ok(whole_params
        && request.inputs.values().all(whole)
        && outputs.values().all(whole)
        && largest_terms(request, outputs)? < 2_f64.powi(24))
}

/// The largest sum of absolute terms of any output. An allowance is at least one rounding of it.
fn largest_terms(request: &Request, outputs: &Tensors) -> Result<f64, String> {
    let unit = Unit::of(Precision::F32);
    let evidence = Evidence { request, expected: outputs, actual: outputs, codes: None, unit };
    let bounds = (request.op.bounds)(&evidence)?;
    let allowed = bounds.values().flat_map(|allowance| allowance.bound.iter().copied());
    Ok(allowed.fold(0.0, f64::max) / unit.roundoff)
}
