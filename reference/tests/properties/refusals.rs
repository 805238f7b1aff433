//! Every operation refuses what is not finite, by the tensor's name, and shapes that do not fit.

use ndarray::{Array, ArrayD, ArrayView, Axis, Dimension, IxDyn, array};
use plumbline_reference::Error;
use plumbline_reference::adamw::adamw_step;
use plumbline_reference::attention::{attention, attention_backward};
use plumbline_reference::cross_entropy::{cross_entropy, cross_entropy_backward};
use plumbline_reference::embedding::{embedding, embedding_backward};
use plumbline_reference::init_scale::init_scale;
use plumbline_reference::linear::{linear, linear_backward};
use plumbline_reference::lora::{delta_weight, lora_backward, lora_forward};
use plumbline_reference::methods::l4q::L4q;
use plumbline_reference::nf4;
use plumbline_reference::quantize::{dequantize, fake_quantize, quantize};
use plumbline_reference::rms_norm::{rms_norm, rms_norm_backward};
use plumbline_reference::rope::{rope, rope_backward};
use plumbline_reference::spec::{AdamWSpec, Bits, BlockSize, GradScale, InitScaleRule, QuantSpec};
use plumbline_reference::straight_through::fake_quantize_backward;
use plumbline_reference::swiglu::{swiglu, swiglu_backward};

use crate::inputs::Random;

/// Shapes of one small layer: 2 tokens, 4 inputs in groups of 2, 3 outputs, rank 1.
const X: (&str, &[usize]) = ("x", &[2, 4]);
const D_Y: (&str, &[usize]) = ("d_y", &[2, 3]);
const WEIGHT: (&str, &[usize]) = ("weight", &[3, 4]);
const SCALE: (&str, &[usize]) = ("scale", &[3, 2]);
const OFFSET: (&str, &[usize]) = ("offset", &[3, 2]);
const LORA_A: (&str, &[usize]) = ("lora_a", &[1, 4]);
const LORA_B: (&str, &[usize]) = ("lora_b", &[3, 1]);

fn spec() -> QuantSpec {
    QuantSpec::new(Bits::new(4).unwrap(), Some(2), 4).unwrap()
}

/// The tensors of one call.
struct Tensors(Vec<ArrayD<f64>>);

impl Tensors {
    fn get<D: Dimension>(&self, index: usize) -> ArrayView<'_, f64, D> {
        self.0[index].view().into_dimensionality().unwrap()
    }
}

/// Runs the operation on good tensors, then with each one spoiled.
fn refuses<R>(
    operation: &str,
    shapes: &[(&str, &[usize])],
    run: impl Fn(&Tensors) -> Result<R, Error>,
) {
    let mut random = Random(1);
    let good: Vec<_> =
        shapes.iter().map(|(_, shape)| random.array(IxDyn(shape), 0.5) + 1.0).collect();
    assert!(run(&Tensors(good.clone())).is_ok(), "{operation} on good tensors");
    for (spoiled, (name, shape)) in shapes.iter().enumerate() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut tensors = good.clone();
            *tensors[spoiled].iter_mut().last().unwrap() = bad;
            let Err(Error::NonFinite { operation: seen, tensor, index, value }) =
                run(&Tensors(tensors)).map(|_| ())
            else {
                panic!("{operation} took {bad} in {name}");
            };
            let last: Vec<usize> = shape.iter().map(|length| length - 1).collect();
            assert_eq!((seen, tensor.as_str(), index), (operation, *name, last));
            assert!(value == bad || value.is_nan() && bad.is_nan());
        }
        // One tensor alone has no shape that it must fit, nor has the width of an update.
        if shapes.len() > 1 && operation != "delta_weight" {
            let mut tensors = good.clone();
            let last_axis = Axis(shape.len() - 1);
            let grown = tensors[spoiled].clone();
            tensors[spoiled].append(last_axis, grown.view()).unwrap();
            assert!(
                matches!(run(&Tensors(tensors)).map(|_| ()), Err(Error::Shape { .. })),
                "{operation} took a wider {name}"
            );
        }
    }
}

#[test]
fn quantizer_operations() {
    let forward = [WEIGHT, SCALE, OFFSET];
    refuses("quantize", &forward, |t| quantize(t.get(0), t.get(1), t.get(2), &spec()));
    refuses("fake_quantize", &forward, |t| fake_quantize(t.get(0), t.get(1), t.get(2), &spec()));
    let codes = Array::zeros((3, 4));
    refuses("dequantize", &[SCALE, OFFSET], |t| {
        dequantize(codes.view(), t.get(0), t.get(1), &spec())
    });
    let backward = [WEIGHT, SCALE, OFFSET, ("d_output", WEIGHT.1)];
    refuses("fake_quantize_backward", &backward, |t| {
        let none = GradScale::None;
        fake_quantize_backward(t.get(0), t.get(1), t.get(2), t.get(3), &spec(), none)
    });
    refuses("init_scale", &[WEIGHT], |t| init_scale(t.get(0), &spec(), InitScaleRule::L4q));
}

#[test]
fn a_weight_of_another_width_is_refused() {
    let wide = Array::<f64, _>::ones((3, 6));
    let refused = init_scale(wide.view(), &spec(), InitScaleRule::L4q).unwrap_err();
    assert_eq!(refused.to_string(), "init_scale: weight has shape [3, 6], expected [3, 4]");
}

#[test]
fn low_rank_operations() {
    refuses("delta_weight", &[LORA_A, LORA_B], |t| delta_weight(t.get(0), t.get(1), 2.0));
    let (wide, lora_b) = (array![[1.0, 1.0]], array![[1.0]]);
    assert!(delta_weight(wide.view(), lora_b.view(), 2.0).is_ok());
    assert!(matches!(delta_weight(lora_b.view(), wide.view(), 2.0), Err(Error::Shape { .. })));
    refuses("lora_forward", &[X, WEIGHT, LORA_A, LORA_B], |t| {
        lora_forward(t.get(0), t.get(1), t.get(2), t.get(3), 2.0)
    });
    refuses("lora_backward", &[X, WEIGHT, LORA_A, LORA_B, D_Y], |t| {
        lora_backward(t.get(0), t.get(1), t.get(2), t.get(3), 2.0, t.get(4))
    });
    let one = array![[1.0]];
    for scaling in [f64::NAN, f64::INFINITY] {
        let refused = delta_weight(one.view(), one.view(), scaling).unwrap_err();
        assert!(refused.to_string().starts_with("lora_scaling is"), "{refused}");
    }
}

#[test]
fn codebooks() {
    let blocks = BlockSize::new(4).unwrap();
    refuses("nf4.quantize", &[WEIGHT], |t| nf4::quantize(t.get(0), blocks));
    let codes = Array::zeros((3, 4));
    let absmax = ("absmax", &[3][..]);
    refuses("nf4.dequantize", &[absmax], |t| nf4::dequantize(codes.view(), t.get(0), blocks));
    let more = array![1.0, 2.0];
    let refused = nf4::dequantize(codes.view(), more.view(), blocks).unwrap_err();
    assert_eq!(refused.to_string(), "nf4.dequantize: absmax has shape [2], expected [3]");
    refuses("nf4.double_quantize", &[absmax], |t| nf4::double_quantize(t.get(0)));
    let stored = |scale, offset| nf4::DoubleQuantized {
        absmax_codes: array![127, 127],
        absmax_scale: scale,
        absmax_offset: offset,
    };
    let refused = |stored: nf4::DoubleQuantized<f64>| stored.dequantize().unwrap_err().to_string();
    assert!(refused(stored(array![f64::NAN], 1.0)).contains("absmax_scale[0] is NaN"));
    assert!(refused(stored(array![1.0], f64::INFINITY)).contains("absmax_offset[] is inf"));
    assert!(refused(stored(array![1.0, 1.0], 1.0)).contains("absmax_scale has shape [2]"));
}

/// The generated matrix is made symmetric and definite; the wider one is passed on as it is.
#[cfg(feature = "linalg")]
#[test]
fn gptq_operations() {
    use plumbline_reference::gptq;
    use plumbline_reference::spec::GptqSpec;
    refuses("gptq.hessian", &[X], |t| gptq::hessian(t.get::<ndarray::Ix2>(0)));
    let gptq_spec = GptqSpec::new(spec(), true);
    refuses("gptq.quantize", &[WEIGHT, ("hessian", &[4, 4])], |t| {
        let mut hessian: Array<f64, ndarray::Ix2> = t.get(1).to_owned();
        if hessian.is_square() {
            hessian = &hessian + &hessian.t() + 8.0 * Array::<f64, _>::eye(4);
        }
        gptq::quantize(t.get(0), hessian.view(), &gptq_spec)
    });
}

/// The layer of `[WEIGHT, LORA_A, LORA_B, SCALE, OFFSET]`.
fn layer(t: &Tensors) -> L4q<'_, f64> {
    L4q {
        weight: t.get(0),
        lora_a: t.get(1),
        lora_b: t.get(2),
        scale: t.get(3),
        offset: t.get(4),
        lora_scaling: 2.0,
        spec: spec(),
    }
}

#[test]
fn l4q_operations() {
    let parameters = [WEIGHT, LORA_A, LORA_B, SCALE, OFFSET];
    let with = |more: &[(&'static str, &'static [usize])]| [&parameters[..], more].concat();
    refuses("l4q.merge", &parameters, |t| layer(t).merge());
    refuses("l4q.forward", &with(&[X]), |t| layer(t).forward(t.get(5)));
    refuses("l4q.backward", &with(&[X, D_Y]), |t| {
        layer(t).backward(t.get(5), t.get(6), GradScale::None)
    });
    refuses("l4q.parameter_gradients", &with(&[("d_fake_quantized", WEIGHT.1)]), |t| {
        layer(t).parameter_gradients(t.get(5), GradScale::None)
    });
}

#[test]
fn an_update_that_overflows_is_refused() {
    let big = array![[1e200]];
    let refused = delta_weight(big.view(), big.view(), 1.0).unwrap_err();
    assert_eq!(refused.to_string(), "delta_weight: delta_weight[0, 0] is inf");
}

#[test]
fn linear_and_rms_norm() {
    refuses("linear", &[X, WEIGHT], |t| linear(t.get(0), t.get(1)));
    refuses("linear_backward", &[X, WEIGHT, D_Y], |t| {
        linear_backward(t.get(0), t.get(1), t.get(2))
    });
    let norm = ("weight", &[4][..]);
    refuses("rms_norm", &[X, norm], |t| rms_norm(t.get(0), t.get(1), 1e-5));
    refuses("rms_norm_backward", &[X, norm, ("d_output", X.1)], |t| {
        rms_norm_backward(t.get(0), t.get(1), t.get(2), 1e-5)
    });
}

#[test]
fn rope_and_attention() {
    let heads = &[2, 3, 4][..];
    refuses("rope", &[("x", heads)], |t| rope(t.get(0), 1e4, 0));
    refuses("rope_backward", &[("d_output", heads)], |t| rope_backward(t.get(0), 1e4, 0));
    let (many, few) = (&[1, 2, 4, 2][..], &[1, 2, 2, 2][..]);
    refuses("attention", &[("q", many), ("k", few), ("v", few)], |t| {
        attention(t.get(0), t.get(1), t.get(2))
    });
    let shapes = [("q", many), ("k", few), ("v", few), ("d_output", many)];
    refuses("attention_backward", &shapes, |t| {
        attention_backward(t.get(0), t.get(1), t.get(2), t.get(3))
    });
}

#[test]
fn swiglu_and_the_two_ends() {
    let shape = &[2, 3][..];
    refuses("swiglu", &[("gate", shape), ("up", shape)], |t| swiglu(t.get(0), t.get(1)));
    refuses("swiglu_backward", &[("gate", shape), ("up", shape), ("d_output", shape)], |t| {
        swiglu_backward(t.get(0), t.get(1), t.get(2))
    });
    let tokens = array![[0, 1]];
    refuses("embedding", &[("table", shape)], |t| embedding(tokens.view(), t.get(0)));
    refuses("embedding_backward", &[("d_output", &[1, 2, 3])], |t| {
        embedding_backward(tokens.view(), t.get(0), 2)
    });
    let targets = array![0, 2];
    refuses("cross_entropy", &[("logits", shape)], |t| {
        cross_entropy(t.get(0), targets.view(), -100)
    });
    refuses("cross_entropy_backward", &[("logits", shape)], |t| {
        cross_entropy_backward(t.get(0), targets.view(), -100)
    });
    let short = array![0];
    let refused = cross_entropy(array![[0.0], [0.0]].view(), short.view(), -100).unwrap_err();
    assert_eq!(refused.to_string(), "cross_entropy: targets has shape [1], expected [2]");
}

#[test]
fn adamw() {
    let shape = &[2, 3][..];
    let shapes = ["parameter", "gradient", "first_moment", "second_moment"];
    let spec = AdamWSpec::new(0.9, 0.999, 1e-8).unwrap();
    refuses("adamw_step", &shapes.map(|name| (name, shape)), |t| {
        adamw_step(t.get(0), t.get(1), t.get(2), t.get(3), &spec, 0.1, 0.01, 1)
    });
}
