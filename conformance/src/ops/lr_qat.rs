//! `lr_qat.downcast`, `.forward`, `.backward` and `.merge`.

mod bounds;
mod decisions;
mod sample;

use ndarray::Array2;
use plumbline_reference::methods::lr_qat::{LrQat, Stored, downcast};
use plumbline_reference::spec::Downcast;
use std::borrow::Cow;

use super::floor;
use super::row::{
    GROUPS, LORA_A, LORA_B, LOW_RANK, PRODUCT, WEIGHT, Words, X, Y, bounded, bounded_factor, given,
    runs, tensor,
};
use super::{Class, Operation, Shape, TensorSpec, TensorSpecs};
use crate::case::Request;
use crate::params::{self, Params};
use crate::precision::Scalar;
use crate::tensor::{Kind, Tensor, Tensors};

const CHOICES: &[&str] =
    &["bits", "group_size", "lora_scaling", "downcast", "inner_scale", "mask", "dialect"];
const NIBBLES: Words = &["out", "bytes"];
const PHI: &str = "one rounding of the quotient; the same stored value, or its neighbour across a \
                   tie that the quotient leaves open";
const SCALED: &str = "gamma(1) * |code * scale|";
const CODE_SUM: &str = "gamma(terms) * sum |d * slope| + sum |d| * error of the argument";

/// The rows of the registry.
pub(super) static ROWS: &[Operation] = &[
    Operation {
        name: "lr_qat.downcast",
        params: &["bits", "group_size", "downcast"],
        inputs: &[
            given("weight", WEIGHT),
            given("initial_scale", GROUPS),
            optional("zero_point", GROUPS),
        ],
        outputs: &[bounded("phi", WEIGHT, PHI)],
        weights: Some(stored_tensor),
        sizes: downcast_sizes,
        run: runs!(run_downcast),
        grid: None,
        bounds: bounds::downcast,
        sample: sample::downcast,
    },
    Operation {
        name: "lr_qat.forward",
        params: CHOICES,
        inputs: &[
            given("x", X),
            given("weight", WEIGHT),
            optional("initial_scale", GROUPS),
            optional("zero_point", GROUPS),
            given("lora_a", LORA_A),
            given("lora_b", LORA_B),
            given("scale", GROUPS),
        ],
        outputs: &[bounded("y", Y, PRODUCT), codes(), bounded_factor(SCALED)],
        weights: None,
        sizes,
        run: runs!(forward),
        grid: None,
        bounds: bounds::forward,
        sample: sample::forward,
    },
    Operation {
        name: "lr_qat.backward",
        params: CHOICES,
        inputs: &[
            given("x", X),
            given("weight", WEIGHT),
            optional("initial_scale", GROUPS),
            optional("zero_point", GROUPS),
            given("lora_a", LORA_A),
            given("lora_b", LORA_B),
            given("scale", GROUPS),
            given("d_y", Y),
        ],
        outputs: &[
            bounded("d_x", X, PRODUCT),
            bounded("d_lora_a", LORA_A, LOW_RANK),
            bounded("d_lora_b", LORA_B, LOW_RANK),
            bounded("d_scale", GROUPS, CODE_SUM),
        ],
        weights: None,
        sizes,
        run: runs!(backward),
        grid: None,
        bounds: |evidence| floor::either_side(evidence, bounds::backward),
        sample: sample::backward,
    },
    Operation {
        name: "lr_qat.merge",
        params: CHOICES,
        inputs: &[
            given("weight", WEIGHT),
            optional("initial_scale", GROUPS),
            optional("zero_point", GROUPS),
            given("lora_a", LORA_A),
            given("lora_b", LORA_B),
            given("scale", GROUPS),
        ],
        outputs: &[
            codes(),
            bounded("scale", GROUPS, "0; one rounding where the scale was raised to its floor"),
        ],
        weights: None,
        sizes,
        run: runs!(merge),
        grid: None,
        bounds: bounds::merge,
        sample: sample::merge,
    },
];

const fn optional(name: &'static str, words: Words) -> TensorSpec {
    TensorSpec {
        name: Cow::Borrowed(name),
        kind: Kind::Float,
        shape: Shape::Words(words),
        optional: true,
        factor: false,
        class: Class::Given,
    }
}

const fn codes() -> TensorSpec {
    tensor("codes", Kind::SignedCodes, Shape::Words(WEIGHT), Class::Chosen)
}

/// What is kept in bytes: nothing for the float types.
fn stored_tensor(params: &Params) -> Result<TensorSpecs, String> {
    let (kind, words) = match params.required("downcast")? {
        Downcast::F32 | Downcast::Bf16 | Downcast::F16 => return Ok(TensorSpecs::default()),
        Downcast::Fixed8 => (Kind::SignedCodes, WEIGHT),
        Downcast::Int => (Kind::UnsignedCodes, NIBBLES),
    };
    let stored = TensorSpec {
        name: Cow::Borrowed("stored"),
        kind,
        shape: Shape::Words(words),
        optional: false,
        factor: false,
        class: Class::Chosen,
    };
    Ok(TensorSpecs { inputs: Vec::new(), outputs: vec![stored] })
}

fn downcast_sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    let mut sizes = super::fake_quantize::sizes(request)?;
    let [_, in_features] = request.sizes("weight")?;
    sizes.push(("bytes", in_features.div_ceil(2)));
    Ok(sizes)
}

fn sizes(request: &Request) -> Result<Vec<(&'static str, usize)>, String> {
    params::lora_scaling(&request.params)?;
    let [_, in_features] = request.sizes("weight")?;
    params::lr_qat(&request.params, in_features)?;
    super::fake_quantize::sizes(request)
}

/// An input that may be left out.
fn where_given<T: Scalar>(request: &Request, name: &str) -> Result<Option<Array2<T>>, String> {
    request.inputs.contains_key(name).then(|| request.array(name)).transpose()
}

fn run_downcast<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let weight: Array2<T> = request.array("weight")?;
    let initial_scale = request.array("initial_scale")?;
    let zero_point = where_given(request, "zero_point")?;
    let kind = request.params.required("downcast")?;
    let grid = params::Quantizer::read(&request.params)?.spec(weight.ncols())?;
    let zero_point = zero_point.as_ref().map(|zero_point| zero_point.view());
    let result = downcast(weight.view(), initial_scale.view(), zero_point, &grid, kind)
        .map_err(|e| e.to_string())?;
    let mut outputs = super::tensors([("phi", Tensor::floats(&result.phi))]);
    let stored = result.stored.map(|stored| match stored {
        Stored::Fixed8(bytes) => Tensor::codes(&bytes),
        Stored::Int(packed) => Tensor::unsigned(&packed),
    });
    outputs.extend(stored.map(|stored| ("stored".to_owned(), stored)));
    Ok(outputs)
}

/// Owns what the reference borrows.
struct Layer<T> {
    weight: Array2<T>,
    initial_scale: Option<Array2<T>>,
    zero_point: Option<Array2<T>>,
    lora_a: Array2<T>,
    lora_b: Array2<T>,
    scale: Array2<T>,
}

impl<T: Scalar> Layer<T> {
    fn read(request: &Request) -> Result<Self, String> {
        Ok(Self {
            weight: request.array("weight")?,
            initial_scale: where_given(request, "initial_scale")?,
            zero_point: where_given(request, "zero_point")?,
            lora_a: request.array("lora_a")?,
            lora_b: request.array("lora_b")?,
            scale: request.array("scale")?,
        })
    }

    fn lr_qat(&self, request: &Request) -> Result<LrQat<'_, T>, String> {
        Ok(LrQat {
            weight: self.weight.view(),
            initial_scale: self.initial_scale.as_ref().map(|scale| scale.view()),
            zero_point: self.zero_point.as_ref().map(|zero_point| zero_point.view()),
            lora_a: self.lora_a.view(),
            lora_b: self.lora_b.view(),
            scale: self.scale.view(),
            lora_scaling: params::lora_scaling(&request.params)?,
            spec: params::lr_qat(&request.params, self.weight.ncols())?,
        })
    }
}

fn forward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let layer = Layer::<T>::read(request)?;
    let x: Array2<T> = request.array("x")?;
    let forward = layer.lr_qat(request)?.forward(x.view()).map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("y", Tensor::floats(&forward.y)),
        ("codes", Tensor::codes(&forward.codes)),
        ("fake_quantized", Tensor::floats(&forward.fake_quantized)),
    ]))
}

fn backward<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let layer = Layer::<T>::read(request)?;
    let (x, d_y): (Array2<T>, Array2<T>) = (request.array("x")?, request.array("d_y")?);
    let gradients = layer.lr_qat(request)?.backward(x.view(), d_y.view());
    let gradients = gradients.map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("d_x", Tensor::floats(&gradients.d_x)),
        ("d_lora_a", Tensor::floats(&gradients.d_lora_a)),
        ("d_lora_b", Tensor::floats(&gradients.d_lora_b)),
        ("d_scale", Tensor::floats(&gradients.d_scale)),
    ]))
}

fn merge<T: Scalar>(request: &Request) -> Result<Tensors, String> {
    let layer = Layer::<T>::read(request)?;
    let merged = layer.lr_qat(request)?.merge().map_err(|e| e.to_string())?;
    Ok(super::tensors([
        ("codes", Tensor::codes(&merged.codes)),
        ("scale", Tensor::floats(&merged.scale)),
    ]))
}
