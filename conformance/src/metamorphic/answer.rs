//! An answer, and how far right answers may lie from it.

use std::cell::OnceCell;

use super::trial::{Checked, Stop, unusable};
use crate::case::Request;
use crate::judge::bound::{Bounds, Evidence};
use crate::ops::{Class, TensorSpec};
use crate::precision::{Precision, Unit};
use crate::tensor::{Data, Tensor, Tensors};

/// A request and what the subject answered.
pub(super) struct Answer {
    pub request: Request,
    pub outputs: Tensors,
    specs: Vec<TensorSpec>,
    bounds: OnceCell<Bounds>,
}

/// Values with the derived distance at which a right answer may lie from each.
pub(super) struct Bounded {
    pub value: Tensor,
    pub allowed: Tensor,
}

impl Bounded {
    /// The same change of the values and of what is allowed.
    pub fn changed(&self, change: impl Fn(&Tensor) -> Tensor) -> Self {
        let absolute = |tensor: Tensor| wide(tensor.shape(), tensor.values().map(f64::abs));
        Self { value: change(&self.value), allowed: absolute(change(&self.allowed)) }
    }

    /// The sum, and one rounding of it here.
    pub fn plus(&self, other: &Self) -> Self {
        let sums = || self.value.values().zip(other.value.values()).map(|(a, b)| a + b);
        let allowed = self.allowed.values().zip(other.allowed.values()).map(|(a, b)| a + b);
        let rounded = allowed.zip(sums()).map(|(allowed, sum)| allowed + rounding(sum));
        let shape = self.value.shape();
        Self { value: wide(shape, sums()), allowed: wide(shape, rounded) }
    }

    /// Times a number, and one rounding of it here.
    pub fn times(&self, factor: f64) -> Self {
        let shape = self.value.shape();
        let products = || self.value.values().map(|x| x * factor);
        let allowed = self.allowed.values().zip(products());
        let allowed = allowed.map(|(allowed, x)| allowed * factor.abs() + rounding(x));
        Self { value: wide(shape, products()), allowed: wide(shape, allowed) }
    }
}

fn wide(shape: &[usize], values: impl Iterator<Item = f64>) -> Tensor {
    Tensor::from_f64s(shape.to_vec(), values, Precision::F64)
}

fn rounding(value: f64) -> f64 {
    2_f64.powi(-53) * value.abs()
}

/// Precision of the arithmetic behind a stored type.
fn unit_of(tensor: &Tensor, precision: Precision) -> Precision {
    match tensor.data() {
        Data::F64(_) => Precision::F64,
        Data::F32(_) | Data::F16(_) | Data::Bf16(_) => Precision::F32,
        Data::I8(_) | Data::U8(_) | Data::I32(_) => precision,
    }
}

/// What storing a result in a narrow type adds.
fn narrowing(tensor: &Tensor, value: f64) -> f64 {
    match tensor.data() {
        Data::F16(_) => 2_f64.powi(-11) * value.abs() + 2_f64.powi(-25),
        Data::Bf16(_) => 2_f64.powi(-8) * value.abs() + 2_f64.powi(-134),
        _ => 0.0,
    }
}

impl Answer {
    /// Outputs that were found complete.
    pub fn new(request: Request, outputs: Tensors, specs: Vec<TensorSpec>) -> Self {
        Self { request, outputs, specs, bounds: OnceCell::new() }
    }

    /// Whether an output is one without a sum: codes, and what is copied.
    pub fn is_integral(&self, name: &str) -> bool {
        let spec = self.specs.iter().find(|spec| *spec.name == *name);
        spec.is_some_and(|spec| {
            matches!(spec.class, Class::Codes | Class::Chosen | Class::Choices(_) | Class::Exact)
        })
    }

    /// The outputs that were answered, as the registry has them.
    pub fn specs(&self) -> impl Iterator<Item = &TensorSpec> {
        self.specs.iter().filter(|spec| self.outputs.contains_key(&*spec.name))
    }

    /// An output that [`Trial::ask`] has found there.
    pub fn output(&self, name: &str) -> &Tensor {
        &self.outputs[name]
    }

    /// The same where it lost nothing on the way out, so that it can be computed with again.
    pub fn full(&self, name: &str) -> Checked<&Tensor> {
        let tensor = self.output(name);
        match tensor.data() {
            Data::F16(_) | Data::Bf16(_) => {
                Err(Stop::Skip(format!("{} answers in {}", self.request.op.name, tensor.dtype())))
            }
            _ => Ok(tensor),
        }
    }

    /// An output with the operation's derived allowances, on the codes that the subject answered.
    pub fn bounded(&self, name: &str, precision: Precision) -> Checked<Bounded> {
        let op = self.request.op;
        let actual = self.output(name);
        let bounds = match self.bounds.get() {
            Some(bounds) => bounds,
            None => {
                let bounds = self.derive(precision).map_err(unusable(op))?;
                self.bounds.get_or_init(|| bounds)
            }
        };
        let allowance = bounds
            .get(name)
            .ok_or_else(|| unusable(op)(format!("no allowance is derived for out.{name}")))?;
        let allowed = allowance.bound.iter().zip(actual.values());
        let allowed = allowed.map(|(bound, value)| bound + narrowing(actual, value));
        let shape = actual.shape();
        Ok(Bounded { value: wide(shape, actual.values()), allowed: wide(shape, allowed) })
    }

    fn derive(&self, precision: Precision) -> Result<Bounds, String> {
        let mut request = self.request.to_precision(Precision::F64);
        // A grid that the subject chose is the one that its weights lie on.
        for spec in request.op.outputs.iter().filter(|spec| matches!(spec.class, Class::Grid(_))) {
            if let Some(chosen) = self.outputs.get(&*spec.name) {
                let chosen = chosen.to_precision(Precision::F64);
                request.inputs.insert(spec.name.to_string(), chosen);
            }
        }
        let codes = self.outputs.get("codes").and_then(Tensor::small_integers);
        let floats = self.outputs.values().map(|tensor| unit_of(tensor, precision));
        let evidence = Evidence {
            request: &request,
            expected: &self.outputs,
            actual: &self.outputs,
            codes: codes.as_deref(),
            unit: Unit::of(floats.min().unwrap_or(precision)),
        };
        (request.op.bounds)(&evidence)
    }
}
