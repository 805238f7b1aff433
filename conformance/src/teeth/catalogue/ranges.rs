//! Faults of grids that span a range of what they round: activations, learned clipping, rounding
//! to nearest.

use ndarray::Array2;
use plumbline_reference::spec::QuantSpec;

use super::super::Fault::{Answer, Arithmetic, Request as Asked};
use super::super::Mutant;
use super::super::arithmetic::Slip;
use super::edits::{Edited, as_if, input, output, set_output, set_param, set_unsigned, swap_param};
use super::fault;
use crate::case::Request;
use crate::params::Quantizer;
use crate::tensor::Tensors;

const DYNAMIC: &[&str] = &["dynamic_quantize.forward"];
const DYNAMIC_BACKWARD: &[&str] = &["dynamic_quantize.backward"];
const LWC: &[&str] = &["lwc.forward"];
const LWC_BACKWARD: &[&str] = &["lwc.backward"];
const RTN: &[&str] = &["rtn.quantize"];

/// Faults of activations.
#[rustfmt::skip]
pub(super) static DYNAMIC_MUTANTS: &[Mutant] = &[
    fault("one_grid_for_all_tokens", "extremes of the whole tensor",
        DYNAMIC, &["per_token"], Answer(|r, o| tokens(r, o, |t| span(t, t.all.0, t.all.1), after))),
    fault("tokens_stretched_to_zero", "the range is widened to hold zero",
        DYNAMIC, &["far_from_zero"],
        Answer(|r, o| tokens(r, o, |t| span(t, t.min.min(0.0), t.max.max(0.0)), after))),
    fault("tokens_divided_by_2_to_the_bits", "the range is divided by 2^bits",
        DYNAMIC, &["grid_width"],
        Answer(|r, o| tokens(r, o, |t| {
            let high = t.min + (t.max - t.min) * t.top() / (t.top() + 1.0);
            span(t, t.min, high)
        }, after))),
    fault("tokens_rounded_together", "round(x / scale + zero_point)",
        DYNAMIC, &["rounded_apart"],
        Answer(|r, o| tokens(r, o, |t| span(t, t.min, t.max), |v, z, top| {
            (v + z).round_ties_even().clamp(0.0, top)
        }))),
    fault("extremes_not_clamped", "levels beyond the grid stay there",
        DYNAMIC, &["clipped_extreme"],
        Answer(|r, o| tokens(r, o, |t| span(t, t.min, t.max), |v, z, _| v.round_ties_even() + z))),
    fault("constant_token_at_the_floor", "a token without extent is divided by the scale floor",
        DYNAMIC, &["constant"],
        Answer(|r, o| tokens(r, o, |t| {
            let scale = ((t.max - t.min) / t.top()).max(1e-8);
            (scale, t.rounded(-t.min / scale))
        }, after))),
    fault("zero_point_of_activations_real", "the zero point is not rounded",
        DYNAMIC, &["zero_point_tie"],
        Answer(|r, o| {
            as_if(r, o, &["zero_point", "output"], |r| set_param(r, "zero_point", "float"))
        })),
    fault("zero_point_of_activations_rounded", "a zero point that shall be real is rounded",
        DYNAMIC, &["float_zero_point"],
        Answer(|r, o| {
            as_if(r, o, &["zero_point", "output"], |r| {
                swap_param(r, "zero_point", "float", "integer")
            })
        })),
    fault("tokens_half_away", "ties go away from zero, those of the zero point too",
        DYNAMIC, &["tie", "zero_point_tie"], Arithmetic(Slip::RoundHalfAway)),
    fault("tokens_by_reciprocal", "x * (1 / scale)",
        DYNAMIC, &["true_division"], Arithmetic(Slip::Reciprocal)),
    fault("clipped_tokens_learn", "d_x is d_output everywhere",
        DYNAMIC_BACKWARD, &["unmasked", "clipped_extreme"],
        Answer(|r, o| set_output(o, "d_x", &input(r, "d_output")?))),
    fault("extremes_learn", "a gradient through the extremes of a token",
        DYNAMIC_BACKWARD, &["constants"], Answer(through_extremes)),
    fault("mask_of_a_float_zero_point", "the mask is that of a zero point that is not rounded",
        DYNAMIC_BACKWARD, &["zero_point_tie"],
        Asked(|r| set_param(r, "zero_point", "float"))),
];

/// Faults of learned clipping.
#[rustfmt::skip]
pub(super) static LWC_MUTANTS: &[Mutant] = &[
    fault("clipping_forgotten", "the range is that of the weight",
        LWC, &["sigmoid"], Answer(|r, o| clipped(r, o, |c| c.grid(c.max, c.min), after))),
    fault("logit_for_fraction", "the logit itself in place of its sigmoid",
        LWC, &["sigmoid"],
        Answer(|r, o| clipped(r, o, |c| c.grid(c.upper * c.max, c.lower * c.min), after))),
    fault("logits_exchanged", "upper clips the minimum",
        LWC, &["each_end"], Asked(|r| exchange(r, "upper", "lower"))),
    fault("zero_point_of_the_whole_range", "the zero point comes from the unclipped minimum",
        LWC, &["zero_point"],
        Answer(|r, o| clipped(r, o, |c| {
            let (scale, zero_point) = c.right();
            if c.chosen { (scale, zero_point) } else { (scale, (-c.min / scale).round_ties_even()) }
        }, after))),
    fault("zero_point_held_to_the_grid", "the zero point is clamped to the codes",
        LWC, &["zero_point_range"],
        Answer(|r, o| clipped(r, o, |c| {
            let (scale, zero_point) = c.right();
            (scale, zero_point.clamp(0.0, c.top()))
        }, after))),
    fault("clipped_grid_of_the_other_kind", "a symmetric grid is answered as an asymmetric one",
        LWC, &["symmetric"], Asked(|r| swap_param(r, "symmetric", true, false))),
    fault("clipped_scale_unheld", "a scale beyond 1e-5 is used as it is",
        LWC, &["scale_range"],
        Answer(|r, o| clipped(r, o, |c| {
            let (high, low) = (c.upper_fraction() * c.max, c.lower_fraction() * c.min);
            let scale = ((high - low) / c.top()).max(1e-8);
            if c.chosen { c.right() } else { (scale, (-low / scale).round_ties_even()) }
        }, after))),
    fault("clipped_half_away", "ties go away from zero",
        LWC, &["tie", "zero_point_tie"], Arithmetic(Slip::RoundHalfAway)),
    fault("clipped_rounded_together", "round(weight / scale + zero_point)",
        LWC, &["rounded_apart"],
        Answer(|r, o| {
            clipped(r, o, Range::right, |v, z, top| (v + z).round_ties_even().clamp(0.0, top))
        })),
    fault("clipped_weights_learn", "d_weight is d_output everywhere",
        LWC_BACKWARD, &["unmasked"],
        Answer(|r, o| set_output(o, "d_weight", &input(r, "d_output")?))),
    fault("logit_gradients_exchanged", "d_upper and d_lower change places",
        LWC_BACKWARD, &["each_end"],
        Answer(|_, o| {
            let (upper, lower) = (output(o, "d_upper")?, output(o, "d_lower")?);
            set_output(o, "d_upper", &lower)?;
            set_output(o, "d_lower", &upper)
        })),
    fault("slope_of_the_sigmoid_forgotten", "the gradient of the fraction, not of its logit",
        LWC_BACKWARD, &["sigmoid"], Answer(without_slope)),
    fault("clipped_no_residual", "d_scale without - weight / scale",
        LWC_BACKWARD, &["rounding_residual"], Answer(|r, o| logits(r, o, |steps, _, _| steps))),
    fault("clipped_weights_do_not_move_the_range", "d_scale of weights inside the range alone",
        LWC_BACKWARD, &["rounding_residual"],
        Answer(|r, o| logits(r, o, |steps, v, inside| if inside { steps - v } else { 0.0 }))),
];

/// Faults of rounding to nearest.
#[rustfmt::skip]
pub(super) static RTN_MUTANTS: &[Mutant] = &[
    fault("range_without_zero", "minimum and maximum of the weights alone",
        RTN, &["zero_in_range"], Answer(|r, o| nearest(r, o, |g| g.rtn(g.min, g.max)))),
    fault("range_of_the_tensor", "one range for all groups",
        RTN, &["group_index"],
        Answer(|r, o| nearest(r, o, |g| g.rtn(g.all.0.min(0.0), g.all.1.max(0.0))))),
    fault("largest_weight_for_absmax", "max(w) in place of max(|w|)",
        RTN, &["sign"],
        Answer(|r, o| {
            nearest(r, o, |g| if g.chosen { g.rtn(0.0, g.max.max(0.0)) } else { g.rtn_right() })
        })),
    fault("zero_point_cut", "the zero point is cut to an integer",
        RTN, &["zero_point_rounded"],
        Answer(|r, o| nearest(r, o, |g| {
            let (scale, zero_point) = g.rtn_right();
            let cut = ((-g.min).max(0.0) / scale).floor();
            (scale, if g.chosen { zero_point } else { cut })
        }))),
    fault("zero_point_of_qmax", "a symmetric zero point of 2^(bits-1) - 1",
        RTN, &["zero_point_middle"],
        Answer(|r, o| nearest(r, o, |g| {
            let (scale, zero_point) = g.rtn_right();
            (scale, if g.chosen { zero_point - 1.0 } else { zero_point })
        }))),
    fault("as_many_steps_as_codes", "the range is divided by 2^bits",
        RTN, &["levels"],
        Answer(|r, o| nearest(r, o, |g| {
            let (scale, zero_point) = g.rtn_right();
            let finer = scale * g.top() / (g.top() + 1.0);
            (if g.chosen { scale } else { finer }, zero_point)
        }))),
    fault("group_of_zeros_at_the_floor", "a group without extent gets the scale floor",
        RTN, &["degenerate"],
        Answer(|r, o| nearest(r, o, |g| {
            let (scale, zero_point) = g.rtn_right();
            (if g.min == 0.0 && g.max == 0.0 { 1e-8 } else { scale }, zero_point)
        }))),
    fault("gptq_convention", "2 * absmax over 2^bits - 1 steps",
        RTN, &["convention"], Asked(|r| set_param(r, "convention", "gptq"))),
    fault("paper_convention", "absmax over qmax where the other convention is asked for",
        RTN, &["convention", "gptq_extremes"],
        Asked(|r| swap_param(r, "convention", "gptq", "paper"))),
    fault("asymmetric_for_symmetric", "a symmetric grid is answered as an asymmetric one",
        RTN, &["zero_point_middle"], Asked(|r| swap_param(r, "symmetric", true, false))),
    fault("squares_for_every_exponent", "the error is a sum of squares whatever p is",
        RTN, &["exponent"],
        Asked(|r| if r.params.0.contains_key("p") { set_param(r, "p", 2.0) } else { Ok(()) })),
    fault("no_range_search", "the widest range, without a search",
        RTN, &["clipping_error"],
        Asked(|r| {
            r.params.0.retain(|name, _| name != "p" && name != "steps");
            swap_param(r, "range", "lp", "min_max")
        })),
    fault("nearest_half_away", "ties go away from zero, those of the zero point too",
        RTN, &["tie", "zero_point_tie"], Arithmetic(Slip::RoundHalfAway)),
];

/// What a grid of one group is made of.
struct Range {
    min: f32,
    max: f32,
    /// Of the whole tensor.
    all: (f32, f32),
    upper: f32,
    lower: f32,
    /// The choice that the operation has: symmetric, or a real zero point.
    chosen: bool,
    gptq: bool,
    spec: QuantSpec,
}

fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

impl Range {
    fn top(&self) -> f32 {
        self.spec.unsigned_max() as f32
    }

    fn upper_fraction(&self) -> f32 {
        sigmoid(self.upper)
    }

    fn lower_fraction(&self) -> f32 {
        sigmoid(self.lower)
    }

    /// A zero point of activations.
    fn rounded(&self, zero_point: f32) -> f32 {
        if self.chosen { zero_point } else { zero_point.round_ties_even() }
    }

    /// Scale and zero point of learned clipping, from the ends of the clipped range.
    fn grid(&self, high: f32, low: f32) -> (f32, f32) {
        if self.chosen {
            let qmax = self.spec.qmax() as f32;
            return ((high.abs().max(low.abs()) / qmax).clamp(1e-5, 1e4), qmax);
        }
        let scale = ((high - low) / self.top()).clamp(1e-5, 1e4);
        (scale, (-low / scale).clamp(-1e4, 1e4).round_ties_even())
    }

    /// That of the method.
    fn right(&self) -> (f32, f32) {
        self.grid(self.upper_fraction() * self.max, self.lower_fraction() * self.min)
    }

    /// Scale and zero point of rounding to nearest.
    fn rtn(&self, low: f32, high: f32) -> (f32, f32) {
        let absmax = high.max(-low);
        let scale = match (self.chosen, self.gptq) {
            (true, false) => absmax / self.spec.qmax() as f32,
            (true, true) => 2.0 * absmax / self.top(),
            (false, _) => (high - low) / self.top(),
        };
        let scale = if scale == 0.0 { 1.0 } else { scale };
        let middle = -self.spec.qmin() as f32;
        (scale, if self.chosen { middle } else { (-low / scale.max(1e-8)).round_ties_even() })
    }

    fn rtn_right(&self) -> (f32, f32) {
        self.rtn(self.min.min(0.0), self.max.max(0.0))
    }
}

/// Scale and zero point of one token's group between two ends.
fn span(token: &Range, low: f32, high: f32) -> (f32, f32) {
    let scale = match (high > low, low == 0.0) {
        (true, _) => ((high - low) / token.top()).max(1e-8),
        (false, true) => 1.0,
        (false, false) => low.abs().max(1e-8),
    };
    (scale, token.rounded(-low / scale))
}

/// The right level: the zero point is added after rounding.
fn after(quotient: f32, zero_point: f32, top: f32) -> f32 {
    (quotient.round_ties_even() + zero_point).clamp(0.0, top)
}

type GridOf = fn(&Range) -> (f32, f32);
type LevelOf = fn(f32, f32, f32) -> f32;

/// The ranges of a matrix, one for each group.
fn ranges(request: &Request, matrix: &Array2<f32>, chosen: bool) -> Result<Vec<Range>, String> {
    let spec = Quantizer::read(&request.params)?.spec(matrix.ncols())?;
    let ends = |numbers: &[f32]| {
        let low = numbers.iter().copied().fold(f32::INFINITY, f32::min);
        (low, numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max))
    };
    let logits = |name: &str| match request.inputs.contains_key(name) {
        true => Ok(Some(input(request, name)?)),
        false => Ok::<_, String>(None),
    };
    let (upper, lower) = (logits("upper")?, logits("lower")?);
    let flat: Vec<f32> = matrix.iter().copied().collect();
    let gptq = request.params.optional::<String>("convention")?.as_deref() == Some("gptq");
    let groups = flat.chunks(spec.group_size()).enumerate().map(|(n, group)| {
        let (min, max) = ends(group);
        let at = [n / spec.groups(), n % spec.groups()];
        let logit = |logits: &Option<Array2<f32>>| logits.as_ref().map_or(0.0, |all| all[at]);
        let (upper, lower) = (logit(&upper), logit(&lower));
        Range { min, max, all: ends(&flat), upper, lower, chosen, gptq, spec }
    });
    Ok(groups.collect())
}

/// Rounds a matrix once more and answers codes, scale, zero point and output.
fn on_ranges(
    outputs: &mut Tensors,
    matrix: &Array2<f32>,
    ranges: &[Range],
    grid: GridOf,
    level: LevelOf,
) -> Edited {
    let Some(first) = ranges.first() else { return Ok(()) };
    let spec = first.spec;
    let shape = (matrix.nrows(), spec.groups());
    let of = |o: usize, i: usize| o * spec.groups() + i / spec.group_size();
    let grids: Vec<(f32, f32)> = ranges.iter().map(grid).collect();
    let levels = Array2::from_shape_fn(matrix.dim(), |(o, i)| {
        let (scale, zero_point) = grids[of(o, i)];
        level(matrix[[o, i]] / scale.max(1e-8), zero_point, first.top())
    });
    let values = Array2::from_shape_fn(matrix.dim(), |(o, i)| {
        let (scale, zero_point) = grids[of(o, i)];
        scale.max(1e-8) * (levels[[o, i]] - zero_point)
    });
    let part = |f: fn(&(f32, f32)) -> f32| {
        let flat = grids.iter().map(f).collect();
        Array2::from_shape_vec(shape, flat).map_err(|e| e.to_string())
    };
    set_output(outputs, "scale", &part(|grid| grid.0)?)?;
    set_output(outputs, "zero_point", &part(|grid| grid.1)?)?;
    set_output(outputs, "output", &values)?;
    if outputs.contains_key("codes") {
        set_unsigned(outputs, "codes", &levels)?;
    }
    Ok(())
}

fn tokens(request: &Request, outputs: &mut Tensors, grid: GridOf, level: LevelOf) -> Edited {
    let x = input(request, "x")?;
    let rule: Option<String> = request.params.optional("zero_point")?;
    let ranges = ranges(request, &x, rule.as_deref() == Some("float"))?;
    on_ranges(outputs, &x, &ranges, grid, level)
}

fn clipped(request: &Request, outputs: &mut Tensors, grid: GridOf, level: LevelOf) -> Edited {
    let weight = input(request, "weight")?;
    let symmetric = request.params.optional("symmetric")?.unwrap_or(false);
    let ranges = ranges(request, &weight, symmetric)?;
    on_ranges(outputs, &weight, &ranges, grid, level)
}

/// Where no range is searched.
fn nearest(request: &Request, outputs: &mut Tensors, grid: GridOf) -> Edited {
    if request.params.optional::<String>("range")?.as_deref() == Some("lp") {
        return Ok(());
    }
    let weight = input(request, "weight")?;
    let ranges = ranges(request, &weight, request.params.required("symmetric")?)?;
    on_ranges(outputs, &weight, &ranges, grid, after)
}

fn exchange(request: &mut Request, one: &str, other: &str) -> Edited {
    let [first, second] = [one, other].map(|name| request.inputs[name].clone());
    request.inputs.insert(one.to_owned(), second);
    request.inputs.insert(other.to_owned(), first);
    Ok(())
}

/// What a differentiable minimum and maximum would add to `d_x`.
fn through_extremes(request: &Request, outputs: &mut Tensors) -> Edited {
    let (x, d_output, mut d_x) =
        (input(request, "x")?, input(request, "d_output")?, output(outputs, "d_x")?);
    let spec = Quantizer::read(&request.params)?.spec(x.ncols())?;
    for (n, range) in ranges(request, &x, false)?.iter().enumerate() {
        let (t, g) = (n / spec.groups(), n % spec.groups());
        let inputs = g * spec.group_size()..(g + 1) * spec.group_size();
        let (scale, zero_point) = span(range, range.min, range.max);
        let slope = |i: usize| {
            let quotient = x[[t, i]] / scale;
            d_output[[t, i]] * (after(quotient, zero_point, range.top()) - zero_point - quotient)
        };
        let d_scale: f32 = inputs.clone().map(slope).sum();
        for (end, sign) in [(range.max, 1.0), (range.min, -1.0)] {
            if let Some(i) = inputs.clone().find(|&i| x[[t, i]] == end) {
                d_x[[t, i]] += sign * d_scale / range.top();
            }
        }
    }
    set_output(outputs, "d_x", &d_x)
}

fn without_slope(request: &Request, outputs: &mut Tensors) -> Edited {
    for (gradient, logit) in [("d_upper", "upper"), ("d_lower", "lower")] {
        let slope = input(request, logit)?.mapv(|logit| sigmoid(logit) * (1.0 - sigmoid(logit)));
        let without = output(outputs, gradient)? / slope;
        set_output(outputs, gradient, &without)?;
    }
    Ok(())
}

/// Another slope of the scale, from steps, argument and whether it is inside; on the asymmetric
/// grid, and where the scale is the range's own.
fn logits(request: &Request, outputs: &mut Tensors, slope: fn(f32, f32, bool) -> f32) -> Edited {
    if request.params.optional("symmetric")?.unwrap_or(false) {
        return Ok(());
    }
    let (weight, d_output) = (input(request, "weight")?, input(request, "d_output")?);
    let (mut d_upper, mut d_lower) = (output(outputs, "d_upper")?, output(outputs, "d_lower")?);
    let ranges = ranges(request, &weight, false)?;
    for ((o, g), d_upper) in d_upper.indexed_iter_mut() {
        let range = &ranges[o * ranges[0].spec.groups() + g];
        let size = range.spec.group_size();
        let (scale, zero_point) = range.right();
        let d_scale: f32 = (g * size..(g + 1) * size)
            .map(|i| {
                let v = weight[[o, i]] / scale;
                let place = v.round_ties_even() + zero_point;
                let code = place.clamp(0.0, range.top());
                d_output[[o, i]] * slope(code - zero_point, v, place == code)
            })
            .sum();
        let (up, low) = (range.upper_fraction(), range.lower_fraction());
        *d_upper = d_scale / range.top() * range.max * (up * (1.0 - up));
        d_lower[[o, g]] = -d_scale / range.top() * range.min * (low * (1.0 - low));
    }
    set_output(outputs, "d_upper", &d_upper)?;
    set_output(outputs, "d_lower", &d_lower)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;
    use crate::sampler::Sampler;

    type Again = fn(&Request, &mut Tensors) -> Edited;

    /// With the right grid and the right level, what is computed once more is the reference's.
    #[test]
    fn without_a_fault_they_are_the_reference() {
        let right: [(&str, Again); 3] = [
            ("dynamic_quantize.forward", |r, o| {
                tokens(r, o, |token| span(token, token.min, token.max), after)
            }),
            ("lwc.forward", |r, o| clipped(r, o, Range::right, after)),
            ("rtn.quantize", |r, o| nearest(r, o, Range::rtn_right)),
        ];
        for (name, again) in right {
            let op = ops::find(name).unwrap();
            for seed in 0..40 {
                let (params, inputs) = (op.sample)(&mut Sampler::new(seed, name, 0)).unwrap();
                let request = Request { op, params, inputs };
                let reference = (op.run.f32)(&request).unwrap();
                let mut outputs = reference.clone();
                again(&request, &mut outputs).unwrap();
                assert_eq!(outputs, reference, "{name} {seed}");
            }
        }
    }
}
