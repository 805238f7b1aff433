//! `rtn.quantize`.
//!
//! Scale and zero point are outputs that codes depend on: class `Grid`. A subject's scale differs
//! in its last bits, so that codes and output are judged on the scale that it answered.

use ndarray::{Array2, ArrayView1};
use plumbline_reference::rtn::rtn;
use plumbline_reference::spec::{QuantSpec, RangeSearch, RtnSpec, SCALE_FLOOR, SymmetricScale};
use serde_json::json;

use super::Operation;
use super::affine::{self, spec_of};
use super::init_scale::{Range, Search, part_of};
use super::quantizer::{Ends, Steps};
use super::row::{WEIGHT, bounded, given, grid, runs, unsigned_codes};
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, named};
use crate::params::{self, Params, Quantizer};
use crate::precision::{Scalar, Unit};
use crate::sampler::Sampler;
use crate::tensor::{Data, Tensor, Tensors};

const SCALE: &str = "gamma(1 to 4) * scale; in lp, that of any range whose error may be the least";
const ZERO_POINT: &str = "0; its neighbour where the quotient may lie on either side of a tie";
const OUTPUT: &str = "gamma(1) * |output|, of the subject's own codes, scale and zero point";

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[Operation {
    name: "rtn.quantize",
    params: &["bits", "group_size", "symmetric", "range", "p", "steps", "convention"],
    inputs: &[given("weight", WEIGHT)],
    outputs: &[
        unsigned_codes(WEIGHT),
        grid("scale", SCALE),
        grid("zero_point", ZERO_POINT),
        bounded("output", WEIGHT, OUTPUT),
    ],
    weights: None,
    sizes,
    run: runs!(run),
    grid: Some(affine::grid),
    bounds,
    sample,
}];

fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    params::rtn(&request.params)?;
    super::fake_quantize::sizes(request)
}

fn run<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let weight: Array2<T> = request.array("weight")?;
    let spec = Quantizer::read(&request.params)?.spec(weight.ncols())?;
    let on_grid =
        rtn(weight.view(), &spec, &params::rtn(&request.params)?).map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("codes", Tensor::unsigned(&on_grid.codes)),
        ("scale", Tensor::floats(&on_grid.scale)),
        ("zero_point", Tensor::floats(&on_grid.zero_point)),
        ("output", Tensor::floats(&on_grid.output)),
    ]))
}

fn bounds(evidence: &Evidence) -> Result<Bounds, String> {
    let Evidence { request, unit, .. } = *evidence;
    let weight: Array2<f64> = request.array("weight")?;
    let spec = Quantizer::read(&request.params)?.spec(weight.ncols())?;
    let rtn = params::rtn(&request.params)?;
    let (mut scale, mut zero_point) = (Allowance::default(), Allowance::default());
    for row in weight.rows() {
        for group in row.to_vec().chunks(spec.group_size()) {
            let group = Group::new(ArrayView1::from(group), spec, rtn, unit);
            let index = scale.bound.len();
            let open = group.open();
            scale.open += usize::from(!open.is_empty());
            for (range, other) in open {
                scale.alternatives.push((index, range));
                zero_point.alternatives.push((index, other));
            }
            scale.bound.push(group.scale_bound());
            zero_point.bound.push(0.0);
        }
    }
    let mut bounds = named([("scale", scale), ("zero_point", zero_point)]);
    // The grid is settled only after its own judgement.
    if request.inputs.contains_key("scale") {
        bounds.insert("output".to_owned(), output_allowance(evidence)?);
    }
    Ok(bounds)
}

/// `scale * (code - zero_point)`: the difference of integers is exact, the product rounds, and
/// where it was raised so does the floor.
fn output_allowance(evidence: &Evidence) -> Result<Allowance, String> {
    let grid = affine::grid(evidence.request, evidence.unit)?;
    let zero_point: Array2<f64> = evidence.request.array("zero_point")?;
    let expected = evidence.expected_codes();
    let codes = evidence.codes.or(expected.as_deref()).ok_or("there are no codes")?;
    let mut allowance = Allowance::default();
    for (index, (o, i)) in ndarray::indices(grid.elements.dim()).into_iter().enumerate() {
        let place = [o, i / grid.spec.group_size()];
        let value = grid.scale[place] * (f64::from(codes[index]) - zero_point[place]);
        let roundings = if grid.raised[place] { 2.0 } else { 1.0 };
        let bound = evidence.unit.gamma(roundings) * value.abs();
        allowance.bound.push(if value == 0.0 { 0.0 } else { bound + evidence.unit.tiny });
        if evidence.codes.is_some() {
            allowance.replaced.push((index, value));
        }
    }
    Ok(allowance)
}

/// One group and how its grid is chosen.
struct Group<'a> {
    weights: ArrayView1<'a, f64>,
    low: f64,
    high: f64,
    spec: QuantSpec,
    rtn: RtnSpec,
    unit: Unit,
}

/// A scale and a zero point that a subject may have computed for one range.
struct Choice {
    scale: Steps,
    zero_point: f64,
}

impl<'a> Group<'a> {
    fn new(weights: ArrayView1<'a, f64>, spec: QuantSpec, rtn: RtnSpec, unit: Unit) -> Self {
        let low = weights.iter().copied().fold(0.0, f64::min);
        let high = weights.iter().copied().fold(0.0, f64::max);
        Self { weights, low, high, spec, rtn, unit }
    }

    fn absmax(&self) -> f64 {
        self.high.max(-self.low)
    }

    /// The range number `k` of `steps`: the scale as the reference computes it.
    fn scale(&self, k: usize, steps: usize) -> Steps {
        let part = |end: f64| {
            // Without a search nothing is multiplied or divided.
            if steps == 1 { Steps::start(end) } else { part_of(k, end, steps) }
        };
        let largest = Steps::start(f64::from(self.spec.unsigned_max()));
        match (self.rtn.symmetric, self.rtn.convention) {
            (true, SymmetricScale::Paper) => {
                part(self.absmax()).over(Steps::start(f64::from(self.spec.qmax())))
            }
            (true, SymmetricScale::Gptq) => {
                Steps::start(2.0).times(part(self.absmax())).over(largest)
            }
            (false, _) => {
                let low = part(self.low);
                part(self.high).plus(Steps { value: -low.value, ..low }).over(largest)
            }
        }
    }

    /// Roundings of that: the division, the difference where there is one (of numbers of unlike
    /// sign, so that relative errors do not grow), and two of a part of the range.
    fn scale_roundings(&self) -> f64 {
        let difference = if self.rtn.symmetric { 0.0 } else { 1.0 };
        let part = if matches!(self.rtn.range, RangeSearch::Lp { .. }) { 2.0 } else { 0.0 };
        1.0 + difference + part
    }

    /// The widest range has the largest error.
    fn scale_bound(&self) -> f64 {
        if self.absmax() == 0.0 {
            // The range gives 0, and the scale is 1 instead.
            return 0.0;
        }
        let roundings = self.scale_roundings();
        self.unit.gamma(roundings) * self.scale(1, 1).value + roundings * self.unit.tiny
    }

    /// The zero points that the quotient `-low / scale` of a range may round to.
    fn choices(&self, k: usize, steps: usize) -> Vec<Choice> {
        let scale = self.scale(k, steps);
        if self.rtn.symmetric {
            return vec![Choice { scale, zero_point: -f64::from(self.spec.qmin()) }];
        }
        let raised = if scale.value < SCALE_FLOOR { Steps::start(SCALE_FLOOR) } else { scale };
        let low = if steps == 1 { Steps::start(self.low) } else { part_of(k, self.low, steps) };
        let quotient = Steps { value: -low.value, ..low }.over(raised);
        let nearest = quotient.value.round_ties_even();
        let mut choices = vec![Choice { scale, zero_point: nearest }];
        // Those of the scale, of a part of the range, and of the quotient.
        let roundings = self.scale_roundings() + 3.0;
        let error = self.unit.gamma(roundings) * quotient.value + self.unit.tiny;
        let to_tie = 0.5 - (quotient.value - nearest).abs();
        if !quotient.exact_in_f32 && to_tie <= error {
            let other = if quotient.value < nearest { nearest - 1.0 } else { nearest + 1.0 };
            choices.push(Choice { scale, zero_point: other });
        }
        choices
    }

    /// Every scale and zero point that a subject's rounding errors may make the choice; none where
    /// there is one choice alone.
    fn open(&self) -> Vec<(f64, f64)> {
        if self.absmax() == 0.0 {
            return Vec::new();
        }
        let RangeSearch::Lp { p, steps } = self.rtn.range else {
            let choices = self.choices(1, 1);
            let open = if choices.len() > 1 { choices } else { Vec::new() };
            return open.iter().map(|choice| (choice.scale.value, choice.zero_point)).collect();
        };
        let mut ranges: Vec<Vec<(Range, f64)>> = Vec::new();
        for k in 1..=steps {
            let choices = self.choices(k, steps).into_iter();
            ranges
                .push(choices.map(|c| (self.search(p, &c).range(c.scale), c.zero_point)).collect());
        }
        let exact = |range: &Vec<(Range, f64)>| range.len() == 1 && range[0].0.error.exact_in_f32;
        if ranges.iter().all(exact) {
            // Nothing was rounded: the first of the least errors is the only answer.
            return Vec::new();
        }
        // Whatever the zero points, some range has an error no larger than this.
        let reachable = ranges
            .iter()
            .map(|range| range.iter().map(|(r, _)| r.error.value + r.slack).fold(0.0, f64::max))
            .fold(f64::INFINITY, f64::min);
        let near: Vec<_> = ranges
            .iter()
            .flatten()
            .filter(|(range, _)| range.error.value - range.slack <= reachable)
            .map(|(range, zero_point)| (range.scale, *zero_point))
            .collect();
        if near.len() > 1 { near } else { Vec::new() }
    }

    fn search(&self, p: f64, choice: &Choice) -> Search<'_> {
        let largest = f64::from(self.spec.unsigned_max());
        Search {
            group: self.weights,
            p,
            ends: Ends { low: -choice.zero_point, high: largest - choice.zero_point },
            scale_roundings: self.scale_roundings(),
            unit: self.unit,
        }
    }
}

/// In every fourth case a lattice whose scale is a power of two, with ties on it.
fn sample(sampler: &mut Sampler) -> Result<(Params, Tensors), String> {
    let shape = sampler.quantizer();
    let spec = spec_of(&shape)?;
    let symmetric = sampler.chance(0.5);
    let convention = sampler.pick(&["paper", "gptq"]);
    let mut params = shape.params();
    params.0.insert("symmetric".to_owned(), json!(symmetric));
    if symmetric && sampler.chance(0.7) {
        params.0.insert("convention".to_owned(), json!(convention));
    }
    if sampler.chance(0.4) {
        params.0.insert("range".to_owned(), json!("lp"));
        params.0.insert("p".to_owned(), json!(sampler.pick(&[1.0, 2.0, 2.4, 3.5])));
        params.0.insert("steps".to_owned(), json!(sampler.pick(&[1, 7, 20])));
    }
    let mut weight = sampler.normal(&shape.weight_shape(), 0.05);
    let lattice = sampler.chance(0.25);
    let zeros = sampler.chance(0.1);
    if let Data::F32(weights) = weight.data_mut() {
        for group in weights.chunks_mut(spec.group_size()) {
            if lattice {
                on_lattice(sampler, group, &spec, symmetric);
            }
        }
        if zeros {
            weights[..spec.group_size()].fill(0.0);
        }
    }
    Ok((params, [("weight".to_owned(), weight)].into()))
}

/// Quarters of a step between extremes that the grid's ends, or half steps beside them, lie on.
fn on_lattice(sampler: &mut Sampler, group: &mut [f32], spec: &QuantSpec, symmetric: bool) {
    let step = 2.0_f64.powi(-(sampler.size(2, 8) as i32));
    let (low, high) = if symmetric {
        (-f64::from(spec.qmax()), f64::from(spec.qmax()))
    } else {
        let low = 0.25 * sampler.size(0, 4 * spec.unsigned_max() as usize) as f64;
        (-low, f64::from(spec.unsigned_max()) - low)
    };
    let quarters = (4.0 * (high - low)) as usize;
    for (index, weight) in group.iter_mut().enumerate() {
        let steps = match index {
            0 => low,
            1 => high,
            _ => low + 0.25 * sampler.size(0, quarters) as f64,
        };
        *weight = (step * steps) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precision::Precision;

    fn open(weights: &[f64], bits: u32, rtn: RtnSpec) -> Vec<(f64, f64)> {
        let params = Params::from_json(&format!(r#"{{"bits": {bits}}}"#)).unwrap();
        let spec = Quantizer::read(&params).unwrap().spec(weights.len()).unwrap();
        Group::new(ArrayView1::from(weights), spec, rtn, Unit::of(Precision::F32)).open()
    }

    const LP: RtnSpec = RtnSpec {
        symmetric: true,
        range: RangeSearch::Lp { p: 2.0, steps: 2 },
        convention: SymmetricScale::Paper,
    };

    #[test]
    fn a_zero_point_is_open_beside_an_inexact_tie_alone() {
        let asymmetric = RtnSpec::default();
        assert!(open(&[-2.5, 12.5], 4, asymmetric).is_empty());
        let step = f64::from(0.1_f32);
        let inexact = [f64::from((-2.5 * step) as f32), f64::from((12.5 * step) as f32)];
        let zero_points: Vec<_> = open(&inexact, 4, asymmetric).iter().map(|open| open.1).collect();
        assert_eq!(zero_points.len(), 2);
        assert!(zero_points.contains(&2.0) && zero_points.contains(&3.0));
        assert!(open(&[-0.31, 0.9], 4, asymmetric).is_empty());
        assert!(open(&[0.0, 0.0], 4, asymmetric).is_empty());
    }

    #[test]
    fn the_search_accepts_only_ranges_that_may_be_the_best() {
        assert!(open(&[0.31, -0.12, 0.05, 0.9], 3, LP).is_empty());
        // Equal errors, nothing rounded: the first range, and no other.
        assert!(open(&[1.0, 0.5], 2, LP).is_empty());
        let third = f64::from(1.0_f32 / 3.0);
        assert_eq!(open(&[2.0 * third, third], 2, LP).len(), 2);
    }
}
