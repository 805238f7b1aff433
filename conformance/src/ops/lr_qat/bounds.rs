//! Allowances of LR-QAT.

use ndarray::Array2;
use plumbline_reference::pack::unpack_signed;
use plumbline_reference::spec::{Downcast, InnerScale, PackedBits, QuantSpec};

use super::decisions::{Decisions, Element, StoredWeights};
use super::where_given;
use crate::case::Request;
use crate::judge::bound::{Allowance, Bounds, Evidence, named};
use crate::ops::l4q::absolute;
use crate::params::{self, Quantizer};

/// No difference at all, but the values that are open, of which there is more than one.
fn one_of<'a>(choices: impl Iterator<Item = &'a Vec<f64>>) -> Allowance {
    let mut allowance = Allowance::default();
    for (index, choices) in choices.enumerate() {
        allowance.bound.push(0.0);
        if choices.len() > 1 {
            allowance.open += 1;
            allowance.alternatives.extend(choices.iter().map(|choice| (index, *choice)));
        }
    }
    allowance
}

/// How the values of one downcast are stored.
struct Storage {
    grid: QuantSpec,
    kind: Downcast,
    /// `[out, groups]`, what is taken from a value before it is stored.
    shift: Array2<f64>,
}

impl Storage {
    fn read(request: &Request) -> Result<Self, String> {
        let [rows, in_features] = request.sizes("weight")?;
        let grid = Quantizer::read(&request.params)?.spec(in_features)?;
        let zero_point: Option<Array2<f64>> = where_given(request, "zero_point")?;
        let shift = match zero_point {
            Some(zero_point) => zero_point.mapv(|z| -f64::from(grid.qmin()) - z),
            None => Array2::zeros((rows, grid.groups())),
        };
        Ok(Self { grid, kind: request.params.required("downcast")?, shift })
    }

    /// Steps of the stored integers in one step of the grid.
    fn unit(&self) -> f64 {
        if self.kind == Downcast::Fixed8 {
            2_f64.powi(8 - self.grid.bits().count() as i32)
        } else {
            1.0
        }
    }

    fn integer(&self, o: usize, i: usize, phi: f64) -> f64 {
        (phi - self.shift[[o, i / self.grid.group_size()]]) * self.unit()
    }

    /// The weight that stored bytes stand for.
    fn read_back(&self, bytes: &[i16]) -> Result<Array2<f64>, String> {
        let shape = (self.shift.nrows(), self.grid.in_features());
        let integers = if self.kind == Downcast::Fixed8 {
            Array2::from_shape_fn(shape, |(o, i)| f64::from(bytes[o * shape.1 + i]))
        } else {
            let row_bytes = shape.1.div_ceil(2);
            let packed = Array2::from_shape_fn((shape.0, row_bytes), |(o, k)| {
                bytes[o * row_bytes + k] as u8
            });
            let nibbles = PackedBits::new(4).map_err(|e| e.to_string())?;
            let codes = unpack_signed(packed.view(), nibbles, shape.1);
            codes.map_err(|e| e.to_string())?.mapv(f64::from)
        };
        let at = |o: usize, i: usize| self.shift[[o, i / self.grid.group_size()]];
        Ok(Array2::from_shape_fn(shape, |(o, i)| integers[[o, i]] / self.unit() + at(o, i)))
    }

    /// Bytes for every value that may be stored; two nibbles combine freely.
    fn bytes(&self, phi: &Array2<Vec<f64>>) -> Vec<Vec<f64>> {
        let integers = Array2::from_shape_fn(phi.dim(), |(o, i)| -> Vec<f64> {
            phi[[o, i]].iter().map(|phi| self.integer(o, i, *phi)).collect()
        });
        if self.kind == Downcast::Fixed8 {
            return integers.into_iter().collect();
        }
        let nibble = |integer: &f64| integer.rem_euclid(16.0);
        let mut bytes = Vec::new();
        for row in integers.rows() {
            for pair in row.to_vec().chunks(2) {
                let padding = vec![0.0];
                let high = pair.get(1).unwrap_or(&padding);
                let low = pair[0].iter().map(nibble);
                bytes.push(
                    low.flat_map(|low| high.iter().map(move |h| low + 16.0 * nibble(h))).collect(),
                );
            }
        }
        bytes
    }
}

/// One rounding in the type of the computation; in a narrow type the values that are open, and
/// after `stored`, the value that was chosen there.
pub(super) fn downcast(evidence: &Evidence) -> Result<Bounds, String> {
    let request = evidence.request;
    let storage = Storage::read(request)?;
    let weights = StoredWeights::new(request, &storage.grid, storage.kind, evidence.unit)?;
    let phi = match storage.kind {
        Downcast::F32 => Allowance::absolute(weights.error),
        Downcast::Bf16 | Downcast::F16 => one_of(weights.phi.iter()),
        Downcast::Fixed8 | Downcast::Int => {
            let mut phi = Allowance::absolute(std::iter::repeat_n(0.0, weights.phi.len()));
            if let Some(bytes) = evidence.codes {
                phi.replaced = storage.read_back(bytes)?.into_iter().enumerate().collect();
            }
            let stored = one_of(storage.bytes(&weights.phi).iter());
            return Ok(named([("phi", phi), ("stored", stored)]));
        }
    };
    Ok(named([("phi", phi)]))
}

fn codes(decisions: &Decisions) -> Allowance {
    let mut choices: Vec<_> = decisions.elements.iter().map(|e| e.codes.clone()).collect();
    choices.iter_mut().for_each(|codes| codes.sort_by(f64::total_cmp));
    one_of(choices.iter())
}

/// `fake_quantized = code * scale`, one rounding; `y` is `in` products and sums more.
pub(super) fn forward(evidence: &Evidence) -> Result<Bounds, String> {
    let Evidence { request, unit, .. } = *evidence;
    let decisions = Decisions::new(request, unit)?;
    let x: Array2<f64> = request.array("x")?;
    let weights = decisions.weights(evidence.codes);
    let magnitude = weights.mapv(f64::abs);
    let roundings = decisions.roundings();
    let mut fake_quantized = Allowance::of(&magnitude, roundings, unit);
    let condition = x.mapv(f64::abs).dot(&magnitude.t());
    let mut y = Allowance::of(&condition, x.ncols() as f64 + roundings, unit);
    if evidence.codes.is_some() {
        let expected = decisions.weights(evidence.expected_codes().as_deref());
        let changed = weights.iter().zip(&expected).enumerate().filter(|(_, (w, e))| w != e);
        fake_quantized.replaced = changed.map(|(index, (weight, _))| (index, *weight)).collect();
        for ((t, o), value) in x.dot(&weights.t()).indexed_iter() {
            if weights.row(o) != expected.row(o) {
                y.replaced.push((t * weights.nrows() + o, *value));
            }
        }
    }
    let codes = codes(&decisions);
    Ok(named([("y", y), ("codes", codes), ("fake_quantized", fake_quantized)]))
}

/// `d = d_y^T @ x` carries one rounding per token, `d_argument` that of the scale more; the factors
/// contract it over `out` or `in`, times `lora_scaling` (its constant and the product).
pub(super) fn backward(evidence: &Evidence) -> Result<Bounds, String> {
    let Evidence { request, unit, .. } = *evidence;
    let decisions = Decisions::new(request, unit)?;
    let lora_scaling = params::lora_scaling(&request.params)?.abs();
    let [x, d_y, lora_a, lora_b] = absolute(request, ["x", "d_y", "lora_a", "lora_b"])?;
    let tokens = x.nrows() as f64;
    let (out_features, in_features) = decisions.elements.dim();
    let of_scale = decisions.roundings();

    let open_codes = Array2::from_shape_fn(decisions.elements.dim(), |(o, i)| {
        decisions.elements[[o, i]].span() * decisions.scale_of(o, i)
    });
    let d_x_roundings = out_features as f64 + of_scale;
    let weights = decisions.weights(None).mapv(f64::abs);
    let d_x = Allowance::of(&d_y.dot(&weights), d_x_roundings, unit)
        .plus(&(d_y.dot(&open_codes) * (1.0 + unit.gamma(d_x_roundings))));

    let magnitude = d_y.t().dot(&x);
    let select = |keep: fn(&Element) -> bool| {
        Array2::from_shape_fn(magnitude.dim(), |(o, i)| {
            let passes = keep(&decisions.elements[[o, i]]);
            if passes { magnitude[[o, i]] * decisions.scale_of(o, i) } else { 0.0 }
        })
    };
    let passing = select(|element| element.in_range || element.mask_open);
    let open_masks = select(|element| element.mask_open);
    let low_rank = |contract: &dyn Fn(&Array2<f64>) -> Array2<f64>, features: usize| {
        let roundings = tokens + of_scale + features as f64 + 2.0;
        Allowance::of(&(contract(&passing) * lora_scaling), roundings, unit)
            .plus(&(contract(&open_masks) * lora_scaling))
    };
    let d_scale = d_scale(&decisions, &magnitude, tokens, evidence);
    Ok(named([
        ("d_x", Allowance { open: d_scale.open, ..d_x }),
        ("d_lora_a", low_rank(&|d| lora_b.t().dot(d), out_features)),
        ("d_lora_b", low_rank(&|d| d.dot(&lora_a.t()), in_features)),
        ("d_scale", d_scale),
    ]))
}

/// `sum d * slope` over a group: `slope` is the code, or one rounding of the code minus the weight
/// over the live scale; products and sums are `group_size`. An open code makes the slope so much
/// more or less, an open mask adds or takes the weight over the scale.
fn d_scale(
    decisions: &Decisions,
    magnitude: &Array2<f64>,
    tokens: f64,
    evidence: &Evidence,
) -> Allowance {
    let grid = decisions.spec.grid();
    let is_live = decisions.spec.inner_scale() == InnerScale::Live;
    let roundings = tokens + grid.group_size() as f64 + if is_live { 1.0 } else { 0.0 };
    let mut condition = Array2::zeros(decisions.scale.dim());
    let mut extra = Array2::zeros(decisions.scale.dim());
    let mut open = 0;
    for ((o, i), element) in decisions.elements.indexed_iter() {
        open += usize::from(element.mask_open || element.is_open());
        let at = [o, i / grid.group_size()];
        if decisions.raised[at] {
            // A raised scale gets no gradient at all, whatever its elements do.
            continue;
        }
        let d = magnitude[[o, i]];
        let inner = if element.in_range { element.live_inner } else { 0.0 };
        condition[at] += d * (element.code - inner).abs();
        extra[at] += d * element.span();
        if element.in_range || element.mask_open {
            extra[at] += d * element.live_inner_error;
        }
        if element.mask_open {
            extra[at] += d * element.live_inner.abs();
        }
    }
    let allowance = Allowance::of(&condition, roundings, evidence.unit)
        .plus(&(extra * (1.0 + evidence.unit.gamma(roundings))));
    Allowance { open, ..allowance }
}

pub(super) fn merge(evidence: &Evidence) -> Result<Bounds, String> {
    let decisions = Decisions::new(evidence.request, evidence.unit)?;
    let scale = decisions
        .scale
        .iter()
        .zip(&decisions.raised)
        .map(|(scale, raised)| if *raised { evidence.unit.roundoff * scale } else { 0.0 });
    Ok(named([("codes", codes(&decisions)), ("scale", Allowance::absolute(scale))]))
}
