//! Where binary64 puts every quantizer argument, and how far the subject's may be from it.
//!
//! `argument = (weight + lora_scaling * (lora_b @ lora_a) - offset) / scale`, in this order, each
//! step rounded: the contract of every backend. With `n` roundings before the division,
//!
//! ```text
//! error = gamma(n) * (|weight| + |lora_scaling| * (|lora_b| @ |lora_a|) + |offset|) / scale
//!       + 2 * roundoff * |argument|
//! ```
//!
//! Where every step is exact in binary32 the error is zero, so that a tie must go to the even
//! code and an argument on the edge of the grid must pass its gradient.

use ndarray::Array2;
use plumbline_reference::spec::{MaskRule, QuantSpec, SCALE_FLOOR};

use super::zero_point::ZeroPoints;
use crate::case::Request;
use crate::params::{self, Quantizer};
use crate::precision::Unit;
use crate::tensor::Tensor;

/// One weight of a quantizer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Element {
    /// The argument before clamping and rounding.
    pub argument: f64,
    /// Bound of what the subject's argument may differ by.
    pub error: f64,
    /// The integer that is added to the rounded argument; 0 for a signed grid.
    pub zero_point: f64,
    /// The code of the argument.
    pub code: f64,
    /// Whether the mask passes the gradient.
    pub in_range: bool,
    /// Whether the error reaches from the argument to an end of the mask's interval.
    pub at_edge: bool,
}

/// Smallest and largest code of a grid.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ends {
    /// `qmin`, or 0 for an unsigned grid.
    pub low: f64,
    /// `qmax`, or `2^bits - 1` for an unsigned grid.
    pub high: f64,
}

impl Ends {
    /// Those of signed codes.
    pub fn signed(spec: &QuantSpec) -> Self {
        Self { low: f64::from(spec.qmin()), high: f64::from(spec.qmax()) }
    }

    /// Those of unsigned codes.
    pub fn unsigned(spec: &QuantSpec) -> Self {
        Self { low: 0.0, high: f64::from(spec.bits().unsigned_max()) }
    }
}

/// One integer of an answer: what it was rounded from, and which other one is open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// What was rounded.
    pub argument: f64,
    /// Bound of what the subject's argument may differ by.
    pub error: f64,
    /// The integer of the argument.
    pub code: f64,
    /// The integer across the nearest tie.
    pub other: f64,
    /// How far that tie is from the argument.
    pub distance: f64,
    /// Whether an earlier choice of the subject made this another argument than that of the
    /// expected answer, so that `code` and not the expected code is right.
    pub diverged: bool,
}

impl Choice {
    /// An integer that nothing is open about.
    pub fn certain(code: f64) -> Self {
        let (argument, other, distance) = (code, code, f64::INFINITY);
        Self { argument, error: 0.0, code, other, distance, diverged: false }
    }

    /// The nearest of the integers from `ends.low` to `ends.high`.
    pub fn on_grid(argument: f64, error: f64, code: f64, ends: Ends) -> Self {
        let element =
            Element { argument, error, zero_point: 0.0, code, in_range: true, at_edge: false };
        let (distance, other) = element.nearest_tie(ends);
        Self { argument, error, code, other, distance, diverged: false }
    }

    /// The nearest entry of an ascending table, the lower one of two that are equally near.
    pub fn in_table(argument: f64, error: f64, table: &[f64]) -> Self {
        let tie = |k: usize| f64::midpoint(table[k], table[k + 1]);
        let code = (0..table.len() - 1).filter(|k| argument > tie(*k)).count();
        let below = if code > 0 { argument - tie(code - 1) } else { f64::INFINITY };
        let above = if code + 1 < table.len() { tie(code) - argument } else { f64::INFINITY };
        let (distance, other) = if below < above { (below, code - 1) } else { (above, code + 1) };
        let (code, other) = (code as f64, other as f64);
        Self { argument, error, code, other, distance, diverged: false }
    }

    /// Whether the error reaches from the argument to the tie.
    pub fn is_open(&self) -> bool {
        self.error > 0.0 && self.distance <= self.error
    }

    /// Whether the subject may answer this integer.
    pub fn allows(&self, integer: f64) -> bool {
        integer == self.code || self.is_open() && integer == self.other
    }
}

/// A quantizer over one weight matrix, in binary64.
#[derive(Debug, Clone)]
pub struct Grid {
    /// Width and groups.
    pub spec: QuantSpec,
    /// Smallest and largest code.
    pub ends: Ends,
    /// `[out, groups]`, raised to the floor.
    pub scale: Array2<f64>,
    /// `[out, groups]`.
    pub offset: Array2<f64>,
    /// `[out, groups]`, whether the floor raised it.
    pub raised: Array2<bool>,
    /// `[out, in]`.
    pub elements: Array2<Element>,
    /// Zero points that are rounded, where the grid has them.
    pub zero_points: Option<ZeroPoints>,
}

impl Element {
    /// Distance of the argument to the tie between its code and the nearest other code of the
    /// grid, and that other code.
    pub fn nearest_tie(&self, ends: Ends) -> (f64, f64) {
        let place = self.code - self.zero_point;
        let step = if self.argument >= place { 1.0 } else { -1.0 };
        let other = self.code + step;
        if other < ends.low || other > ends.high {
            // Beyond the end of the grid everything has the same code.
            return (f64::INFINITY, self.code);
        }
        ((self.argument - (place + step / 2.0)).abs(), other)
    }

    /// Whether an argument within the error has this code.
    pub fn may_have(&self, code: f64, ends: Ends) -> bool {
        if code == self.code {
            return true;
        }
        let place = code - self.zero_point;
        // Everything beyond the end of the grid has the code of the end.
        let from = if code == ends.low { f64::NEG_INFINITY } else { place - 0.5 };
        let to = if code == ends.high { f64::INFINITY } else { place + 0.5 };
        let on_grid = (ends.low..=ends.high).contains(&code) && code == code.round_ties_even();
        let reached = from <= self.argument + self.error && self.argument - self.error <= to;
        self.error > 0.0 && on_grid && reached
    }

    /// Whether the error reaches from the argument to a tie, so that its code is open.
    pub fn at_tie(&self, ends: Ends) -> bool {
        [self.code - 1.0, self.code + 1.0].iter().any(|code| self.may_have(*code, ends))
    }
}

impl Grid {
    /// Reads `weight`, `scale`, `offset` and, where the operation has them, the low-rank factors.
    ///
    /// # Errors
    /// One line naming the tensor or parameter that is missing or wrong.
    pub fn new(request: &Request, unit: Unit) -> Result<Self, String> {
        Self::with(request, unit, LowRank::read(request)?)
    }

    /// The same without low-rank factors, and with an offset of zero where there is none.
    ///
    /// # Errors
    /// As [`Grid::new`].
    pub fn of_weight(request: &Request, unit: Unit) -> Result<Self, String> {
        Self::with(request, unit, None)
    }

    fn with(request: &Request, unit: Unit, low_rank: Option<LowRank>) -> Result<Self, String> {
        let weight: Array2<f64> = request.array("weight")?;
        let quantizer = Quantizer::read(&request.params)?;
        let spec = quantizer.spec(weight.ncols())?;
        let given_scale: Array2<f64> = request.array("scale")?;
        let offset: Array2<f64> = match request.inputs.contains_key("offset") {
            true => request.array("offset")?,
            false => Array2::zeros(given_scale.dim()),
        };
        let raised = given_scale.mapv(|scale| scale < SCALE_FLOOR);
        let scale = given_scale.mapv(|scale| scale.max(SCALE_FLOOR));
        let (ends, mask) = (Ends::signed(&spec), quantizer.mask);
        let elements = Array2::from_shape_fn(weight.dim(), |(o, i)| {
            let g = i / spec.group_size();
            let place = Place { o, i, unit, raised: raised[[o, g]], ends, mask };
            element(&place, weight[[o, i]], scale[[o, g]], offset[[o, g]], low_rank.as_ref())
        });
        Ok(Self { spec, ends, scale, offset, raised, elements, zero_points: None })
    }

    /// The code of every argument.
    pub fn codes(&self) -> Tensor {
        let codes = self.elements.mapv(|element| element.code);
        if self.ends.low < 0.0 {
            Tensor::codes(&codes.mapv(|code| code as i8))
        } else {
            Tensor::unsigned(&codes.mapv(|code| code as u8))
        }
    }

    /// What is open about each code.
    pub fn choices(&self) -> Vec<Choice> {
        let choice = |e: &Element| Choice::on_grid(e.argument, e.error, e.code, self.ends);
        self.elements.iter().map(choice).collect()
    }

    /// Roundings of `code * scale + offset`, and one for a scale that is the rounded floor.
    pub fn dequantize_roundings(&self) -> f64 {
        if self.raised.iter().any(|raised| *raised) { 3.0 } else { 2.0 }
    }

    /// `(code - zero_point) * scale + offset` with the given codes, or with the argument's own.
    pub fn dequantized(&self, codes: Option<&[i16]>) -> Array2<f64> {
        self.dequantized_with(codes, |product, offset| product + offset)
    }

    /// `|(code - zero_point) * scale| + |offset|`, what the rounding errors of the former are
    /// relative to.
    pub fn dequantized_magnitude(&self, codes: Option<&[i16]>) -> Array2<f64> {
        self.dequantized_with(codes, |product, offset| product.abs() + offset.abs())
    }

    fn dequantized_with(&self, codes: Option<&[i16]>, sum: fn(f64, f64) -> f64) -> Array2<f64> {
        let in_features = self.spec.in_features();
        Array2::from_shape_fn(self.elements.dim(), |(o, i)| {
            let g = i / self.spec.group_size();
            let own = codes.and_then(|codes| codes.get(o * in_features + i));
            let element = &self.elements[[o, i]];
            let code = own.map_or(element.code, |code| f64::from(*code));
            sum((code - element.zero_point) * self.scale[[o, g]], self.offset[[o, g]])
        })
    }
}

struct LowRank {
    lora_a: Array2<f64>,
    lora_b: Array2<f64>,
    lora_scaling: f64,
}

impl LowRank {
    fn read(request: &Request) -> Result<Option<Self>, String> {
        if !request.inputs.contains_key("lora_a") {
            return Ok(None);
        }
        Ok(Some(Self {
            lora_a: request.array("lora_a")?,
            lora_b: request.array("lora_b")?,
            lora_scaling: params::lora_scaling(&request.params)?,
        }))
    }
}

struct Place {
    o: usize,
    i: usize,
    unit: Unit,
    raised: bool,
    ends: Ends,
    mask: MaskRule,
}

fn element(
    place: &Place,
    weight: f64,
    scale: f64,
    offset: f64,
    low_rank: Option<&LowRank>,
) -> Element {
    let mut effective = Steps::start(weight);
    let mut magnitude = weight.abs() + offset.abs();
    let mut roundings = 1.0;
    if let Some(LowRank { lora_a, lora_b, lora_scaling }) = low_rank {
        let mut dot = Steps::start(0.0);
        let mut dot_magnitude = 0.0;
        for r in 0..lora_a.nrows() {
            let (b, a) = (lora_b[[place.o, r]], lora_a[[r, place.i]]);
            dot = dot.plus(Steps::start(b).times(Steps::start(a)));
            dot_magnitude += (b * a).abs();
        }
        effective = effective.plus(dot.times(Steps::start(*lora_scaling)));
        magnitude += lora_scaling.abs() * dot_magnitude;
        // Products and sums of the rank, the scaling and its constant, the sum, the difference.
        roundings = lora_a.nrows() as f64 + 4.0;
    }
    let argument = effective.plus(Steps::start(-offset)).over(Steps::start(scale));
    let value = argument.value;
    let relative = if place.raised { 3.0 } else { 2.0 };
    let unit = place.unit;
    let error = if argument.exact_in_f32 {
        0.0
    } else if low_rank.is_none() {
        unit.gamma(relative) * value.abs() + roundings * unit.tiny / scale
    } else {
        (unit.gamma(roundings) * magnitude + roundings * unit.tiny) / scale
            + relative * unit.roundoff * value.abs()
    };
    let Ends { low: qmin, high: qmax } = place.ends;
    let (in_range, beyond) = match place.mask {
        MaskRule::PreRound => ((qmin..=qmax).contains(&value), 0.0),
        MaskRule::Rounded => ((qmin..=qmax).contains(&value.round_ties_even()), 0.5),
        MaskRule::Open => (qmin < value && value < qmax, 0.0),
    };
    let to_edge = (value - (qmin - beyond)).abs().min((value - (qmax + beyond)).abs());
    Element {
        argument: value,
        error,
        zero_point: 0.0,
        code: value.clamp(qmin, qmax).round_ties_even(),
        in_range,
        at_edge: error > 0.0 && to_edge <= error,
    }
}

/// A chain of operations in binary64 that knows whether binary32 would have computed the same.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    pub(super) value: f64,
    pub(super) exact_in_f32: bool,
}

fn fits_f32(value: f64) -> bool {
    f64::from(value as f32) == value
}

impl Steps {
    pub(super) fn start(value: f64) -> Self {
        Self { value, exact_in_f32: fits_f32(value) }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        let value = self.value + other.value;
        // Knuth's two-sum: what the binary64 sum itself lost.
        let back = value - self.value;
        let lost = (self.value - (value - back)) + (other.value - back);
        let exact = self.exact_in_f32 && other.exact_in_f32 && lost == 0.0 && fits_f32(value);
        Self { value, exact_in_f32: exact }
    }

    pub(super) fn times(self, other: Self) -> Self {
        // The product of two binary32 numbers is exact in binary64.
        let value = self.value * other.value;
        Self { value, exact_in_f32: self.exact_in_f32 && other.exact_in_f32 && fits_f32(value) }
    }

    pub(super) fn over(self, other: Self) -> Self {
        let value = self.value / other.value;
        let exact = self.exact_in_f32
            && other.exact_in_f32
            && fits_f32(value)
            && value * other.value == self.value;
        Self { value, exact_in_f32: exact }
    }

    /// Powers 1 and 2 are exact where the number and its square are; others never.
    pub(super) fn power(self, p: f64) -> Self {
        let value = self.value.powf(p);
        let exact = match p {
            1.0 => self.exact_in_f32,
            2.0 => self.exact_in_f32 && fits_f32(value),
            _ => false,
        };
        Self { value, exact_in_f32: exact }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precision::Precision;

    fn place(ends: Ends) -> Place {
        masked(ends, MaskRule::PreRound)
    }

    fn masked(ends: Ends, mask: MaskRule) -> Place {
        Place { o: 0, i: 0, unit: Unit::of(Precision::F32), raised: false, ends, mask }
    }

    const FOUR_BITS: Ends = Ends { low: -8.0, high: 7.0 };

    #[test]
    fn an_exact_tie_leaves_no_choice() {
        let tie = element(&place(FOUR_BITS), 1.25, 0.5, 0.0, None);
        assert_eq!((tie.argument, tie.error, tie.code), (2.5, 0.0, 2.0));
        assert!(!tie.at_tie(FOUR_BITS));
        let edge = element(&place(FOUR_BITS), 3.5, 0.5, 0.0, None);
        assert!(edge.in_range && !edge.at_edge);
    }

    #[test]
    fn a_large_error_reaches_several_codes_and_the_ends_of_the_grid() {
        let exact = element(&place(FOUR_BITS), 1.0, 0.5, 0.0, None);
        let wide = |argument, code| Element { argument, code, error: 1.2, ..exact };
        let codes = |at: Element| {
            (-9..=8).map(f64::from).filter(|code| at.may_have(*code, FOUR_BITS)).collect::<Vec<_>>()
        };
        assert_eq!(codes(exact), [2.0]);
        assert_eq!(codes(wide(2.0, 2.0)), [1.0, 2.0, 3.0]);
        assert_eq!(codes(wide(2.4, 2.0)), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(codes(wide(7.6, 7.0)), [6.0, 7.0]);
        assert_eq!(codes(wide(7.8, 7.0)), [7.0]);
        assert!(!wide(2.0, 2.0).may_have(2.5, FOUR_BITS));
    }

    #[test]
    fn an_exact_end_belongs_to_the_mask_or_not() {
        // Arguments 7, 7.5 and -8.5: whether pre_round, rounded and open pass them.
        for (weight, passes) in
            [(3.5, [true, true, false]), (3.75, [false; 3]), (-4.25, [false, true, false])]
        {
            let seen = MaskRule::ALL.map(|mask| {
                let element = element(&masked(FOUR_BITS, mask), weight, 0.5, 0.0, None);
                assert!(!element.at_edge);
                element.in_range
            });
            assert_eq!(seen, passes, "{weight}");
        }
    }

    #[test]
    fn a_mask_is_open_where_rounding_errors_reach_its_own_end() {
        let scale = f64::from(0.1_f32);
        for (steps, open) in [(7.0, [true, false, true]), (7.5, [false, true, false])] {
            let weight = f64::from((scale * steps) as f32);
            let seen = MaskRule::ALL
                .map(|mask| element(&masked(FOUR_BITS, mask), weight, scale, 0.0, None).at_edge);
            assert_eq!(seen, open, "{steps}");
        }
    }

    #[test]
    fn an_inexact_quotient_beside_a_tie_may_go_either_way() {
        let scale = f64::from(0.1_f32);
        let weight = f64::from((0.1_f32 * 2.5_f32).next_up());
        let close = element(&place(FOUR_BITS), weight, scale, 0.0, None);
        assert!(close.error > 0.0 && close.error < 1e-6);
        assert!(close.at_tie(FOUR_BITS), "{close:?}");
        assert_eq!(close.nearest_tie(FOUR_BITS).1, 5.0 - close.code);
        let far = element(&place(FOUR_BITS), weight * 1.01, scale, 0.0, None);
        assert!(!far.at_tie(FOUR_BITS));
    }

    #[test]
    fn beyond_the_grid_there_is_no_tie() {
        let clipped =
            element(&place(FOUR_BITS), 7.5 * f64::from(0.1_f32), f64::from(0.1_f32), 0.0, None);
        assert_eq!(clipped.code, 7.0);
        assert_eq!(clipped.nearest_tie(FOUR_BITS).0, f64::INFINITY);
    }

    #[test]
    fn a_table_has_a_tie_between_each_two_entries() {
        let table = [-1.0, 0.0, 0.5, 2.0];
        let codes: Vec<f64> = [-3.0, -0.5, -0.4, 0.25, 0.26, 1.25, 1.26, 9.0]
            .map(|argument| Choice::in_table(argument, 0.0, &table).code)
            .into();
        assert_eq!(codes, [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
        let close = Choice::in_table(1.2, 0.1, &table);
        assert_eq!((close.other, close.is_open()), (3.0, true));
        assert!(close.allows(2.0) && close.allows(3.0) && !close.allows(1.0));
        assert!((close.distance - 0.05).abs() < 1e-15);
        // Exactly known, exactly between: the lower one.
        assert!(!Choice::in_table(1.25, 0.0, &table).allows(3.0));
    }

    #[test]
    fn a_sum_that_binary64_rounds_is_not_exact() {
        let sum = Steps::start(1.0).plus(Steps::start(2_f64.powi(-80)));
        assert!(!sum.exact_in_f32);
        assert!(Steps::start(1.0).plus(Steps::start(2_f64.powi(-20))).exact_in_f32);
        assert!(!Steps::start(1.0).over(Steps::start(3.0)).exact_in_f32);
        assert!(Steps::start(0.75).over(Steps::start(0.25)).exact_in_f32);
    }
}
