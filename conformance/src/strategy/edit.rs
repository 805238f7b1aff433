//! Single steps towards a simpler request.

use serde_json::{Value, json};
use std::ops::Range;

use super::slice::{Slice, cuts, slices};
use crate::case::Request;
use crate::tensor::{Data, Tensor};

/// Divisors: a zero in them is no simpler number, it is the floor of the scale.
const DIVISORS: [&str; 2] = ["scale", "initial_scale"];

/// Parts of a tensor that are simplified on their own.
const PARTS: usize = 64;

/// One step. It either makes the request simpler or changes nothing.
#[derive(Debug, Clone)]
pub(super) enum Edit {
    /// Cuts indices off.
    Slice(Slice),
    /// Leaves a parameter to its default.
    DropParam(String),
    /// Replaces a parameter.
    SetParam(String, Value),
    /// Replaces some elements of a tensor.
    Values(String, Change, Range<usize>),
}

/// What becomes of a number.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    /// Zero.
    Zero,
    /// One.
    One,
    /// The number rounded to so many significant bits.
    Bits(u32),
}

/// Every edit of a request, the greediest first.
pub(super) fn edits(request: &Request) -> Vec<Edit> {
    let mut edits: Vec<Edit> = slices(request).into_iter().map(Edit::Slice).collect();
    edits.extend(request.params.0.keys().map(|name| Edit::DropParam(name.clone())));
    for (name, value) in &request.params.0 {
        let simpler = simpler_params(value).into_iter();
        edits.extend(simpler.map(|value| Edit::SetParam(name.clone(), value)));
    }
    let changes = [Change::Zero, Change::One].into_iter().chain([1, 2, 4, 8].map(Change::Bits));
    for change in changes {
        for (name, tensor) in &request.inputs {
            let divides = DIVISORS.contains(&name.as_str());
            if tensor.is_empty() || divides && matches!(change, Change::Zero) {
                continue;
            }
            let parts = cuts(tensor.len()).into_iter();
            let parts = parts.filter(|part| part.len() * PARTS >= tensor.len());
            let parts = std::iter::once(0..tensor.len()).chain(parts);
            edits.extend(parts.map(|part| Edit::Values(name.clone(), change, part)));
        }
    }
    edits
}

/// Values that are simpler than this one, the simplest first.
fn simpler_params(value: &Value) -> Vec<Value> {
    match value {
        Value::Bool(true) => vec![json!(false)],
        Value::Number(number) => match (number.as_u64(), number.as_f64()) {
            (Some(whole), _) => {
                let simpler = [0, 1, 2, 4, whole / 2].into_iter().filter(|n| *n < whole);
                simpler.map(Value::from).collect()
            }
            (None, Some(real)) => {
                let simpler = [0.0, 1.0, to_bits(real, 1)].into_iter();
                simpler.filter(|n| cost(*n) < cost(real)).map(Value::from).collect()
            }
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

impl Edit {
    /// The simpler request, or nothing where the edit changes nothing.
    pub(super) fn apply(&self, request: &Request) -> Option<Request> {
        match self {
            Self::Slice(slice) => slice.apply(request),
            Self::DropParam(name) => {
                let mut edited = request.clone();
                edited.params.0.remove(name).map(|_| edited)
            }
            Self::SetParam(name, value) => {
                let mut edited = request.clone();
                edited.params.0.insert(name.clone(), value.clone());
                Some(edited)
            }
            Self::Values(name, change, part) => {
                let tensor = request.inputs.get(name)?;
                let simpler = change.apply(tensor, part.clone())?;
                let mut edited = request.clone();
                edited.inputs.insert(name.clone(), simpler);
                Some(edited)
            }
        }
    }
}

impl Change {
    /// The tensor with the change in this part, where that makes its numbers simpler.
    fn apply(self, tensor: &Tensor, part: Range<usize>) -> Option<Tensor> {
        let mut changed = tensor.clone();
        let of = |value: f64| match self {
            Self::Zero => 0.0,
            Self::One => 1.0,
            Self::Bits(bits) => to_bits(value, bits),
        };
        // A number that would become less simple stays as it is.
        let simpler = |value: f64| Some(of(value)).filter(|new| cost(*new) < cost(value));
        fn each<T: Copy>(
            values: Option<&mut [T]>,
            to: impl Fn(T) -> f64,
            from: impl Fn(f64) -> T,
            simpler: impl Fn(f64) -> Option<f64>,
        ) -> bool {
            let mut any = false;
            for value in values.into_iter().flatten() {
                if let Some(new) = simpler(to(*value)) {
                    *value = from(new);
                    any = true;
                }
            }
            any
        }
        let any = match changed.data_mut() {
            Data::F64(x) => each(x.get_mut(part), |x| x, |x| x, simpler),
            Data::F32(x) => each(x.get_mut(part), f64::from, |x| x as f32, simpler),
            Data::F16(x) => each(x.get_mut(part), f64::from, half::f16::from_f64, simpler),
            Data::Bf16(x) => each(x.get_mut(part), f64::from, half::bf16::from_f64, simpler),
            Data::I8(x) => each(x.get_mut(part), f64::from, |x| x as i8, simpler),
            Data::U8(x) => each(x.get_mut(part), f64::from, |x| x as u8, simpler),
            Data::I32(x) => each(x.get_mut(part), f64::from, |x| x as i32, simpler),
        };
        any.then_some(changed)
    }
}

/// How far a number is from being simple: its digits, its exponent and its sign. Zero costs
/// nothing.
fn cost(value: f64) -> u32 {
    if value == 0.0 {
        return u32::from(value.is_sign_negative());
    }
    if !value.is_finite() {
        return u32::MAX;
    }
    let digits = 53 - (value.to_bits() & ((1 << 52) - 1) | 1 << 52).trailing_zeros();
    digits + exponent(value).unsigned_abs() + u32::from(value < 0.0)
}

/// `floor(log2 |value|)` of a normal number.
fn exponent(value: f64) -> i32 {
    ((value.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

/// Rounded to so many significant bits.
fn to_bits(value: f64, bits: u32) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let quantum = 2_f64.powi(exponent(value) + 1 - bits as i32);
    (value / quantum).round_ties_even() * quantum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simple_numbers_cost_less() {
        let ascending = [0.0, 1.0, 2.0, 4.0, 5.0, 0.1];
        assert!(ascending.is_sorted_by(|a, b| cost(*a) < cost(*b)));
        assert!(cost(-1.0) > cost(1.0) && cost(-0.0) > cost(0.0));
    }

    #[test]
    fn rounding_to_bits_keeps_the_size() {
        assert_eq!((to_bits(0.3, 1), to_bits(-0.3, 2), to_bits(7.0, 2)), (0.25, -0.25, 8.0));
        assert_eq!((to_bits(5.0, 3), to_bits(0.0, 1)), (5.0, 0.0));
    }
}
