//! One trial of a property: drawing a request, asking the subject, comparing what it answered.

use serde_json::json;

use super::along::Along;
use super::answer::{Answer, Bounded};
use super::tensors::bits;
use super::violation::{Difference, Violation};
use crate::case::Request;
use crate::judge;
use crate::ops::Operation;
use crate::precision::{Precision, Unit};
use crate::sampler::Sampler;
use crate::subject::{Subject, SubjectError};
use crate::tensor::Tensor;

/// How two results must be equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Equal {
    /// Bit for bit, whatever the order of a sum. A zero has no sign.
    Bits,
    /// Bit for bit where the order of an element's sum depends neither on the place of the element
    /// nor on what else is in the batch, which [`Options::one_order`] asks for; else within the
    /// bounds.
    OneOrder,
    /// Within the derived bounds of both.
    Bounds,
}

impl Equal {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bits => "bits",
            Self::OneOrder => "one order",
            Self::Bounds => "bounds",
        }
    }
}

/// What all trials of a run share.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The same seed gives the same requests.
    pub seed: u64,
    /// Trials of each property on each of its operations.
    pub count: u64,
    /// How often determinism runs the same request.
    pub repeats: usize,
    /// Rows, tokens and inputs are drawn up to about this number.
    pub size: usize,
    /// Whether the subject promises that the order of a sum depends neither on its place nor on the
    /// batch.
    pub one_order: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 0, count: 20, repeats: 20, size: 40, one_order: false }
    }
}

/// What was looked at: a property that compares nothing claims nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Elements that were compared.
    pub compared: usize,
    /// Arguments beyond the grid, in requests whose codes were compared.
    pub clipped: usize,
    /// Arguments that are exact ties between two codes.
    pub ties: usize,
}

/// Why a trial did not pass.
#[derive(Debug, Clone)]
pub enum Stop {
    /// The subject does not do this.
    Skip(String),
    /// The property does not hold.
    Fail(Violation),
}

/// What a step of a trial comes to.
pub type Checked<T = ()> = Result<T, Stop>;

/// An error of the tool itself: the reference or a bound refuses what was drawn.
pub(super) fn unusable(op: &Operation) -> impl Fn(String) -> Stop {
    let op = op.name;
    move |what| Stop::Fail(Violation::Answer { op, what: format!("unusable trial: {what}") })
}

/// Operations whose requests stay as they are drawn: their tensors fit together in other ways than
/// by words, or the search in them is long.
const OF_ONE_SIZE: &[&str] = &["awq.", "gptq.", "svd_init", "loftq_init", "nf4.", "llama."];

/// One trial.
pub struct Trial<'a> {
    subject: &'a mut dyn Subject,
    precision: Precision,
    /// Of the run.
    pub options: Options,
    /// Of this trial alone.
    pub sampler: Sampler,
    /// What was compared so far.
    pub seen: Seen,
}

impl<'a> Trial<'a> {
    pub(super) fn new(
        subject: &'a mut dyn Subject,
        precision: Precision,
        options: Options,
        sampler: Sampler,
    ) -> Self {
        Self { subject, precision, options, sampler, seen: Seen::default() }
    }

    pub(super) fn precision(&self) -> Precision {
        self.precision
    }

    /// A request of the operation as `conform generate` draws it.
    pub(super) fn sample(&mut self, op: &'static Operation) -> Checked<Request> {
        let (params, inputs) = (op.sample)(&mut self.sampler).map_err(unusable(op))?;
        Ok(Request { op, params, inputs })
    }

    /// The same, and in half of the trials with more rows, tokens and groups, as many as fill the
    /// tiles of a kernel and leave a rest: slices of the small request are repeated.
    pub(super) fn draw(&mut self, op: &'static Operation) -> Checked<Request> {
        let mut request = self.sample(op)?;
        let resizable = !OF_ONE_SIZE.iter().any(|family| op.name.starts_with(family));
        if resizable && self.sampler.chance(0.5) {
            for along in [Along::Word("tokens"), Along::Word("out"), Along::Groups] {
                let limit = self.options.size / along.width(&request);
                if along.count(&request) < limit {
                    let count = self.sampler.size(along.count(&request), limit);
                    self.resize(&mut request, along, count);
                }
            }
        }
        Ok(request)
    }

    /// The same with at least so many slices along something.
    pub(super) fn draw_several(
        &mut self,
        op: &'static Operation,
        along: Along,
        least: usize,
    ) -> Checked<Request> {
        let mut request = self.draw(op)?;
        if along.count(&request) < least {
            let count = self.sampler.size(least, least + 3);
            self.resize(&mut request, along, count);
        }
        Ok(request)
    }

    fn resize(&mut self, request: &mut Request, along: Along, count: usize) {
        let old = along.count(request);
        if old == 0 {
            return;
        }
        let order: Vec<usize> = (0..count)
            .map(|at| if at < old { at } else { self.sampler.size(0, old - 1) })
            .collect();
        if along == Along::Groups {
            // A row that was one group has several now.
            let group_size = json!(along.width(request));
            request.params.0.insert("group_size".to_owned(), group_size);
        }
        along.take(request, &order);
        if along == Along::KvHeads {
            let kv_heads = Along::Word("kv_heads").count(request);
            let heads = Along::Word("heads").count(request);
            request.params.0.insert("kv_heads".to_owned(), json!(kv_heads));
            request.params.0.insert("heads".to_owned(), json!(heads));
        }
    }

    /// A random order that is not the given one, where there is another.
    pub(super) fn permutation(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, self.sampler.size(0, last));
        }
        if order.is_sorted() {
            order.rotate_left(count.min(1));
        }
        order
    }

    /// Runs the subject. Whatever it answers must be complete, of the right shapes, and finite: two
    /// NaNs would be equal bit for bit.
    pub(super) fn ask(&mut self, request: &Request) -> Checked<Answer> {
        let op = request.op;
        let request = request.to_precision(self.precision);
        let tensors = op.tensors(&request.params).map_err(unusable(op))?;
        let sizes = op.check_inputs(&request, &tensors).map_err(unusable(op))?;
        let fail = |what| Stop::Fail(Violation::Answer { op: op.name, what });
        let outputs = match judge::run(self.subject, &request, self.precision) {
            Ok(outputs) => outputs,
            Err(SubjectError::Skip(why)) => return Err(Stop::Skip(why)),
            Err(error) => return Err(fail(error.to_string())),
        };
        for spec in &tensors.outputs {
            let Some(tensor) = outputs.get(&*spec.name) else {
                if spec.optional {
                    continue;
                }
                return Err(fail(format!("out.{} is missing", spec.name)));
            };
            sizes.check_output(spec, tensor).map_err(|what| fail(format!("out.{what}")))?;
            if !spec.kind.accepts(tensor.dtype()) {
                let (is, should) = (tensor.dtype(), spec.kind.expected());
                return Err(fail(format!("out.{} has dtype {is}, expected {should}", spec.name)));
            }
            if let Some(place) = tensor.first_non_finite() {
                let (index, value) = (tensor.position(place), tensor.value(place));
                return Err(fail(format!("out.{}{index:?} is {value}", spec.name)));
            }
        }
        self.look(&request);
        Ok(Answer::new(request, outputs, tensors.outputs))
    }

    /// Counts clipped arguments and exact ties, where the operation has one grid for all.
    fn look(&mut self, request: &Request) {
        let wide = request.to_precision(Precision::F64);
        let grid = request.op.grid.map(|grid| grid(&wide, Unit::of(self.precision)));
        let Some(Ok(grid)) = grid else { return };
        for element in &grid.elements {
            let place = element.argument + element.zero_point;
            self.seen.clipped += usize::from(place < grid.ends.low || place > grid.ends.high);
            let on_tie = element.error == 0.0 && element.nearest_tie(grid.ends).0 == 0.0;
            self.seen.ties += usize::from(on_tie);
        }
    }

    /// Compares an output of two answers, each changed as the property says.
    pub(super) fn compare(
        &mut self,
        equal: Equal,
        name: &str,
        (first, expected): (&Answer, &dyn Fn(&Tensor) -> Tensor),
        (second, found): (&Answer, &dyn Fn(&Tensor) -> Tensor),
    ) -> Checked {
        let op = second.request.op;
        let in_order = equal == Equal::OneOrder && self.options.one_order;
        let by_bits = equal == Equal::Bits || in_order || second.is_integral(name);
        if by_bits {
            let (should, is) = (expected(first.output(name)), found(second.output(name)));
            return self.same(op, name, &should, &is);
        }
        let should = first.bounded(name, self.precision)?.changed(expected);
        let is = second.bounded(name, self.precision)?.changed(found);
        self.close(op, name, &should, &is)
    }

    /// Bit for bit; a zero has no sign.
    pub(super) fn same(
        &mut self,
        op: &'static Operation,
        name: &str,
        should: &Tensor,
        is: &Tensor,
    ) -> Checked {
        self.each(op, name, (should, is), |place| {
            (should.value(place) != is.value(place)).then_some(0.0)
        })
    }

    /// Bit for bit, the signs of zeros among them.
    pub(super) fn identical(
        &mut self,
        op: &'static Operation,
        name: &str,
        should: &Tensor,
        is: &Tensor,
    ) -> Checked {
        self.each(op, name, (should, is), |place| {
            (bits(should, place) != bits(is, place)).then_some(0.0)
        })
    }

    /// Within what is allowed to both together.
    pub(super) fn close(
        &mut self,
        op: &'static Operation,
        name: &str,
        should: &Bounded,
        is: &Bounded,
    ) -> Checked {
        self.each(op, name, (&should.value, &is.value), |place| {
            let allowed = should.allowed.value(place) + is.allowed.value(place);
            let difference = (should.value.value(place) - is.value.value(place)).abs();
            // An allowance that is no number excuses nothing.
            let within = difference <= allowed;
            (!within).then_some(allowed)
        })
    }

    /// `excess` is nothing, or what was allowed.
    fn each(
        &mut self,
        op: &'static Operation,
        name: &str,
        (should, is): (&Tensor, &Tensor),
        excess: impl Fn(usize) -> Option<f64>,
    ) -> Checked {
        if should.shape() != is.shape() || should.dtype() != is.dtype() {
            let kind = |tensor: &Tensor| format!("{} {:?}", tensor.dtype(), tensor.shape());
            let what = format!("{name} is {}, the property says {}", kind(is), kind(should));
            return Err(Stop::Fail(Violation::Answer { op: op.name, what }));
        }
        self.seen.compared += is.len();
        let differing: Vec<(usize, f64)> =
            (0..is.len()).filter_map(|place| excess(place).map(|at| (place, at))).collect();
        let Some(&(place, allowed)) = differing.first() else { return Ok(()) };
        Err(Stop::Fail(Violation::Differs(Box::new(Difference {
            op: op.name,
            tensor: name.to_owned(),
            index: is.position(place),
            should: should.describe(place),
            is: is.describe(place),
            allowed,
            count: differing.len(),
            elements: is.len(),
        }))))
    }
}
