//! Every operation refuses what is not finite, by the tensor's name, and shapes that do not fit.

use ndarray::{Array, Array2, ArrayD, ArrayView, Axis, Dimension, Ix2, IxDyn, array};
use plumbline_reference::Error;
use plumbline_reference::adamw::adamw_step;
use plumbline_reference::affine::{affine_dequantize, affine_quantize};
use plumbline_reference::attention::{attention, attention_backward};
use plumbline_reference::awq::{fold, search_channel_scale, search_clip};
use plumbline_reference::cast::cast;
use plumbline_reference::cross_entropy::{cross_entropy, cross_entropy_backward};
use plumbline_reference::dynamic_quantize::{dynamic_quantize, dynamic_quantize_backward};
use plumbline_reference::embedding::{embedding, embedding_backward};
use plumbline_reference::init_scale::init_scale;
use plumbline_reference::linear::{linear, linear_backward};
use plumbline_reference::lora::{delta_weight, lora_backward, lora_forward};
use plumbline_reference::lwc::Lwc;
use plumbline_reference::methods::l4q::L4q;
use plumbline_reference::methods::lr_qat::{LrQat, downcast};
use plumbline_reference::methods::peqa::Peqa;
use plumbline_reference::methods::qa_lora::QaLora;
use plumbline_reference::methods::qat::Qat;
use plumbline_reference::methods::qat_lora::QatLora;
use plumbline_reference::nf4;
use plumbline_reference::quantize::{dequantize, fake_quantize, quantize};
use plumbline_reference::rms_norm::{rms_norm, rms_norm_backward};
use plumbline_reference::rope::{rope, rope_backward};
use plumbline_reference::round_scale::{round_scale, round_scale_backward};
use plumbline_reference::rtn::rtn;
use plumbline_reference::spec::{
    AdamWSpec, Bits, BlockSize, Downcast, GradScale, GroupPool, InitScaleRule, InnerScale,
    LrQatDialect, LrQatMask, LrQatSpec, QuantSpec, RopeSpec, RtnSpec, ScaleRule, StoredType,
    ZeroPointRule,
};
use plumbline_reference::straight_through::fake_quantize_backward;
use plumbline_reference::swiglu::{swiglu, swiglu_backward};

use crate::inputs::Random;

/// Shapes of one small layer: 2 tokens, 4 inputs in groups of 2, 3 outputs, rank 1.
const X: (&str, &[usize]) = ("x", &[2, 4]);
const D_Y: (&str, &[usize]) = ("d_y", &[2, 3]);
const WEIGHT: (&str, &[usize]) = ("weight", &[3, 4]);
const SCALE: (&str, &[usize]) = ("scale", &[3, 2]);
const OFFSET: (&str, &[usize]) = ("offset", &[3, 2]);
const ZERO_POINT: (&str, &[usize]) = ("zero_point", &[3, 2]);
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
fn unsigned_grids() {
    let zero_point = array![[0.0, 15.0], [8.0, 1.0], [2.0, 7.0]];
    refuses("affine_quantize", &[WEIGHT, SCALE], |t| {
        affine_quantize(t.get(0), t.get(1), zero_point.view(), &spec())
    });
    for (bad, shown) in [(f64::NAN, "NaN"), (f64::INFINITY, "inf"), (f64::NEG_INFINITY, "-inf")] {
        let mut zero_point = zero_point.clone();
        zero_point[[2, 1]] = bad;
        let (weight, scale) = (Array::ones((3, 4)), Array::ones((3, 2)));
        let refused = affine_quantize(weight.view(), scale.view(), zero_point.view(), &spec());
        let expected = format!("affine_quantize: zero_point[2, 1] is {shown}");
        assert_eq!(refused.unwrap_err().to_string(), expected);
    }
    let narrow = Array::<f64, _>::zeros((3, 1));
    let (weight, scale) = (Array::ones((3, 4)), Array::ones((3, 2)));
    let refused = affine_quantize(weight.view(), scale.view(), narrow.view(), &spec());
    assert!(matches!(refused, Err(Error::Shape { .. })));
    let codes = Array::zeros((3, 4));
    refuses("affine_dequantize", &[SCALE, ZERO_POINT], |t| {
        affine_dequantize(codes.view(), t.get(0), t.get(1), &spec())
    });
    refuses("rtn", &[WEIGHT], |t| rtn(t.get(0), &spec(), &RtnSpec::default()));
}

#[test]
fn qa_lora_and_peqa_operations() {
    let codes = Array::from_elem((3, 4), 9_u8);
    fn qa_lora<'a>(codes: &'a Array<u8, ndarray::Ix2>, t: &'a Tensors) -> QaLora<'a, f64> {
        QaLora {
            codes: codes.view(),
            scale: t.get(0),
            zero_point: t.get(1),
            lora_a: t.get(2),
            lora_b: t.get(3),
            lora_scaling: 2.0,
            pool: GroupPool::default(),
            spec: spec(),
        }
    }
    let layer = [SCALE, ZERO_POINT, ("lora_a", &[1, 2][..]), LORA_B];
    let with = |more: &[(&'static str, &'static [usize])]| [&layer[..], more].concat();
    refuses("qa_lora.merge", &layer, |t| qa_lora(&codes, t).merge());
    refuses("qa_lora.forward", &with(&[X]), |t| qa_lora(&codes, t).forward(t.get(4)));
    refuses("qa_lora.backward", &with(&[X, D_Y]), |t| {
        qa_lora(&codes, t).backward(t.get(4), t.get(5))
    });
    fn peqa<'a>(codes: &'a Array<u8, ndarray::Ix2>, t: &'a Tensors) -> Peqa<'a, f64> {
        Peqa { codes: codes.view(), scale: t.get(0), zero_point: t.get(1), spec: spec() }
    }
    let layer = [SCALE, ZERO_POINT, X];
    refuses("peqa.forward", &layer, |t| peqa(&codes, t).forward(t.get(2)));
    refuses("peqa.backward", &[SCALE, ZERO_POINT, X, D_Y], |t| {
        peqa(&codes, t).backward(t.get(2), t.get(3))
    });
    let codes = Array::from_elem((3, 4), 16_u8);
    let tensors = Tensors(layer.iter().map(|(_, s)| ArrayD::ones(IxDyn(s))).collect());
    let refused = peqa(&codes, &tensors).forward(tensors.get(2)).unwrap_err();
    assert_eq!(refused.to_string(), "peqa.forward: codes[0, 0] is 16, expected 0 to 15");
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

#[cfg(feature = "linalg")]
#[test]
fn updates_before_training() {
    use plumbline_reference::low_rank_init::{grid_lora_b, loftq_init, svd_init};
    use plumbline_reference::spec::LoftqQuantizer;
    refuses("svd_init", &[WEIGHT], |t| svd_init(t.get(0), 1, 2.0));
    let uniform = LoftqQuantizer::Uniform(spec());
    refuses("loftq_init", &[WEIGHT], |t| loftq_init(t.get(0), uniform, 1, 2, 2.0));
    let wide = Array::<f64, _>::ones((3, 6));
    let refused = loftq_init(wide.view(), uniform, 1, 2, 2.0).unwrap_err();
    assert_eq!(refused.to_string(), "loftq_init: weight has shape [3, 6], expected [3, 4]");
    let (lora_b, scale) = (Array::ones((3, 1)), Array::ones((3, 1)));
    refuses("grid_lora_b", &[LORA_B], |t| grid_lora_b(t.get(0), scale.view()));
    refuses("grid_lora_b", &[("scale", &[3, 1])], |t| grid_lora_b(lora_b.view(), t.get(0)));
    let groups = Array::<f64, _>::ones((3, 2));
    let refused = grid_lora_b(lora_b.view(), groups.view()).unwrap_err();
    assert_eq!(refused.to_string(), "grid_lora_b: scale has shape [3, 2], expected [3, 1]");
}

#[test]
fn searches_of_awq() {
    refuses("awq.scale", &[WEIGHT, X], |t| search_channel_scale(t.get(0), t.get(1), &spec(), 3));
    refuses("awq.clip", &[WEIGHT, X], |t| search_clip(t.get(0), t.get(1), &spec(), 4));
    let channels = &[4][..];
    refuses("awq.fold", &[("previous", channels), ("channel_scale", channels)], |t| {
        fold(t.get::<ndarray::Ix1>(0), t.get(1))
    });
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

const INITIAL_SCALE: (&str, &[usize]) = ("initial_scale", SCALE.1);

/// Generated zero-points are not integers; what is not finite stays as it is.
fn integers(t: &Tensors, index: usize) -> Array2<f64> {
    t.get::<Ix2>(index).mapv(f64::round_ties_even)
}

/// A layer of `[WEIGHT, LORA_A, LORA_B, SCALE, INITIAL_SCALE]` with zero-points, or the same with a
/// live inner scale and no `INITIAL_SCALE`.
fn lr_qat<'a>(t: &'a Tensors, zero_point: &'a Array2<f64>, live: bool) -> LrQat<'a, f64> {
    let inner = if live { InnerScale::Live } else { InnerScale::Frozen(Downcast::Fixed8) };
    LrQat {
        weight: t.get(0),
        initial_scale: (!live).then(|| t.get(4)),
        zero_point: Some(zero_point.view()),
        lora_a: t.get(1),
        lora_b: t.get(2),
        scale: t.get(3),
        lora_scaling: 2.0,
        spec: LrQatSpec::new(spec(), inner, LrQatMask::Rounded, LrQatDialect::Paper).unwrap(),
    }
}

#[test]
fn lr_qat_operations() {
    for kind in [Downcast::F32, Downcast::F16, Downcast::Fixed8, Downcast::Int] {
        refuses("lr_qat.downcast", &[WEIGHT, INITIAL_SCALE, ZERO_POINT], |t| {
            let zero_point = integers(t, 2);
            downcast(t.get(0), t.get(1), Some(zero_point.view()), &spec(), kind)
        });
        refuses("lr_qat.downcast", &[WEIGHT, INITIAL_SCALE], |t| {
            downcast(t.get(0), t.get(1), None, &spec(), kind)
        });
    }
    for live in [false, true] {
        let mut parameters = vec![WEIGHT, LORA_A, LORA_B, SCALE];
        if !live {
            parameters.push(INITIAL_SCALE);
        }
        let zero_point = parameters.len();
        parameters.push(ZERO_POINT);
        let with = |more: &[(&'static str, &'static [usize])]| [&parameters[..], more].concat();
        refuses("lr_qat.merge", &parameters, |t| lr_qat(t, &integers(t, zero_point), live).merge());
        refuses("lr_qat.forward", &with(&[X]), |t| {
            lr_qat(t, &integers(t, zero_point), live).forward(t.get(zero_point + 1))
        });
        refuses("lr_qat.backward", &with(&[X, D_Y]), |t| {
            let (x, d_y) = (t.get(zero_point + 1), t.get(zero_point + 2));
            lr_qat(t, &integers(t, zero_point), live).backward(x, d_y)
        });
    }
}

#[test]
fn stored_types() {
    for stored in [StoredType::Bf16, StoredType::F16] {
        refuses("cast", &[("input", &[3, 4])], |t| cast(t.get::<Ix2>(0), stored));
    }
    for rule in ScaleRule::ALL {
        refuses("round_scale", &[SCALE], |t| round_scale(t.get(0), rule));
        refuses("round_scale_backward", &[SCALE, ("d_rounded_scale", SCALE.1)], |t| {
            round_scale_backward(t.get(0), t.get(1), rule)
        });
    }
}

#[test]
fn quantization_aware_training() {
    let qat = |t: &Tensors, with_offset: bool| -> Result<(), Error> {
        let offset = with_offset.then(|| t.get(4));
        let layer = Qat { weight: t.get(2), scale: t.get(3), offset, spec: spec() };
        layer.backward(t.get(0), t.get(1), GradScale::None).map(|_| ())
    };
    refuses("qat.backward", &[X, D_Y, WEIGHT, SCALE, OFFSET], |t| qat(t, true));
    refuses("qat.backward", &[X, D_Y, WEIGHT, SCALE], |t| qat(t, false));
    refuses("qat.forward", &[X, WEIGHT, SCALE, OFFSET], |t| {
        let offset = Some(t.get(3));
        Qat { weight: t.get(1), scale: t.get(2), offset, spec: spec() }.forward(t.get(0))
    });
    let parameters = [WEIGHT, LORA_A, LORA_B, SCALE, OFFSET];
    let with = |more: &[(&'static str, &'static [usize])]| [&parameters[..], more].concat();
    fn beside(t: &Tensors) -> QatLora<'_, f64> {
        let L4q { weight, lora_a, lora_b, scale, offset, lora_scaling, spec } = layer(t);
        QatLora { weight, lora_a, lora_b, scale, offset, lora_scaling, spec }
    }
    refuses("qat_lora.forward", &with(&[X]), |t| beside(t).forward(t.get(5)));
    refuses("qat_lora.backward", &with(&[X, D_Y]), |t| {
        beside(t).backward(t.get(5), t.get(6), GradScale::None)
    });
}

#[test]
fn grids_from_the_data() {
    for rule in [ZeroPointRule::Integer, ZeroPointRule::Float] {
        refuses("dynamic_quantize", &[X], |t| dynamic_quantize(t.get(0), &spec(), rule));
        refuses("dynamic_quantize_backward", &[X, ("d_output", X.1)], |t| {
            dynamic_quantize_backward(t.get(0), t.get(1), &spec(), rule)
        });
    }
    let wide = Array::<f64, _>::ones((2, 6));
    let refused = dynamic_quantize(wide.view(), &spec(), ZeroPointRule::Integer).unwrap_err();
    assert_eq!(refused.to_string(), "dynamic_quantize: x has shape [2, 6], expected [2, 4]");
    fn lwc(t: &Tensors, symmetric: bool) -> Lwc<'_, f64> {
        Lwc { weight: t.get(0), upper: t.get(1), lower: t.get(2), spec: spec(), symmetric }
    }
    let logits = [WEIGHT, ("upper", SCALE.1), ("lower", SCALE.1)];
    for symmetric in [false, true] {
        refuses("lwc.forward", &logits, |t| lwc(t, symmetric).forward());
        refuses("lwc.backward", &[&logits[..], &[("d_output", WEIGHT.1)]].concat(), |t| {
            lwc(t, symmetric).backward(t.get(3))
        });
    }
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
    let spec = RopeSpec::new(1e4).unwrap();
    refuses("rope", &[("x", heads)], |t| rope(t.get(0), spec, 0));
    refuses("rope_backward", &[("d_output", heads)], |t| rope_backward(t.get(0), spec, 0));
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
