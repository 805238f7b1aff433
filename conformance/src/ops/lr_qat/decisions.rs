//! What the subject's rounding errors leave open: what is stored of a weight, the code, the mask.
//!
//! The quotient `weight / initial_scale` is rounded once, and a float or an integer is stored of
//! it. Where the error of the quotient reaches a tie of the stored type, the subject may have
//! stored the neighbour, a whole step of that type away, and everything that follows is as if it
//! had been given so: an element has one argument for each value that may have been stored. Each
//! argument carries the error of the update and of its own sum,
//!
//! ```text
//! error = gamma(rank + 2) * |lora_scaling| * (|lora_b| @ |lora_a|) + roundoff * |argument|
//! ```
//!
//! and zero where every step is exact in binary32: then a tie goes to the even code.

use ndarray::{Array2, Zip};
use plumbline_reference::methods::lr_qat::downcast;
use plumbline_reference::spec::{
    Downcast, InnerScale, LrQatDialect, LrQatMask, LrQatSpec, QuantSpec, SCALE_FLOOR,
};

use super::where_given;
use crate::case::Request;
use crate::ops::quantizer::Steps;
use crate::params;
use crate::precision::Unit;

/// A number of binary64 and how far the subject's may be from it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Near {
    pub steps: Steps,
    pub error: f64,
}

impl Near {
    fn within(value: f64, error: f64) -> Self {
        let steps = Steps::start(value);
        let exact_in_f32 = steps.exact_in_f32 && error == 0.0;
        Self { steps: Steps { exact_in_f32, ..steps }, error }
    }

    fn quotient(weight: f64, scale: f64, unit: Unit) -> Self {
        let (divisor, roundings) =
            if scale < SCALE_FLOOR { (SCALE_FLOOR, 2.0) } else { (scale, 1.0) };
        let steps = Steps::start(weight).over(Steps::start(divisor));
        let exact = steps.exact_in_f32 || weight == 0.0;
        let error = if exact { 0.0 } else { unit.gamma(roundings) * steps.value.abs() + unit.tiny };
        Self { steps, error }
    }

    /// The sum, rounded where it does not fit.
    fn plus(self, other: Self, unit: Unit) -> Self {
        let steps = self.steps.plus(other.steps);
        let inherited = self.error + other.error;
        let own = if steps.exact_in_f32 {
            0.0
        } else {
            unit.roundoff * (steps.value.abs() + inherited) + unit.tiny
        };
        Self { steps, error: inherited + own }
    }

    /// The number itself and both ends of where the subject's may lie.
    fn reach(self) -> [f64; 3] {
        let value = self.steps.value;
        [value, value - self.error, value + self.error]
    }
}

/// What may have been stored of every weight.
pub(super) struct StoredWeights {
    /// Values after the up-cast, that of binary64 first; more than one where the type is narrow and
    /// the quotient lies beside one of its ties.
    pub phi: Array2<Vec<f64>>,
    /// Bound of the difference to the first value, where the type is that of the computation.
    pub error: Array2<f64>,
}

impl StoredWeights {
    /// # Errors
    /// One line naming the tensor or parameter that is missing or wrong.
    pub fn new(
        request: &Request,
        grid: &QuantSpec,
        kind: Downcast,
        unit: Unit,
    ) -> Result<Self, String> {
        let weight: Array2<f64> = request.array("weight")?;
        let scale: Array2<f64> = request.array("initial_scale")?;
        let zero_point: Option<Array2<f64>> = where_given(request, "zero_point")?;
        let zero_point = zero_point.as_ref().map(|zero_point| zero_point.view());
        let quotient = Array2::from_shape_fn(weight.dim(), |(o, i)| {
            Near::quotient(weight[[o, i]], scale[[o, i / grid.group_size()]], unit)
        });
        let ones = Array2::ones(scale.dim());
        let of_quotient = |which: usize| {
            let moved = quotient.mapv(|quotient| quotient.reach()[which]);
            downcast(moved.view(), ones.view(), zero_point, grid, kind)
                .map(|stored| stored.phi)
                .map_err(|e| e.to_string())
        };
        if kind == Downcast::F32 {
            let phi = of_quotient(0)?.mapv(|phi| vec![phi]);
            return Ok(Self { phi, error: quotient.mapv(|quotient| quotient.error) });
        }
        let mut phi = of_quotient(0)?.mapv(|phi| vec![phi]);
        for which in [1, 2] {
            Zip::from(&mut phi).and(&of_quotient(which)?).for_each(|phi, &other| {
                if !phi.contains(&other) {
                    phi.push(other);
                }
            });
        }
        Ok(Self { phi, error: Array2::zeros(weight.dim()) })
    }
}

/// One weight of a layer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Element {
    /// The code in binary64.
    pub code: f64,
    /// Every code that the subject may have, that one among them.
    pub codes: Vec<f64>,
    /// Whether the gradient passes in binary64.
    pub in_range: bool,
    /// Whether the subject may have decided otherwise.
    pub mask_open: bool,
    /// The weight over the trained scale where the inner scale is live, else 0.
    pub live_inner: f64,
    /// Bound of its difference.
    pub live_inner_error: f64,
}

impl Element {
    /// Whether another code is possible.
    pub fn is_open(&self) -> bool {
        self.codes.len() > 1
    }

    /// Largest distance to another possible code.
    pub fn span(&self) -> f64 {
        self.codes.iter().fold(0.0, |span, code| (code - self.code).abs().max(span))
    }
}

/// A layer in binary64, and what is open in it.
pub(super) struct Decisions {
    pub spec: LrQatSpec,
    /// `[out, groups]`, raised to the floor.
    pub scale: Array2<f64>,
    /// `[out, groups]`, whether the floor raised it.
    pub raised: Array2<bool>,
    /// `[out, in]`
    pub elements: Array2<Element>,
}

impl Decisions {
    /// # Errors
    /// One line naming the tensor or parameter that is missing or wrong.
    pub fn new(request: &Request, unit: Unit) -> Result<Self, String> {
        let weight: Array2<f64> = request.array("weight")?;
        let given_scale: Array2<f64> = request.array("scale")?;
        let zero_point: Option<Array2<f64>> = where_given(request, "zero_point")?;
        let spec = params::lr_qat(&request.params, weight.ncols())?;
        let grid = *spec.grid();
        let stored = match spec.inner_scale() {
            InnerScale::Frozen(kind) => Some(StoredWeights::new(request, &grid, kind, unit)?),
            InnerScale::Live => None,
        };
        let update = Update::read(request, unit)?;
        let elements = Array2::from_shape_fn(weight.dim(), |(o, i)| {
            let at = [o, i / grid.group_size()];
            let low = zero_point.as_ref().map_or(f64::from(grid.qmin()), |z| 0.0 - z[at]);
            let ends = (low, low + f64::from(grid.bits().unsigned_max()));
            let inner: Vec<Near> = match &stored {
                None => vec![Near::quotient(weight[[o, i]], given_scale[at], unit)],
                Some(stored) => {
                    let error = stored.error[[o, i]];
                    stored.phi[[o, i]].iter().map(|phi| Near::within(*phi, error)).collect()
                }
            };
            let live = stored.is_none().then(|| inner[0]);
            let decided = decide(&spec, &inner, update.at(o, i), ends, unit);
            Element {
                live_inner: live.map_or(0.0, |inner| inner.steps.value),
                live_inner_error: live.map_or(0.0, |inner| inner.error),
                ..decided
            }
        });
        let raised = given_scale.mapv(|scale| scale < SCALE_FLOOR);
        let scale = given_scale.mapv(|scale| scale.max(SCALE_FLOOR));
        Ok(Self { spec, scale, raised, elements })
    }

    /// The scale of a weight.
    pub fn scale_of(&self, o: usize, i: usize) -> f64 {
        self.scale[[o, i / self.spec.grid().group_size()]]
    }

    /// `code * scale` with the given codes, or with those of binary64.
    pub fn weights(&self, codes: Option<&[i16]>) -> Array2<f64> {
        let in_features = self.elements.ncols();
        Array2::from_shape_fn(self.elements.dim(), |(o, i)| {
            let own = codes.and_then(|codes| codes.get(o * in_features + i));
            let code = own.map_or(self.elements[[o, i]].code, |code| f64::from(*code));
            code * self.scale_of(o, i)
        })
    }

    /// Roundings of `code * scale`, and one for a scale that is the rounded floor.
    pub fn roundings(&self) -> f64 {
        if self.raised.iter().any(|raised| *raised) { 2.0 } else { 1.0 }
    }
}

struct Update {
    lora_a: Array2<f64>,
    lora_b: Array2<f64>,
    lora_scaling: f64,
    unit: Unit,
}

impl Update {
    fn read(request: &Request, unit: Unit) -> Result<Self, String> {
        Ok(Self {
            lora_a: request.array("lora_a")?,
            lora_b: request.array("lora_b")?,
            lora_scaling: params::lora_scaling(&request.params)?,
            unit,
        })
    }

    /// Roundings: `rank` of products and sums, the multiplier and its constant.
    fn at(&self, o: usize, i: usize) -> Near {
        let (mut sum, mut magnitude) = (Steps::start(0.0), 0.0);
        for (b, a) in self.lora_b.row(o).iter().zip(self.lora_a.column(i)) {
            sum = sum.plus(Steps::start(*b).times(Steps::start(*a)));
            magnitude += (a * b).abs();
        }
        let steps = sum.times(Steps::start(self.lora_scaling));
        let roundings = self.lora_a.nrows() as f64 + 2.0;
        let error = if steps.exact_in_f32 {
            0.0
        } else {
            self.unit.gamma(roundings) * magnitude * self.lora_scaling.abs()
                + roundings * self.unit.tiny
        };
        Near { steps, error }
    }
}

/// Codes and mask over every value that may be inside the rounding; the first is binary64's.
fn decide(
    spec: &LrQatSpec,
    inner: &[Near],
    update: Near,
    (low, high): (f64, f64),
    unit: Unit,
) -> Element {
    let mut element: Option<Element> = None;
    for inner in inner {
        let argument = inner.plus(update, unit).reach();
        let rounded = match spec.dialect() {
            LrQatDialect::Paper => argument.map(f64::round_ties_even),
            // An integer is stored: the sum of two integers is exact.
            LrQatDialect::LrQatCode => {
                update.reach().map(|update| inner.steps.value + update.round_ties_even())
            }
        };
        let tested = if spec.mask() == LrQatMask::Rounded { rounded } else { argument };
        let passes = tested.map(|tested| (low..=high).contains(&tested));
        let [code, first, last] = rounded.map(|rounded| rounded.clamp(low, high));
        let element = element.get_or_insert_with(|| Element {
            code,
            codes: Vec::new(),
            in_range: passes[0],
            mask_open: false,
            live_inner: 0.0,
            live_inner_error: 0.0,
        });
        let mut code = first;
        while code <= last {
            if !element.codes.contains(&code) {
                element.codes.push(code);
            }
            code += 1.0;
        }
        let around = tested[1] < low && tested[2] > high;
        element.mask_open |= around || passes.iter().any(|passes| *passes != element.in_range);
    }
    element.expect("a weight has a value")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;
    use crate::params::Params;
    use crate::precision::Precision;
    use crate::tensor::{Data, Tensor};

    fn element(params: &str, weight: f32, initial_scale: f32, update: f32) -> Element {
        let one = |value| Tensor::new(vec![1, 1], Data::F32(vec![value])).unwrap();
        let names = ["weight", "initial_scale", "lora_a", "lora_b", "scale"];
        let inputs = names.into_iter().zip([weight, initial_scale, update, 1.0, 0.5]);
        let request = Request {
            op: ops::find("lr_qat.merge").unwrap(),
            params: Params::from_json(params).unwrap(),
            inputs: inputs.map(|(name, value)| (name.to_owned(), one(value))).collect(),
        };
        let decisions = Decisions::new(&request, Unit::of(Precision::F32)).unwrap();
        decisions.elements[[0, 0]].clone()
    }

    fn params(kind: &str, more: &str) -> String {
        format!(r#"{{"bits": 4, "lora_scaling": 1.0, "downcast": "{kind}"{more}}}"#)
    }

    #[test]
    fn an_exact_tie_leaves_no_choice() {
        let tie = element(&params("int", ""), 1.25, 0.5, 0.5);
        assert_eq!((tie.code, tie.codes), (2.0, vec![2.0]));
        let edge = element(&params("f32", ""), 7.5, 1.0, 0.0);
        assert!(!edge.in_range && !edge.mask_open);
        let edge = element(&params("f32", r#", "mask": "pre_round""#), 7.0, 1.0, 0.0);
        assert!(edge.in_range && !edge.mask_open);
    }

    /// 0.1 is not dyadic: the quotient is rounded, within that of the tie 2.5.
    #[test]
    fn a_stored_code_beside_a_tie_moves_the_sum_by_a_whole_step() {
        let weight = (2.5 * f64::from(0.1_f32)) as f32;
        let open = element(&params("int", ""), weight, 0.1, 0.25);
        let mut codes = open.codes.clone();
        codes.sort_by(f64::total_cmp);
        assert_eq!(codes, [2.0, 3.0]);
        assert_eq!(open.span(), 1.0);
        // The sum of 2 or 3 and 0.75 is 3 or 4, never 2.
        let mut codes = element(&params("int", ""), weight, 0.1, 0.75).codes;
        codes.sort_by(f64::total_cmp);
        assert_eq!(codes, [3.0, 4.0]);
    }

    /// 2.5 + 1/32 is a tie of sixteenths between 2.5 and 2.5625.
    #[test]
    fn a_stored_fraction_beside_a_tie_opens_the_code_where_the_sum_reaches_it() {
        let weight = ((2.5 + 1.0 / 32.0) * f64::from(0.1_f32)) as f32;
        let open = element(&params("fixed8", ""), weight, 0.1, 0.0);
        assert_eq!(open.codes.len(), 2, "2.5 goes to 2 and 2.5625 to 3: {open:?}");
        let closed = element(&params("fixed8", ""), weight, 0.1, 0.25);
        assert_eq!(closed.codes, [3.0]);
        // In the type of the computation nothing is stored, and 2.53 is far from a tie.
        assert_eq!(element(&params("f32", ""), weight, 0.1, 0.0).codes, [3.0]);
    }

    #[test]
    fn an_inexact_argument_at_an_end_opens_the_mask() {
        let weight = (7.5 * f64::from(0.1_f32)) as f32;
        let edge = element(&params("f32", ""), weight, 0.1, 0.0);
        assert!(edge.mask_open);
        assert_eq!(edge.codes, [7.0]);
        let inside = element(&params("f32", r#", "mask": "pre_round""#), weight, 0.1, 0.0);
        assert!(!inside.in_range && !inside.mask_open);
    }

    #[test]
    fn dialects_have_their_own_ties() {
        // 1 + 0.5 is an exact tie of the sum and of the update.
        assert_eq!(element(&params("int", ""), 1.0, 1.0, 0.5).codes, [2.0]);
        let code = params("int", r#", "dialect": "lr_qat_code""#);
        assert_eq!(element(&code, 1.0, 1.0, 0.5).codes, [1.0]);
    }
}
